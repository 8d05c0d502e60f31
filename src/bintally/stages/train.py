"""Learn what is left to learn, in `launch.ranks` processes on each of `launch.nnodes` machines under torchrun.

`python -m bintally.stages.train` checks the parameters and starts

    torchrun --nnodes=<launch.nnodes> --nproc-per-node=<launch.ranks> --rdzv-backend=c10d \
        --rdzv-endpoint=<launch.rdzv_endpoint> --max-restarts=<launch.max_restarts> -m bintally.stages.train

(through torchrun's own module, so that a failed rank ends in one line), which runs `work` in every process. With
several machines the same command runs on each, and each comes to the same outs.
"""

import logging
import os
import signal
import sys
import threading
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bintally.bins.facts import NUMBERS, WORDS, facts
from bintally.bins.groups import random_group_subset
from bintally.bins.shards import ShardReader, read_index
from bintally.errors import UserError, disk_full_as_user_error
from bintally.files import SCRATCH, read_csv, write_json
from bintally.hashing import sha256_hex, source_code
from bintally.interruption import Stopped, StopRequest, terminate_with_parent
from bintally.memory import configure_malloc
from bintally.monitor import Live, tensorboard_folder
from bintally.params import Launch, Params, load_params
from bintally.paths import BINS, ENCODED, MODELS, SPLITS, TRAIN_METRICS, TRAINING_CURVES
from bintally.progress import log_to_stderr
from bintally.stages import fail, run

if TYPE_CHECKING:  # the process that starts torchrun has no need of torch
    from bintally.model.network import CountingNetwork
    from bintally.training.samples import Samples

log = logging.getLogger("bintally")
STOPPED = 128 + signal.SIGTERM
UNTIL_TORCHRUN_SAYS_S = 3.0
RESUMES = "`dvc repro` goes on from where it was"


def launch(params: Params, module: str = "bintally.stages.train") -> None:
    """Start torchrun on a module and turn its report of a failed rank into one sentence."""
    settings = params.launch
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # a connection that is tried again fills pages otherwise
    tensorboard_folder()  # what is wrong with it is said once, and before any work
    log.info("ranks: %d, threads of each: %s", settings.ranks, os.environ["OMP_NUM_THREADS"])

    from torch.distributed import DistError
    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError

    for name in [name for name in logging.root.manager.loggerDict if name.startswith("torch.distributed")]:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    if settings.nnodes > 1:
        threading.Thread(target=_end_when_cut_off, args=(settings,), daemon=True).start()
    try:
        torchrun.main([*_rendezvous(settings), "--module", module])
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode == -signal.SIGKILL:
            reason = f"rank {rank} was ended by SIGKILL, as the system does where memory is short"
        elif failure.exitcode < 0:
            reason = f"rank {rank} was ended by {signal.Signals(-failure.exitcode).name}"
        elif failure.exitcode == STOPPED:
            reason = f"rank {rank} was asked to stop"
        else:
            reason = f"rank {rank} stopped with exit code {failure.exitcode}, its reason is above"
        raise UserError(f"{reason}; {RESUMES}") from error
    except SignalException as error:
        raise UserError(f"stopped by {error.sigval.name}, what was learned is kept; {RESUMES}") from error
    except (RendezvousError, DistError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(
            f"{settings.nnodes} machines could not meet at launch.rdzv_endpoint ({settings.rdzv_endpoint}): {reason}; "
            f"check that each of them reaches it and runs the same command; {RESUMES}"
        ) from error


def _rendezvous(settings: Launch) -> list[str]:
    """torchrun's options, among them which of this machine's addresses the others reach it by."""
    from bintally.training.network_address import route_to

    several = settings.nnodes > 1
    address, interface, is_host = route_to(settings.rdzv_endpoint if several else "127.0.0.1:1")
    os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
    if several and address.startswith("127."):
        raise UserError(
            f"launch.rdzv_endpoint: '{settings.rdzv_endpoint}' is an address inside this machine, as /etc/hosts often "
            "has its own name; give one the other machines reach it by"
        )
    if several:
        os.environ.setdefault("NCCL_SOCKET_IFNAME", interface)
    # The store torchrun would share with its ranks keeps, over a restart, the addresses of ranks that have died.
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    wait = settings.timeout_s
    return [
        f"--nnodes={settings.nnodes}",
        f"--nproc-per-node={settings.ranks}",
        "--rdzv-backend=c10d",
        f"--rdzv-endpoint={settings.rdzv_endpoint if several else 'localhost:0'}",
        f"--rdzv-conf=is_host={is_host},read_timeout={wait},join_timeout={wait}",
        "--rdzv-id=bintally",
        f"--local-addr={address}",
        f"--max-restarts={settings.max_restarts}",
    ]


def _end_when_cut_off(settings: Launch) -> None:
    """End this process where all ranks on this machine have ended and torchrun has not noticed for `launch.timeout_s`.

    It asks the other machines first and, when the network is gone, waits for their answer without end.
    """
    ranks = Path(f"/proc/self/task/{os.getpid()}/children")
    idle_since = float("inf")
    while True:
        time.sleep(1)
        alive = [pid for pid in ranks.read_text().split() if not _has_ended(pid)]
        idle_since = time.monotonic() if alive else idle_since
        if time.monotonic() - idle_since > settings.timeout_s:
            at = settings.rdzv_endpoint
            fail("train", UserError(f"its ranks have ended and {at} does not answer: is the network up? {RESUMES}"))
            os._exit(1)


def _has_ended(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


@dataclass(frozen=True)
class Prepared:
    """What a training starts from."""

    network: "CountingNetwork"
    train: "Samples"
    validation: "Samples"
    data: str
    """Hash of all it learns from."""


def prepare(params: Params) -> Prepared:
    """Read the encoded bins and their split, and make the network that has learned nothing yet."""
    import torch

    from bintally.model.backbone import Backbone
    from bintally.model.encoded import load_encoded
    from bintally.model.network import CountingNetwork, Head
    from bintally.training.samples import Samples
    from bintally.training.teachers import taught

    model, train, counts = params.model, params.train, params.model_counts
    torch.manual_seed(train.seed)
    encoded = load_encoded(ENCODED)
    backbone = Backbone(model.backbone, model.image_size, model.features)
    backbone.load_state_dict(encoded.backbone_state)
    encoded.ready(backbone)
    told = NUMBERS + WORDS if train.records else 0
    head = Head(backbone.width, train.hidden, len(counts), train.ordinal, train.seed, told)
    network = CountingNetwork(backbone, head)
    table = read_csv(SPLITS)
    splits = np.array([row["split"] for row in table])
    of_bins = np.array([int(row["count"]) for row in table])
    classes = np.searchsorted(counts, of_bins)

    used = random_group_subset([row["group"] for row in table], train.share, train.seed) | (splits != "train")
    if train.records:
        reader = ShardReader(BINS)
        of_records = facts([reader.record(entry) for entry in read_index(BINS)], (splits == "train") & used)
    teachers = [Path(folder) for folder in train.teachers]

    def samples(split: str) -> Samples:
        rows = np.flatnonzero((splits == split) & np.isin(of_bins, counts) & used)
        names, groups = ([table[row][column] for row in rows] for column in ("id", "group"))
        said = taught(teachers, encoded, rows, counts) if teachers and split == "train" else None
        recorded = torch.from_numpy(of_records[rows]) if train.records and split == "train" else None
        kind = encoded.encoding.kind
        return Samples(encoded.rows, kind, rows, classes[rows], names, groups, model.mirror, said, recorded)

    taught_by = [(folder / "model.safetensors").read_bytes() for folder in teachers]
    data = sha256_hex(encoded.encoding.digest.encode(), SPLITS.read_bytes(), *taught_by)
    return Prepared(network, samples("train"), samples("validation"), data)


def work(params: Params, stop: StopRequest) -> None:
    """What each rank does; one on each machine writes."""
    from bintally.model.card import Card, save_model
    from bintally.training.checkpoint import Checkpoints
    from bintally.training.distributed import is_main_process, process_group
    from bintally.training.loop import fit

    model, train = params.model, params.train
    prepared = prepare(params)
    network, backbone = prepared.network, prepared.network.backbone
    key = run_key(params, prepared.data)
    live = Live(TRAINING_CURVES, SCRATCH / "live", key, train.epochs)
    with live if is_main_process() else nullcontext() as told, process_group(params.launch.timeout_s) as place:
        checkpoints = Checkpoints(SCRATCH / "train", key, params.launch.checkpoint_s)
        stepped = told.step if told else lambda _done, _total: None
        best = fit(
            network, prepared.train, prepared.validation, params, place, checkpoints, stop, live.epoch, stepped
        ).best
        if not place.is_main_process:
            return
        card = Card(
            backbone=model.backbone,
            features=model.features,
            image_size=model.image_size,
            mean=backbone.mean.flatten().tolist(),
            std=backbone.std.flatten().tolist(),
            mirror=model.mirror,
            counts=params.model_counts,
            hidden=train.hidden,
            ordinal=train.ordinal,
            parameters={name: getattr(params, name).model_dump() for name in ("model", "train", "augment")},
            data=prepared.data,
            validation={"loss": best.validation_loss, "accuracy": best.validation_accuracy},
        )
        network.head.drop_facts()
        save_model(MODELS, network, card)
        write_json(
            TRAIN_METRICS,
            {
                "best_epoch": best.epoch,
                "train": {"loss": best.train_loss, "accuracy": best.train_accuracy},
                "validation": {"loss": best.validation_loss, "accuracy": best.validation_accuracy},
            },
        )
        checkpoints.remove()


def run_key(params: Params, data: str) -> str:
    """Hash of everything that a resumed run must share with the interrupted one, its code included."""
    sections = [section.model_dump_json().encode() for section in (params.model, params.train, params.augment)]
    ranks = str(params.launch.ranks * params.launch.nnodes)
    return sha256_hex(data.encode(), *sections, ranks.encode(), source_code("training", "model"))


def _rank() -> None:
    """One process of torchrun's, from its start to its end."""
    terminate_with_parent()
    configure_malloc()
    stop = StopRequest()
    stop.listen()
    from bintally.training.distributed import RanksLost, is_main_process, leave

    log_to_stderr()
    status = 0
    try:
        with disk_full_as_user_error("the outs of train"):
            work(load_params(), stop)
    except Stopped:
        status = STOPPED
    except UserError as fault:
        # What all ranks see the first of them says. A rank that fails alone says it, but torchrun then ends the
        # others, which lose it just before.
        if isinstance(fault, RanksLost) or not is_main_process():
            stop.wait(UNTIL_TORCHRUN_SAYS_S)
        status = STOPPED if stop.came else 1
        if not stop.came:
            print(f"train: {fault}", file=sys.stderr)
    leave(status)


if __name__ == "__main__":
    if "TORCHELASTIC_RUN_ID" in os.environ:
        _rank()
    else:
        run("train", launch)
