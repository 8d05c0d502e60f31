"""The default DVC remote, and the loopback store where that is what it points to."""

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from dvc.repo import Repo

from bintally.apps.seaweedfs import FOLDER, HOST, is_up, keys, serving
from bintally.errors import UserError

STOP = (signal.SIGINT, signal.SIGTERM)


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
        """The port of an S3 server on this machine, or None where the remote is elsewhere."""
        where = urlsplit(self.endpoint or "")
        return where.port if where.hostname in (HOST, "localhost", "::1") else None


def default_remote() -> Remote:
    """Raises UserError if the repository has no default remote."""
    with Repo() as repo:
        name = repo.config["core"].get("remote")
        settings = repo.config["remote"].get(name)
        if not settings:
            raise UserError("there is no default DVC remote; add one with `dvc remote add -d NAME s3://BUCKET/PREFIX`")
        return Remote(name, settings["url"], settings.get("endpointurl"))


def share_keys(remote: Remote, folder: Path) -> None:
    """Write the store's keys where DVC finds them and git does not: .dvc/config.local."""
    access, secret = keys(folder)
    with Repo() as repo, repo.config.edit("local") as config:
        config.setdefault("remote", {}).setdefault(remote.name, {}).update(
            access_key_id=access, secret_access_key=secret
        )


@contextmanager
def reachable(remote: Remote, folder: Path = FOLDER) -> Iterator[None]:
    """Run the loopback store while the block runs, if the remote is on loopback and nothing listens there yet."""
    port = remote.loopback_port
    if port is None or is_up(port):
        yield
        return
    with serving(folder, port, [remote.bucket]):
        share_keys(remote, folder)
        yield


def run_store(folder: Path, port: int | None, public: Sequence[str]) -> None:
    """Run the store in the foreground until Ctrl-C. Raises UserError if it cannot start."""
    remote = default_remote()
    port = port or remote.loopback_port
    if port is None:
        raise UserError(f"the default remote {remote.url} is not on loopback; name a port with --port")
    # Blocked before the server starts, so that a signal at any moment still stops it.
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP)
    with serving(folder, port, [remote.bucket], public) as store:
        share_keys(remote, folder)
        print(
            f"S3 at {store.endpoint}, data in {folder}, keys in .dvc/config.local; Ctrl-C stops it",
            flush=True,
        )
        signal.sigwait(STOP)
