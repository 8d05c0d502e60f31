"""A model as it is run: by ONNX Runtime on a CPU, which takes less than half of PyTorch's time there
(`benchmarks/serve.py`), by PyTorch on a GPU."""

import hashlib
import json
import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from torch.onnx.errors import OnnxExporterError

from bintally.errors import UserError
from bintally.files import SCRATCH, atomic_write
from bintally.model.card import Card
from bintally.model.network import CountDistribution, CountingNetwork
from bintally.resources import available_cpus
from bintally.scoring.calibration import Calibration

OPSET = 20  # of 2023: runtimes that know no newer one read it, too
KEPT, KEPT_MODELS = SCRATCH / "onnx", 4

log = logging.getLogger("bintally")

Run = Callable[[torch.Tensor], torch.Tensor]
"""uint8 (n, 3, size, size) of any n to probabilities, float32 (n, counts)."""


def calibrated_network(network: CountingNetwork, card: Card, calibration: Calibration) -> CountDistribution:
    """From pixels to what is answered, in one module."""
    chosen = [card.counts.index(count) for count in calibration.counts]
    return CountDistribution(network, card.mirror, chosen, calibration.temperature).eval()


def start(network: CountingNetwork, card: Card, calibration: Calibration, device: torch.device) -> Run:
    """The quickest way to run a model on a device; what it gives may be shared between threads."""
    model = calibrated_network(network, card, calibration)
    if device.type == "cpu":
        try:
            return session(_kept(model, card))
        except OnnxExporterError as error:
            log.warning(
                "%s is not to be had as ONNX, so PyTorch runs it: %s", card.backbone, str(error).splitlines()[0]
            )
    model.to(device)
    lock = Lock()  # the backbone gathers its maps in one list

    def run(images: torch.Tensor) -> torch.Tensor:
        with lock, torch.inference_mode():
            return model(images.to(device)).cpu()  # type: ignore[no-any-return]

    return run


def _kept(model: CountDistribution, card: Card) -> bytes:
    """A model as ONNX. That takes some twenty seconds, so it is kept for the next time."""
    key = hashlib.sha256(f"{torch.__version__} {model.chosen.tolist()} {model.temperature} {card}".encode())
    for code in sorted(Path(__file__).parent.glob("*.py")):
        key.update(code.read_bytes())
    for value in model.network.state_dict().values():
        key.update(value.contiguous().numpy().data)
    path = KEPT / f"{key.hexdigest()[:32]}.onnx"
    if path.is_file():
        return path.read_bytes()
    log.info("putting the model into ONNX takes some twenty seconds")
    content = onnx_bytes(trace(model, card), {})
    try:
        with atomic_write(path) as temporary:
            temporary.write_bytes(content)
        for old in sorted(KEPT.glob("*.onnx"), key=lambda one: one.stat().st_mtime)[:-KEPT_MODELS]:
            old.unlink(missing_ok=True)
    except (OSError, UserError) as error:
        log.warning("it cannot be kept for the next time: %s", error)
    return content


def trace(model: CountDistribution, card: Card) -> torch.export.ExportedProgram:
    """The graph of a model, for batches of any size."""
    # Two: a batch of one would be taken for a constant.
    example = torch.zeros(2, 3, card.image_size, card.image_size, dtype=torch.uint8)
    with torch.no_grad(), warnings.catch_warnings(action="ignore"):  # of PyTorch's own insides
        program = torch.export.export(model, (example,), dynamic_shapes=({0: torch.export.Dim("n")},), strict=False)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # the lines of source it came from, with their paths
    return program


def onnx_bytes(program: torch.export.ExportedProgram, about: dict[str, Any]) -> bytes:
    """A graph as the bytes of an ONNX file with ``about`` as its metadata; equal graphs give equal bytes."""
    with warnings.catch_warnings(action="ignore"):
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
    serialised: bytes = written.model_proto.SerializeToString(deterministic=True)
    return serialised


def session(onnx: bytes) -> Run:
    """ONNX Runtime on all cores this process may keep busy."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = available_cpus()
    started = onnxruntime.InferenceSession(onnx, options, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(started.run(["probabilities"], {"images": images.numpy()})[0])
