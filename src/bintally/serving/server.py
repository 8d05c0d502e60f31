"""The HTTP server: it listens at once, loads the model meanwhile, and stops in order."""

import asyncio
import hashlib
import ipaddress
import logging
import resource
import signal
import socket
from collections.abc import Callable, Iterator, Set
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import uvicorn

from bintally.errors import UserError
from bintally.inference.predictor import Predictor
from bintally.model.card import load_model
from bintally.scoring.calibration import load_calibration
from bintally.scoring.record_model import FILE as RECORDS
from bintally.scoring.record_model import load_record_model
from bintally.serving.endpoint import Endpoint, Limits, LoadedModel
from bintally.serving.protocol import IDLE_TIMEOUT_S, MAX_CONNECTIONS, BoundedProtocol
from bintally.serving.routes import create_app

DRAIN_S = 1.0  # how long /ready answers 503 before the server stops listening
BACKLOG = 128  # connections that the system holds until they are accepted, all at once
LOOPBACK = ("127.0.0.1", "localhost", "::1")
HTTP_PORT = 80  # which browsers leave out

log = logging.getLogger("bintally")


@dataclass(frozen=True)
class Address:
    """Where a server listens, and the names that requests must be sent to; no names: any."""

    listener: socket.socket
    url: str
    names: Set[str]


@contextmanager
def listen(host: str, port: int, protected: bool, open_access: bool) -> Iterator[Address]:
    """Listen until the block ends.

    Args:
        port: 0 takes a free one.
        protected: clients need a token.
        open_access: any client may use any name.

    Raises UserError if the address is unusable, or if other machines could connect and neither argument allows it.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        raise UserError(f"--host {host!r} is no address of this machine: {error}") from error
    loopback = ipaddress.ip_address(str(address[0]).partition("%")[0]).is_loopback
    if not (protected or open_access or loopback):
        raise UserError(
            f"--host {host} can be reached from other machines: set a token in BINTALLY_TOKEN or --token-file, "
            "or allow it with --open"
        )
    try:
        listener = socket.create_server(address[:2], family=family)
    except OSError as error:
        raise UserError(f"cannot listen on {host}, port {port}: {error.strerror}; see --host and --port") from error
    with listener:
        hosts = {f"[{name}]" if ":" in name else name.lower() for name in (*LOOPBACK, host, str(address[0]))}
        port = listener.getsockname()[1]
        names = {f"{name}:{port}" for name in hosts} | (hosts if port == HTTP_PORT else set())
        shown = f"[{host}]" if ":" in host else host
        yield Address(listener, f"http://{shown}:{port}", frozenset() if protected or open_access else names)


def serve(address: Address, model_folder: Path, limits: Limits, token: str | None) -> None:
    """Print the URL, serve until SIGTERM or Ctrl-C, answer the requests admitted until then, and return.

    Args:
        model_folder: with model.safetensors, card.json, calibration.json and, if the model has it, records.json.

    Raises UserError if the model is unusable.
    """
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # the client gets these messages
    _allow_open_files()
    endpoint = Endpoint(limits, token, address.names)
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
        backlog=BACKLOG,
        timeout_keep_alive=int(IDLE_TIMEOUT_S),
        timeout_graceful_shutdown=int(limits.timeout_s),
    )
    server = Server(config, endpoint, lambda: _load(model_folder, endpoint))
    print(address.url, flush=True)
    server.run([address.listener])
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
    records = load_record_model(folder)
    digest = hashlib.sha256()
    for name in ("model.safetensors", "calibration.json", *([RECORDS] if records else [])):
        digest.update((folder / name).read_bytes())
    model = LoadedModel(predictor, records, digest.hexdigest()[:12], endpoint.limits, endpoint.metrics)
    log.info("model %s in %s is ready, about %.0f images/s", model.digest, folder, model.batcher.rate)
    return model


def _allow_open_files() -> None:
    """Let the process open twice as many files as there may be connections, or as many as the system allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * (MAX_CONNECTIONS + BACKLOG)
    if resource.RLIM_INFINITY != soft < wanted:
        resource.setrlimit(
            resource.RLIMIT_NOFILE, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard)
        )
