"""An S3 server on loopback for a machine without an account anywhere: SeaweedFS, its data in one folder."""

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
from pathlib import Path

import s3fs

from bintally.errors import UserError
from bintally.files import atomic_write

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

    def filesystem(self) -> s3fs.S3FileSystem:
        return s3fs.S3FileSystem(
            key=self.access_key, secret=self.secret_key, endpoint_url=self.endpoint, skip_instance_cache=True
        )


def is_up(port: int) -> bool:
    """Whether something listens on a loopback port."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((HOST, port)) == 0


def free_ports(number: int) -> list[int]:
    """Free loopback ports low enough for the gRPC ports that the server opens 10,000 above them."""
    found: list[int] = []
    random = secrets.SystemRandom()
    while len(found) < number:
        port = random.randrange(20_000, 30_000)
        if port not in found and not is_up(port) and not is_up(port + 10_000):
            found.append(port)
    return found


def keys(folder: Path) -> tuple[str, str]:
    """The access and secret key of the store in ``folder``, made at random on first use."""
    path = folder / "keys.json"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary:
            temporary.touch(mode=0o600)
            temporary.write_text(json.dumps([secrets.token_hex(10).upper(), secrets.token_urlsafe(30)]))
    access, secret = json.loads(path.read_text())
    return access, secret


@contextmanager
def serving(folder: Path, port: int, buckets: Sequence[str] = (), public: Sequence[str] = ()) -> Iterator[Store]:
    """Run the server while the block runs.

    Args:
        folder: holds the data, the keys and the log.
        port: of the S3 API on loopback.
        buckets: made if they are not there.
        public: buckets that anyone may list and read; made too.

    Raises UserError if the port is taken or the server does not come up.
    """
    if is_up(port):
        raise UserError(f"port {port} on {HOST} is taken; stop what listens there or take another with --port")
    access, secret = keys(folder)
    identities: list[dict[str, object]] = [
        {
            "name": "bintally",
            "credentials": [{"accessKey": access, "secretKey": secret}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        }
    ]
    if public:
        actions = [f"{action}:{bucket}" for bucket in public for action in ("Read", "List")]
        identities.append({"name": "anonymous", "actions": actions})
    config = folder / "s3.json"
    with atomic_write(config) as temporary:
        temporary.touch(mode=0o600)
        temporary.write_text(json.dumps({"identities": identities}))
    data = folder / "data"
    data.mkdir(exist_ok=True)
    master, volume, filer, admin = free_ports(4)
    command = [
        _server(), "mini", f"-dir={data.resolve()}", f"-ip={HOST}", f"-ip.bind={HOST}",
        f"-s3.port={port}", f"-s3.config={config.resolve()}", f"-master.port={master}", f"-volume.port={volume}",
        f"-filer.port={filer}", f"-admin.port={admin}", "-admin.ui=false", "-webdav=false", "-s3.port.iceberg=0",
        "-s3.port.lance=0", "-master.telemetry=false",
    ]  # fmt: skip
    store = Store(f"http://{HOST}:{port}", access, secret)
    with (folder / "server.log").open("wb") as log:
        # A session of its own: Ctrl-C in the terminal must not reach it before its clients are done.
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True, cwd=folder)
    try:
        _make_buckets(store, process, [*buckets, *public], folder)
        yield store
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _server() -> str:
    found = shutil.which("weed", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if not found:
        raise UserError("the SeaweedFS server `weed` is not installed; run `make setup`")
    return found


def _make_buckets(store: Store, process: subprocess.Popen[bytes], buckets: Sequence[str], folder: Path) -> None:
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
                raise UserError(
                    f"the S3 server did not come up ({error}); its log is {folder / 'server.log'}"
                ) from error
            time.sleep(0.2)
