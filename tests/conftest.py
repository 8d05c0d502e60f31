"""How the tests are spread over the workers of pytest-xdist, and what tests of several folders share."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from browser import open_browser
from once import once_per_run

# Fixtures that start a server: tests that use one run in one worker, so that the server is started once.
SERVERS = ("store", "postgres")

if "PYTEST_XDIST_WORKER" in os.environ:
    # Before torch is imported: threads of one worker would wait for those of another.
    workers = int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // workers)))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With `--dist loadgroup`, keep the tests of a file in one worker; end-to-end tests go singly and first."""
    if not hasattr(config, "workerinput"):
        return
    for item in items:
        server = next((name for name in SERVERS if name in getattr(item, "fixturenames", ())), None)
        if server or "e2e" not in item.path.parts:
            item.add_marker(pytest.mark.xdist_group(server or item.path.stem))
    items.sort(key=lambda item: "e2e" not in item.path.parts)


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
