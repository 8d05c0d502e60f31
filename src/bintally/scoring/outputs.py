"""What the network says of the bins of validation and test: an array on disk with a row for every bin."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.lib.format import write_array_header_1_0
from numpy.typing import NDArray

from bintally.errors import UserError
from bintally.files import atomic_write

ROWS_AT_ONCE = 20_000  # in memory, of half a million


def write_outputs(path: Path, number: int, rows: NDArray[np.int64], values: NDArray[np.float32]) -> None:
    """Write ``values``, (n, ...), of ``rows``, ascending, of ``number`` bins; NaN for the others."""
    shape = (number, *values.shape[1:])
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
        for start in range(0, number, ROWS_AT_ONCE):
            part = np.full((min(ROWS_AT_ONCE, number - start), *values.shape[1:]), np.nan, "<f4")
            inside = slice(*np.searchsorted(rows, (start, start + len(part))))
            part[rows[inside] - start] = values[inside]
            file.write(part.tobytes())


def read_outputs(path: Path, shape: tuple[int, ...], rows: Sequence[int]) -> NDArray[np.float32]:
    """What the network says of some of the bins, (len(rows), ...), from an array of ``shape``, whose rows are bins.

    Raises UserError if the file does not have them: it is damaged, or of other bins or classes than there are now.
    """
    read = np.empty((len(rows), *shape[1:]), np.float32)
    try:
        for start in range(0, len(rows), ROWS_AT_ONCE):
            # Mapped anew for each part: pages that were read count as memory for as long as their map is open.
            array = np.load(path, mmap_mode="r", allow_pickle=False)
            if array.shape != shape:
                raise UserError(f"{path} has the shape {array.shape}, not {shape}: it is of other bins; `dvc repro`")
            read[start : start + ROWS_AT_ONCE] = array[rows[start : start + ROWS_AT_ONCE]]
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path} cannot be read ({' '.join(str(error).split())[:200]}); run `dvc repro`") from error
    if missing := int(np.isnan(read).any(tuple(range(1, read.ndim))).sum()):
        raise UserError(f"{path} lacks {missing:,} of the {len(rows):,} bins: it is of another split; run `dvc repro`")
    return read
