"""A model as one file that runs without this project: ONNX, or a PyTorch program.

Both take ``images``, uint8 (n, 3, size, size) of any n, as ``bintally.model.images.decode`` gives them, and give
``probabilities``, float32 (n, counts), calibrated. Both hold card and calibration: as metadata, and as the extra file
``card.json``. Equal models give equal bytes under one version of PyTorch.
"""

import json
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from bintally.faults import Fault
from bintally.files import replacing
from bintally.model.calibration import Calibration
from bintally.model.network import CountDistribution, CountingNetwork
from bintally.model.predictor import calibrated_network
from bintally.model.saved import Card

TOLERANCE = 1e-4
OPSET = 20  # of 2023: runtimes that know no newer one read it, too
FILES = {"onnx": "model.onnx", "torch": "model.pt2"}

Run = Callable[[torch.Tensor], torch.Tensor]


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

    Raises Fault if one is greater than TOLERANCE; then no file is written.
    """
    model = calibrated_network(network, card, calibration).eval()
    about = card.model_dump(mode="json") | {"calibration": calibration.model_dump(mode="json")}
    with ExitStack() as stack:
        runs: dict[Path, Run] = {}
        with warnings.catch_warnings(action="ignore"):  # of PyTorch's own insides; the files are compared below
            program = _trace(model, card)
            for name in formats:
                temporary = stack.enter_context(replacing(folder / FILES[name]))
                runs[folder / FILES[name]] = (_write_onnx if name == "onnx" else _write_torch)(
                    temporary, program, about
                )
        found: dict[Path, list[torch.Tensor]] = {path: [] for path in runs}
        for images in batches:
            expected = model(images)
            for path, run in runs.items():
                found[path].append((run(images) - expected).abs().max())
        differences = {path: float(torch.stack(some).max()) for path, some in found.items()}
        for path, difference in differences.items():
            if not difference <= TOLERANCE:  # not a number is no agreement
                raise Fault(
                    f"{path} would not be the model: a probability differs by {difference:.1e}, more than "
                    f"{TOLERANCE:.0e}; nothing is written"
                )
    return differences


def _trace(model: CountDistribution, card: Card) -> torch.export.ExportedProgram:
    # Two: a batch of one would be taken for a constant.
    example = torch.zeros(2, 3, card.image_size, card.image_size, dtype=torch.uint8)
    program = torch.export.export(model, (example,), dynamic_shapes=({0: torch.export.Dim("n")},), strict=False)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # the lines of source it came from, with their paths
    return program


def _write_onnx(path: Path, program: torch.export.ExportedProgram, about: dict[str, Any]) -> Run:
    import onnxruntime

    written = torch.onnx.export(
        program,
        dynamo=True,
        dynamic_shapes=({0: "n"},),
        input_names=["images"],
        output_names=["probabilities"],
        opset_version=OPSET,
        verbose=False,
    )
    assert written is not None
    for node in written.model.graph.all_nodes():
        node.metadata_props.clear()  # how it was traced
    written.model.metadata_props.update((k, v if isinstance(v, str) else json.dumps(v)) for k, v in about.items())
    written.model.doc_string = (
        "images: RGB, 0 to 255, squashed to the square, bilinear with antialiasing; normalised inside. "
        "probabilities: of each of calibration.counts."
    )
    path.write_bytes(written.model_proto.SerializeToString(deterministic=True))
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(["probabilities"], {"images": images.numpy()})[0])


def _write_torch(path: Path, program: torch.export.ExportedProgram, about: dict[str, Any]) -> Run:
    with path.open("wb") as file:
        torch.export.save(program, file, extra_files={"card.json": json.dumps(about)})
    with path.open("rb") as file:
        return torch.export.load(file).module()
