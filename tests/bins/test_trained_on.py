"""What a model was trained on is known by content."""

from pathlib import Path

import pytest

from bintally.bins.trained_on import TrainedOn, photograph_digest, save_digests
from bintally.errors import UserError

PHOTOGRAPHS = [b"one", b"two", b"three"]


def test_a_photograph_is_known_again_by_its_bytes(tmp_path: Path) -> None:
    path = tmp_path / "trained_on.bin"
    version = save_digests(path, sorted(map(photograph_digest, PHOTOGRAPHS)))
    trained_on = TrainedOn(path, version)
    assert all(photograph in trained_on for photograph in PHOTOGRAPHS)
    assert b"four" not in trained_on and b"" not in trained_on
    assert path.stat().st_size == 8 * 3
    nothing = save_digests(path, [])
    assert b"one" not in TrainedOn(path, nothing)


def test_a_file_that_is_damaged_or_another_models_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "trained_on.bin"
    version = save_digests(path, [1, 2])
    with pytest.raises(UserError, match="does not exist"):
        TrainedOn(tmp_path / "none.bin", version)
    with pytest.raises(UserError, match="is damaged or another model's"):
        TrainedOn(path, None)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match="is damaged or another model's"):
        TrainedOn(path, version)
