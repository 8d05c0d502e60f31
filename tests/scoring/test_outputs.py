"""Arrays of what the network says, written and read in parts."""

from pathlib import Path

import numpy as np
import pytest

from bintally.scoring import outputs
from bintally.scoring.outputs import read_outputs, write_outputs


@pytest.mark.parametrize("rows", [[0, 4, 5, 9, 19, 20, 21, 22], [], list(range(23))])
def test_parts_are_one_array_with_a_row_for_every_bin(
    rows: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outputs, "ROWS_AT_ONCE", 5)
    values = np.random.default_rng(0).normal(size=(len(rows), 3, 2)).astype(np.float32)
    write_outputs(tmp_path / "parts.npy", 23, np.array(rows, np.int64), values)
    whole = np.full((23, 3, 2), np.nan, np.float32)
    whole[rows] = values
    np.save(tmp_path / "whole.npy", whole)
    assert (tmp_path / "parts.npy").read_bytes() == (tmp_path / "whole.npy").read_bytes()
    assert (read_outputs(tmp_path / "parts.npy", (23, 3, 2), rows) == values).all()
