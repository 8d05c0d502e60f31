"""The HTTP server: it listens at once, loads the model meanwhile, and stops in order."""

import asyncio
import hashlib
import ipaddress
import logging
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn

from bintally.errors import UserError
from bintally.inference.predictor import Predictor
from bintally.model.card import load_model
from bintally.scoring.calibration import load_calibration
from bintally.serving.endpoint import Endpoint, Limits, LoadedModel
from bintally.serving.protocol import IDLE_TIMEOUT_S, BoundedProtocol
from bintally.serving.routes import create_app

DRAIN_S = 1.0  # how long /ready answers 503 before the server stops listening

log = logging.getLogger("bintally")


def serve(host: str, port: int, model_folder: Path, limits: Limits, token: str | None, open_access: bool) -> None:
    """Serve until SIGTERM or Ctrl-C, answer the requests admitted until then, and return.

    Args:
        port: 0 takes a free one; the line on standard output names it.
        model_folder: with model.safetensors, card.json and calibration.json.
        open_access: listen beyond loopback even without a token.

    Raises UserError if the model or the address is unusable, or if other machines could connect without a token.
    """
    if not (token or open_access or _is_loopback(host)):
        raise UserError(
            f"--host {host} can be reached from other machines: set a token in BINTALLY_TOKEN or --token-file, "
            "or allow it with --open"
        )
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # the client gets these messages
    endpoint = Endpoint(limits, token)
    with _listen(host, port) as listener:
        config = uvicorn.Config(
            create_app(endpoint),
            http=BoundedProtocol,
            loop="uvloop",
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="error",
            access_log=False,
            server_header=False,
            timeout_keep_alive=int(IDLE_TIMEOUT_S),
            timeout_graceful_shutdown=int(limits.timeout_s),
        )
        address = f"[{host}]" if ":" in host else host
        server = Server(config, endpoint, lambda: _load(model_folder, endpoint))
        print(f"http://{address}:{listener.getsockname()[1]}", flush=True)
        server.run([listener])
        server.raise_load_error()


class Server(uvicorn.Server):
    """A uvicorn server that loads a model once it listens, and drains before it stops."""

    def __init__(self, config: uvicorn.Config, endpoint: Endpoint, load: Callable[[], LoadedModel]) -> None:
        super().__init__(config)
        self._endpoint, self._load = endpoint, load
        self._loading: asyncio.Future[LoadedModel] | None = None

    def raise_load_error(self) -> None:
        """Raise the exception that loading the model ended with, if any."""
        if self._loading and not self._loading.cancelled():
            self._loading.result()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._loading = asyncio.ensure_future(asyncio.to_thread(self._load))
        self._loading.add_done_callback(self._on_loaded)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._endpoint.draining = True
        log.info("stopping: admitted requests are answered first")
        await asyncio.sleep(DRAIN_S)
        await super().shutdown(sockets)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stop on a signal as uvicorn does, but exit with 0 instead of by that signal."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self.handle_exit)
        yield

    def _on_loaded(self, loading: "asyncio.Future[LoadedModel]") -> None:
        if loading.cancelled() or loading.exception():
            self.should_exit = True
        else:
            self._endpoint.model = loading.result()


def _load(folder: Path, endpoint: Endpoint) -> LoadedModel:
    predictor = Predictor(*load_model(folder), load_calibration(folder))
    digest = hashlib.sha256()
    for name in ("model.safetensors", "calibration.json"):
        digest.update((folder / name).read_bytes())
    model = LoadedModel(predictor, digest.hexdigest()[:12], endpoint.limits, endpoint.metrics)
    log.info("model %s in %s is ready, about %.0f images/s", model.digest, folder, model.batcher.rate)
    return model


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@contextmanager
def _listen(host: str, port: int) -> Iterator[socket.socket]:
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.create_server(address[:2], family=family)
    except OSError as error:
        raise UserError(f"cannot listen on {host}, port {port}: {error.strerror}; see --host and --port") from error
    with listener:
        yield listener
