"""Photographs after the constant part of the computation, as arrays read by memory map."""

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
from bintally.model.network import views
from bintally.progress import progress

# Images a forward pass: what a CPU's caches hold, what keeps a GPU busy.
BATCH = {"cpu": 8, "cuda": 128}
TOUCHED_BYTES = 2**26
FAULT_AROUND_BYTES = 2**16
KEEP_EVERY_S = 10.0

Kind = Literal["features", "maps", "pixels"]

log = logging.getLogger("bintally")


class Encoding(BaseModel):
    """What ``array.npy`` holds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Kind
    """``features`` of the backbone or ``maps`` in its middle, float32 (bins, views, width); or ``pixels``, uint8 (bins, 3,
    size, size)."""
    image_size: int
    learned: int = 0
    """How many stages of the backbone follow the maps."""
    digest: str
    """SHA-256 of the array and of the backbone's weights."""


class MemoryMappedRows:
    """An array on disk of which rows are read by memory map, few of them kept in this process's memory.

    Pages once touched would count as this process's until it ends, all of the array after an epoch; given back
    every so often they stay where they are, in the system's cache of files.
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
        """A copy of ``rows``, or of one view of each."""
        taken = self._array[rows] if view is None else self._array[rows, view.astype(np.intp)]
        # Where a page is missing Linux brings in those around it, too.
        self._touched += len(taken) * max(taken[:1].nbytes, FAULT_AROUND_BYTES)
        if self._touched > TOUCHED_BYTES:
            self._map.madvise(mmap.MADV_DONTNEED)
            self._touched = 0
        return np.asarray(taken)


@dataclass(frozen=True)
class Encoded:
    """The arrays of one folder, in the order of the bins' index."""

    rows: MemoryMappedRows
    encoding: Encoding
    backbone_state: dict[str, torch.Tensor]

    def ready(self, backbone: Backbone) -> None:
        """Make a backbone take these rows."""
        if self.encoding.kind == "maps":
            backbone.cut(self.encoding.learned)

    def suit(self, backbone: Backbone, image_size: int) -> bool:
        """Whether these rows are what the constant part of ``backbone`` gives, of images of ``image_size``."""
        if image_size != self.encoding.image_size:
            return False
        self.ready(backbone)
        ours, theirs = self.backbone_state, backbone.state_dict()
        constant = {"features": list(theirs), "maps": backbone.constant(), "pixels": []}[self.encoding.kind]
        return all(name in ours and torch.equal(theirs[name].cpu(), ours[name]) for name in constant)


def encode(
    folder: Path,
    images: Sequence[Callable[[], bytes]],
    backbone: Backbone,
    size: int,
    trained: str | int,
    mirrored: bool,
    device: torch.device,
    scratch: Path,
    key: str,
) -> None:
    """Decode, resize and run what of the backbone does not learn, once for each image.

    Writes ``array.npy``, ``backbone.safetensors`` (the weights it starts from) and ``encoding.json`` to ``folder``. An
    interrupted encoding goes on from what lies in ``scratch`` under the same ``key``, weights and device.

    Args:
        trained: what learns, as `model.trainable` has it.
        key: a hash of the images and of all else the array depends on.
    """
    backbone.to(device).eval()
    constant = _constant(backbone, trained)
    if constant:
        with torch.inference_mode():
            width = constant(torch.zeros(1, 3, size, size, device=device)).shape[1]
    shape = (len(images), 1 + mirrored, width) if constant else (len(images), 3, size, size)
    weights = save({name: value.cpu().contiguous() for name, value in backbone.state_dict().items()})
    digest = hashlib.sha256(weights)
    unfinished = _Unfinished(
        scratch / hashlib.sha256(f"{key} {digest.hexdigest()} {device.type}".encode()).hexdigest()[:16],
        shape,
        np.dtype("<f4" if constant else "|u1"),
        BATCH[device.type],
    )
    with disk_full_as_user_error(scratch), progress("encode", len(images) - unfinished.rows, "images") as advance:
        for pixels in decoded_batches(images[unfinished.rows :], size, BATCH[device.type]):
            unfinished.append(_rows(constant, pixels, mirrored, device) if constant else pixels.numpy())
            advance(len(pixels))
    digest.update(unfinished.finish(folder / "array.npy"))
    with atomic_write(folder / "backbone.safetensors") as temporary:
        temporary.write_bytes(weights)
    encoding = Encoding(
        kind="pixels" if constant is None else "features" if constant == backbone else "maps",
        image_size=size,
        learned=trained if isinstance(trained, int) and constant else 0,
        digest=digest.hexdigest(),
    )
    write_text(folder / "encoding.json", encoding.model_dump_json(indent=2) + "\n")


class _Unfinished:
    """An array on its way, of which the rows counted in the file ``rows`` are on the disk for certain."""

    def __init__(self, folder: Path, shape: tuple[int, ...], dtype: np.dtype[Any], batch: int) -> None:
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, {"descr": dtype.str, "fortran_order": False, "shape": shape})
        self._path, self._count = folder / "array.npy", folder / "rows"
        row_bytes = dtype.itemsize * math.prod(shape[1:])
        # Whole batches, since the last digits of a row depend on the size of its batch.
        rows = int(self._count.read_text()) // batch * batch if self._count.exists() else 0
        end = header.tell() + rows * row_bytes
        for other in set(folder.parent.glob("*")) - {folder}:
            shutil.rmtree(other)  # of parameters that have changed since
        folder.mkdir(parents=True, exist_ok=True)
        self._file: BinaryIO
        if rows and self._path.stat().st_size >= end:
            log.info("encode: going on after %d of %d images", rows, shape[0])
            self._file = self._path.open("r+b")
            self._file.truncate(end)
            self._file.seek(end)
        else:
            rows = 0
            self._file = self._path.open("wb")
            self._file.write(header.getvalue())
        self.rows = rows
        self._kept = time.monotonic()

    def append(self, rows: NDArray[Any]) -> None:
        self._file.write(rows.data)
        self.rows += len(rows)
        if time.monotonic() - self._kept >= KEEP_EVERY_S:
            self._file.flush()
            os.fsync(self._file.fileno())
            write_text(self._count, str(self.rows))
            self._kept = time.monotonic()

    def finish(self, path: Path) -> bytes:
        """Move the array to ``path``; its SHA-256."""
        self._file.close()
        with self._path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").digest()
        with atomic_write(path) as temporary:
            shutil.move(self._path, temporary)
        shutil.rmtree(self._path.parent)
        return digest


def _constant(backbone: Backbone, trained: str | int) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """What of a backbone does not learn; None where all of it does."""
    if trained == "head":
        return backbone
    if trained == "all" or trained == len(backbone.stages()):
        return None
    assert isinstance(trained, int)
    backbone.cut(trained)
    return backbone.front


def _rows(
    constant: Callable[[torch.Tensor], torch.Tensor], pixels: torch.Tensor, mirrored: bool, device: torch.device
) -> NDArray[np.float32]:
    with torch.inference_mode():
        stacked = views(pixels.to(device), mirrored)
        rows = constant(stacked.flatten(0, 1)).unflatten(0, stacked.shape[:2])
    return np.ascontiguousarray(rows.cpu().numpy(), dtype=np.float32)


def decoded_batches(images: Sequence[Callable[[], bytes]], size: int, batch: int) -> Iterator[torch.Tensor]:
    """Decoded images in batches, uint8 (n, 3, size, size), decoded one batch ahead of the caller."""
    from bintally.model.images import decode  # brings torchvision, which loading arrays does not need

    # One thread an image: nested thread teams would fight the network's for the cores.
    with ThreadPoolExecutor(os.cpu_count(), initializer=torch.set_num_threads, initargs=(1,)) as pool:
        waiting: list[Future[torch.Tensor]] = []
        for start in range(0, len(images), batch):
            following = [pool.submit(lambda read: decode(read(), size), one) for one in images[start : start + batch]]
            if waiting:
                yield torch.stack([future.result() for future in waiting])
            waiting = following
        if waiting:
            yield torch.stack([future.result() for future in waiting])


def load_encoded(folder: Path) -> Encoded:
    """Open the arrays of ``folder`` by memory map."""
    encoding = Encoding.model_validate_json((folder / "encoding.json").read_text(encoding="utf-8"))
    return Encoded(MemoryMappedRows(folder / "array.npy"), encoding, load_file(folder / "backbone.safetensors"))
