"""`bintally tune` with real experiments: cut off and gone on with, and shared by two workers in one PostgreSQL."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from project import Project

from bintally.apps.seaweedfs import free_ports
from bintally.files import read_csv

BINARIES = sorted(Path("/usr/lib/postgresql").glob("*/bin"))


def experiments(project: Project) -> list[str]:
    """The names of those of the search that `dvc exp show` lists, and their rates."""
    text = project.must("dvc", "exp", "show", "--csv", "--drop", ".*", "--keep", "Experiment|train.lr")
    return [line for line in text.splitlines() if "tune-" in line]


def rows(project: Project) -> list[dict[str, str]]:
    return read_csv(project.folder / "plots/tune/trials.csv")


def test_a_search_that_is_killed_goes_on_and_its_best_can_be_applied(project: Project) -> None:
    before = (project.folder / "params.yaml").read_text()
    killed = project.start("bintally", "tune", "--trials", "3")
    while sum(name.startswith("tune-") for name in refs(project)) < 1:
        time.sleep(0.2)
        assert killed.poll() is None
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()
    said = project.must("bintally", "tune", "--trials", "3")

    done = rows(project)
    assert len(done) == 3 and {row["state"] for row in done} <= {"done", "ended early"}
    assert len({(row["train.lr"], row["train.batch_size"]) for row in done}) == 3
    listed = experiments(project)
    assert len(listed) == sum(row["state"] == "done" for row in done)
    assert (project.folder / "params.yaml").read_text() == before, "a search leaves the workspace alone"

    best = max((row for row in done if row["state"] == "done"), key=lambda row: float(row["accuracy"]))
    apply = next(line for line in said.splitlines() if "dvc exp apply" in line).removeprefix("Best:").split()
    project.must(*apply)
    assert f"lr: {best['train.lr']}" in (project.folder / "params.yaml").read_text()
    assert "up to date" in project.must("dvc", "status")


def refs(project: Project) -> list[str]:
    listed = project.must("git", "for-each-ref", "--format=%(refname)", "refs/exps")
    return [line.rpartition("/")[2] for line in listed.splitlines()]


@pytest.fixture
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a database of Debian's PostgreSQL, on loopback, that ends with the test."""
    assert BINARIES, "PostgreSQL is not installed: `apt-get install postgresql`"
    folder, port = tmp_path_factory.mktemp("postgres"), free_ports(1)[0]
    # It refuses to be run by root.
    user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"] if os.getuid() == 0 else []
    if user:
        shutil.chown(folder, "postgres", "postgres")
        for parent in list(folder.parents)[:-2]:
            parent.chmod(parent.stat().st_mode | 0o011)
    data, binaries = str(folder / "data"), BINARIES[-1]
    made = [*user, str(binaries / "initdb"), "-D", data, "-U", "me", "-A", "trust"]
    subprocess.run(made, check=True, capture_output=True)
    served = [*user, str(binaries / "postgres"), "-D", data, "-p", str(port), "-h", "127.0.0.1", "-k", str(folder)]
    server = subprocess.Popen(served, stderr=subprocess.DEVNULL)
    try:
        probe = [str(binaries / "pg_isready"), "-h", "127.0.0.1", "-p", str(port)]
        while subprocess.run(probe, capture_output=True, check=False).returncode:
            assert server.poll() is None
            time.sleep(0.1)
        yield f"postgresql+psycopg://me@127.0.0.1:{port}/postgres"
    finally:
        server.send_signal(signal.SIGINT)
        server.wait()


def test_two_workers_share_a_postgresql(project: Project, tmp_path: Path, postgres: str) -> None:
    project.must("git", "clone", "-q", ".", str(tmp_path / "other"))
    other = Project(tmp_path / "other")
    other.must("dvc", "cache", "dir", "--local", str(project.folder / ".dvc/cache"))
    other.must("dvc", "checkout")
    workers = [
        one.start("bintally", "tune", "--trials", "4", "--jobs", "1", "--storage", postgres) for one in (project, other)
    ]
    said = [worker.communicate(timeout=600)[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], "\n".join(said)

    mine, theirs = ({name for name in refs(one) if name.startswith("tune-")} for one in (project, other))
    last = max((rows(one) for one in (project, other)), key=lambda table: sum(row["state"] == "done" for row in table))
    assert len(last) == 4 and {row["state"] for row in last} <= {"done", "ended early"}
    assert mine and theirs and not mine & theirs
    assert len(mine | theirs) == sum(row["state"] == "done" for row in last)
    assert len({(row["train.lr"], row["train.batch_size"]) for row in last}) == 4
