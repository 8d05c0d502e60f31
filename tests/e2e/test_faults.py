"""Bad input: one clear line, an exit code other than 0, and the earlier outs restored."""

import os

import pytest

from bintally.apps.seaweedfs import Store, free_ports
from project import Project

OUTS = (
    "data/bins/index.csv",
    "data/splits.csv",
    "data/encoded/array.npy",
    "models/model.safetensors",
    "models/calibration.json",
    "metrics/test.json",
)


def snapshot(project: Project) -> dict[str, bytes]:
    return {name: (project.folder / name).read_bytes() for name in (*OUTS, "dvc.lock")}


def assert_refused(project: Project, *expected: str, command: tuple[str, ...] = ("dvc", "repro")) -> None:
    """Check that the command fails with exactly one line that has all of ``expected``, and that no out is lost."""
    before = snapshot(project)
    done = project.run(*command)
    assert done.code != 0
    assert "Traceback" not in done.text, done.text
    matching = [line for line in done.text.splitlines() if all(part in line for part in expected)]
    assert len(matching) == 1, done.text
    assert snapshot(project) == before


@pytest.mark.parametrize(
    ("parameter", "value", "expected"),
    [
        ("train__lr", "fast", ("train.lr", "'fast'", "number")),
        ("split__test", 0.3, ("split", "sum to 1", "1.1")),
        ("model__backbone", "resnet51", ("model.backbone", "'resnet51'", "resnet50")),
        ("model__weights", "http://127.0.0.1:9/w.pth", ("model.weights", "127.0.0.1:9", "download")),
    ],
)
def test_bad_parameters(project: Project, parameter: str, value: object, expected: tuple[str, ...]) -> None:
    project.set(**{parameter: value})
    assert_refused(project, *expected)


def test_an_unknown_parameter(project: Project) -> None:
    path = project.folder / "params.yaml"
    path.write_text(path.read_text().replace("  lr: 0.01", "  lr: 0.01\n  learning_rate: 1"))
    assert_refused(project, "train.learning_rate", "1", "lr")


def test_a_server_that_is_down(project: Project) -> None:
    endpoint = f"http://127.0.0.1:{free_ports(1)[0]}"
    project.set(fetch__source="s3://bins", fetch__endpoint=endpoint)
    assert_refused(project, "fetch:", "s3://bins", endpoint)


def test_a_bucket_that_does_not_exist(project: Project, store: Store) -> None:
    project.set(fetch__source="s3://nowhere", fetch__endpoint=store.endpoint)
    assert_refused(project, "fetch:", "s3://nowhere", "fetch.source")


def test_a_bucket_without_permission_to_list(project: Project, store: Store) -> None:
    project.set(fetch__source="s3://sealed", fetch__endpoint=store.endpoint)
    assert_refused(project, "fetch:", "s3://sealed", "access denied", "fetch.ids")


def test_fewer_bins_than_per_count_are_used_with_a_warning(project: Project) -> None:
    project.set(fetch__per_count=1000, train__epochs=1)
    assert "fewer than fetch.per_count (1000)" in project.must("dvc", "repro", "fetch")


def test_a_full_disk_while_fetching(project: Project) -> None:
    """The scratch folder is a file system of 1 MB, mounted in a namespace of the command."""
    project.set(fetch__seed=2)
    (project.folder / ".bintally").mkdir(exist_ok=True)
    namespace = ["unshare", "--mount", *([] if os.getuid() == 0 else ["--map-root-user"])]
    if project.run(*namespace, "true").code:
        pytest.skip("only root may mount a small file system here")
    mount = "mount -t tmpfs -o size=1m tmpfs .bintally && exec dvc repro"
    assert_refused(project, "fetch:", "disk is full", "free some space", command=(*namespace, "sh", "-c", mount))
