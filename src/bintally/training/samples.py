"""The input path: which samples make a batch, and their way from the disk to the device ahead of the step."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray

from bintally.model.encoded import Kind, MemoryMappedRows
from bintally.training.augment import draw
from bintally.training.distributed import Place

AHEAD_BYTES = 2**23  # read at once before they are asked for, at least one batch
VALIDATION_BATCH = 64


@dataclass(frozen=True)
class Samples:
    """The encoded bins of one split."""

    source: MemoryMappedRows
    """(bins, views, width) features or maps, or (bins, 3, size, size) pixels, of every bin."""
    kind: Kind
    rows: NDArray[np.int64]
    """Which of them are in the split."""
    classes: NDArray[np.int64]
    """The class of each of ``rows``."""
    names: Sequence[str]
    """The id of each of ``rows``."""
    groups: Sequence[str]
    """The group of each of ``rows``."""
    mirrored: bool
    taught: torch.Tensor | None = None
    """What teachers say of each of ``rows``: float32 (rows, classes), rows sum to 1."""
    facts: torch.Tensor | None = None
    """What the records say of each of ``rows``: float32 (rows, facts), NaN where they do not."""


@dataclass(frozen=True)
class Batch:
    """Part of a batch, on the device."""

    chosen: NDArray[np.int64]
    """Numbers of the samples within their split."""
    inputs: torch.Tensor
    """(n, width) features or maps of one view, (n, views, width) of all, or uint8 (n, 3, size, size) pixels."""
    targets: torch.Tensor
    flip: torch.Tensor
    """Whether to mirror, bool (n,): only of pixels."""
    draws: torch.Tensor
    """What changes the pixels: see :mod:`bintally.training.augment`."""


@dataclass(frozen=True)
class Plan:
    """One epoch: the samples of every batch in their order, and what happens to each sample."""

    batches: list[NDArray[np.int64]]
    flip: NDArray[np.bool_]
    """By sample."""
    draws: NDArray[np.float32]
    """By sample."""


def steps_an_epoch(samples: int, batch_size: int) -> int:
    return math.ceil(samples / batch_size)


def plan(samples: int, batch_size: int, seed: int, epoch: int, groups: Sequence[str] | None = None) -> Plan:
    """An epoch, the same whatever the ranks.

    It is cut into as few batches as ``batch_size`` allows, equal in size to within one, so that no step is made from
    a handful of samples left over. Samples of one of ``groups`` follow each other.
    """
    random = np.random.default_rng([seed, epoch])
    order = random.permutation(samples)
    if groups is not None:
        _, first, member = np.unique(np.asarray(groups)[order], return_index=True, return_inverse=True)
        order = order[first[member].argsort(kind="stable")]
    flip = random.random(samples) < 0.5
    return Plan(np.array_split(order, steps_an_epoch(samples, batch_size)), flip, draw(samples, seed, epoch))


def shares(batch: NDArray[np.int64], place: Place, parts: int) -> list[NDArray[np.int64]]:
    """This rank's share of each of so many parts of a batch; which samples make a part depends on no rank."""
    return [_share(_share(batch, part, parts), place.rank, place.ranks) for part in range(parts)]


def _share(values: NDArray[np.int64], number: int, of: int) -> NDArray[np.int64]:
    """One of numpy.array_split's parts, which takes a tenth of a quick step to make all of them."""
    size, larger = divmod(len(values), of)
    start = number * size + min(number, larger)
    return values[start : start + size + (number < larger)]


def training_batches(samples: Samples, epoch: Plan, start: int, parts: int, place: Place) -> Iterator[Batch]:
    """This rank's parts of every batch from the one numbered ``start`` on."""

    def read(chosen: NDArray[np.int64]) -> Batch:
        flip = epoch.flip[chosen] & samples.mirrored
        rows = samples.rows[chosen]
        return _batch(
            samples, chosen, samples.source.take(rows, None if samples.kind == "pixels" else flip), flip, epoch
        )

    todo = (part for batch in islice(epoch.batches, start, None) for part in shares(batch, place, parts))
    return _on_device(_ahead(todo, read), place.device)


def validation_batches(samples: Samples, place: Place) -> Iterator[Batch]:
    """This rank's share of all samples, all views of each."""

    def read(chosen: NDArray[np.int64]) -> Batch:
        return _batch(samples, chosen, samples.source.take(samples.rows[chosen]))

    mine = np.arange(len(samples.rows))[place.rank :: place.ranks]
    todo = (mine[at : at + VALIDATION_BATCH] for at in range(0, len(mine), VALIDATION_BATCH))
    return _on_device(_ahead(todo, read), place.device)


def _batch(
    samples: Samples,
    chosen: NDArray[np.int64],
    inputs: NDArray[np.float32] | NDArray[np.uint8],
    flip: NDArray[np.bool_] | None = None,
    epoch: Plan | None = None,
) -> Batch:
    return Batch(
        chosen,
        torch.from_numpy(inputs),
        torch.from_numpy(samples.classes[chosen]),
        torch.from_numpy(flip if flip is not None else np.zeros(0, bool)),
        torch.from_numpy(epoch.draws[chosen] if epoch else np.zeros(0, np.float32)),
    )


def _ahead(todo: Iterable[NDArray[np.int64]], read: Callable[[NDArray[np.int64]], Batch]) -> Iterator[Batch]:
    """Batches in order, read by a thread ahead of time, several small ones in a turn.

    A thread that wakes for every small batch takes a core from the step each time.
    """
    tasks = iter(todo)

    def some() -> list[Batch]:
        batches: list[Batch] = []
        while sum(batch.inputs.nbytes for batch in batches) < AHEAD_BYTES:
            task = next(tasks, None)
            if task is None:
                break
            batches.append(read(task))
        return batches

    with ThreadPoolExecutor(1) as pool:
        following = pool.submit(some)
        while batches := following.result():
            following = pool.submit(some)
            yield from batches


def _on_device(batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    """Batches on the device; on a GPU each is copied, from pinned memory, while the one before it is computed on."""
    if device.type != "cuda":
        yield from batches
        return
    copying = torch.cuda.Stream(device)
    ready: tuple[Batch, torch.cuda.Event] | None = None

    def hand_over(batch: Batch, copied: torch.cuda.Event) -> Batch:
        computing = torch.cuda.current_stream(device)
        computing.wait_event(copied)
        for tensor in _tensors(batch).values():
            tensor.record_stream(computing)
        return batch

    for batch in batches:
        with torch.cuda.stream(copying):
            moved = {
                name: tensor.pin_memory().to(device, non_blocking=True) for name, tensor in _tensors(batch).items()
            }
            following = Batch(chosen=batch.chosen, **moved), copying.record_event()
        if ready:
            yield hand_over(*ready)
        ready = following
    if ready:
        yield hand_over(*ready)


def _tensors(batch: Batch) -> dict[str, torch.Tensor]:
    values = {field.name: getattr(batch, field.name) for field in fields(batch)}
    return {name: value for name, value in values.items() if isinstance(value, torch.Tensor)}
