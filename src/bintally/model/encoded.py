"""Read pixels or features of photographs, computed once: an array behind a memory map."""

import mmap
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from safetensors.torch import load_file

TOUCHED_BYTES = 2**26
FAULT_AROUND_BYTES = 2**18  # Linux maps pages around a missing one, too: 0.3 MiB for a row of features on ext4

Kind = Literal["features", "pixels"]


class Encoding(BaseModel):
    """Description of ``array.npy``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Kind
    """``features`` of the frozen backbone, float32 (bins, views, width); or ``pixels``, uint8 (bins, 3, size, size)."""
    image_size: int
    digest: str
    """SHA-256 of the array and the backbone's weights."""


class MemoryMappedRows:
    """An array on disk, read row by row.

    The pages of a map count as this process's memory from the first read on, which would be the whole array after an
    epoch. They are given back every TOUCHED_BYTES, and stay in the system's file cache.
    """

    def __init__(self, path: Path) -> None:
        self._array = np.load(path, mmap_mode="r", allow_pickle=False)
        assert isinstance(self._array.base, mmap.mmap)
        self._map = self._array.base
        self._map.madvise(mmap.MADV_RANDOM)
        self._touched = 0

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self._array.shape)

    def take(
        self, rows: NDArray[np.int64], view: NDArray[np.bool_] | None = None
    ) -> NDArray[np.float32] | NDArray[np.uint8]:
        """Copy ``rows``, or one view of each."""
        chosen: tuple[NDArray[np.int64], ...] = (rows,) if view is None else (rows, view.astype(np.int64))
        taken = np.empty((len(rows), *self._array.shape[len(chosen) :]), self._array.dtype)
        row_bytes = max(self._array[:1].nbytes, FAULT_AROUND_BYTES)
        at_once = max(1, TOUCHED_BYTES // row_bytes)
        for start in range(0, len(rows), at_once):
            part = slice(start, start + at_once)
            taken[part] = self._array[tuple(one[part] for one in chosen)]
            self._touched += len(rows[part]) * row_bytes
            if self._touched >= TOUCHED_BYTES:
                self._map.madvise(mmap.MADV_DONTNEED)
                self._touched = 0
        return taken


@dataclass(frozen=True)
class Encoded:
    """The content of an encoded folder; rows are in the order of the bins' index."""

    rows: MemoryMappedRows
    encoding: Encoding
    backbone_state: dict[str, torch.Tensor]


def load_encoded(folder: Path) -> Encoded:
    """Open a folder that :func:`bintally.model.encoding.encode` has written."""
    encoding = Encoding.model_validate_json((folder / "encoding.json").read_text(encoding="utf-8"))
    return Encoded(MemoryMappedRows(folder / "array.npy"), encoding, load_file(folder / "backbone.safetensors"))
