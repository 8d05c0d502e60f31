"""What end-to-end tests share: a reproduced project, an S3 server with bins in it, a PostgreSQL."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from project import Project, make_project

from bintally.apps.seaweedfs import Store, free_ports, s3_server
from bintally.demo.warehouse import DemoSource
from once import once_per_run
from postgres import postgres_server


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
