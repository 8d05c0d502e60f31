"""The default DVC remote, with the S3 server behind it where it is on loopback."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from bintally.apps.seaweedfs import FOLDER, HOST, access_keys, is_listening, s3_server
from bintally.errors import UserError


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
        """The port of its S3 server on this machine; None where the remote is elsewhere."""
        address = urlsplit(self.endpoint or "")
        return address.port if address.hostname in (HOST, "localhost", "::1") else None


def default_remote() -> Remote:
    """Read it from the configuration. Raises UserError if there is none."""
    from dvc.repo import Repo

    with Repo() as repo:
        name = repo.config["core"].get("remote")
        settings = repo.config["remote"].get(name)
        if not settings:
            raise UserError("there is no default DVC remote; add one with `dvc remote add -d NAME s3://BUCKET/PREFIX`")
        return Remote(name, settings["url"], settings.get("endpointurl"))


def write_keys(remote: Remote, folder: Path) -> None:
    """Write the server's keys to .dvc/config.local, which git ignores."""
    from dvc.repo import Repo

    access, secret = access_keys(folder)
    with Repo() as repo, repo.config.edit("local") as config:
        settings = config.setdefault("remote", {}).setdefault(remote.name, {})
        settings.update(access_key_id=access, secret_access_key=secret)


@contextmanager
def remote_server() -> Iterator[None]:
    """Run the default remote's S3 server while the block runs, if it is on loopback and not running yet."""
    remote = default_remote()
    port = remote.loopback_port
    if port is None or is_listening(port):
        yield
        return
    with s3_server(FOLDER, port, [remote.bucket]):
        write_keys(remote, FOLDER)
        yield
