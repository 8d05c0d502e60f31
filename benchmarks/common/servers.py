"""Servers to compare `bintally serve` with, each in a process of its own: `python -m common.servers NAME`.

plain           FastAPI under uvicorn; Plain, one photograph at a time
litserve        LitServe, batches of up to 8; Plain
litserve_onnx   LitServe, batches of up to 8; decoding and ONNX session of `bintally serve`
bintally_eager  `bintally serve` with PyTorch instead of ONNX Runtime, as for a network that ONNX cannot express
"""

import argparse
import signal
import sys
from pathlib import Path
from threading import Lock
from typing import Annotated, Any

import litserve
from fastapi import Body
from numpy.typing import NDArray

Photograph = Annotated[bytes, Body(media_type="image/jpeg")]
BATCH = 8
BATCH_TIMEOUT_S = 0.005


def _plain(folder: Path, port: int) -> None:
    import uvicorn
    from fastapi import FastAPI

    from common.plain import Plain

    app, model, lock = FastAPI(), Plain(folder), Lock()

    @app.get("/ping")
    def ping() -> None:
        pass

    @app.post("/invocations")
    def invocations(photograph: Photograph) -> dict[str, Any]:
        pixels = model.decode(photograph)
        with lock:
            probabilities = model.predict(pixels[None]).probabilities[0]
        return _response(model.counts, probabilities)

    uvicorn.run(app, port=port, log_level="warning")


class Counter(litserve.LitAPI):  # type: ignore[misc]
    """The model behind LitServe's interface; `setup` runs in the process that predicts."""

    def __init__(self, folder: Path, onnx: bool) -> None:
        super().__init__(max_batch_size=BATCH, batch_timeout=BATCH_TIMEOUT_S, api_path="/invocations")
        self._folder, self._onnx = folder, onnx

    def setup(self, device: str) -> None:
        from bintally.inference.predictor import Predictor
        from bintally.model.card import load_model
        from bintally.scoring.calibration import load_calibration
        from common.plain import Plain

        calibration = load_calibration(self._folder)
        self._counts = calibration.counts
        self._model = Predictor(*load_model(self._folder), calibration) if self._onnx else Plain(self._folder)

    def decode_request(self, request: Photograph) -> Any:
        return self._model.decode(request)

    def predict(self, x: Any) -> Any:
        return self._model.predict(x).probabilities

    def encode_response(self, output: NDArray[Any]) -> dict[str, Any]:
        return _response(self._counts, output)


def _response(counts: list[int], probabilities: NDArray[Any]) -> dict[str, Any]:
    return {"counts": counts, "probabilities": probabilities.tolist()}


def _litserve(folder: Path, port: int, onnx: bool) -> None:
    # LitServe ends its child processes on Ctrl-C only.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    server = litserve.LitServer(Counter(folder, onnx), accelerator="cpu", timeout=120, healthcheck_path="/ping")
    server.run(host="127.0.0.1", port=port, log_level="warning", generate_client_file=False)


def _bintally_eager(folder: Path, port: int) -> None:
    from torch.onnx.errors import OnnxExporterError

    from bintally import cli
    from bintally.inference import runtime

    def fail(*_: Any) -> Any:
        raise OnnxExporterError("disabled for this benchmark")

    runtime._cached_onnx = fail  # type: ignore[assignment]
    sys.argv = ["bintally", "serve", "--model", str(folder), "--port", str(port), "--queue", "64", "--timeout", "120"]
    cli.main()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=["plain", "litserve", "litserve_onnx", "bintally_eager"])
    parser.add_argument("--model", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--port", type=int, required=True)
    arguments = parser.parse_args()
    if arguments.name == "plain":
        _plain(arguments.model, arguments.port)
    elif arguments.name == "bintally_eager":
        _bintally_eager(arguments.model, arguments.port)
    else:
        _litserve(arguments.model, arguments.port, onnx=arguments.name == "litserve_onnx")


if __name__ == "__main__":
    main()
