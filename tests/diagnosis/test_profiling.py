"""Every rule on real trainings: one that triggers it and one that does not.

Tests that hold durations against each other are slow ones: other programs on the machine change their result.
"""

import gzip
import json
import os
import resource
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from bintally.diagnosis.collect import validation_outputs
from bintally.diagnosis.evidence import Evidence, near_duplicate_share
from bintally.diagnosis.profiling import profile_steps
from bintally.diagnosis.report import verdict
from bintally.diagnosis.rules import RULES, Severity, diagnose
from bintally.distributed.process_group import RankContext
from bintally.errors import UserError
from bintally.interruption import StopRequest
from bintally.model.encoded import MemoryMappedRows
from bintally.model.network import CountingNetwork, Head
from bintally.params import Params
from bintally.training.checkpoint import Checkpoints
from bintally.training.loop import MARKS, fit
from bintally.training.samples import Samples
from training_helpers import (
    WIDTH,
    feature_array,
    feature_samples,
    make_params,
    memory_mapped,
    pixel_samples,
    run_two_ranks,
    single_rank,
    split_samples,
    tiny_network,
)

FINE, ADVICE, WARNING, ERROR = Severity.FINE, Severity.ADVICE, Severity.WARNING, Severity.ERROR
TrainAndValidation = tuple[Samples, Samples]


class SlowRows(MemoryMappedRows):
    """Rows on a slow disk: ``row_s`` for each row, ``first_s`` more for the first read."""

    def __init__(self, path: Path, row_s: float, first_s: float = 0.0) -> None:
        super().__init__(path)
        self._row_s, self._first_s = row_s, first_s

    def take(
        self, rows: NDArray[np.int64], view: NDArray[np.bool_] | None = None
    ) -> NDArray[np.float32] | NDArray[np.uint8]:
        time.sleep(self._first_s + len(rows) * self._row_s)
        self._first_s = 0.0
        return super().take(rows, view)


def slow_samples(folder: Path, row_s: float, first_s: float = 0.0) -> TrainAndValidation:
    array, classes = feature_array()
    memory_mapped(array, folder)
    return split_samples(SlowRows(folder / "array.npy", row_s, first_s), classes, mirrored=True)


def relabelled_samples(folder: Path, change: Callable[[NDArray[np.int64]], NDArray[np.int64]]) -> TrainAndValidation:
    array, classes = feature_array()
    return split_samples(memory_mapped(array, folder), change(classes), mirrored=True)


def thirty_percent_random(classes: NDArray[np.int64]) -> NDArray[np.int64]:
    random = np.random.default_rng(2)
    is_random = random.random(len(classes)) < 0.3
    return np.where(is_random, random.integers(0, 3, len(classes)), classes)


def permuted(classes: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.random.default_rng(3).permutation(classes)


def imbalanced(classes: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.where((classes == 2) & (np.arange(len(classes)) % 5 > 0), 0, classes)


def near_duplicate_samples(folder: Path) -> TrainAndValidation:
    """Every tenth row is repeated with another class."""
    array, classes = feature_array()
    array[1::10], classes = array[0::10], classes.copy()
    classes[1::10] = (classes[0::10] + 1) % 3
    return split_samples(memory_mapped(array, folder), classes, mirrored=True)


def large_network(hidden: int = 4096) -> CountingNetwork:
    network = tiny_network()
    network.head = Head(WIDTH, hidden, 3, False, 1)
    return network


def many_samples(folder: Path) -> TrainAndValidation:
    """Enough for two batches of 2048."""
    array, classes = feature_array()
    return split_samples(memory_mapped(np.tile(array, (70, 1, 1)), folder), np.tile(classes, 70), mirrored=True)


def train_and_collect(
    context: RankContext,
    folder: Path,
    samples: TrainAndValidation,
    params: Params,
    network: Callable[[], CountingNetwork] = tiny_network,
    *,
    steps: int,
) -> Evidence:
    """Profile some steps, train to the end, and collect the evidence."""
    profile = profile_steps(params, lambda: (network(), *samples), context, steps)
    epochs: list[dict[str, float]] = []
    failure, outputs, trained = "", None, network()
    checkpoints = Checkpoints(folder / "checkpoints", "0" * 64, 1e9)
    try:
        fit(trained, *samples, params, context, checkpoints, StopRequest(), lambda epoch: epochs.append(asdict(epoch)))
        outputs = validation_outputs(trained, samples[1], params.model_counts)
    except UserError as error:
        failure = str(error)
    train_counts = {count: int((samples[0].classes == i).sum()) for i, count in enumerate(params.model_counts)}
    all_rows, classes = (np.concatenate([getattr(part, name) for part in samples]) for name in ("rows", "classes"))
    signatures = samples[0].source.take(all_rows).reshape(len(all_rows), -1).astype(np.float64)
    near_duplicates = near_duplicate_share(signatures, classes.tolist())
    return Evidence(profile, epochs, failure, outputs, train_counts, near_duplicates)


def run_on_one_core(context: RankContext, folder: Path) -> Evidence:
    """Train a head so large that a step is nearly all arithmetic, on one core."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        params = make_params(epochs=3, batch_size=1024, optimizer="sgd")
        return train_and_collect(context, folder, many_samples(folder / "data"), params, large_network, steps=8)
    finally:
        os.sched_setaffinity(0, allowed)


def run(
    context: RankContext, folder: Path, make: Callable[[Path], TrainAndValidation], steps: int = 6, **settings: Any
) -> Evidence:
    return train_and_collect(context, folder, make(folder / "data"), make_params(**settings), steps=steps)


RUNS: dict[str, Callable[[RankContext, Path], Evidence]] = {
    "plain": partial(run, make=feature_samples, epochs=12),
    "on a slow disk": partial(run, make=partial(slow_samples, row_s=0.001), steps=40, epochs=3),
    "on a cold disk": partial(run, make=partial(slow_samples, row_s=0.0, first_s=6.0), steps=40, epochs=3),
    "on one core": run_on_one_core,
    "in small batches": partial(run, make=many_samples, steps=40, epochs=1, batch_size=16),
    "with a tiny learning rate": partial(run, make=feature_samples, epochs=6, optimizer="sgd", lr=1e-7),
    "oscillating": partial(run, make=partial(feature_samples, noise=1.0), epochs=9, optimizer="sgd", lr=0.5),
    "exploding": partial(run, make=partial(feature_samples, noise=1.0), epochs=9, optimizer="sgd", lr=10.0),
    "overfitting": partial(run, make=partial(relabelled_samples, change=thirty_percent_random), epochs=12, lr=0.1),
    "early plateau": partial(
        run, make=partial(feature_samples, noise=2.5), epochs=12, lr=0.1, optimizer="adamw", weight_decay=1.0
    ),
    "from pixels": partial(run, make=pixel_samples, trainable="all", epochs=9),
    "with dead units": partial(run, make=pixel_samples, steps=40, trainable="all", epochs=9, optimizer="sgd", lr=10.0),
    "with random labels": partial(run, make=partial(relabelled_samples, change=permuted), epochs=9),
    "imbalanced": partial(run, make=partial(relabelled_samples, change=imbalanced), epochs=3),
    "with near-duplicates": partial(run, make=near_duplicate_samples, epochs=3),
}

# Rule, run that triggers it, severity, run that does not.
TIMED_CASES = [
    ("input wait", "on a slow disk", ERROR, "on one core"),
    ("low utilisation", "on a slow disk", WARNING, "on one core"),
    ("batch too small", "in small batches", ADVICE, "on one core"),
    ("slow first step", "on a cold disk", ADVICE, "on one core"),
]
CASES = [
    ("loss not falling", "with a tiny learning rate", ERROR, "plain"),
    ("oscillating", "oscillating", WARNING, "plain"),
    ("diverging", "oscillating", ERROR, "plain"),
    ("diverging", "exploding", ERROR, "from pixels"),
    ("overfitting", "overfitting", WARNING, "plain"),
    ("early plateau", "early plateau", ADVICE, "plain"),
    ("vanishing gradients", "with dead units", WARNING, "from pixels"),
    ("exploding gradients", "exploding", WARNING, "from pixels"),
    ("dead units", "with dead units", ERROR, "from pixels"),
    ("saturated outputs", "with dead units", WARNING, "plain"),
    ("count never predicted", "with dead units", ERROR, "from pixels"),
    ("near chance", "with random labels", ERROR, "plain"),
    ("class imbalance", "imbalanced", ADVICE, "plain"),
    ("inconsistent labels", "with near-duplicates", WARNING, "plain"),
]


@pytest.fixture(scope="module")
def context() -> Iterator[RankContext]:
    with single_rank() as context:
        yield context


@pytest.fixture(scope="module")
def evidence_of(context: RankContext, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Evidence]:
    """The evidence from a run of RUNS; each is done once."""
    return cache(lambda name: RUNS[name](context, tmp_path_factory.mktemp("run")))


@pytest.mark.parametrize(
    ("rule", "triggering", "severity", "other"),
    [*CASES, *(pytest.param(*case, marks=pytest.mark.slow) for case in TIMED_CASES)],
)
def test_a_rule_is_triggered_by_one_run_and_not_by_another(
    evidence_of: Callable[[str], Evidence], rule: str, triggering: str, severity: Severity, other: str
) -> None:
    findings = {name: {one.rule: one for one in diagnose(evidence_of(name))} for name in (triggering, other)}
    assert (findings[triggering][rule].severity, findings[other][rule].severity) == (severity, FINE), findings


def test_every_rule_has_a_case() -> None:
    tested_below = {"batch too large for memory", "uneven ranks", "communication bound"}
    assert {case[0] for case in CASES + TIMED_CASES} | tested_below == {rule.name for rule in RULES}


def test_the_verdict_is_whether_the_model_learns(evidence_of: Callable[[str], Evidence]) -> None:
    assert verdict(evidence_of("plain")).startswith("The model is learning: ")
    assert verdict(evidence_of("with random labels")).startswith("The model is NOT learning: ")
    assert verdict(evidence_of("exploding")).startswith("The run failed: the loss is not finite")


def test_a_profile_accounts_for_the_whole_step_and_writes_a_trace(context: RankContext, tmp_path: Path) -> None:
    samples, params = pixel_samples(tmp_path), make_params("all")
    profile = profile_steps(params, lambda: (tiny_network(), *samples), context, 6, tmp_path / "trace.json.gz")
    assert len(profile["steps_s"]) == 6 and sum(profile["time_shares"].values()) == pytest.approx(1, abs=0.02)
    assert min(profile["time_shares"][mark] for mark in MARKS) > 0
    assert profile["images_per_second"] == pytest.approx(params.train.batch_size / profile["step_s"])
    assert len(profile["gradient_rms"]) == 3 and min(profile["gradient_rms"]) > 0, "two stages and the head"
    assert "solo_step_s" not in profile and "double_images_per_second" not in profile, (
        "30 images are fewer than two batches of 16"
    )
    events = json.loads(gzip.decompress((tmp_path / "trace.json.gz").read_bytes()))["traceEvents"]
    assert sum(event.get("name") == "backward" and event["ph"] == "X" for event in events) == 6
    json.dumps(profile, allow_nan=False)


# --- several ranks, little memory ----------------------------------------------------------------------------


def profile_on_slow_disks(
    context: RankContext, folder: Path, row_s: tuple[float, float], hidden: int, batch_size: int = 16
) -> dict[str, Any]:
    samples = slow_samples(folder / str(context.rank), row_s[context.rank])
    params = make_params(optimizer="sgd", lr=1e-4, batch_size=batch_size)
    return profile_steps(params, lambda: (large_network(hidden), *samples), context, 12)


def check_rule(profile: dict[str, Any], rule: str) -> tuple[Severity, str]:
    finding = {one.rule: one for one in diagnose(Evidence(profile, [], "", None, {1: 1}, 0.0))}[rule]
    return finding.severity, finding.evidence


@pytest.mark.slow
def test_ranks_are_uneven_if_one_has_a_slower_disk_and_not_if_both_have(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "both").mkdir()
    one, other = run_two_ranks(partial(profile_on_slow_disks, row_s=(0.001, 0.003), hidden=16), tmp_path / "one")
    assert one["solo_step_s"] == other["solo_step_s"] and check_rule(one, "uneven ranks")[0] == WARNING
    same, _ = run_two_ranks(partial(profile_on_slow_disks, row_s=(0.003, 0.003), hidden=16), tmp_path / "both")
    assert check_rule(same, "uneven ranks")[0] == FINE, same
    assert check_rule(same, "communication bound")[0] == FINE, same


@pytest.mark.slow
def test_many_gradients_and_little_computation_are_communication_bound(tmp_path: Path) -> None:
    work = partial(profile_on_slow_disks, row_s=(0.0, 0.0), hidden=200_000, batch_size=2)
    profile, _ = run_two_ranks(work, tmp_path)
    severity, evidence = check_rule(profile, "communication bound")
    assert severity == WARNING and "ms without the other ranks" in evidence, profile


def profile_in_little_memory(context: RankContext, folder: Path) -> dict[str, Any]:
    """Limit the memory once the network exists, so that there is none for its gradients."""
    samples = feature_samples(folder / str(context.rank))
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)

    def setup() -> tuple[CountingNetwork, Samples, Samples]:
        network = large_network(1_000_000)
        status = Path("/proc/self/status").read_text().split()
        resource.setrlimit(resource.RLIMIT_DATA, (int(status[status.index("VmData:") + 1]) * 1024 + 2**24, hard))
        return network, *samples

    try:
        return profile_steps(make_params(), setup, RankContext(0, 1, torch.device("cpu"), is_main=True), 4)
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def test_a_batch_is_too_large_if_memory_runs_out_or_nearly_does(
    tmp_path: Path, evidence_of: Callable[[str], Evidence]
) -> None:
    profile, _ = run_two_ranks(profile_in_little_memory, tmp_path)
    severity, evidence = check_rule(profile, "batch too large for memory")
    assert severity == ERROR and "lower train.batch_size" in evidence
    plain = {one.rule: one.severity for one in diagnose(evidence_of("plain"))}
    assert plain["batch too large for memory"] == FINE
    nearly_full = {"peak_memory_bytes": 95, "memory_bytes": 100}
    assert check_rule(nearly_full, "batch too large for memory")[0] == WARNING
