"""Train what `model.trainable` names, in `launch.ranks` processes on each of `launch.nnodes` machines, and predict.

`python -m bintally.stages.train` starts torchrun's agent (:mod:`bintally.distributed.launch`), which calls
:func:`run_rank` in every process. With several machines the same command runs on each, and each writes the same outs.
"""

from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from bintally.distributed.rank import run_as_rank
from bintally.files import METRIC_DIGITS, SCRATCH, round_floats, write_json
from bintally.interruption import Stopped, StopRequest
from bintally.monitor import TrainingMonitor, tensorboard_folder
from bintally.params import Params
from bintally.paths import ENCODED, EVIDENCE, LOG_PROBABILITIES, MODELS, TRAIN_METRICS, TRAINING_CURVES
from bintally.stages import report_failure, run

if TYPE_CHECKING:  # OMP_NUM_THREADS is set before torch is imported
    import torch

    from bintally.training.loop import EpochMetrics
    from bintally.training.setup import TrainingSetup


def main(params: Params) -> None:
    tensorboard_folder()  # an invalid one is reported once, before any work
    from bintally.distributed.launch import launch

    preload = ("bintally.training.loop", "bintally.training.setup")
    launch(params.launch, "bintally.stages.train", partial(report_failure, "train"), preload)


def run_rank() -> int:
    """Train as one rank; the exit code of its process."""
    return run_as_rank("train", _train)


def _train(params: Params, stop: StopRequest) -> None:
    from bintally.distributed.process_group import is_main_process, process_group
    from bintally.training.checkpoint import Checkpoints
    from bintally.training.loop import TrainingResult, fit
    from bintally.training.setup import prepare, run_key, seeds

    setup = prepare(params)
    key = run_key(params, setup.data_digest)
    results: list[TrainingResult] = []
    monitor = TrainingMonitor(SCRATCH / "live", key, params.train.networks * params.train.epochs)
    with monitor if is_main_process() else nullcontext(), process_group(params.launch.timeout_s) as context:
        curves = None
        if context.is_main:
            from bintally.training.curves import TrainingCurves

            curves = TrainingCurves(TRAINING_CURVES)

        def on_epoch(metrics: "EpochMetrics") -> None:
            earlier = len(results) * params.train.epochs
            monitor.on_epoch(replace(metrics, epoch=earlier + metrics.epoch))
            if curves and not results:  # of the first network
                curves.on_epoch(metrics)

        def on_step(done: int, total: int) -> None:
            if context.is_main:
                monitor.on_step(len(results) * total + done, params.train.networks * total)

        for number, (network, seed) in enumerate(zip(setup.networks, seeds(params), strict=True)):
            checkpoints = Checkpoints(SCRATCH / "train", key, params.launch.checkpoint_s, number)
            ours = params.model_copy(update={"train": params.train.model_copy(update={"seed": seed})})
            results.append(
                fit(network, setup.train, setup.validation, ours, context, checkpoints, stop, on_epoch, on_step)
            )
        if curves:
            curves.end()
            _write_outs(params, setup, context.device, [result.best for result in results])
        if stop.came:
            raise Stopped
        if context.is_main:
            checkpoints.remove()


def _write_outs(params: Params, setup: "TrainingSetup", device: "torch.device", best: "list[EpochMetrics]") -> None:
    import numpy as np

    from bintally.bins.trained_on import ENCODED_FILE, FILE, load_digests, save_digests
    from bintally.model.card import ModelCard, save_model
    from bintally.model.network import CountingNetwork
    from bintally.model.prediction import predict_encoded
    from bintally.scoring.outputs import write_outputs
    from bintally.training.distance import fit_distance

    network, model = CountingNetwork.of(setup.networks), params.model
    rows = np.flatnonzero(np.isin(setup.splits, ("validation", "test")))
    predicted = predict_encoded(network, model.mirror, setup.encoded, rows, device)
    for path, values in zip((LOG_PROBABILITIES, EVIDENCE), predicted, strict=True):
        write_outputs(path, len(setup.splits), rows, values)
    fitted = fit_distance(network, model.mirror, setup.encoded, setup.train.rows, setup.validation.rows, device)
    network.distance, distances = fitted or (None, None)
    photographs = load_digests(ENCODED / ENCODED_FILE)[setup.train.rows]
    trained_on = save_digests(MODELS / FILE, sorted(photographs.tolist()))
    train, validation = (
        {key: float(np.mean([getattr(one, f"{split}_{key}") for one in best])) for key in ("loss", "accuracy")}
        for split in ("train", "validation")
    )
    validation = round_floats(validation, METRIC_DIGITS)
    card = ModelCard(
        backbone=model.backbone,
        features=model.features,
        image_size=model.image_size,
        mean=network.backbone.mean.flatten().tolist(),
        std=network.backbone.std.flatten().tolist(),
        mirror=model.mirror,
        counts=params.model_counts,
        hidden=params.train.hidden,
        ordinal=params.train.ordinal,
        networks=params.train.networks,
        list_features=setup.list_features,
        distances=distances,
        parameters={name: getattr(params, name).model_dump() for name in ("model", "train", "augment")},
        data=setup.data_digest,
        trained_on=trained_on,
        validation=validation,
    )
    save_model(MODELS, network, card)
    metrics = {"best_epoch": best[0].epoch, "train": train, "validation": validation}
    write_json(TRAIN_METRICS, metrics, METRIC_DIGITS)


if __name__ == "__main__":
    run("train", main, lambda params: params.launch.ranks)
