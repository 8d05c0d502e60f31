"""Photographs after the constant part of the computation, as arrays read by memory map."""

import hashlib
import mmap
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from safetensors.torch import load_file, save_file

from bintally.files import replacing, write_text
from bintally.model.network import views
from bintally.model.trunk import Trunk
from bintally.progress import progress

# Images a forward pass. Larger ones make a CPU wait for fresh memory: 16 views went 75/s, 128 views 11/s.
BATCH = {"cpu": 8, "cuda": 128}
TOUCHED_BYTES = 2**25


class Encoding(BaseModel):
    """What ``array.npy`` holds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: str
    """``features``, float32 (bins, views, width), or ``pixels``, uint8 (bins, 3, size, size)."""
    digest: str
    """SHA-256 of the array and of the trunk's weights."""


class Rows:
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
        self._touched += taken.nbytes
        if self._touched > TOUCHED_BYTES:
            self._map.madvise(mmap.MADV_DONTNEED)
            self._touched = 0
        return np.asarray(taken)


@dataclass(frozen=True)
class Encoded:
    """The arrays of one folder, in the order of the bins' index."""

    rows: Rows
    encoding: Encoding
    trunk_state: dict[str, torch.Tensor]


def encode(
    folder: Path,
    images: Sequence[Callable[[], bytes]],
    trunk: Trunk,
    size: int,
    freeze: bool,
    mirrored: bool,
    device: torch.device,
) -> None:
    """Decode, resize and, where the trunk is frozen, run it, once for each image.

    Writes ``array.npy``, ``trunk.safetensors`` (the weights it starts from) and ``encoding.json`` to ``folder``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    trunk.to(device).eval()
    shape = (len(images), 1 + mirrored, trunk.width) if freeze else (len(images), 3, size, size)
    digest = hashlib.sha256()
    save_file(
        {key: value.cpu().contiguous() for key, value in trunk.state_dict().items()},
        folder / "trunk.safetensors",
    )
    digest.update((folder / "trunk.safetensors").read_bytes())
    with (
        replacing(folder / "array.npy") as temporary,
        temporary.open("wb") as file,
        progress("encode", len(images), "images") as advance,
    ):
        header = {"descr": "<f4" if freeze else "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        for pixels in decoded_batches(images, size, BATCH[device.type]):
            rows = _features(trunk, pixels, mirrored, device) if freeze else pixels.numpy()
            digest.update(rows.data)
            file.write(rows.data)
            advance(len(rows))
    encoding = Encoding(kind="features" if freeze else "pixels", digest=digest.hexdigest())
    write_text(folder / "encoding.json", encoding.model_dump_json(indent=2) + "\n")


def _features(trunk: Trunk, pixels: torch.Tensor, mirrored: bool, device: torch.device) -> NDArray[np.float32]:
    with torch.inference_mode():
        stacked = views(pixels.to(device), mirrored)
        features = trunk(stacked.flatten(0, 1)).unflatten(0, stacked.shape[:2])
    return np.ascontiguousarray(features.cpu().numpy(), dtype=np.float32)


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
    return Encoded(Rows(folder / "array.npy"), encoding, load_file(folder / "trunk.safetensors"))
