"""Decode photographs, run the backbone on them if it is frozen, once, and write the result."""

import hashlib
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from torch import distributed

from bintally.distributed.process_group import RankContext, all_reduce_sum, broadcast_bytes, require_same_key
from bintally.errors import disk_full_as_user_error
from bintally.files import atomic_write, write_text
from bintally.hashing import sha256_hex
from bintally.interruption import Stopped
from bintally.model.backbone import Backbone
from bintally.model.encoded import Encoding, Kind
from bintally.model.resumable_array import ResumableArray, create_array, move_array
from bintally.model.views import stack_views
from bintally.progress import progress
from bintally.resources import available_cpus

# Images per forward pass: few enough for a CPU's caches, enough to keep a GPU busy.
BATCH = {"cpu": 8, "cuda": 128}
SYNC_INTERVAL_S = 2.0  # well below the least launch.timeout_s
EXCHANGED_BYTES = 2**26  # at once
HASHED_BYTES = 2**20  # at once
END = object()

Images = Sequence[Callable[[], torch.Tensor]]

log = logging.getLogger("bintally")


def encode(
    folder: Path,
    images: Images,
    backbone: Backbone,
    image_size: int,
    kind: Kind,
    mirror: bool,
    context: RankContext,
    scratch: Path,
    key: str,
    stopped: Callable[[], bool] = lambda: False,
    meanwhile: Iterable[object] = (),
) -> None:
    """Write ``array.npy``, ``backbone.safetensors`` (its initial weights) and ``encoding.json`` to ``folder``.

    Each rank encodes a share of the images, and each machine gets the rows of all. The bytes do not depend on the
    number of ranks. An interrupted encoding is resumed from ``scratch`` under the same ``key``, weights and kind of
    device.

    Args:
        images: functions that decode each image, uint8 (3, image_size, image_size); called in threads.
        kind: features of the backbone, or the pixels that it is to be trained on.
        mirror: compute features of mirror images as well.
        key: hash of the images and of all else that the array depends on.
        stopped: whether to save and end now.
        meanwhile: work in short steps that the main rank of each machine does when it has all rows, before any is done.

    Raises:
        UserError: an image does not decode, the disk is full, or the machines have different keys.
        Stopped: ``stopped()`` on any rank; the rows are saved.
    """
    device, batch = context.device, BATCH[context.device.type]
    backbone.to(device).eval()

    @torch.inference_mode()
    def rows(pixels: torch.Tensor) -> NDArray[Any]:
        if kind == "pixels":
            return pixels.numpy()
        views = stack_views(pixels.to(device), mirror)
        features = backbone(views.flatten(0, 1)).unflatten(0, views.shape[:2])
        return np.ascontiguousarray(features.cpu().numpy(), dtype=np.float32)

    weights = save({name: value.cpu().contiguous() for name, value in backbone.state_dict().items()})
    key = sha256_hex(key.encode(), weights, device.type.encode())
    unfinished = scratch / key[:16]
    with disk_full_as_user_error(scratch):
        if context.is_main:
            example = rows(torch.zeros(1, 3, image_size, image_size, dtype=torch.uint8))
            create_array(unfinished, (len(images), *example.shape[1:]), example.dtype)
        require_same_key(key, context)
        shares = [share(rank, context.world_size, len(images), batch) for rank in range(context.world_size)]
        array = ResumableArray(unfinished, shares[context.rank], batch)
        _encode_share(array, images, shares[context.rank], rows, context, stopped)
        if context.world_size > context.local_world_size:
            _exchange(array, shares, context, stopped)
        content = hashlib.sha256()
        work = chain(_hash(array.close(), content), meanwhile)
        _together(work if context.is_main else (), context, stopped)
        digest = hashlib.sha256(weights + content.digest()).hexdigest()
        if context.world_size > 1:
            of_first = broadcast_bytes(digest.encode(), 0, context).decode()
            # No machine may be done while another can still fail and need its rows again.
            require_same_key(digest if context.is_main else of_first, context)
    if not context.is_main:
        return
    move_array(unfinished, folder / "array.npy")
    with atomic_write(folder / "backbone.safetensors") as temporary:
        temporary.write_bytes(weights)
    encoding = Encoding(kind=kind, image_size=image_size, digest=digest)
    write_text(folder / "encoding.json", encoding.model_dump_json(indent=2) + "\n")


def share(rank: int, world_size: int, images: int, batch: int) -> range:
    """The images of a rank: whole batches, since the last digits of a row depend on the others in its batch."""
    batches = -(-images // batch)
    first, after = (batches * number // world_size * batch for number in (rank, rank + 1))
    return range(first, min(after, images))


def _encode_share(
    array: ResumableArray,
    images: Images,
    ours: range,
    rows: Callable[[torch.Tensor], NDArray[Any]],
    context: RankContext,
    stopped: Callable[[], bool],
) -> None:
    """Encode the images of this rank, and wait until all ranks have."""
    shown, _ = _sums(array.done, False, context)
    if shown and context.is_main:
        log.info("encode: resuming after %d of %d images", shown, len(images))
    batches = _encoded_batches(images[ours.start + array.done : ours.stop], rows, context)
    with progress("encode", len(images) - shown, "images", quiet=not context.is_main) as advance:
        # Ranks that are done early meet the others as often as these do, so that none waits for long.
        while True:
            started = time.monotonic()
            for encoded in batches:
                array.append(encoded)
                advance(len(encoded))
                shown += len(encoded)
                if time.monotonic() - started >= SYNC_INTERVAL_S or stopped():
                    break
            array.save()
            done, stopping = _sums(array.done, stopped(), context)
            if stopping:
                raise Stopped
            advance(done - shown)
            shown = done
            if done == len(images):
                return


def _exchange(
    array: ResumableArray, shares: Sequence[range], context: RankContext, stopped: Callable[[], bool]
) -> None:
    """Give the rows of every rank to the machines that do not have them, in pieces of bounded size."""
    here = range(context.rank, context.rank + context.local_world_size)  # on the machine of a main rank
    number = max(1, EXCHANGED_BYTES // array.row_bytes)
    with progress("exchange", shares[-1].stop, "images", quiet=not context.is_main, brief=True) as advance:
        for source, rows in enumerate(shares):
            for first in range(rows.start, rows.stop, number):
                piece = rows[first - rows.start :][:number]
                if context.rank == source:
                    content = torch.frombuffer(bytearray(array.read(first, len(piece))), dtype=torch.uint8)
                else:
                    content = torch.empty(len(piece) * array.row_bytes, dtype=torch.uint8)
                received = content.to(context.device)
                distributed.broadcast(received, source)
                if context.is_main and source not in here:
                    array.write(first, received.cpu().numpy().data)
                advance(len(piece))
                _, stopping = _sums(0, stopped(), context)  # all stop, else the others would miss this one
                if stopping:
                    raise Stopped
    array.save()
    _sums(0, False, context)  # wait: the other ranks of this machine read the rows that its main rank has written


def _hash(path: Path, digest: "hashlib._Hash") -> Iterator[None]:
    with path.open("rb") as file:
        while piece := file.read(HASHED_BYTES):
            digest.update(piece)
            yield


def _together(steps: Iterable[object], context: RankContext, stopped: Callable[[], bool]) -> None:
    """Take all steps, and wait until every rank has taken its own: one that waited in silence would be given up."""
    remaining, is_done = iter(steps), False
    while True:
        started = time.monotonic()
        while not is_done:
            is_done = next(remaining, END) is END
            if time.monotonic() - started >= SYNC_INTERVAL_S:
                break
        undone, stopping = _sums(int(not is_done), stopped(), context)
        if stopping:
            raise Stopped
        if not undone:
            return


def _sums(done: int, stopping: bool, context: RankContext) -> tuple[int, int]:
    """The sum of ``done`` over all ranks, and the number of ranks that are to stop."""
    sums = torch.tensor([done, stopping], device=context.device)
    if context.world_size > 1:
        all_reduce_sum(sums)
    return int(sums[0]), int(sums[1])


def _encoded_batches(
    images: Images, rows: Callable[[torch.Tensor], NDArray[Any]], context: RankContext
) -> Iterator[NDArray[Any]]:
    """The rows of each batch, in order."""
    batch, threads = BATCH[context.device.type], torch.get_num_threads()
    if context.device.type != "cpu":
        yield from map(rows, decoded_batches(images, batch, max(1, available_cpus() // context.local_world_size)))
        return

    def encoded(start: int) -> NDArray[Any]:
        return rows(torch.stack([decode() for decode in images[start : start + batch]]))

    # A thread for each batch: threads that share the work of one wait for each other, and for those of other programs.
    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        starts = iter(range(0, len(images), batch))
        waiting = deque(pool.submit(encoded, start) for start in islice(starts, threads + 1))
        while waiting:
            yield waiting.popleft().result()
            waiting.extend(pool.submit(encoded, start) for start in islice(starts, 1))


def decoded_batches(images: Images, batch: int, threads: int | None = None) -> Iterator[torch.Tensor]:
    """Call functions that decode an image in threads, one batch ahead of the caller, and yield stacked batches."""
    # One thread per image: more would compete with the network's for the cores.
    with ThreadPoolExecutor(threads or os.cpu_count(), initializer=torch.set_num_threads, initargs=(1,)) as pool:
        waiting: list[Future[torch.Tensor]] = []
        for start in range(0, len(images) + batch, batch):  # one step more, for the last batch
            following = [pool.submit(decode) for decode in images[start : start + batch]]
            if waiting:
                yield torch.stack([future.result() for future in waiting])
            waiting = following
