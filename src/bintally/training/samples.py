"""The input path: the samples of each batch, read from disk and copied to the device ahead of the step."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray

from bintally.distributed.process_group import RankContext
from bintally.model.encoded import Kind, MemoryMappedRows
from bintally.training.augment import draw
from bintally.training.lists import ListInputs

AHEAD_BYTES = 2**23  # read ahead at once, at least one batch
VALIDATION_BATCH = 64


@dataclass(frozen=True)
class Samples:
    """The encoded bins of one split."""

    source: MemoryMappedRows
    """(bins, views, width) features, or (bins, 3, size, size) pixels, of every bin."""
    kind: Kind
    rows: NDArray[np.int64]
    """Rows of ``source`` that are in the split."""
    classes: NDArray[np.int64]
    """The class of each of ``rows``."""
    names: Sequence[str]
    """The id of each of ``rows``."""
    groups: Sequence[str]
    """The group of each of ``rows``."""
    mirrored: bool
    lists: ListInputs | None = None
    """Of each of ``rows``; None: the network learns from photographs alone."""


@dataclass(frozen=True)
class Batch:
    """Part of a batch, on the device."""

    chosen: NDArray[np.int64]
    """Indices of the samples within their split."""
    inputs: torch.Tensor
    """(n, width) features of one view, (n, views, width) of all, or uint8 (n, 3, size, size) pixels."""
    targets: torch.Tensor
    flip: torch.Tensor
    """Whether to mirror, bool (n,); of pixels only."""
    draws: torch.Tensor
    """Random numbers for the augmentation, float32 (n, DRAWS)."""
    list_features: torch.Tensor
    """float32 (n, features) of the lists, or without features,"""
    log_prior: torch.Tensor
    """and float32 (n, classes), as in :class:`bintally.training.lists.ListInputs`, or empty."""


@dataclass(frozen=True)
class Plan:
    """One epoch: the samples of every batch in order, and the random changes of each sample."""

    batches: list[NDArray[np.int64]]
    flip: NDArray[np.bool_]
    """By sample."""
    draws: NDArray[np.float32]
    """By sample."""


def steps_an_epoch(samples: int, batch_size: int) -> int:
    return math.ceil(samples / batch_size)


def plan(samples: int, batch_size: int, seed: int, epoch: int) -> Plan:
    """Plan an epoch, independent of the number of ranks.

    It has as few batches as ``batch_size`` allows, equal in size to within one, so that no step is made from a few
    remaining samples.
    """
    random = np.random.default_rng([seed, epoch])
    order = random.permutation(samples)
    flip = random.random(samples) < 0.5
    return Plan(np.array_split(order, steps_an_epoch(samples, batch_size)), flip, draw(samples, seed, epoch))


def shares(batch: NDArray[np.int64], context: RankContext, parts: int) -> list[NDArray[np.int64]]:
    """This rank's share of each part of a batch; the parts do not depend on the ranks."""
    return [_share(_share(batch, part, parts), context.rank, context.world_size) for part in range(parts)]


def _share(values: NDArray[np.int64], number: int, of: int) -> NDArray[np.int64]:
    """One part of numpy.array_split, which computes all of them and takes a tenth of a quick step."""
    size, larger = divmod(len(values), of)
    start = number * size + min(number, larger)
    return values[start : start + size + (number < larger)]


def training_batches(samples: Samples, epoch: Plan, start: int, parts: int, context: RankContext) -> Iterator[Batch]:
    """This rank's parts of every batch from number ``start`` on."""

    def read(chosen: NDArray[np.int64]) -> Batch:
        flip = epoch.flip[chosen] & samples.mirrored
        rows = samples.rows[chosen]
        return _batch(
            samples, chosen, samples.source.take(rows, None if samples.kind == "pixels" else flip), flip, epoch
        )

    todo = (part for batch in islice(epoch.batches, start, None) for part in shares(batch, context, parts))
    return _on_device(_ahead(todo, read), context.device)


def validation_batches(samples: Samples, context: RankContext) -> Iterator[Batch]:
    """This rank's share of all samples, with all views of each."""

    def read(chosen: NDArray[np.int64]) -> Batch:
        return _batch(samples, chosen, samples.source.take(samples.rows[chosen]))

    mine = np.arange(len(samples.rows))[context.rank :: context.world_size]
    todo = (mine[at : at + VALIDATION_BATCH] for at in range(0, len(mine), VALIDATION_BATCH))
    return _on_device(_ahead(todo, read), context.device)


def _batch(
    samples: Samples,
    chosen: NDArray[np.int64],
    inputs: NDArray[np.float32] | NDArray[np.uint8],
    flip: NDArray[np.bool_] | None = None,
    epoch: Plan | None = None,
) -> Batch:
    none = np.zeros((len(chosen), 0), np.float32)
    lists = samples.lists
    return Batch(
        chosen,
        torch.from_numpy(inputs),
        torch.from_numpy(samples.classes[chosen]),
        torch.from_numpy(flip if flip is not None else np.zeros(0, bool)),
        torch.from_numpy(epoch.draws[chosen] if epoch else np.zeros(0, np.float32)),
        torch.from_numpy(lists.features[chosen] if lists else none),
        torch.from_numpy(lists.log_prior[chosen] if lists else none),
    )


def _ahead(todo: Iterable[NDArray[np.int64]], read: Callable[[NDArray[np.int64]], Batch]) -> Iterator[Batch]:
    """Batches in order, read ahead by a thread, several small ones at once.

    A thread that woke for every small batch would take a core from the step each time.
    """
    tasks = iter(todo)

    def read_some() -> list[Batch]:
        batches: list[Batch] = []
        while sum(batch.inputs.nbytes for batch in batches) < AHEAD_BYTES:
            task = next(tasks, None)
            if task is None:
                break
            batches.append(read(task))
        return batches

    with ThreadPoolExecutor(1) as pool:
        following = pool.submit(read_some)
        while batches := following.result():
            following = pool.submit(read_some)
            yield from batches


def _on_device(batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    """Batches on the device; a GPU copies each from pinned memory while it computes on the one before."""
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
            copied = {
                name: tensor.pin_memory().to(device, non_blocking=True) for name, tensor in _tensors(batch).items()
            }
            following = Batch(chosen=batch.chosen, **copied), copying.record_event()
        if ready:
            yield hand_over(*ready)
        ready = following
    if ready:
        yield hand_over(*ready)


def _tensors(batch: Batch) -> dict[str, torch.Tensor]:
    values = {field.name: getattr(batch, field.name) for field in fields(batch)}
    return {name: value for name, value in values.items() if isinstance(value, torch.Tensor)}
