"""What a few steps of a training cost, and where."""

import math
import os
import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.autograd.profiler_util import EventList
from torch.profiler import ProfilerActivity, profile

from bintally.errors import UserError
from bintally.interruption import StopRequest
from bintally.model.network import CountingNetwork
from bintally.params import Params
from bintally.resources import available_cpus
from bintally.training.checkpoint import Checkpoints
from bintally.training.distributed import Place, all_gather
from bintally.training.loop import MARKS, fit
from bintally.training.optimizer import learned
from bintally.training.samples import Samples

TURNS = 3
WARM_UP = 4  # steps before those that are looked at, the first of all apart
OPERATIONS = 12  # named, those that take longest
NEVER = 10**9

Start = Callable[[], tuple[CountingNetwork, Samples, Samples]]
Evidence = dict[str, Any]


class _Enough(Exception):
    """As many steps as were wanted are done."""


@dataclass
class _Steps:
    """What the steps of a training came to that is left after so many: the first, some to warm up, those looked at."""

    samples: int
    """There are to learn from."""
    first_s: float
    seconds: list[float]
    """Of each step looked at."""
    gradients: list[list[float]]
    """Root mean square of the gradient, by step and stage, the head's last."""
    processor_s: float
    """Seconds of all cores together that the steps looked at took of this process."""


def profile_steps(params: Params, start: Start, place: Place, steps: int, trace: Path | None = None) -> Evidence:
    """Train for some ``steps``, then under torch.profiler, then in turn as it is and in two other ways to compare with.

    The other ways are each rank alone with its share of a batch, which no exchange slows, and batches twice as large.
    Times are those without the profiler, of the quickest turn. Nothing is kept: no checkpoint is read or written.

    Args:
        start: makes the network, as it is before it has learned, and the samples.
        trace: where the rank that writes leaves the trace, ``.json.gz``, for a trace viewer.

    Returns:
        On every rank the same: seconds a step, shares of a step by its parts, images a second, share of the cores or
        of the GPU that was busy, bytes of memory, seconds a step of each rank alone, size of the gradients by stage
        (None: it is not finite).
        Where the training ends by a UserError, ``fault`` says it and the figures that were not had are not there.
    """
    train = params.train
    evidence: Evidence = {
        "device": torch.cuda.get_device_name(place.device) if place.device.type == "cuda" else "CPU",
        "ranks": place.ranks,
        "threads": torch.get_num_threads(),
        "batch_size": train.batch_size,
        "steps": steps,
        "memory": _memory(place),
    }
    profiler = profile(
        activities=[ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (place.device.type == "cuda"),
        profile_memory=True,
    )
    try:
        timed = _run(params, start, place, steps)
        peak = _peak_memory(place)  # before the profiler takes some
        profiled = _run(params, start, place, steps, profiler)
    except UserError as fault:
        return evidence | {"fault": str(fault)}
    events = profiler.key_averages()
    evidence |= {
        "first_step_s": timed.first_s,
        "steps_s": timed.seconds,
        "shares": _shares(events, sum(profiled.seconds)),
        "busy": _busy(events, sum(profiled.seconds), timed, place),
        "peak_memory": peak,
        "gradients": [_finite(float(np.median(column))) for column in zip(*timed.gradients, strict=True)],
        "operations": _operations(events),
    }
    if trace and place.is_main_process:
        trace.parent.mkdir(parents=True, exist_ok=True)
        profiler.export_chrome_trace(str(trace))
    ways = {"as it is": (params, place)}
    if place.ranks > 1:
        ways["alone"] = (
            _in_batches_of(train.batch_size // place.ranks, params),
            replace(place, rank=0, ranks=1, is_main_process=False),
        )
    if 2 * train.batch_size <= timed.samples:
        ways["double"] = _in_batches_of(2 * train.batch_size, params), place
    # In turn, and of each the quickest, for a machine's speed changes from one second to the next.
    quickest = {"as it is": _mean(timed.seconds)}
    for _ in range(TURNS):
        for way, (its, at) in list(ways.items()):
            try:
                seconds = _mean(_run(its, start, at, steps).seconds)
            except UserError as fault:
                evidence[f"{way}_fault"] = str(fault)
                del ways[way]
            else:
                quickest[way] = min(seconds, quickest.get(way, math.inf))
    evidence |= {"step_s": quickest["as it is"], "images_per_second": train.batch_size / quickest["as it is"]}
    if "alone" in ways:
        seconds_alone = torch.tensor([quickest["alone"]], device=place.device)
        evidence["alone_s"] = all_gather(seconds_alone, place).flatten().tolist()
    if "double" in ways:
        evidence["double_images_per_second"] = 2 * train.batch_size / quickest["double"]
    return evidence


def _in_batches_of(size: int, params: Params) -> Params:
    return params.model_copy(update={"train": params.train.model_copy(update={"batch_size": size})})


def _run(params: Params, start: Start, place: Place, steps: int, profiler: profile | None = None) -> _Steps:
    """The first step, some to warm up, and ``steps`` that are looked at."""
    network, train, validation = start()
    # Images are as large as they become, and no epoch is validated.
    update = {"initial_image_size": None, "head_epochs": 0, "epochs": NEVER, "validate_every": NEVER}
    params = params.model_copy(update={"train": params.train.model_copy(update=update)})
    stages = learned(network, params.model.trainable)
    times: list[float] = []
    gradients: list[list[float]] = []
    processor_s = 0.0
    last = time.perf_counter()

    def stepped(_done: int, _total: int) -> None:
        nonlocal last, processor_s
        if place.device.type == "cuda":
            torch.cuda.synchronize(place.device)
        times.append(time.perf_counter() - last)
        if len(times) > 1 + WARM_UP:
            gradients.append([_root_mean_square(stage) for stage in stages])
        if len(times) == 1 + WARM_UP:
            if profiler:
                profiler.start()
            processor_s = time.process_time()
        elif len(times) == 1 + WARM_UP + steps:
            processor_s = time.process_time() - processor_s
            raise _Enough
        last = time.perf_counter()

    with tempfile.TemporaryDirectory() as folder:
        checkpoints = Checkpoints(Path(folder), "0" * 64, NEVER)
        try:
            with suppress(_Enough):
                fit(network, train, validation, params, place, checkpoints, StopRequest(), lambda _epoch: None, stepped)
        finally:
            if profiler and len(times) > WARM_UP:
                profiler.stop()
    return _Steps(len(train.rows), times[0], times[1 + WARM_UP :], gradients, processor_s)


def _memory(place: Place) -> int:
    """Bytes of the device's memory, of a CPU's what this process may have of it."""
    if place.device.type == "cuda":
        return int(torch.cuda.get_device_properties(place.device).total_memory)
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for group in ("memory.max", "memory/memory.limit_in_bytes"):
        path = Path("/sys/fs/cgroup") / group
        if path.is_file() and (text := path.read_text().strip()).isdecimal():
            limits.append(int(text))
    for limit in (resource.RLIMIT_AS, resource.RLIMIT_DATA):
        if (soft := resource.getrlimit(limit)[0]) != resource.RLIM_INFINITY:
            limits.append(soft * place.ranks)
    return min(limits)


def _peak_memory(place: Place) -> int:
    """Bytes this process has held at most on its GPU; on a CPU, all ranks together."""
    if place.device.type == "cuda":
        return torch.cuda.max_memory_reserved(place.device)
    kibibytes = torch.tensor([resource.getrusage(resource.RUSAGE_SELF).ru_maxrss], dtype=torch.float64)
    return int(all_gather(kibibytes, place).sum()) * 1024


def _busy(events: EventList, profiled_s: float, timed: _Steps, place: Place) -> float:
    """Share of the time in which the GPU computed, or of the time of all cores this machine's ranks have."""
    if place.device.type == "cuda":
        return float(sum(event.self_device_time_total for event in events) / 1e6 / profiled_s)
    share = torch.tensor([timed.processor_s / sum(timed.seconds)], dtype=torch.float64)
    return float(all_gather(share, place).sum()) / available_cpus()


def _shares(events: EventList, seconds: float) -> dict[str, float]:
    """Share of the steps' time by part."""
    spent = {event.key: event.cpu_time_total / 1e6 / seconds for event in events if event.key in MARKS}
    shares = {mark: spent.get(mark, 0.0) for mark in MARKS}
    return shares | {"the rest": max(0.0, 1 - sum(shares.values()))}


def _operations(events: EventList) -> list[dict[str, Any]]:
    """The operations that take longest themselves, with their share of all."""
    own = {
        event.key: event.self_cpu_time_total + event.self_device_time_total
        for event in events
        if event.key not in MARKS
    }
    longest = sorted(own, key=lambda key: (-own[key], key))[:OPERATIONS]
    return [{"name": key, "share": own[key] / sum(own.values())} for key in longest]


def _root_mean_square(stage: list[nn.Parameter]) -> float:
    gradients = [parameter.grad for parameter in stage if parameter.grad is not None]
    number = sum(gradient.numel() for gradient in gradients)
    return float(nn.utils.get_total_norm(gradients)) / math.sqrt(number) if number else 0.0


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))
