"""Checkpoints: the newest undamaged one is found, and a full disk leaves the earlier ones."""

import logging
import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from bintally.errors import UserError
from bintally.files import atomic_write
from bintally.training import checkpoint
from bintally.training.checkpoint import KEPT_RUNS, Checkpoints, read_state

KEY = "0123456789abcdef" * 4


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def save_steps(folder: Path, *steps: int) -> Checkpoints:
    checkpoints = Checkpoints(folder, KEY, 0)
    for step in steps:
        checkpoints.save(step, {"weight": torch.full((50,), float(step)), "step": step})
    return checkpoints


def newest(checkpoints: Checkpoints) -> int:
    """The number of steps of the newest checkpoint, which holds what was saved at that step."""
    step, content = checkpoints.newest()
    state = read_state(content)
    assert state["key"] == KEY and state["step"] == step
    assert torch.equal(state["weight"], torch.full((50,), float(step)))
    return step


def test_two_are_kept_and_the_newest_is_found_again(tmp_path: Path) -> None:
    assert save_steps(tmp_path).newest() == (-1, b"")
    # Past ten, whose names sort before nine's without the zeros in front.
    assert newest(save_steps(tmp_path, 8, 9, 10, 11)) == 11
    assert files(tmp_path) == ["0000000010.pt", "0000000011.pt"]
    assert newest(Checkpoints(tmp_path, KEY, 0)) == 11
    save_steps(tmp_path).remove()
    assert save_steps(tmp_path).newest() == (-1, b"") and files(tmp_path) == []


def test_the_state_of_another_run_is_not_found(tmp_path: Path) -> None:
    save_steps(tmp_path, 1)
    assert Checkpoints(tmp_path, "f" * 64, 0).newest() == (-1, b"")


def test_they_are_due_at_the_given_interval(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path, KEY, 0).due()
    assert not Checkpoints(tmp_path, KEY, 3600).due()


def damage(path: Path, how: str) -> None:
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 4
    path.write_bytes({"empty": b"", "short": whole[:20], "cut": whole[:-1], "flipped": bytes(flipped)}[how])


@pytest.mark.parametrize("how", ["empty", "short", "cut", "flipped"])
def test_a_damaged_one_is_reported_and_the_one_before_it_taken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    checkpoints = save_steps(tmp_path, 4, 5)
    path = next(tmp_path.rglob("0000000005.pt"))
    damage(path, how)
    with caplog.at_level(logging.WARNING):
        assert newest(checkpoints) == 4
    assert [record.getMessage() for record in caplog.records] == [
        f"train: the checkpoint {path} is damaged; resuming from the one before it"
    ]
    damage(next(tmp_path.rglob("0000000004.pt")), how)
    assert checkpoints.newest() == (-1, b"")


def test_damaged_ones_do_not_displace_later_ones(tmp_path: Path) -> None:
    checkpoints = save_steps(tmp_path, 8, 9)
    for path in tmp_path.rglob("*.pt"):
        damage(path, "flipped")
    assert checkpoints.newest() == (-1, b"")
    save_steps(tmp_path, 1, 2)
    assert newest(checkpoints) == 2
    damage(next(tmp_path.rglob("0000000002.pt")), "flipped")
    assert newest(checkpoints) == 1


def test_only_the_newest_runs_are_kept(tmp_path: Path) -> None:
    runs = ["c", "a", "d", "b", "e"]  # by age, the oldest first
    for age, run in enumerate(runs):
        Checkpoints(tmp_path, run * 64, 0).save(1, {})
        os.utime(tmp_path / (run * 16), (1e9 + age, 1e9 + age))
        # A later checkpoint of a run removes no other run.
        Checkpoints(tmp_path, run * 64, 0).save(2, {})
        os.utime(tmp_path / (run * 16), (1e9 + age, 1e9 + age))
        kept = runs[max(0, age + 1 - KEPT_RUNS) : age + 1]
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted(one * 16 for one in kept)
        assert len(files(tmp_path)) == 2 * len(kept)


@contextmanager
def write_to_full_disk(path: Path) -> Iterator[Path]:
    """atomic_write(), on a disk that answers "no space left on device"."""
    with atomic_write(path) as temporary:
        temporary.unlink()
        temporary.symlink_to("/dev/full")
        yield temporary


def test_a_full_disk_is_an_error_and_leaves_the_earlier_ones(tmp_path: Path) -> None:
    checkpoints = save_steps(tmp_path, 4, 5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "atomic_write", write_to_full_disk)
        with pytest.raises(UserError, match=r"the disk is full: could not write .*0000000006\.pt"):
            save_steps(tmp_path, 6)
    assert newest(checkpoints) == 5
    assert files(tmp_path) == ["0000000004.pt", "0000000005.pt"]
    assert newest(save_steps(tmp_path, 6)) == 6


class Code:
    """Unpickled, it touches a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.path,)


def test_code_in_a_state_is_refused_and_not_run(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoints", KEY, 0)
    checkpoints.save(1, {"weight": Code(tmp_path / "touched")})
    with pytest.raises(pickle.UnpicklingError):
        read_state(checkpoints.newest()[1])
    assert not (tmp_path / "touched").exists()
