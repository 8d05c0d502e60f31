"""Decode photographs, run the backbone on them if it is frozen, once, and write the result."""

import hashlib
import io
import logging
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save

from bintally.errors import disk_full_as_user_error
from bintally.files import atomic_write, write_text
from bintally.model.backbone import Backbone
from bintally.model.encoded import Encoding, Kind
from bintally.model.views import stack_views
from bintally.progress import progress

# Images per forward pass: few enough for a CPU's caches, enough to keep a GPU busy.
BATCH = {"cpu": 8, "cuda": 128}
SYNC_INTERVAL_S = 10.0

log = logging.getLogger("bintally")


def encode(
    folder: Path,
    images: Sequence[Callable[[], torch.Tensor]],
    backbone: Backbone,
    image_size: int,
    kind: Kind,
    mirror: bool,
    device: torch.device,
    scratch: Path,
    key: str,
) -> None:
    """Write ``array.npy``, ``backbone.safetensors`` (its initial weights) and ``encoding.json`` to ``folder``.

    An interrupted encoding is resumed from ``scratch`` under the same ``key``, weights and kind of device.

    Args:
        images: functions that decode each image, uint8 (3, image_size, image_size); called in threads.
        kind: features of the backbone, or the pixels that it is to be trained on.
        mirror: compute features of mirror images as well.
        key: hash of the images and of all else that the array depends on.
    """
    backbone.to(device).eval()

    @torch.inference_mode()
    def rows(pixels: torch.Tensor) -> NDArray[Any]:
        if kind == "pixels":
            return pixels.numpy()
        views = stack_views(pixels.to(device), mirror)
        features = backbone(views.flatten(0, 1)).unflatten(0, views.shape[:2])
        return np.ascontiguousarray(features.cpu().numpy(), dtype=np.float32)

    weights = save({name: value.cpu().contiguous() for name, value in backbone.state_dict().items()})
    digest = hashlib.sha256(weights)
    resume_key = hashlib.sha256(f"{key} {digest.hexdigest()} {device.type}".encode()).hexdigest()[:16]
    example = rows(torch.zeros(1, 3, image_size, image_size, dtype=torch.uint8))
    shape = (len(images), *example.shape[1:])
    array = _ResumableArray(scratch / resume_key, shape, example.dtype, BATCH[device.type])
    with disk_full_as_user_error(scratch), progress("encode", len(images) - array.rows, "images") as advance:
        for pixels in decoded_batches(images[array.rows :], BATCH[device.type]):
            array.append(rows(pixels))
            advance(len(pixels))
    digest.update(array.finish(folder / "array.npy"))
    with atomic_write(folder / "backbone.safetensors") as temporary:
        temporary.write_bytes(weights)
    encoding = Encoding(kind=kind, image_size=image_size, digest=digest.hexdigest())
    write_text(folder / "encoding.json", encoding.model_dump_json(indent=2) + "\n")


class _ResumableArray:
    """An array written batch by batch; the file ``rows`` counts the rows that have surely reached the disk."""

    def __init__(self, folder: Path, shape: tuple[int, ...], dtype: np.dtype[Any], batch: int) -> None:
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, {"descr": dtype.str, "fortran_order": False, "shape": shape})
        self._path, self._count = folder / "array.npy", folder / "rows"
        # Whole batches, since the last digits of a row depend on the size of its batch.
        self.rows = int(self._count.read_text()) // batch * batch if self._count.exists() else 0
        end = header.tell() + self.rows * dtype.itemsize * math.prod(shape[1:])
        if not self._path.exists() or self._path.stat().st_size < end:  # as after a kill while it was moved away
            self.rows, end = 0, header.tell()
        for outdated in set(folder.parent.glob("*")) - {folder}:  # of earlier parameters
            shutil.rmtree(outdated)
        folder.mkdir(parents=True, exist_ok=True)
        if self.rows:
            log.info("encode: resuming after %d of %d images", self.rows, shape[0])
        self._file = self._path.open("r+b" if self.rows else "wb")
        self._file.write(header.getvalue())
        self._file.truncate(end)
        self._file.seek(end)
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


def decoded_batches(images: Sequence[Callable[[], torch.Tensor]], batch: int) -> Iterator[torch.Tensor]:
    """Call functions that decode an image in threads, one batch ahead of the caller, and yield stacked batches."""
    # One thread per image: more would compete with the network's for the cores.
    with ThreadPoolExecutor(os.cpu_count(), initializer=torch.set_num_threads, initargs=(1,)) as pool:
        waiting: list[Future[torch.Tensor]] = []
        for start in range(0, len(images) + batch, batch):  # one step more, for the last batch
            following = [pool.submit(decode) for decode in images[start : start + batch]]
            if waiting:
                yield torch.stack([future.result() for future in waiting])
            waiting = following
