"""Encoded photographs: what the frozen part of the network computes from them, as arrays read by memory map."""

import hashlib
import io
import logging
import math
import mmap
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from safetensors.torch import load_file, save

from bintally.errors import disk_full_as_user_error
from bintally.files import atomic_write, write_text
from bintally.model.backbone import Backbone
from bintally.model.views import stack_views
from bintally.progress import progress

# Images per forward pass: few enough for a CPU's caches, enough to keep a GPU busy.
BATCH = {"cpu": 8, "cuda": 128}
TOUCHED_BYTES = 2**26
FAULT_AROUND_BYTES = 2**16
SYNC_INTERVAL_S = 10.0

Kind = Literal["features", "maps", "pixels"]

log = logging.getLogger("bintally")


class Encoding(BaseModel):
    """Description of ``array.npy``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Kind
    """``features`` of the backbone, or ``maps`` and means of its frozen stages, float32 (bins, views, width); or
    ``pixels``, uint8 (bins, 3, size, size)."""
    image_size: int
    trainable_stages: int = 0
    """Number of stages of the backbone that take the maps."""
    digest: str
    """SHA-256 of the array and the backbone's weights."""


class MemoryMappedRows:
    """An array on disk, read row by row through a memory map that keeps few rows in this process's memory.

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
        taken = self._array[rows] if view is None else self._array[rows, view.astype(np.intp)]
        # Linux reads the pages around a missing one, too.
        self._touched += len(taken) * max(taken[:1].nbytes, FAULT_AROUND_BYTES)
        if self._touched > TOUCHED_BYTES:
            self._map.madvise(mmap.MADV_DONTNEED)
            self._touched = 0
        return np.asarray(taken)


@dataclass(frozen=True)
class Encoded:
    """The content of an encoded folder; rows are in the order of the bins' index."""

    rows: MemoryMappedRows
    encoding: Encoding
    backbone_state: dict[str, torch.Tensor]

    def configure(self, backbone: Backbone) -> None:
        """Split a backbone where these rows need it to be."""
        if self.encoding.kind == "maps":
            backbone.split_at(self.encoding.trainable_stages)


def encode(
    folder: Path,
    images: Sequence[Callable[[], bytes]],
    backbone: Backbone,
    image_size: int,
    trainable: str | int,
    mirror: bool,
    device: torch.device,
    scratch: Path,
    key: str,
) -> None:
    """Decode and resize every image and run the frozen part of the backbone on it.

    Writes ``array.npy``, ``backbone.safetensors`` (its initial weights) and ``encoding.json`` to ``folder``. An
    interrupted encoding is resumed from ``scratch`` under the same ``key``, weights and kind of device.

    Args:
        images: functions that read the file of each image.
        image_size: side in pixels.
        trainable: `model.trainable`.
        mirror: encode mirror images as well.
        key: hash of the images and of all else that the array depends on.
    """
    backbone.to(device).eval()
    frozen = _frozen_part(backbone, trainable)
    if frozen:
        with torch.inference_mode():
            width = frozen(torch.zeros(1, 3, image_size, image_size, device=device)).shape[1]
    shape = (len(images), 1 + mirror, width) if frozen else (len(images), 3, image_size, image_size)
    weights = save({name: value.cpu().contiguous() for name, value in backbone.state_dict().items()})
    digest = hashlib.sha256(weights)
    array = _ResumableArray(
        scratch / hashlib.sha256(f"{key} {digest.hexdigest()} {device.type}".encode()).hexdigest()[:16],
        shape,
        np.dtype("<f4" if frozen else "|u1"),
        BATCH[device.type],
    )
    with disk_full_as_user_error(scratch), progress("encode", len(images) - array.rows, "images") as advance:
        for pixels in decoded_batches(images[array.rows :], image_size, BATCH[device.type]):
            array.append(_frozen_rows(frozen, pixels, mirror, device) if frozen else pixels.numpy())
            advance(len(pixels))
    digest.update(array.finish(folder / "array.npy"))
    with atomic_write(folder / "backbone.safetensors") as temporary:
        temporary.write_bytes(weights)
    encoding = Encoding(
        kind="pixels" if frozen is None else "features" if frozen is backbone else "maps",
        image_size=image_size,
        trainable_stages=trainable if isinstance(trainable, int) and frozen else 0,
        digest=digest.hexdigest(),
    )
    write_text(folder / "encoding.json", encoding.model_dump_json(indent=2) + "\n")


def _frozen_part(backbone: Backbone, trainable: str | int) -> Callable[[torch.Tensor], torch.Tensor] | None:
    if trainable == "head":
        return backbone
    if isinstance(trainable, int):
        backbone.split_at(trainable)
        if backbone.frozen_stages:
            return backbone.frozen_forward
    return None


def _frozen_rows(
    frozen: Callable[[torch.Tensor], torch.Tensor], pixels: torch.Tensor, mirror: bool, device: torch.device
) -> NDArray[np.float32]:
    with torch.inference_mode():
        views = stack_views(pixels.to(device), mirror)
        rows = frozen(views.flatten(0, 1)).unflatten(0, views.shape[:2])
    return np.ascontiguousarray(rows.cpu().numpy(), dtype=np.float32)


class _ResumableArray:
    """An array written batch by batch; the file ``rows`` counts the rows that have surely reached the disk."""

    def __init__(self, folder: Path, shape: tuple[int, ...], dtype: np.dtype[Any], batch: int) -> None:
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, {"descr": dtype.str, "fortran_order": False, "shape": shape})
        self._path, self._count = folder / "array.npy", folder / "rows"
        row_bytes = dtype.itemsize * math.prod(shape[1:])
        # Whole batches, since the last digits of a row depend on the size of its batch.
        rows = int(self._count.read_text()) // batch * batch if self._count.exists() else 0
        end = header.tell() + rows * row_bytes
        for outdated in set(folder.parent.glob("*")) - {folder}:  # of earlier parameters
            shutil.rmtree(outdated)
        folder.mkdir(parents=True, exist_ok=True)
        self._file: BinaryIO
        if rows and self._path.stat().st_size >= end:
            log.info("encode: resuming after %d of %d images", rows, shape[0])
            self._file = self._path.open("r+b")
            self._file.truncate(end)
            self._file.seek(end)
        else:
            rows = 0
            self._file = self._path.open("wb")
            self._file.write(header.getvalue())
        self.rows = rows
        self._synced = time.monotonic()

    def append(self, rows: NDArray[Any]) -> None:
        self._file.write(rows.data)
        self.rows += len(rows)
        if time.monotonic() - self._synced >= SYNC_INTERVAL_S:
            self._file.flush()
            os.fsync(self._file.fileno())
            write_text(self._count, str(self.rows))
            self._synced = time.monotonic()

    def finish(self, path: Path) -> bytes:
        """Move the array to ``path`` and return its SHA-256."""
        self._file.close()
        with self._path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").digest()
        with atomic_write(path) as temporary:
            shutil.move(self._path, temporary)
        shutil.rmtree(self._path.parent)
        return digest


def decoded_batches(images: Sequence[Callable[[], bytes]], size: int, batch: int) -> Iterator[torch.Tensor]:
    """Decode images in threads, one batch ahead of the caller, and yield batches, uint8 (n, 3, size, size)."""
    from bintally.model.images import decode  # imports torchvision, which loading arrays does not need

    # One thread per image: more would compete with the network's for the cores.
    with ThreadPoolExecutor(os.cpu_count(), initializer=torch.set_num_threads, initargs=(1,)) as pool:
        waiting: list[Future[torch.Tensor]] = []
        for start in range(0, len(images), batch):
            following = [pool.submit(lambda read: decode(read(), size), read) for read in images[start : start + batch]]
            if waiting:
                yield torch.stack([future.result() for future in waiting])
            waiting = following
        if waiting:
            yield torch.stack([future.result() for future in waiting])


def load_encoded(folder: Path) -> Encoded:
    """Open an encoded folder."""
    encoding = Encoding.model_validate_json((folder / "encoding.json").read_text(encoding="utf-8"))
    return Encoded(MemoryMappedRows(folder / "array.npy"), encoding, load_file(folder / "backbone.safetensors"))
