"""The Ray recipe on a real cluster of two nodes, in a network and among processes of its own."""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from bintally.apps.scores import PART
from bintally.files import read_csv
from project import Project
from runs import processes
from small import bins

RECIPE = Path(__file__).parents[2] / "deploy/predict_ray.py"
PARTS, FILES = 16, 6  # some parts have no photographs
WAIT_S = 1200
# Ray listens on every address, so its nodes are where loopback is the only one; they end with the first process there.
ALONE = ("unshare", "--user", "--map-root-user", "--net", "--pid", "--fork", "--kill-child", "--mount-proc")
START = "-m ray.scripts.scripts start --num-cpus=1 --disable-usage-stats --node-ip-address=127.0.0.1"
CLUSTER = f"""
ip link set lo up
{{python}} {START} --head --port=6379 --include-dashboard=false >&2
{{python}} {START} --address=127.0.0.1:6379 >&2
RAY_ADDRESS=127.0.0.1:6379 {{python}} {RECIPE} {{arguments}}
"""


def pinned(name: str) -> dict[str, str]:
    """Versions by package in a lock."""
    lines = (RECIPE.parents[1] / "requirements" / name).read_text(encoding="utf-8").splitlines()
    return dict(line.split(" ")[0].split("==") for line in lines if "==" in line and not line.startswith(" "))


def test_installing_ray_changes_no_package_of_the_lock() -> None:
    lock, beside = pinned("lock.txt"), pinned("ray.txt")
    assert "ray" in beside
    assert {name: version for name, version in beside.items() if lock.get(name, version) != version} == {}


@pytest.fixture
def album(model_workspace: Path) -> Path:
    """A folder of photographs, one of them a truncated file."""
    folder = model_workspace / "album"
    folder.mkdir()
    for number in range((FILES - 1) * PART + 100):
        path, original = folder / f"{number:05}.jpg", folder / f"{number % len(bins()):05}.jpg"
        path.write_bytes(bins()[number].image) if number < len(bins()) else path.hardlink_to(original)
    (folder / "00300.jpg").unlink()
    (folder / "00300.jpg").write_bytes(bins()[0].image[:900])
    return folder


@pytest.fixture
def ray_folder() -> Iterator[Path]:
    """Where Ray keeps its sockets, whose paths must be short."""
    folder = Path(tempfile.mkdtemp(prefix="ray-"))
    yield folder
    shutil.rmtree(folder)


@contextmanager
def recipe(folder: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """The recipe on a new cluster, which ends with the block."""
    assert find_spec("ray"), "Ray is missing: uv pip install --require-hashes -r requirements/ray.txt"
    script = CLUSTER.format(python=shlex.quote(sys.executable), arguments=shlex.join(arguments))
    environment = os.environ | {"HOME": str(folder), "RAY_TMPDIR": str(folder), "OMP_NUM_THREADS": "1"}
    command = [*ALONE, "sh", "-ec", script]
    run = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield run
    finally:
        run.kill()
        run.wait()


@pytest.mark.slow
def test_sixteen_parts_on_a_cluster_are_one_run_though_one_is_killed(album: Path, ray_folder: Path) -> None:
    predict = [str(Path(sys.executable).with_name("bintally")), "predict", "album", "--to"]
    subprocess.run([*predict, "whole.parquet"], check=True)
    with recipe(ray_folder, "album", "--to", "parts", "--parts", str(PARTS)) as run:
        deadline = time.monotonic() + WAIT_S
        while not (scoring := processes(Project(album.parent), b"--part\0")):
            assert run.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        os.kill(scoring[0], signal.SIGKILL)
        out, err = run.communicate(timeout=WAIT_S)
    assert run.returncode == 0, err
    assert "retries remaining" in out, "Ray says so of the killed one"
    lines = [line for line in out.splitlines() if line.startswith("part ")]
    assert sorted(line.partition(" done; ")[0] for line in lines) == sorted(f"part {n + 1} of 16" for n in range(PARTS))
    assert any(line.endswith("parts: complete, 16 parts") for line in lines)
    assert pq.read_table("parts").equals(pq.read_table("whole.parquet"))
    rejected = [row for file in sorted(Path("parts").glob("_rejected-*.csv")) for row in read_csv(file)]
    assert rejected == read_csv(Path("whole-rejected.csv")) and len(rejected) == 1


@pytest.mark.slow
def test_parts_that_fail_are_named(model_workspace: Path, ray_folder: Path) -> None:
    with recipe(ray_folder, "nowhere", "--to", "parts", "--parts", "16", "--only", "4,7") as run:
        _, err = run.communicate(timeout=WAIT_S)
    assert run.returncode == 1
    assert "part 4 of 16 failed: " in err and "'nowhere' is neither data, demo" in err
    assert err.endswith("2 parts are missing; the same command with --only 4,7 scores them\n")
