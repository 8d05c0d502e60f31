"""Collect the evidence of a diagnosis: profile a few steps, read the last run, run its model on validation."""

import json
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bintally import paths
from bintally.diagnosis.evidence import Evidence, ValidationOutputs, near_duplicate_share
from bintally.diagnosis.profiling import PROFILE, STEPS_VARIABLE, TRACE
from bintally.distributed.launch import launch
from bintally.distributed.process_group import RankContext
from bintally.files import SCRATCH, read_csv
from bintally.model.card import load_model
from bintally.model.encoded import load_encoded
from bintally.model.network import CountingNetwork
from bintally.params import Params
from bintally.progress import progress
from bintally.resources import default_device
from bintally.scoring.metrics import LabelledPredictions
from bintally.training.samples import Samples
from bintally.training.setup import prepare
from bintally.training.validation import predict_batches

EPOCHS = SCRATCH / "live/epochs.jsonl"
CURVES = ("train/loss", "train/accuracy", "train/gradient_norm", "validation/loss", "validation/accuracy")
SIGNATURE_WIDTH = 512  # maximum number of values that bins are compared by


def collect(params: Params, steps: int) -> Evidence:
    """Time ``steps`` training steps, and collect the evidence on ``params`` from the last run and the encoded bins."""
    profile = _profile(params, steps)
    outputs = _outputs(params)
    epochs, failure = _last_run(profile.pop("key"), outputs is not None)
    table = read_csv(paths.SPLITS)
    train_counts = [int(line["count"]) for line in table if line["split"] == "train"]
    return Evidence(
        profile=profile,
        epochs=epochs,
        failure=failure,
        outputs=outputs,
        train_counts={count: train_counts.count(count) for count in params.model_counts},
        near_duplicates=_near_duplicates([int(line["count"]) for line in table]),
    )


def _profile(params: Params, steps: int) -> dict[str, Any]:
    for path in (PROFILE, TRACE):
        path.unlink(missing_ok=True)
    os.environ[STEPS_VARIABLE] = str(steps)
    on_this_machine = params.launch.model_copy(update={"nnodes": 1, "max_restarts": 0})
    launch(on_this_machine, "bintally.diagnosis.profiling")
    profile: dict[str, Any] = json.loads(PROFILE.read_text(encoding="utf-8"))
    return profile


def _last_run(key: str, has_model: bool) -> tuple[list[dict[str, float]], str]:
    """The epochs of the last run and the error that ended it if it had this key, else the curves of the model."""
    lines = [json.loads(line) for line in EPOCHS.read_text(encoding="utf-8").splitlines()] if EPOCHS.is_file() else []
    if lines and lines[0]["key"] == key:
        failures = [line["fault"] for line in lines if "fault" in line]
        return [line for line in lines if "epoch" in line], failures[0] if failures else ""
    if not has_model:
        return [], ""
    columns = {}
    for curve in CURVES:
        rows = (paths.TRAINING_CURVES / f"plots/metrics/{curve}.tsv").read_text(encoding="utf-8").splitlines()[1:]
        name = curve.replace("train/gradient_norm", "gradient_norm").replace("/", "_")
        columns["epoch"], columns[name] = zip(*[map(float, row.split("\t")[-2:]) for row in rows], strict=True)
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)], ""


def _outputs(params: Params) -> ValidationOutputs | None:
    """The outputs of the model for the validation bins, if it was trained with these parameters."""
    if not (paths.MODELS / "card.json").is_file():
        return None
    network, card = load_model(paths.MODELS)
    if card.parameters != {name: getattr(params, name).model_dump() for name in card.parameters}:
        return None
    return validation_outputs(network, prepare(params).validation, card.counts)


@torch.inference_mode()
def validation_outputs(network: CountingNetwork, samples: Samples, counts: Sequence[int]) -> ValidationOutputs:
    """Run a trained network on ``samples``; ``counts`` are those of its classes."""
    context = RankContext(0, 1, default_device(), is_main=True)
    model = network.heads() if samples.kind == "features" else network
    model.to(context.device).eval()
    alive: list[torch.Tensor] = []
    hook = network.head[1].register_forward_hook(lambda _module, _inputs, units: alive.append((units > 0).any(0)))
    log_probabilities = []
    with progress("validation", len(samples.rows), "images") as advance:
        for batch, batch_log_probabilities in predict_batches(model, samples, context):
            log_probabilities.append(batch_log_probabilities.cpu().double())
            advance(len(batch.targets))
    hook.remove()
    dead_units = 1 - float(torch.stack(alive).any(0).float().mean())
    probabilities = torch.cat(log_probabilities).softmax(1).numpy()
    truth = np.asarray(counts)[samples.classes]
    return ValidationOutputs(LabelledPredictions(probabilities, truth, samples.groups, counts), dead_units)


def _near_duplicates(counts: Sequence[int]) -> float:
    """The near-duplicate share of the encoded bins, compared by sums over neighbouring values of their rows."""
    rows = load_encoded(paths.ENCODED).rows
    signatures = []
    for start in range(0, len(counts), SIGNATURE_WIDTH):
        part = rows.take(np.arange(start, min(start + SIGNATURE_WIDTH, len(counts))))
        # Rows of features are (views, width): the first view. Pixels are uint8 (3, size, size).
        values: NDArray[Any] = part.reshape(len(part), -1) if part.dtype == np.uint8 else part[:, 0]
        pieces = np.array_split(np.arange(values.shape[1]), min(SIGNATURE_WIDTH, values.shape[1]))
        signatures.append(np.add.reduceat(values.astype(np.float32), [piece[0] for piece in pieces], axis=1))
    return near_duplicate_share(np.concatenate(signatures), counts)
