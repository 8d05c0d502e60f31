"""Learn what is left to learn, in `launch.ranks` processes under torchrun.

`python -m bintally.stages.train` checks the parameters and starts

    torchrun --nproc-per-node=<launch.ranks> --rdzv-backend=c10d --rdzv-endpoint=localhost:0 -m bintally.stages.train

(through torchrun's own module, so that a failed rank ends in one line), which runs `work` in every process.
"""

import hashlib
import os
import signal
import sys
from pathlib import Path

import numpy as np

import bintally
from bintally.faults import Fault
from bintally.files import SCRATCH, read_csv, write_json
from bintally.params import Params
from bintally.stages import run
from bintally.stages.paths import ENCODED, MODELS, SPLITS, TRAIN_METRICS, TRAINING_CURVES


def launch(params: Params) -> None:
    """Start torchrun and turn its report of a failed rank into one sentence."""
    import logging

    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // params.launch.ranks)))
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    try:
        torchrun.main(
            [
                f"--nproc-per-node={params.launch.ranks}",
                "--rdzv-backend=c10d",
                "--rdzv-endpoint=localhost:0",
                "--module",
                "bintally.stages.train",
            ]
        )
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode < 0:
            reason = f"rank {rank} was ended by {signal.Signals(-failure.exitcode).name}"
        else:
            reason = f"rank {rank} stopped with exit code {failure.exitcode}, its reason is above"
        raise Fault(f"{reason}; `dvc repro` goes on from the last whole epoch") from error


def work(params: Params) -> None:
    """What each rank does; rank 0 writes."""
    import torch
    from dvclive.live import Live

    from bintally.model.encoded import load_encoded
    from bintally.model.network import CountingNetwork, make_head
    from bintally.model.saved import Card, save_model
    from bintally.model.trunk import Trunk
    from bintally.training.checkpoint import Checkpoint
    from bintally.training.distribution import joined, leave, share_batch_norm
    from bintally.training.loop import Epoch, Samples, fit

    model, train, counts = params.model, params.train, params.fetch.counts
    encoded = load_encoded(ENCODED)
    trunk = Trunk(model.trunk, model.image_size, model.features == "every_scale")
    trunk.load_state_dict(encoded.trunk_state)
    network = CountingNetwork(trunk, make_head(trunk.width, train.hidden, len(counts), train.seed))
    table = read_csv(SPLITS)
    splits = np.array([row["split"] for row in table])
    classes = np.searchsorted(counts, [int(row["count"]) for row in table])

    def samples(split: str) -> Samples:
        rows = np.flatnonzero(splits == split)
        return Samples(encoded.array, rows, classes[rows], model.mirror)

    data = hashlib.sha256(encoded.encoding.digest.encode() + SPLITS.read_bytes()).hexdigest()
    with joined() as place:
        checkpoint = Checkpoint(SCRATCH / "train", _key(params, data))
        live = (
            Live(str(TRAINING_CURVES), dvcyaml=None, report=None, save_dvc_exp=False, monitor_system=False)
            if place.rank == 0
            else None
        )

        def report(epoch: Epoch) -> None:
            assert live is not None
            live.step = epoch.epoch
            for split in ("train", "validation"):
                for metric in ("loss", "accuracy"):
                    live.log_metric(f"{split}/{metric}", getattr(epoch, f"{split}_{metric}"))
            live.make_summary()

        if not model.freeze:
            share_batch_norm(network)
        learner = network.head if model.freeze else network
        torch.manual_seed(train.seed)
        result = fit(learner, samples("train"), samples("validation"), train, place, checkpoint, report)
        if live is None:
            leave()
        live.end()
        learner.load_state_dict(result.state)
        best = result.best
        card = Card(
            trunk=model.trunk,
            features=model.features,
            image_size=model.image_size,
            mean=trunk.mean.flatten().tolist(),
            std=trunk.std.flatten().tolist(),
            mirror=model.mirror,
            counts=counts,
            hidden=train.hidden,
            parameters={"model": model.model_dump(), "train": train.model_dump()},
            data=data,
            validation={"loss": best.validation_loss, "accuracy": best.validation_accuracy},
        )
        save_model(MODELS, network, card)
        write_json(
            TRAIN_METRICS,
            {
                "best_epoch": best.epoch,
                "train": {"loss": best.train_loss, "accuracy": best.train_accuracy},
                "validation": {"loss": best.validation_loss, "accuracy": best.validation_accuracy},
            },
        )
        checkpoint.remove()
        leave()


def _key(params: Params, data: str) -> str:
    """Hash of everything that a resumed run must share with the interrupted one, its code included."""
    digest = hashlib.sha256(data.encode())
    for section in (params.model, params.train, params.launch):
        digest.update(section.model_dump_json().encode())
    root = Path(bintally.__file__).parent
    for path in sorted([*root.glob("training/*.py"), *root.glob("model/*.py")]):
        digest.update(path.read_bytes())
    return digest.hexdigest()


if __name__ == "__main__":
    if "TORCHELASTIC_RUN_ID" in os.environ:
        from bintally.params import load_params
        from bintally.progress import log_to_stderr

        log_to_stderr()
        try:
            work(load_params())
        except Fault as fault:
            print(f"train: {fault}", file=sys.stderr)
            sys.exit(1)
    else:
        run("train", launch)
