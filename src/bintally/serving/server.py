"""`bintally serve`: a model behind HTTP."""

import asyncio
import hashlib
import ipaddress
import logging
import os
import shutil
import signal
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn

from bintally import paths
from bintally.errors import UserError
from bintally.files import SCRATCH
from bintally.inference.predictor import Predictor
from bintally.model.card import load_model
from bintally.scoring.calibration import load_calibration
from bintally.serving.endpoint import Endpoint, Limits, Model
from bintally.serving.protocol import PATIENCE_S, BoundedProtocol
from bintally.serving.routes import create_app

TOKEN = "BINTALLY_TOKEN"  # noqa: S105
FILES = ("model.safetensors", "card.json", "calibration.json")
LEAVE_S = 1.0  # in which those who are just asking hear that the server is stopping

log = logging.getLogger("bintally")


def serve(
    host: str,
    port: int,
    model: Path,
    rev: str | None,
    limits: Limits,
    token_file: Path | None,
    anybody: bool,
) -> None:
    """Serve until SIGTERM or Ctrl-C; what was taken in before is answered.

    Args:
        port: 0 takes a free one; the line on standard output names it.
        model: a folder with FILES.
        rev: of the repository; its model is fetched instead.
        anybody: whether those of other machines may ask without a token.

    Raises UserError if there is no such model or address, or if anybody could ask who may not.
    """
    token = read_token(token_file)
    if not (token or anybody or _is_loopback(host)):
        raise UserError(
            f"--host {host} can be reached from other machines: set a token in {TOKEN} or --token-file, or say --open"
        )
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # the client hears of it
    folder = fetch_model(rev) if rev else model
    endpoint = Endpoint(limits, token)
    with _listening(host, port) as listener:
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
            timeout_keep_alive=int(PATIENCE_S),
            timeout_graceful_shutdown=int(limits.timeout_s),
        )
        address = f"[{host}]" if ":" in host else host
        server = Server(config, endpoint, lambda: load(folder, endpoint))
        print(f"http://{address}:{listener.getsockname()[1]}", flush=True)
        server.run([listener])
        server.loaded()


class Server(uvicorn.Server):
    """uvicorn's, which loads a model once it is up and stops in order."""

    def __init__(self, config: uvicorn.Config, endpoint: Endpoint, load: Callable[[], Model]) -> None:
        super().__init__(config)
        self._endpoint, self._load = endpoint, load
        self._loading: asyncio.Future[Model] | None = None

    def loaded(self) -> None:
        """Raises what loading raised."""
        if self._loading and not self._loading.cancelled():
            self._loading.result()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._loading = asyncio.ensure_future(asyncio.to_thread(self._load))
        self._loading.add_done_callback(self._take)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._endpoint.draining = True
        log.info("stopping: what was taken in is answered")
        await asyncio.sleep(LEAVE_S)
        await super().shutdown(sockets)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn, but the process ends with 0 rather than by the signal."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self.handle_exit)
        yield

    def _take(self, loading: "asyncio.Future[Model]") -> None:
        if loading.cancelled() or loading.exception():
            self.should_exit = True
        else:
            self._endpoint.model = loading.result()


def load(folder: Path, endpoint: Endpoint) -> Model:
    """Raises UserError if the folder holds no whole model."""
    predictor = Predictor(*load_model(folder), load_calibration(folder))
    digest = hashlib.sha256()
    for name in ("model.safetensors", "calibration.json"):
        digest.update((folder / name).read_bytes())
    model = Model(predictor, digest.hexdigest()[:12], endpoint.limits, endpoint.metrics)
    log.info("model %s of %s answers about %.0f images/s", model.name, folder, model.batcher.rate)
    return model


def read_token(file: Path | None) -> str | None:
    """From a file or the environment. Raises UserError if it cannot be read or is no token."""
    if file is None:
        token, where = os.environ.get(TOKEN), TOKEN
        if token is None:
            return None
    else:
        where = f"--token-file {file}"
        try:
            token = file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{where} cannot be read: {error}") from error
    if not (token and token.isascii() and token.isprintable() and " " not in token):
        raise UserError(f"{where} holds no token: write one word of visible ASCII, such as of `openssl rand -hex 32`")
    return token


def fetch_model(rev: str) -> Path:
    """The folder with the model of a tag, branch, commit or experiment, out of DVC's cache or its remote.

    Raises UserError if there is no such revision or it has no model that can be had.
    """
    # Who serves a folder can do without DVC.
    from dvc.exceptions import DvcException
    from dvc.repo import Repo
    from dvc.scm import RevError, SCMError, resolve_rev

    from bintally.apps.remote import default_remote, reachable

    try:
        with Repo() as repo:
            commit = resolve_rev(repo.scm, rev)
    except (DvcException, RevError, SCMError) as error:
        raise UserError(f"--rev {rev} is no revision here: {error}; `git tag` and `dvc exp show` list them") from error
    folder: Path = SCRATCH / "served" / commit
    if not all((folder / name).is_file() for name in FILES):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
            fetched = Path(temporary) / "model"
            try:
                try:
                    _copy(commit, fetched)
                except (DvcException, OSError):  # not cached
                    with reachable(default_remote()):
                        _copy(commit, fetched)
            except (DvcException, OSError) as error:
                said = " ".join(str(error).split())[:200]
                raise UserError(f"--rev {rev} ({commit[:7]}) has no model that can be fetched: {said}") from error
            shutil.rmtree(folder, ignore_errors=True)
            fetched.rename(folder)
    log.info("%s is %s", rev, commit[:7])
    return folder


def _copy(commit: str, to: Path) -> None:
    from dvc.api import DVCFileSystem

    filesystem = DVCFileSystem(rev=commit)
    to.mkdir(exist_ok=True)
    for name in FILES:
        filesystem.get_file(str(paths.MODELS / name), str(to / name))


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@contextmanager
def _listening(host: str, port: int) -> Iterator[socket.socket]:
    """Raises UserError if the address cannot be had."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.create_server(address[:2], family=family)
    except OSError as error:
        raise UserError(f"cannot listen on {host}, port {port}: {error.strerror}; see --host and --port") from error
    with listener:
        yield listener
