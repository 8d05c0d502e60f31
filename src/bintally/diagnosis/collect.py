"""Collect the evidence of a diagnosis: profile a few steps, read the last run, run its model on validation."""

import json
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bintally import paths
from bintally.diagnosis.evidence import Evidence, ValidationOutputs, near_duplicate_share
from bintally.diagnosis.profiling import PROFILE, STEPS_VARIABLE, TRACE
from bintally.diagnosis.validation import validation_outputs
from bintally.files import SCRATCH, read_csv
from bintally.model.card import load_model
from bintally.model.encoded import load_encoded
from bintally.params import Params
from bintally.training.launch import launch
from bintally.training.setup import prepare

EPOCHS = SCRATCH / "live/epochs.jsonl"
CURVES = ("train/loss", "train/accuracy", "train/gradient_norm", "validation/loss", "validation/accuracy")
SIGNATURE_WIDTH = 512  # maximum number of values that bins are compared by


def collect(params: Params, steps: int) -> Evidence:
    """Collect all evidence on ``params`` from the encoded bins and the last run in the current folder.

    Args:
        steps: number of training steps to time.
    """
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
    """Profile in `launch.ranks` processes on this machine."""
    for path in (PROFILE, TRACE):
        path.unlink(missing_ok=True)
    os.environ[STEPS_VARIABLE] = str(steps)
    here = params.launch.model_copy(update={"nnodes": 1, "max_restarts": 0})
    launch(here, "bintally.diagnosis.profiling")
    profile: dict[str, Any] = json.loads(PROFILE.read_text(encoding="utf-8"))
    return profile


def _last_run(key: str, has_model: bool) -> tuple[list[dict[str, float]], str]:
    """Return the epochs of the last run and the error that ended it, if it had this key.

    If another run followed, the curves that belong to the model replace its epochs.
    """
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
    """Run the model on the validation bins, if it was trained with these parameters."""
    if not (paths.MODELS / "card.json").is_file():
        return None
    network, card = load_model(paths.MODELS)
    if card.parameters != {name: getattr(params, name).model_dump() for name in card.parameters}:
        return None
    load_encoded(paths.ENCODED).configure(network.backbone)
    return validation_outputs(network, prepare(params).validation, card.counts)


def _near_duplicates(counts: Sequence[int]) -> float:
    """Return the near-duplicate share of the encoded bins, compared by sums over neighbouring values of their rows."""
    rows = load_encoded(paths.ENCODED).rows
    signatures = []
    for start in range(0, len(counts), SIGNATURE_WIDTH):
        part = rows.take(np.arange(start, min(start + SIGNATURE_WIDTH, len(counts))))
        # Rows of features and maps are (views, width): the first view. Pixels are uint8 (3, size, size).
        values: NDArray[Any] = part.reshape(len(part), -1) if part.dtype == np.uint8 else part[:, 0]
        pieces = np.array_split(np.arange(values.shape[1]), min(SIGNATURE_WIDTH, values.shape[1]))
        signatures.append(np.add.reduceat(values.astype(np.float32), [piece[0] for piece in pieces], axis=1))
    return near_duplicate_share(np.concatenate(signatures), counts)
