"""The profile of a few training steps; run as a module, this is one rank of `bintally diagnose`."""

import math
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.autograd.profiler_util import EventList
from torch.profiler import ProfilerActivity, profile

from bintally.distributed.process_group import RankContext, all_gather, process_group
from bintally.errors import UserError, disk_full_as_user_error, printable
from bintally.files import SCRATCH, write_json
from bintally.interruption import StopRequest
from bintally.memory import configure_malloc
from bintally.model.network import CountingNetwork
from bintally.params import Params, load_params
from bintally.progress import log_to_stderr
from bintally.resources import available_cpus
from bintally.training.checkpoint import Checkpoints
from bintally.training.loop import MARKS, fit
from bintally.training.optimizer import trainable_stages
from bintally.training.samples import Samples
from bintally.training.setup import TrainingSetup, prepare, run_key

PROFILE, TRACE = SCRATCH / "diagnose/profile.json", SCRATCH / "diagnose/trace.json.gz"
STEPS_VARIABLE = "BINTALLY_PROFILED_STEPS"
REPETITIONS = 3
WARM_UP_STEPS = 4  # after the first step, before the timed ones
OPERATIONS = 12  # listed, the slowest first
NEVER = 10**9

Setup = Callable[[], tuple[CountingNetwork, Samples, Samples]]
Profile = dict[str, Any]


class _EnoughSteps(Exception):
    """Ends a training after the steps to time."""


@dataclass
class _TimedSteps:
    """The measurements of a training that was ended after some steps."""

    samples: int  # number of training samples
    first_s: float  # duration of the first step
    seconds: list[float]  # duration of each timed step
    gradient_rms: list[list[float]]  # root mean square of the gradient by timed step and stage, the head last
    cpu_s: float  # CPU time of this process in the timed steps, summed over cores

    @property
    def step_s(self) -> float:
        return float(np.mean(self.seconds))


def profile_steps(params: Params, setup: Setup, context: RankContext, steps: int, trace: Path | None = None) -> Profile:
    """Time ``steps`` training steps, profile as many, and time two other configurations for comparison.

    The other configurations are each rank with its share of a batch but without the others, and batches twice as
    large. Every duration is measured without the profiler, in the fastest repetition.

    Args:
        setup: returns a new network and the samples of training and validation.
        trace: a ``.json.gz`` file that the main process writes, for a trace viewer.

    Returns:
        The profile, the same on every rank; a gradient that is not finite is None. If the training fails with a
        UserError, ``failure`` is its message and the entries that it prevented are missing.
    """
    train = params.train
    profiled: Profile = {
        "device": torch.cuda.get_device_name(context.device) if context.device.type == "cuda" else "CPU",
        "ranks": context.world_size,
        "threads": torch.get_num_threads(),
        "batch_size": train.batch_size,
        "steps": steps,
        "memory_bytes": _memory_bytes(context),
    }
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (context.device.type == "cuda")
    profiler = profile(activities=activities, profile_memory=True)
    try:
        timed = _run_steps(params, setup, context, steps)
        peak_memory = _peak_memory_bytes(context)  # before the profiler takes some
        with_profiler = _run_steps(params, setup, context, steps, profiler)
    except UserError as failure:
        return profiled | {"failure": str(failure)}
    events = profiler.key_averages()
    if trace and context.is_main:
        trace.parent.mkdir(parents=True, exist_ok=True)
        profiler.export_chrome_trace(str(trace))
    fastest, failures = _fastest_repetitions(params, setup, context, timed)
    step_s = fastest["these"].step_s
    gradient_rms = [float(np.median(stage)) for stage in zip(*timed.gradient_rms, strict=True)]
    profiled |= {
        "first_step_s": timed.first_s,
        "steps_s": timed.seconds,
        "step_s": step_s,
        "images_per_second": train.batch_size / step_s,
        "time_shares": _time_shares(events, sum(with_profiler.seconds)),
        "utilisation": _utilisation(events, sum(with_profiler.seconds), fastest["these"], context),
        "peak_memory_bytes": peak_memory,
        "gradient_rms": [value if math.isfinite(value) else None for value in gradient_rms],
        "operations": _slowest_operations(events),
    }
    if "solo" in fastest:
        solo_step_s = torch.tensor([fastest["solo"].step_s], device=context.device)
        profiled["solo_step_s"] = all_gather(solo_step_s, context).flatten().tolist()
    if "double" in fastest:
        profiled["double_images_per_second"] = 2 * train.batch_size / fastest["double"].step_s
    return profiled | {f"{name}_failure": failure for name, failure in failures.items()}


def _fastest_repetitions(
    params: Params, setup: Setup, context: RankContext, timed: _TimedSteps
) -> tuple[dict[str, _TimedSteps], dict[str, str]]:
    """Time these parameters and the other configurations; return the fastest repetition of each, and failures."""
    batch_size = params.train.batch_size
    configurations = {"these": (params, context)}
    if context.world_size > 1:
        solo = replace(context, rank=0, world_size=1, is_main=False)
        configurations["solo"] = _with_train(params, batch_size=batch_size // context.world_size), solo
    if 2 * batch_size <= timed.samples:
        configurations["double"] = _with_train(params, batch_size=2 * batch_size), context
    fastest, failures = {"these": timed}, dict[str, str]()
    for _ in range(REPETITIONS):  # in turn, since the speed of a machine varies over time
        for name, (its_params, its_context) in list(configurations.items()):
            try:
                repetition = _run_steps(its_params, setup, its_context, len(timed.seconds))
            except UserError as failure:
                failures[name] = str(failure)
                del configurations[name]
            else:
                fastest[name] = min(fastest.get(name, repetition), repetition, key=lambda steps: steps.step_s)
    return fastest, failures


def _with_train(params: Params, **train: Any) -> Params:
    return params.model_copy(update={"train": params.train.model_copy(update=train)})


def _run_steps(
    params: Params, setup: Setup, context: RankContext, steps: int, profiler: profile | None = None
) -> _TimedSteps:
    """Train for one step, WARM_UP_STEPS, and ``steps`` that are timed."""
    network, train, validation = setup()
    params = _with_train(params, initial_image_size=None, epochs=NEVER, validate_every=NEVER)
    stages = trainable_stages(network, params.model.trainable)
    times: list[float] = []
    gradient_rms: list[list[float]] = []
    cpu_s = 0.0
    last = time.perf_counter()

    def on_step(_done: int, _total: int) -> None:
        nonlocal last, cpu_s
        if context.device.type == "cuda":
            torch.cuda.synchronize(context.device)
        times.append(time.perf_counter() - last)
        if len(times) > 1 + WARM_UP_STEPS:
            gradient_rms.append([_root_mean_square(stage) for stage in stages])
        if len(times) == 1 + WARM_UP_STEPS:
            if profiler:
                profiler.start()
            cpu_s = time.process_time()
        elif len(times) == 1 + WARM_UP_STEPS + steps:
            cpu_s = time.process_time() - cpu_s
            raise _EnoughSteps
        last = time.perf_counter()

    with tempfile.TemporaryDirectory() as folder:
        checkpoints = Checkpoints(Path(folder), "0" * 64, NEVER)
        try:
            with suppress(_EnoughSteps):
                fit(network, train, validation, params, context, checkpoints, StopRequest(), lambda _: None, on_step)
        finally:
            if profiler and len(times) > WARM_UP_STEPS:
                profiler.stop()
    return _TimedSteps(len(train.rows), times[0], times[1 + WARM_UP_STEPS :], gradient_rms, cpu_s)


def _memory_bytes(context: RankContext) -> int:
    """The memory of the GPU, or the memory that all ranks together may use on a CPU."""
    if context.device.type == "cuda":
        return int(torch.cuda.get_device_properties(context.device).total_memory)
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        path = Path("/sys/fs/cgroup") / name
        if path.is_file() and (text := path.read_text().strip()).isdecimal():
            limits.append(int(text))
    for limit in (resource.RLIMIT_AS, resource.RLIMIT_DATA):
        if (soft := resource.getrlimit(limit)[0]) != resource.RLIM_INFINITY:
            limits.append(soft * context.world_size)
    return min(limits)


def _peak_memory_bytes(context: RankContext) -> int:
    """The peak memory of this process on its GPU, or of all ranks together on a CPU."""
    if context.device.type == "cuda":
        return torch.cuda.max_memory_reserved(context.device)
    kibibytes = torch.tensor([resource.getrusage(resource.RUSAGE_SELF).ru_maxrss], dtype=torch.float64)
    return int(all_gather(kibibytes, context).sum()) * 1024


def _utilisation(events: EventList, profiled_s: float, timed: _TimedSteps, context: RankContext) -> float:
    """The share of the time in which the GPU computed, or all ranks' share of the time of this machine's cores."""
    if context.device.type == "cuda":
        return float(sum(event.self_device_time_total for event in events) / 1e6 / profiled_s)
    share = torch.tensor([timed.cpu_s / sum(timed.seconds)], dtype=torch.float64)
    return float(all_gather(share, context).sum()) / available_cpus()


def _time_shares(events: EventList, seconds: float) -> dict[str, float]:
    """The share of the time by part of a step."""
    spent = {event.key: event.cpu_time_total / 1e6 / seconds for event in events if event.key in MARKS}
    shares = {mark: spent.get(mark, 0.0) for mark in MARKS}
    return shares | {"other": max(0.0, 1 - sum(shares.values()))}


def _slowest_operations(events: EventList) -> list[dict[str, Any]]:
    """The operations with the most time of their own, with their share of it."""
    operations = [event for event in events if event.key not in MARKS]
    self_time = {event.key: event.self_cpu_time_total + event.self_device_time_total for event in operations}
    slowest = sorted(self_time, key=lambda key: (-self_time[key], key))[:OPERATIONS]
    return [{"name": key, "share": self_time[key] / sum(self_time.values())} for key in slowest]


def _root_mean_square(stage: list[nn.Parameter]) -> float:
    gradients = [parameter.grad for parameter in stage if parameter.grad is not None]
    number = sum(gradient.numel() for gradient in gradients)
    return float(nn.utils.get_total_norm(gradients)) / math.sqrt(number) if number else 0.0


def run_rank() -> int:
    """Profile as one rank and return its exit code; the main process writes PROFILE and TRACE."""
    configure_malloc()
    log_to_stderr()
    params = load_params()
    training: TrainingSetup | None = None

    def setup() -> tuple[CountingNetwork, Samples, Samples]:
        nonlocal training
        training = prepare(params)
        return training.networks[0], training.train, training.validation

    try:
        with process_group(params.launch.timeout_s) as context, disk_full_as_user_error(PROFILE.parent):
            profiled = profile_steps(params, setup, context, int(os.environ[STEPS_VARIABLE]), TRACE)
            assert training is not None
            if context.is_main:
                write_json(PROFILE, profiled | {"key": run_key(params, training.data_digest)})
    except UserError as failure:
        print(printable(f"diagnose: {failure}"), file=sys.stderr)
        return 1
    return 0
