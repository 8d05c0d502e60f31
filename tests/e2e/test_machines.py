"""Encoding and training over two hosts with addresses of their own, stopped, or with the cable between them cut."""

import shutil
import subprocess
import time
from pathlib import Path

import pytest

from hosts import ADDRESSES, TwoHosts, two_hosts
from project import Project
from runs import WAIT_S, checkpoints, outcome, running_stages, steps_done, train_slowly
from sockets import listening

ENCODE, TRAIN = (("dvc", "repro", "--force", "--single-item", stage) for stage in ("encode", "train"))
TIMEOUT_S = 8


def start(hosts: TwoHosts, host: int, project: Project, command: tuple[str, ...] = TRAIN) -> subprocess.Popen[str]:
    return project.start(*hosts.on(host, "env", "OMP_NUM_THREADS=1", *command))


def encoded(project: Project) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (project.folder / "data/encoded").iterdir()}


@pytest.mark.slow
def test_two_hosts_encode_to_the_bytes_of_one_and_go_on_when_one_was_stopped(project: Project, tmp_path: Path) -> None:
    project.set(model__image_size=224)
    project.must(*ENCODE)
    on_one = encoded(project)
    assert len(on_one) == 4

    clones = [Project(tmp_path / name) for name in ("first", "second")]
    for clone in clones:
        shutil.copytree(project.folder, clone.folder, symlinks=True)
        clone.set(launch__ranks=2, launch__nnodes=2, launch__rdzv_endpoint=f"{ADDRESSES[0]}:29504")
        assert "encode" not in clone.must("dvc", "status", "encode"), "launch is no parameter of the graph's stage"
    with two_hosts() as hosts:
        runs = [start(hosts, host, clone, ENCODE) for host, clone in enumerate(clones)]
        while not all(list((clone.folder / ".bintally/encode").glob("*/array.npy")) for clone in clones):
            assert all(run.poll() is None for run in runs)
            time.sleep(0.01)
        runs[1].terminate()
        for run in runs:
            text = run.communicate(timeout=WAIT_S)[0]
            assert run.returncode != 0 and "Traceback" not in text
            assert text.count("`dvc repro` resumes it") == 1, text
        assert [encoded(clone) for clone in clones] == [on_one] * 2, "the earlier outs are still there"

        runs = [start(hosts, host, clone, ENCODE) for host, clone in enumerate(clones)]
        for run in runs:
            text = run.communicate(timeout=WAIT_S)[0]
            assert run.returncode == 0, text
            assert "encode: resuming after " in text
        assert [encoded(clone) for clone in clones] == [on_one] * 2
        assert not any(list((clone.folder / ".bintally/encode").iterdir()) for clone in clones)


@pytest.mark.slow
def test_two_hosts_agree_with_one_and_survive_a_cut_cable(project: Project, tmp_path: Path) -> None:
    train_slowly(project, train__epochs=100, launch__timeout_s=TIMEOUT_S)
    project.must("env", "OMP_NUM_THREADS=1", *TRAIN)
    on_one = outcome(project)

    clones = [Project(tmp_path / name) for name in ("first", "second")]
    for clone in clones:
        shutil.copytree(project.folder, clone.folder, symlinks=True)
        clone.set(launch__ranks=1, launch__nnodes=2, launch__rdzv_endpoint=f"{ADDRESSES[0]}:29500")
    with two_hosts() as hosts:
        runs = [start(hosts, host, clone) for host, clone in enumerate(clones)]
        for run in runs:
            text = run.communicate(timeout=WAIT_S)[0]
            assert run.returncode == 0, text
        whole = [outcome(clone) for clone in clones]
        assert whole[0] == whole[1], "both hosts write the same outs"
        assert whole[0].curve == pytest.approx(on_one.curve, rel=1e-4)

        runs = [start(hosts, host, clone) for host, clone in enumerate(clones)]
        while not all(checkpoints(clone) for clone in clones):
            assert all(run.poll() is None for run in runs)
            time.sleep(0.01)
        for address, clone in zip(ADDRESSES, clones, strict=True):
            open_to = {one for pid in running_stages(clone) for one, _port in listening(pid)}
            assert open_to <= {address, "127.0.0.1"}, "other networks of a machine do not reach a training"
        hosts.cut()
        cut = time.monotonic()
        for run in runs:
            text = run.communicate(timeout=WAIT_S)[0]
            assert run.returncode != 0 and "Traceback" not in text
            assert text.count("lost the other ranks") == 1 and f"launch.timeout_s ({TIMEOUT_S})" in text
        # Each waits once for its peer and once for torchrun; the rest is imports and clearing up.
        assert time.monotonic() - cut < 2 * TIMEOUT_S + 30
        assert not any(running_stages(clone) for clone in clones)
        assert [outcome(clone) for clone in clones] == whole, "the earlier outs are still there"

        hosts.mend()
        # One of the machines is new: it has no checkpoint, and gets the other's.
        shutil.rmtree(clones[0].folder / ".bintally")
        runs = [start(hosts, host, clone) for host, clone in enumerate(clones)]
        for run in runs:
            text = run.communicate(timeout=WAIT_S)[0]
            assert run.returncode == 0, text
            assert 0 < steps_done(text) < 100 * 2
        assert [outcome(clone) for clone in clones] == whole


@pytest.mark.slow
def test_hosts_that_differ_do_not_train_together(project: Project, tmp_path: Path) -> None:
    clones = [Project(tmp_path / name) for name in ("first", "second")]
    with two_hosts() as hosts:
        runs = []
        for host, clone in enumerate(clones):
            shutil.copytree(project.folder, clone.folder, symlinks=True)
            clone.set(launch__ranks=1, launch__nnodes=2, launch__rdzv_endpoint=f"{ADDRESSES[0]}:29501")
            clone.set(train__lr=0.01 + host)
            runs.append(start(hosts, host, clone))
        for run in runs:
            text = run.communicate(timeout=WAIT_S)[0]
            assert run.returncode != 0 and "Traceback" not in text
            assert "do not have the same parameters, data and code" in text


@pytest.mark.slow
def test_a_machine_that_never_joins_is_reported_in_bounded_time(project: Project) -> None:
    endpoint = f"{ADDRESSES[0]}:29502"
    project.set(launch__nnodes=2, launch__rdzv_endpoint=endpoint, launch__timeout_s=5)
    with two_hosts() as hosts:
        done = project.run(*hosts.on(0, *TRAIN), timeout=60)
    assert done.code != 0 and "Traceback" not in done.text
    assert f"2 machines could not meet at launch.rdzv_endpoint ({endpoint})" in done.text


def test_an_endpoint_that_is_loopback_on_its_machine_is_refused(project: Project) -> None:
    project.set(launch__nnodes=2, launch__rdzv_endpoint="127.0.1.1:29503")
    done = project.run(*TRAIN)
    assert done.code != 0 and "Traceback" not in done.text
    assert "'127.0.1.1:29503' is an address inside this machine" in done.text
