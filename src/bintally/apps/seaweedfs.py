"""SeaweedFS as an S3 server on loopback, its data, keys and log in one folder."""

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from bintally.errors import UserError
from bintally.files import atomic_write

if TYPE_CHECKING:
    from s3fs import S3FileSystem

HOST = "127.0.0.1"
FOLDER = Path(".store")
START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 15.0


@dataclass(frozen=True)
class Store:
    """A running server and the keys that may write to it."""

    endpoint: str
    access_key: str
    secret_key: str

    def filesystem(self) -> "S3FileSystem":
        from s3fs import S3FileSystem

        keys = {"key": self.access_key, "secret": self.secret_key}
        return S3FileSystem(endpoint_url=self.endpoint, skip_instance_cache=True, **keys)


def is_listening(port: int) -> bool:
    """Whether something listens on a loopback port."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((HOST, port)) == 0


def free_ports(number: int) -> list[int]:
    """Distinct free loopback ports; the port 10,000 above each, where the server opens gRPC, is free too."""
    candidates = secrets.SystemRandom().sample(range(20_000, 30_000), 10_000)
    free = (port for port in candidates if not is_listening(port) and not is_listening(port + 10_000))
    return list(islice(free, number))


def access_keys(folder: Path) -> tuple[str, str]:
    """The access key and the secret key of the server with its data in ``folder``, created on first use."""
    path = folder / "keys.json"
    if not path.exists():
        _write_private(path, [secrets.token_hex(10).upper(), secrets.token_urlsafe(30)])
    access, secret = json.loads(path.read_text())
    return access, secret


def _write_private(path: Path, content: object) -> None:
    with atomic_write(path, 0o600) as temporary:
        temporary.write_text(json.dumps(content))


@contextmanager
def s3_server(folder: Path, port: int, buckets: Sequence[str] = (), public: Sequence[str] = ()) -> Iterator[Store]:
    """Run the server while the block runs.

    Args:
        folder: of the data, the keys and the log.
        buckets: created if they do not exist.
        public: buckets that anyone may list and read, created likewise.

    Raises UserError if the port is taken or the server does not start.
    """
    if is_listening(port):
        raise UserError(f"port {port} on {HOST} is taken; stop the program that listens there or choose another --port")
    access, secret = access_keys(folder)
    actions = ["Admin", "Read", "Write", "List", "Tagging"]
    credentials = [{"accessKey": access, "secretKey": secret}]
    identities: list[dict[str, object]] = [{"name": "bintally", "credentials": credentials, "actions": actions}]
    if public:
        open_to_all = [f"{action}:{bucket}" for bucket in public for action in ("Read", "List")]
        identities.append({"name": "anonymous", "actions": open_to_all})
    config = folder / "s3.json"
    _write_private(config, {"identities": identities})
    data = folder / "data"
    data.mkdir(exist_ok=True)
    master, volume, filer, admin = free_ports(4)
    command = [
        _executable(), "mini", f"-dir={data.resolve()}", f"-ip={HOST}", f"-ip.bind={HOST}",
        f"-s3.port={port}", f"-s3.config={config.resolve()}", f"-master.port={master}", f"-volume.port={volume}",
        f"-filer.port={filer}", f"-admin.port={admin}", "-admin.ui=false", "-webdav=false", "-s3.port.iceberg=0",
        "-s3.port.lance=0", "-master.telemetry=false",
    ]  # fmt: skip
    store = Store(f"http://{HOST}:{port}", access, secret)
    with (folder / "server.log").open("wb") as log:
        # In its own session, so that Ctrl-C in the terminal does not stop it before its clients.
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True, cwd=folder)
    try:
        _create_buckets(store, process, [*buckets, *public], folder)
        yield store
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _executable() -> str:
    path = shutil.which("weed", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if not path:
        raise UserError("the SeaweedFS server `weed` is not installed; run `make setup`")
    return path


def _create_buckets(store: Store, process: subprocess.Popen[bytes], buckets: Sequence[str], folder: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            filesystem = store.filesystem()
            for bucket in buckets:
                filesystem.makedirs(bucket, exist_ok=True)
            filesystem.ls("")
            return
        except OSError as error:
            if process.poll() is not None or time.monotonic() > deadline:
                log = folder / "server.log"
                raise UserError(f"the S3 server did not start ({error}); see its log, {log}") from error
            time.sleep(0.2)
