"""The default DVC remote, with the S3 server behind it where it is on loopback."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from fcntl import LOCK_EX, LOCK_SH, flock
from pathlib import Path
from urllib.parse import urlsplit

from bintally.apps.repository import open_repository
from bintally.apps.seaweedfs import (
    FOLDER,
    HOST,
    Store,
    access_keys,
    free_ports,
    is_listening,
    loopback_environment,
    running_store,
    s3_server,
)
from bintally.errors import UserError
from bintally.files import SCRATCH, atomic_write, check_writable, file_lock

OWN_REMOTE = "store"  # the remote that these commands keep a server for
OTHER_FOLDER = SCRATCH / "store"  # holds the folder that `bintally store --dir` was last given
USERS = SCRATCH / "store.users"  # locked by every command that uses the server


@dataclass(frozen=True)
class Remote:
    """The default remote of the repository."""

    name: str
    url: str
    endpoint: str | None

    @property
    def bucket(self) -> str:
        return urlsplit(self.url).netloc

    @property
    def loopback_port(self) -> int | None:
        """The port of its S3 server on this machine; None where the remote is elsewhere or the user's own."""
        address = urlsplit(self.endpoint or "")
        own = self.name == OWN_REMOTE and address.hostname in (HOST, "localhost", "::1")
        return address.port if own else None


def default_remote() -> Remote:
    """Read it from the configuration. Raises UserError if there is none."""
    with open_repository() as repo:
        name = repo.config["core"].get("remote")
        settings = repo.config["remote"].get(name)
        if not settings:
            raise UserError("there is no default DVC remote; add one with `dvc remote add -d NAME s3://BUCKET/PREFIX`")
        return Remote(name, settings["url"], settings.get("endpointurl"))


def free_port(preferred: int) -> int:
    """The preferred port, or another where someone listens on it: that is no server of this repository."""
    return free_ports(1)[0] if is_listening(preferred) else preferred


def write_keys(remote: Remote, folder: Path) -> None:
    """Write the server's keys, and its endpoint where that is not the committed one, to .dvc/config.local.

    Git ignores that file, and its owner alone can read it.
    """
    access, secret = access_keys(folder)
    with open_repository() as repo:
        config = repo.config
        path = Path(config.files["local"])
        with file_lock(path), atomic_write(path, 0o600) as temporary:
            if path.exists():
                temporary.write_bytes(path.read_bytes())
            config.files["local"] = str(temporary)
            committed = config.load_config_to_level("local")["remote"].get(remote.name, {})
            with config.edit("local") as local:
                settings = local["remote"].setdefault(remote.name, {})
                settings.update(access_key_id=access, secret_access_key=secret, endpointurl=remote.endpoint)
                if remote.endpoint == committed.get("endpointurl"):
                    del settings["endpointurl"]


def check_remote() -> None:
    """Find out before the work whether there is a remote to push to. Raises UserError if not."""
    if default_remote().loopback_port is not None:
        check_writable(USERS)
        check_writable(FOLDER / "lock")


@contextmanager
def remote_server() -> Iterator[None]:
    """Run the default remote's S3 server while the block runs, if it is on loopback and not running yet."""
    remote = default_remote()
    port = remote.loopback_port
    if port is None:
        yield
        return
    check_writable(USERS)
    with USERS.open("w") as users, loopback_environment(), ExitStack() as own_server:
        flock(users, LOCK_SH)
        with file_lock(USERS):  # of commands that come at once, one starts the server
            running = _running()
            if running:
                folder, store = running
            else:
                folder = FOLDER
                store = own_server.enter_context(s3_server(folder, free_port(port), [remote.bucket]))
            write_keys(replace(remote, endpoint=store.endpoint), folder)
        yield
        if not running:
            flock(users, LOCK_EX)  # other commands that use this server finish first


def _running() -> tuple[Path, Store] | None:
    """The folder and the server that runs for this repository already."""
    other = [Path(OTHER_FOLDER.read_text(encoding="utf-8"))] if OTHER_FOLDER.exists() else []
    for folder in [FOLDER, *other]:
        if store := running_store(folder):
            return folder, store
    return None
