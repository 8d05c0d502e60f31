"""A model as one file that runs without this project: ONNX, or a PyTorch program.

Both take ``images``, uint8 (n, 3, size, size) of any n, as ``bintally.model.images.decode`` gives them, and give
``probabilities``, float32 (n, counts), calibrated. Both hold card and calibration: as metadata, and as the extra file
``card.json``. Equal models give equal bytes under one version of PyTorch.
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
from bintally.inference.runtime import Run, calibrated_network, onnx_bytes, session, trace
from bintally.model.card import Card
from bintally.model.network import CountingNetwork
from bintally.scoring.calibration import Calibration

TOLERANCE = 1e-4
FILES = {"onnx": "model.onnx", "torch": "model.pt2"}


@torch.no_grad()
def export(
    folder: Path,
    network: CountingNetwork,
    card: Card,
    calibration: Calibration,
    formats: Sequence[str],
    batches: Iterable[torch.Tensor],
) -> dict[Path, float]:
    """Write a model to ``folder`` and compare what the files say with what the model says.

    Args:
        network: on the CPU, in evaluation mode.
        formats: keys of FILES.
        batches: at least one, uint8 (n, 3, size, size) of any n.

    Returns:
        The greatest difference between a file's probability and the model's, for each file.

    Raises UserError if one is greater than TOLERANCE; then no file is written.
    """
    model = calibrated_network(network, card, calibration)
    about = card.model_dump(mode="json") | {"calibration": calibration.model_dump(mode="json")}
    with ExitStack() as stack:
        runs: dict[Path, Run] = {}
        program = trace(model, card)
        for name in formats:
            temporary = stack.enter_context(atomic_write(folder / FILES[name]))
            runs[folder / FILES[name]] = (_write_onnx if name == "onnx" else _write_torch)(temporary, program, about)
        found: dict[Path, list[torch.Tensor]] = {path: [] for path in runs}
        for images in batches:
            expected = model(images)
            for path, run in runs.items():
                found[path].append((run(images) - expected).abs().max())
        differences = {path: float(torch.stack(some).max()) for path, some in found.items()}
        for path, difference in differences.items():
            if not difference <= TOLERANCE:  # not a number is no agreement
                raise UserError(
                    f"{path} would not be the model: a probability differs by {difference:.1e}, more than "
                    f"{TOLERANCE:.0e}; nothing is written"
                )
    return differences


def _write_onnx(path: Path, program: torch.export.ExportedProgram, about: dict[str, Any]) -> Run:
    path.write_bytes(onnx_bytes(program, about))
    return session(path.read_bytes())


def _write_torch(path: Path, program: torch.export.ExportedProgram, about: dict[str, Any]) -> Run:
    with warnings.catch_warnings(action="ignore"), path.open("wb") as file:
        torch.export.save(program, file, extra_files={"card.json": json.dumps(about)})
    with path.open("rb") as file:
        return torch.export.load(file).module()
