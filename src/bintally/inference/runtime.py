"""The function that runs a model: ONNX Runtime on a CPU, where it takes less than half of PyTorch's time
(`benchmarks/serve.py`), PyTorch on a GPU."""

import json
import logging
import os
import stat
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.onnx.errors import OnnxExporterError

from bintally.errors import UserError
from bintally.files import SCRATCH, atomic_write
from bintally.hashing import sha256_hex, source_code
from bintally.model.card import ModelCard
from bintally.model.network import CalibratedNetwork, CountingNetwork
from bintally.resources import available_cpus
from bintally.scoring.calibration import Calibration

ONNX_CACHE, ONNX_CACHE_SIZE = SCRATCH / "onnx", 4

log = logging.getLogger("bintally")

OUTPUTS = ["probabilities", "evidence", "distance"]
Outputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Calibrated probabilities, float32 (n, counts), tables of evidence, float32 (n, features of a list, counts), and the
distance of the features from training's, float32 (n, 1), or (n, 0) of a model without it."""
Runner = Callable[[torch.Tensor], Outputs]
"""Takes uint8 (n, 3, size, size) of any n."""


def calibrated_network(network: CountingNetwork, card: ModelCard, calibration: Calibration) -> CalibratedNetwork:
    """The module that predicts with a calibration. Raises UserError if the model has not all of its counts."""
    if not set(calibration.counts) <= set(card.counts):
        raise UserError(
            f"the calibration answers with the counts {calibration.counts}, the model knows {card.counts}: copy all "
            "files of one model, or `dvc repro`"
        )
    classes = [card.counts.index(count) for count in calibration.counts]
    return CalibratedNetwork(network, card.mirror, classes, calibration.temperature).eval()


def load_runner(network: CountingNetwork, card: ModelCard, calibration: Calibration, device: torch.device) -> Runner:
    """The fastest runner of a model on a device; thread-safe."""
    model = calibrated_network(network, card, calibration)
    if device.type == "cpu":
        try:
            return onnx_runner(_cached_onnx(model, card))
        except OnnxExporterError as error:
            reason = str(error).splitlines()[0]
            log.warning("%s cannot be exported to ONNX, so PyTorch runs it: %s", card.backbone, reason)
    model.to(device)

    @torch.inference_mode()
    def run(images: torch.Tensor) -> Outputs:
        probabilities, tables, distances = model(images.to(device))
        return probabilities.cpu(), tables.cpu(), distances.cpu()

    return run


def onnx_runner(onnx: bytes) -> Runner:
    """A runner by ONNX Runtime on all cores that this process may use."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = available_cpus()
    session = onnxruntime.InferenceSession(onnx, options, providers=["CPUExecutionProvider"])

    def run(images: torch.Tensor) -> Outputs:
        probabilities, tables, distances = map(torch.from_numpy, session.run(OUTPUTS, {"images": images.numpy()}))
        return probabilities, tables, distances

    return run


def trace(model: CalibratedNetwork, card: ModelCard) -> torch.export.ExportedProgram:
    """The graph of a model, for batches of any size."""
    # Two images: with one the batch size would be taken for a constant.
    example = torch.zeros(2, 3, card.image_size, card.image_size, dtype=torch.uint8)
    with torch.no_grad(), warnings.catch_warnings(action="ignore"):  # about PyTorch's internals
        program = torch.export.export(model, (example,), dynamic_shapes=({0: torch.export.Dim("n")},), strict=False)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # lines of source, with their paths
    return program


def to_onnx(program: torch.export.ExportedProgram, metadata: dict[str, Any]) -> bytes:
    """An ONNX file of a graph and metadata; equal graphs give equal bytes."""
    with warnings.catch_warnings(action="ignore"):
        onnx_program = torch.onnx.export(
            program,
            dynamo=True,
            dynamic_shapes=({0: "n"},),
            input_names=["images"],
            output_names=OUTPUTS,
            opset_version=20,  # of 2023: older runtimes read it, too
            verbose=False,
        )
    assert onnx_program is not None
    for node in onnx_program.model.graph.all_nodes():
        node.metadata_props.clear()  # how it was traced
    onnx_program.model.metadata_props.update(
        (key, value if isinstance(value, str) else json.dumps(value)) for key, value in metadata.items()
    )
    onnx_program.model.doc_string = (
        "images: RGB, 0 to 255, resized to the square by squashing, bilinear with antialiasing; normalised inside. "
        "probabilities: one for each of calibration.counts. evidence: what the photograph adds to a list of products, "
        "features of the list by counts. distance: of the photograph's features from training's; the card's distances "
        "has the quantiles of validation's."
    )
    content: bytes = onnx_program.model_proto.SerializeToString(deterministic=True)
    return content


def _cached_onnx(model: CalibratedNetwork, card: ModelCard) -> bytes:
    """A model as ONNX, kept in ONNX_CACHE, as the export takes about twenty seconds."""
    settings = f"{torch.__version__} {model.classes.tolist()} {model.temperature} {card}".encode()
    weights = (value.contiguous().numpy().tobytes() for value in model.network.state_dict().values())
    key = sha256_hex(settings, source_code("inference", "model"), *weights)[:32]
    for path in ONNX_CACHE.glob(f"{key}-*.onnx"):
        if content := _trusted_onnx(path):
            return content
        log.info("%s is damaged or not this user's alone, and is made anew", path)
    log.info("exporting the model to ONNX, once; this takes about twenty seconds")
    content = to_onnx(trace(model, card), {})
    try:
        ONNX_CACHE.mkdir(mode=0o700, parents=True, exist_ok=True)
        ONNX_CACHE.chmod(0o700)
        with atomic_write(ONNX_CACHE / f"{key}-{sha256_hex(content)}.onnx", 0o600) as temporary:
            temporary.write_bytes(content)
        for old in sorted(ONNX_CACHE.glob("*.onnx"), key=lambda file: file.stat().st_mtime)[:-ONNX_CACHE_SIZE]:
            old.unlink(missing_ok=True)
    except (OSError, UserError) as error:
        log.warning("the exported model cannot be kept for the next start: %s", error)
    return content


def _trusted_onnx(path: Path) -> bytes | None:
    """The content of a file that this user alone can write and whose name ends with the content's digest, else None."""
    try:
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
            status = os.fstat(file.fileno())
            if status.st_uid != os.geteuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                return None
            content = file.read()
    except OSError:
        return None
    return content if path.stem.endswith(f"-{sha256_hex(content)}") else None
