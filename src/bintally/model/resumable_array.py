"""An array on disk that several processes fill, each its own rows, and that outlives an interruption."""

import io
import math
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bintally.files import atomic_write, write_text


def create_array(folder: Path, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    """Create ``folder/array.npy``, zeros that take no room yet, unless an interrupted run has left it.

    Folders beside it, which are of earlier parameters, are removed.
    """
    for outdated in set(folder.parent.glob("*")) - {folder}:
        shutil.rmtree(outdated)
    path = folder / "array.npy"
    if path.exists():
        return
    if folder.exists():  # with counts of an array that had been moved away when a kill came
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": dtype.str, "fortran_order": False, "shape": shape})
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        file.write(header.getvalue())
        file.truncate(header.tell() + math.prod(shape) * dtype.itemsize)


class ResumableArray:
    """Some of the rows of an array that :func:`create_array` has created, written in order.

    A file named by the first of them counts those that have surely reached the disk.
    """

    def __init__(self, folder: Path, rows: range, batch: int) -> None:
        """Open the array to write ``rows``; ``done`` of them are there already, a multiple of ``batch``."""
        self._path, self._count, self._first = folder / "array.npy", folder / f"rows-{rows.start}", rows.start
        array = np.load(self._path, mmap_mode="r", allow_pickle=False)
        self._offset, self.row_bytes = array.offset, array[:1].nbytes
        counted = int(self._count.read_text()) if self._count.exists() else 0
        # Whole batches, since the last digits of a row depend on its batch. Earlier it may have been the first of more.
        self.done = min(counted // batch * batch, len(rows))
        self._file = self._path.open("r+b")

    def append(self, rows: NDArray[Any]) -> None:
        """Write the next rows."""
        self.write(self._first + self.done, rows.data)
        self.done += len(rows)

    def save(self) -> None:
        """Make sure that the rows until here outlive an interruption."""
        self._file.flush()
        os.fsync(self._file.fileno())
        write_text(self._count, str(self.done))

    def read(self, first: int, number: int) -> bytes:
        """The bytes of ``number`` rows from ``first`` on."""
        self._file.seek(self._offset + first * self.row_bytes)
        return self._file.read(number * self.row_bytes)

    def write(self, first: int, content: memoryview) -> None:
        """Write the bytes of rows from ``first`` on."""
        self._file.seek(self._offset + first * self.row_bytes)
        self._file.write(content)

    def close(self) -> Path:
        """Close the array, and return the path of its file."""
        self._file.close()
        return self._path


def move_array(folder: Path, path: Path) -> None:
    """Move the array in ``folder`` to ``path`` and remove the folder."""
    with atomic_write(path) as temporary:
        shutil.move(folder / "array.npy", temporary)
    shutil.rmtree(folder)
