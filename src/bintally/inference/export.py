"""A model as one file that runs without this project: ONNX, or a PyTorch program.

Both take ``images``, uint8 (n, 3, size, size) of any n, as ``bintally.model.images.decode`` returns them, and return
``probabilities``, float32 (n, counts), calibrated, ``evidence``, float32 (n, features, counts), of which
:mod:`bintally.scoring.evidence` says what it is, and ``distance``, float32 (n, 1), or (n, 0) of a model without it, of
which :class:`bintally.model.network.FeatureDistance` does. ONNX holds the card, ``calibration`` and ``records`` as
metadata, a program as the extra file ``card.json``. ``records`` is what is needed to combine the first two with what a
record lists, as :mod:`bintally.scoring.record_model` does; null for a model without it. Equal models give equal bytes
under one version of PyTorch.
"""

import json
import warnings
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from bintally.errors import UserError
from bintally.files import atomic_write
from bintally.inference.runtime import Runner, calibrated_network, onnx_runner, to_onnx, trace
from bintally.model.card import ModelCard
from bintally.model.network import CountingNetwork
from bintally.scoring.calibration import Calibration
from bintally.scoring.record_model import RecordModel

TOLERANCE = 1e-4
FILES = {"onnx": "model.onnx", "torch": "model.pt2"}


@torch.no_grad()
def export(
    folder: Path,
    network: CountingNetwork,
    card: ModelCard,
    calibration: Calibration,
    records: RecordModel | None,
    formats: Sequence[str],
    batches: Iterable[torch.Tensor],
) -> dict[Path, float]:
    """Write a model to ``folder`` and return, by file, the greatest difference of an output from the model's.

    Raises UserError if a difference exceeds TOLERANCE; then no file is written.

    Args:
        network: on the CPU, in evaluation mode.
        records: None for a model without one.
        formats: keys of FILES.
        batches: images to compare, at least one batch, uint8 (n, 3, size, size) of any n.
    """
    model = calibrated_network(network, card, calibration)
    metadata = card.model_dump(mode="json") | {
        "calibration": calibration.model_dump(mode="json"),
        "records": records.model_dump(mode="json") if records else None,
    }
    with ExitStack() as stack:
        runners: dict[Path, Runner] = {}
        program = trace(model, card)
        for name in formats:
            temporary = stack.enter_context(atomic_write(folder / FILES[name]))
            write = _write_onnx if name == "onnx" else _write_torch
            runners[folder / FILES[name]] = write(temporary, program, metadata)
        by_batch: dict[Path, list[torch.Tensor]] = {path: [] for path in runners}
        for images in batches:
            expected = model(images)
            for path, run in runners.items():
                outputs = zip(run(images), expected, strict=True)
                by_batch[path] += [(found - value).abs().max() for found, value in outputs if value.numel()]
        differences = {path: float(torch.stack(values).max()) for path, values in by_batch.items()}
        for path, difference in differences.items():
            if not difference <= TOLERANCE:  # NaN is not
                raise UserError(
                    f"{path} would differ from the model: by {difference:.1e} in an output, more than "
                    f"{TOLERANCE:.0e}; nothing is written"
                )
    return differences


def _write_onnx(path: Path, program: torch.export.ExportedProgram, metadata: dict[str, Any]) -> Runner:
    path.write_bytes(to_onnx(program, metadata))
    return onnx_runner(path.read_bytes())


def _write_torch(path: Path, program: torch.export.ExportedProgram, metadata: dict[str, Any]) -> Runner:
    with warnings.catch_warnings(action="ignore"), path.open("wb") as file:
        torch.export.save(program, file, extra_files={"card.json": json.dumps(metadata)})
    with path.open("rb") as file:
        return torch.export.load(file).module()
