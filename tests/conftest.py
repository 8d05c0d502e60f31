"""How the tests are spread over the workers of pytest-xdist, and what tests of several folders share."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from bintally.apps.seaweedfs import Store, free_ports, s3_server
from bintally.demo.warehouse import DemoSource
from browser import open_browser
from once import once_per_run
from postgres import postgres_server
from project import Project, make_project

# Fixtures that start a server: tests that use one run in one worker, so that the server is started once.
SERVERS = ("store", "postgres")

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # for tests that import onnxruntime themselves

if "PYTEST_XDIST_WORKER" in os.environ:
    # Before torch is imported: threads of one worker would wait for those of another.
    workers = int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // workers)))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With `--dist loadgroup`, keep the tests of a file in one worker; those of a whole project go singly and first."""
    if not hasattr(config, "workerinput"):
        return
    for item in items:
        server = next((name for name in SERVERS if name in _fixtures(item)), None)
        if server or not _of_project(item):
            item.add_marker(pytest.mark.xdist_group(server or item.path.stem))
    items.sort(key=lambda item: not _of_project(item))


def _fixtures(item: pytest.Item) -> list[str]:
    return getattr(item, "fixturenames", [])


def _of_project(item: pytest.Item) -> bool:
    return "e2e" in item.path.parts or "reproduced" in _fixtures(item)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A browser without a window. Of a module, as nothing else may run an event loop while it is open."""
    with open_browser() as opened:
        yield opened


@pytest.fixture(scope="session")
def exported_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the small model in `models`, exported to ONNX once a run. Not to be changed."""
    from server_process import export_small_model

    return once_per_run(tmp_path_factory, "exported-model", export_small_model)


@pytest.fixture
def model_workspace(exported_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of `exported_model` as the working directory."""
    shutil.copytree(exported_model, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """A real SeaweedFS: bucket `bins` may be read by anyone, `remote` by its key alone, `sealed` not be listed."""
    folder = tmp_path_factory.mktemp("store")
    with s3_server(folder, free_ports(1)[0], buckets=["remote", "sealed"], public=["bins"]) as running:
        source = DemoSource(150, seed=5)
        keys = [key for i in source.ids() for key in (f"metadata/{i}.json", f"bin-images/{i}.jpg")]
        running.filesystem().pipe({f"bins/abid/{key}": body for key, body in source.read(keys) if body is not None})
        yield running


@pytest.fixture(scope="session")
def reproduced(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A small project after `dvc repro`, committed. Not to be changed: copy it."""

    def make(folder: Path) -> None:
        project = make_project(folder)
        project.must("dvc", "repro")
        project.commit("Reproduced")

    return Project(once_per_run(tmp_path_factory, "reproduced", make))


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The URL of a PostgreSQL database."""
    with postgres_server() as url:
        yield url


@pytest.fixture
def project(reproduced: Project, tmp_path: Path) -> Project:
    """A copy of the reproduced project to break."""
    shutil.copytree(reproduced.folder, tmp_path / "project", symlinks=True)
    return Project(tmp_path / "project")
