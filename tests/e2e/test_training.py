"""Ranks and faults, with real torchrun."""

import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from once import once_per_run
from project import Project
from runs import WAIT_S, best_epoch, checkpoints, outcome, running_stages, steps_done, train_slowly

TRAIN = ("dvc", "repro", "--force", "--single-item", "train")


@pytest.mark.parametrize(
    ("trained", "lr", "others"),
    # Adam's first steps are as long as the learning rate whatever the gradient, so that it blows up the rounding of
    # gradients near zero; if batch statistics take part in the gradient, only small steps show the arithmetic alone.
    [
        ("head", 0.01, (2,)),
        pytest.param("head", 0.01, (3, 4), marks=pytest.mark.slow),
        pytest.param(2, 0.00001, (2,), marks=pytest.mark.slow),
        pytest.param("all", 0.00001, (2,), marks=pytest.mark.slow),
    ],
)
def test_the_number_of_ranks_does_not_change_the_curve(
    project: Project, trained: str | int, lr: float, others: tuple[int, ...]
) -> None:
    project.set(
        model__trainable=trained, train__lr=lr, train__epochs=2, model__image_size=64, train__accumulation_steps=2
    )
    curves = {}
    for ranks in (1, *others):
        project.set(launch__ranks=ranks)
        project.must("dvc", "repro", "train")
        curves[ranks] = outcome(project).curve
    for ranks in others:
        assert curves[ranks] == pytest.approx(curves[1], rel=1e-4)


@pytest.fixture(scope="session")
def trained(reproduced: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project whose training takes some seconds, after it. Not to be changed: copy it."""

    def make(folder: Path) -> None:
        shutil.copytree(reproduced.folder, folder, symlinks=True, dirs_exist_ok=True)
        project = Project(folder)
        train_slowly(project)
        project.must(*TRAIN)
        assert best_epoch(project) > 140

    return Project(once_per_run(tmp_path_factory, "trained", make))


@pytest.fixture
def slow(trained: Project, tmp_path: Path) -> Project:
    """A copy of the trained project to disturb."""
    shutil.copytree(trained.folder, tmp_path / "project", symlinks=True)
    return Project(tmp_path / "project")


def wait_for_checkpoints(project: Project, run: subprocess.Popen[str], number: int = 2) -> None:
    deadline = time.monotonic() + WAIT_S
    while len(checkpoints(project)) < number:
        assert time.monotonic() < deadline and run.poll() is None
        time.sleep(0.01)


def kill_after_checkpoints(project: Project) -> None:
    run = project.start(*TRAIN)
    wait_for_checkpoints(project, run)
    for process in running_stages(project):
        os.kill(process, signal.SIGKILL)
    run.communicate(timeout=WAIT_S)


def assert_resumes_to(project: Project, undisturbed: object, earlier_steps: bool = True) -> str:
    text = project.must(*TRAIN)
    assert (steps_done(text) < 150 * 2) == earlier_steps
    assert outcome(project) == undisturbed
    assert not checkpoints(project)
    return text


@pytest.mark.parametrize("victim", [pytest.param("one rank", marks=pytest.mark.slow), "every process"])
def test_a_killed_training_resumes_to_the_same_bytes(slow: Project, victim: str) -> None:
    undisturbed = outcome(slow)
    run = slow.start(*TRAIN)
    wait_for_checkpoints(slow, run)
    launcher, *ranks = running_stages(slow)
    assert len(ranks) == 2
    for process in ranks[:1] if victim == "one rank" else (launcher, *ranks, run.pid):
        os.kill(process, signal.SIGKILL)
    text = run.communicate(timeout=WAIT_S)[0]
    assert run.returncode != 0 and "Traceback" not in text
    if victim == "one rank":
        assert len(re.findall("^train: .*", text, re.MULTILINE)) == 1 and "SIGKILL" in text
    assert not running_stages(slow)
    assert_resumes_to(slow, undisturbed)


def test_a_training_of_two_networks_killed_in_the_second_resumes_to_the_same_bytes(slow: Project) -> None:
    slow.set(train__networks=2, launch__ranks=1, train__epochs=60)
    slow.must(*TRAIN)
    undisturbed = outcome(slow)
    run = slow.start(*TRAIN)
    deadline = time.monotonic() + WAIT_S
    while not list((slow.folder / ".bintally/train").glob("*/1/*.pt")):
        assert time.monotonic() < deadline and run.poll() is None
        time.sleep(0.01)
    for process in running_stages(slow):
        os.kill(process, signal.SIGKILL)
    run.communicate(timeout=WAIT_S)
    text = slow.must(*TRAIN)
    first, second = map(int, re.findall(r"train: (\d+) steps in", text))
    assert first == 0 and 0 < second < 60 * 2
    assert outcome(slow) == undisturbed


@pytest.mark.slow
def test_torchrun_restarts_a_killed_rank_by_itself(slow: Project) -> None:
    undisturbed = outcome(slow)
    slow.set(launch__max_restarts=1)
    run = slow.start(*TRAIN)
    wait_for_checkpoints(slow, run)
    os.kill(running_stages(slow)[-1], signal.SIGKILL)
    text = run.communicate(timeout=WAIT_S)[0]
    assert run.returncode == 0, text
    assert steps_done(text) < 150 * 2
    assert outcome(slow) == undisturbed


def test_a_terminated_dvc_repro_saves_and_leaves_no_process_behind(slow: Project) -> None:
    undisturbed = outcome(slow)
    slow.set(launch__checkpoint_s=3600)
    shutil.rmtree(slow.folder / "plots/training")
    run = slow.start(*TRAIN)
    deadline = time.monotonic() + WAIT_S
    while not (slow.folder / "plots/training/plots/metrics/train/loss.tsv").exists():
        assert time.monotonic() < deadline and run.poll() is None
        time.sleep(0.01)
    run.terminate()
    text = run.communicate(timeout=WAIT_S)[0]
    while running_stages(slow):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert run.returncode != 0 and "Traceback" not in text
    assert outcome(slow) == undisturbed, "the earlier outs are restored"
    assert len(checkpoints(slow)) == 1, "saved because of the signal"
    assert_resumes_to(slow, undisturbed)


@pytest.mark.slow
def test_a_damaged_checkpoint_and_changed_parameters(slow: Project) -> None:
    undisturbed = outcome(slow)
    kill_after_checkpoints(slow)
    older, newest = checkpoints(slow)
    newest.write_bytes(newest.read_bytes()[:-1000])

    slow.set(train__label_smoothing=0.1)
    assert steps_done(slow.must(*TRAIN)) == 150 * 2, "it does not resume from the state of another run"
    assert outcome(slow).curve != undisturbed.curve
    slow.set(train__label_smoothing=0.0)
    assert checkpoints(slow) == [older, newest]
    text = assert_resumes_to(slow, undisturbed)
    assert text.count(f"checkpoint {newest.relative_to(slow.folder)} is damaged") == 1


@pytest.mark.slow
def test_a_full_disk_leaves_the_older_checkpoint(slow: Project) -> None:
    """The scratch folder lies on a file system with room for a few checkpoints, mounted for the command alone."""
    undisturbed = outcome(slow)
    kill_after_checkpoints(slow)
    saved = checkpoints(slow)
    room = sum(path.stat().st_size for path in saved) + 2**16
    kept = slow.folder.parent / "kept"
    (slow.folder / ".bintally").rename(kept)
    (slow.folder / ".bintally").mkdir()
    namespace = ["unshare", "--mount", *([] if os.getuid() == 0 else ["--map-root-user"])]
    if slow.run(*namespace, "true").code:
        pytest.skip("this system lets nobody but root mount a small file system")
    commands = [
        f"mount -t tmpfs -o size={room} tmpfs .bintally",
        f"cp -a {kept}/. .bintally",
        f"{{ {' '.join(TRAIN)}; code=$?; }}",
        f"rm -rf {kept} && cp -a .bintally {kept}",
        "exit $code",
    ]
    done = slow.run(*namespace, "sh", "-c", "; ".join(commands))
    assert done.code != 0 and "Traceback" not in done.text
    messages = re.findall("^train: .*disk is full.*", done.text, re.MULTILINE)
    assert len(messages) == 1 and "free some space" in messages[0], done.text
    assert outcome(slow) == undisturbed
    (slow.folder / ".bintally").rmdir()
    kept.rename(slow.folder / ".bintally")
    assert [path.name for path in checkpoints(slow)] == [path.name for path in saved]
    assert_resumes_to(slow, undisturbed)


def test_a_loss_that_is_not_finite_names_the_step_and_the_images(project: Project) -> None:
    # Each step multiplies the weights by 1 - lr * weight_decay.
    project.set(train__lr=10, train__optimizer="sgd", train__weight_decay=1, train__epochs=40)
    done = project.run("dvc", "repro", "train")
    assert done.code != 0 and "Traceback" not in done.text
    messages = re.findall(r"^train: the loss is not finite .*", done.text, re.MULTILINE)
    assert len(messages) == 1, done.text
    assert re.search(
        r"in epoch \d+, step \d+, on images \w+.*; lower train\.lr \(10\.0\) or set train\.clip", messages[0]
    )


@pytest.mark.slow
def test_too_little_memory_says_what_to_lower(project: Project) -> None:
    project.set(model__trainable="all", train__epochs=1, launch__ranks=1, train__batch_size=256, model__image_size=448)
    project.must("dvc", "repro", "encode", "split")
    used = 6_000_000  # kB: enough to start with, not for the maps of a batch
    done = project.run("sh", "-c", f"ulimit -v {used}; exec dvc repro --single-item train")
    assert done.code != 0 and "Traceback" not in done.text
    (message,) = re.findall(r"^train: out of memory.*", done.text, re.MULTILINE)
    assert "train.batch_size (256)" in message and "train.accumulation_steps (1)" in message


@pytest.mark.slow
def test_the_newest_checkpoint_is_named_by_its_steps(slow: Project, tmp_path: Path) -> None:
    run = slow.start(*TRAIN)
    wait_for_checkpoints(slow, run)
    run.terminate()
    run.communicate(timeout=WAIT_S)
    while running_stages(slow):
        time.sleep(0.01)
    saved = int(checkpoints(slow)[-1].stem)
    assert steps_done(slow.must(*TRAIN)) == 150 * 2 - saved
