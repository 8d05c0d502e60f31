"""SeaweedFS as an S3 server on loopback, its data, keys and log in one folder that only its owner can open.

One process holds a master, a volume server, a filer and S3, each with ports of its own. S3 asks for a key; every other
port asks for a certificate that only the server itself has.
"""

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
from fcntl import LOCK_EX, LOCK_NB, flock
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from bintally.errors import UserError
from bintally.files import atomic_write
from bintally.interruption import terminate_with_parent

if TYPE_CHECKING:
    from s3fs import S3FileSystem

HOST = "127.0.0.1"
FOLDER = Path(".store")
START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 15.0
TLS = "tls.pem"  # certificate and key of every port but S3's


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


def free_ports(number: int, taken: int | None = None) -> list[int]:
    """Distinct free loopback ports, none of them ``taken``.

    The port 10,000 above each, where the server opens gRPC, is free too, and is none that Linux gives to connections,
    from 32,768 on: one could take it before the server does.
    """
    candidates = secrets.SystemRandom().sample(range(20_000, 22_768), 2768)
    pairs = ((port, port + 10_000) for port in candidates)
    free = (pair[0] for pair in pairs if taken not in pair and not any(map(is_listening, pair)))
    return list(islice(free, number))


def access_keys(folder: Path) -> tuple[str, str]:
    """The access key and the secret key of the server with its data in ``folder``, created on first use."""
    path = folder / "keys.json"
    if not path.exists():
        _write_private(path, json.dumps([secrets.token_hex(10).upper(), secrets.token_urlsafe(30)]))
    try:
        match json.loads(path.read_text(encoding="utf-8")):
            case [str(access), str(secret)]:
                return access, secret
        raise ValueError("it must be a list of two strings")
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error}): remove it, and the server makes new keys") from error


@contextmanager
def loopback_environment() -> Iterator[None]:
    """Without proxy on loopback, and without AWS_ variables, for this process and its children while the block runs.

    An unknown AWS_PROFILE or a proxy is no reason that a server on this machine, which has its own keys, fails.
    """
    before = dict(os.environ)
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        del os.environ[name]
    direct = before.get("no_proxy") or before.get("NO_PROXY") or ""
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = direct if direct == "*" else f"{direct},{HOST}".lstrip(",")
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def running_store(folder: Path) -> Store | None:
    """The server that runs with its data in ``folder``, whoever started it; None if there is none.

    The process of a server holds a lock, so that no other server on the same port is taken for it. Waits for one that
    starts or stops.
    """
    deadline = time.monotonic() + START_TIMEOUT_S
    while (folder / "lock").exists():
        with (folder / "lock").open("rb") as lock:
            if _locked(lock):
                return None
            endpoint = lock.read().decode()
        if endpoint and is_listening(int(endpoint.rpartition(":")[2])):
            return Store(endpoint, *access_keys(folder))
        if time.monotonic() > deadline:
            raise UserError(f"the S3 server of {folder} neither starts nor stops; see its log, {folder}/server.log")
        time.sleep(0.1)
    return None


@contextmanager
def s3_server(folder: Path, port: int, buckets: Sequence[str] = (), public: Sequence[str] = ()) -> Iterator[Store]:
    """Run the server while the block runs; it ends with this process, too.

    Args:
        folder: of the data, the keys and the log.
        buckets: created if they do not exist.
        public: buckets that anyone may list and read, created likewise.

    Raises UserError if the port is taken, the folder is another's, or the server does not start.
    """
    _make_private(folder)
    with (folder / "lock").open("a+b") as lock:
        while not _locked(lock):  # also for a moment by who only looks
            if running := running_store(folder):
                reason = "use it, end the command that runs it, or give another folder with --dir"
                raise UserError(f"the S3 server of {folder} runs already, at {running.endpoint}: {reason}")
        lock.truncate(0)
        if is_listening(port):
            reason = "stop the program that listens there or choose another --port"
            raise UserError(f"port {port} on {HOST} is taken; {reason}")
        store = Store(f"http://{HOST}:{port}", *access_keys(folder))
        process = _start(folder, store, port, public, lock)
        try:
            with loopback_environment():
                _create_buckets(store, process, [*buckets, *public], folder)
            lock.write(store.endpoint.encode())
            lock.flush()
            yield store
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _locked(lock: BinaryIO) -> bool:
    try:
        flock(lock, LOCK_EX | LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _make_private(folder: Path) -> None:
    """Create the folder, or close that of an earlier server to others. Raises UserError if it has other files."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Less what a command has left that was killed before the server had keys.
        names = sorted(path.name for path in folder.iterdir() if path.name != "lock" and not path.match(".*.tmp"))
        if names and "keys.json" not in names:
            raise UserError(f"'{folder}' has other files, such as '{names[0]}': give an empty folder")
        folder.chmod(0o700)
    except OSError as error:
        raise UserError(f"'{folder}' cannot hold a store ({error.strerror}): give another folder") from error


def _start(folder: Path, store: Store, port: int, public: Sequence[str], lock: BinaryIO) -> subprocess.Popen[bytes]:
    actions = ["Admin", "Read", "Write", "List", "Tagging"]
    credentials = [{"accessKey": store.access_key, "secretKey": store.secret_key}]
    identities: list[dict[str, object]] = [{"name": "bintally", "credentials": credentials, "actions": actions}]
    if public:
        open_to_all = [f"{action}:{bucket}" for bucket in public for action in ("Read", "List")]
        identities.append({"name": "anonymous", "actions": open_to_all})
    _write_private(folder / "s3.json", json.dumps({"identities": identities}))
    _write_private(folder / TLS, _self_signed())
    (folder / "data").mkdir(exist_ok=True)
    master, volume, filer, admin, s3_grpc = free_ports(5, taken=port)
    # Paths are relative to the folder: -dir takes a list with commas, and a socket's path has 108 bytes at most.
    command = [
        _executable(), "mini", "-dir=data", f"-ip={HOST}", f"-ip.bind={HOST}", "-s3.config=s3.json", "-s3.iam=false",
        f"-s3.port={port}", f"-s3.port.grpc={s3_grpc}", f"-master.port={master}", f"-volume.port={volume}",
        f"-filer.port={filer}", f"-admin.port={admin}", "-admin.ui=false", "-webdav=false", "-s3.port.iceberg=0",
        "-s3.port.lance=0", "-master.telemetry=false", f"-s3.allowedOrigins={store.endpoint}",
        f"-filer.allowedOrigins={store.endpoint}", "-filer.localSocket=filer.sock", "-s3.localSocket=s3.sock",
        "-s3.localFilerSocket=filer.sock",
    ]  # fmt: skip
    # Nothing of the user's environment: AWS_ACCESS_KEY_ID there would open the store to that key.
    # It logs to the folder for temporary files, too.
    environment = {name: str(folder.resolve()) for name in ("HOME", "TMPDIR")}
    environment |= {"WEED_HTTPS_CLIENT_ENABLED": "true", "WEED_GRPC_CA": TLS}
    for part in ("MASTER", "VOLUME", "FILER", "S3", "ADMIN", "WORKER", "CLIENT"):
        environment |= {f"WEED_GRPC_{part}_{name}": TLS for name in ("CERT", "KEY")}
        environment |= {f"WEED_HTTPS_{part}_{name}": TLS for name in ("CERT", "KEY", "CA") if part != "S3"}
    with (folder / "server.log").open("wb") as log:
        # In its own session, so that Ctrl-C in the terminal does not stop it before its clients.
        return subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True, cwd=folder, env=environment,
            umask=0o077, pass_fds=[lock.fileno()], preexec_fn=terminate_with_parent,
        )  # fmt: skip


def _self_signed() -> str:
    """A new key and a certificate of its own, as PEM."""
    from datetime import UTC, datetime, timedelta
    from ipaddress import ip_address

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "bintally")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=3650))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address(HOST))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain)
    return (private + certificate.public_bytes(pem)).decode()


def _write_private(path: Path, text: str) -> None:
    with atomic_write(path, 0o600) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _executable() -> str:
    path = shutil.which("weed", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if not path:
        raise UserError("the SeaweedFS server `weed` is not installed; run `make setup`")
    return str(Path(path).resolve())


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
