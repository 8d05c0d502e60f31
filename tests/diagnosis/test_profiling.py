"""Every rule of a diagnosis against real trainings: one that must trigger it and one that must not."""

import gzip
import json
import os
import resource
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from toys import WIDTH, alone, both, parameters, rows, split, tiny_network, toy, toy_array, toy_pixels

from bintally.diagnosis.evidence import Evidence, near_duplicate_share
from bintally.diagnosis.profiling import profile_steps
from bintally.diagnosis.rules import RULES, Severity, diagnose, verdict
from bintally.errors import UserError
from bintally.interruption import StopRequest
from bintally.model.encoded import MemoryMappedRows
from bintally.model.network import CountingNetwork, Head
from bintally.params import Params
from bintally.training.checkpoint import Checkpoints
from bintally.training.distributed import Place
from bintally.training.loop import MARKS, fit
from bintally.training.samples import Samples
from bintally.training.validation import answers

FINE, ADVICE, WARNING, ERROR = Severity.FINE, Severity.ADVICE, Severity.WARNING, Severity.ERROR
Sets = tuple[Samples, Samples]


class SlowRows(MemoryMappedRows):
    """A slow disk: every row takes a while, the first of all another."""

    def __init__(self, path: Path, row_s: float, first_s: float = 0.0) -> None:
        super().__init__(path)
        self._row_s, self._first_s = row_s, first_s

    def take(
        self, rows: NDArray[np.int64], view: NDArray[np.bool_] | None = None
    ) -> NDArray[np.float32] | NDArray[np.uint8]:
        time.sleep(self._first_s + len(rows) * self._row_s)
        self._first_s = 0.0
        return super().take(rows, view)


def slow(folder: Path, row_s: float, first_s: float = 0.0) -> Sets:
    array, classes = toy_array()
    rows(array, folder)
    return split(SlowRows(folder / "array.npy", row_s, first_s), classes, mirrored=True)


def relabelled(folder: Path, change: Callable[[NDArray[np.int64]], NDArray[np.int64]]) -> Sets:
    array, classes = toy_array()
    return split(rows(array, folder), change(classes), mirrored=True)


def some_wrong(classes: NDArray[np.int64]) -> NDArray[np.int64]:
    random = np.random.default_rng(2)
    wrong = random.random(len(classes)) < 0.3
    return np.where(wrong, random.integers(0, 3, len(classes)), classes)


def all_wrong(classes: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.random.default_rng(3).permutation(classes)


def few_of_the_last(classes: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.where((classes == 2) & (np.arange(len(classes)) % 5 > 0), 0, classes)


def with_copies(folder: Path) -> Sets:
    """Every tenth picture once more, with another count."""
    array, classes = toy_array()
    array[1::10], classes = array[0::10], classes.copy()
    classes[1::10] = (classes[0::10] + 1) % 3
    return split(rows(array, folder), classes, mirrored=True)


def large_network(hidden: int = 4096) -> CountingNetwork:
    network = tiny_network()
    network.head = Head(WIDTH, hidden, 3, False, 1)
    return network


def large(folder: Path) -> Sets:
    """Enough for two batches of 2048."""
    array, classes = toy_array()
    return split(rows(np.tile(array, (70, 1, 1)), folder), np.tile(classes, 70), mirrored=True)


def trained(
    place: Place,
    folder: Path,
    sets: Sets,
    params: Params,
    network: Callable[[], CountingNetwork] = tiny_network,
    steps: int = 40,
) -> Evidence:
    """Steps that are profiled, and a training to its end."""
    profile = profile_steps(params, lambda: (network(), *sets), place, steps)
    epochs: list[dict[str, float]] = []
    fault, learned, made = "", None, network()
    checkpoints = Checkpoints(folder / "checkpoints", "0" * 64, 1e9)
    try:
        fit(made, *sets, params, place, checkpoints, StopRequest(), lambda epoch: epochs.append(asdict(epoch)))
        learned = answers(made, sets[1], params.model_counts)
    except UserError as said:
        fault = str(said)
    bins = {count: int((sets[0].classes == at).sum()) for at, count in enumerate(params.model_counts)}
    chosen, classes = (np.concatenate([getattr(one, name) for one in sets]) for name in ("rows", "classes"))
    signatures = sets[0].source.take(chosen).reshape(len(chosen), -1).astype(np.float64)
    copies = near_duplicate_share(signatures, classes.tolist())
    return Evidence(profile, epochs, fault, learned, bins, copies)


def on_one_core(place: Place, folder: Path) -> Evidence:
    """A head so large that a step is nothing but arithmetic, on a machine of one core."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        params = parameters(epochs=3, batch_size=1024, optimizer="sgd")
        return trained(place, folder, large(folder / "data"), params, large_network, steps=8)
    finally:
        os.sched_setaffinity(0, allowed)


def quick(place: Place, folder: Path, make: Callable[[Path], Sets], **settings: Any) -> Evidence:
    return trained(place, folder, make(folder / "data"), parameters(**settings))


RUNS: dict[str, Callable[[Place, Path], Evidence]] = {
    "plain": partial(quick, make=toy, epochs=12),
    "on a slow disk": partial(quick, make=partial(slow, row_s=0.001), epochs=3),
    "on a cold disk": partial(quick, make=partial(slow, row_s=0.0, first_s=6.0), epochs=3),
    "on one core": on_one_core,
    "in small batches": partial(quick, make=large, epochs=1, batch_size=16),
    "at no rate": partial(quick, make=toy, epochs=6, optimizer="sgd", lr=1e-7),
    "swinging": partial(quick, make=partial(toy, noise=1.0), epochs=9, optimizer="sgd", lr=0.5),
    "bursting": partial(quick, make=partial(toy, noise=1.0), epochs=9, optimizer="sgd", lr=10.0),
    "too long": partial(quick, make=partial(relabelled, change=some_wrong), epochs=12, lr=0.1),
    "flat": partial(quick, make=partial(toy, noise=2.5), epochs=12, lr=0.1, optimizer="adamw", weight_decay=1.0),
    "from pixels": partial(quick, make=toy_pixels, trained="all", epochs=9),
    "dying": partial(quick, make=toy_pixels, trained="all", epochs=9, optimizer="sgd", lr=10.0),
    "of noise": partial(quick, make=partial(relabelled, change=all_wrong), epochs=9),
    "out of balance": partial(quick, make=partial(relabelled, change=few_of_the_last), epochs=3),
    "with copies": partial(quick, make=with_copies, epochs=3),
}

# Rule, run that triggers it, how badly, run that does not.
CASES = [
    ("input wait", "on a slow disk", ERROR, "on one core"),
    ("low utilisation", "on a slow disk", WARNING, "on one core"),
    ("batch too small", "in small batches", ADVICE, "on one core"),
    ("slow first step", "on a cold disk", ADVICE, "on one core"),
    ("loss not falling", "at no rate", ERROR, "plain"),
    ("oscillating", "swinging", WARNING, "plain"),
    ("diverging", "swinging", ERROR, "plain"),
    ("diverging", "bursting", ERROR, "from pixels"),
    ("overfitting", "too long", WARNING, "plain"),
    ("plateau reached early", "flat", ADVICE, "plain"),
    ("vanishing gradients", "dying", WARNING, "from pixels"),
    ("exploding gradients", "bursting", WARNING, "from pixels"),
    ("dead units", "dying", ERROR, "from pixels"),
    ("saturated outputs", "dying", WARNING, "plain"),
    ("a count never answered", "dying", ERROR, "from pixels"),
    ("near chance", "of noise", ERROR, "plain"),
    ("counts out of balance", "out of balance", ADVICE, "plain"),
    ("labels inconsistent", "with copies", WARNING, "plain"),
]


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    with alone() as one:
        yield one


@pytest.fixture(scope="module")
def evidence_of(place: Place, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Evidence]:
    """What a run comes to, each run once."""
    done: dict[str, Evidence] = {}

    def of(run: str) -> Evidence:
        if run not in done:
            done[run] = RUNS[run](place, tmp_path_factory.mktemp("run"))
        return done[run]

    return of


@pytest.mark.parametrize(("rule", "triggers", "severity", "not_this"), CASES)
def test_a_rule_is_triggered_by_what_it_is_for_and_by_nothing_else(
    evidence_of: Callable[[str], Evidence], rule: str, triggers: str, severity: Severity, not_this: str
) -> None:
    findings = {run: {one.rule: one for one in diagnose(evidence_of(run))} for run in (triggers, not_this)}
    assert (findings[triggers][rule].severity, findings[not_this][rule].severity) == (severity, FINE), findings


def test_no_rule_is_without_a_case() -> None:
    others = {"batch too large for memory", "uneven ranks", "communication bound"}
    assert {case[0] for case in CASES} | others == {rule.name for rule in RULES}


def test_the_verdict_says_whether_it_learns(evidence_of: Callable[[str], Evidence]) -> None:
    assert verdict(evidence_of("plain")).startswith("It is learning: ")
    assert verdict(evidence_of("of noise")).startswith("It is NOT learning: ")
    assert verdict(evidence_of("bursting")).startswith("The run failed: the loss is not finite")


def test_a_profile_accounts_for_all_of_a_step_and_leaves_a_trace(place: Place, tmp_path: Path) -> None:
    sets, params = toy_pixels(tmp_path), parameters("all")
    profile = profile_steps(params, lambda: (tiny_network(), *sets), place, 6, tmp_path / "trace.json.gz")
    assert len(profile["steps_s"]) == 6 and sum(profile["shares"].values()) == pytest.approx(1, abs=0.02)
    assert min(profile["shares"][mark] for mark in MARKS) > 0
    assert profile["images_per_second"] == pytest.approx(params.train.batch_size / profile["step_s"])
    assert len(profile["gradients"]) == 3 and min(profile["gradients"]) > 0, "two stages and the head"
    assert "alone_s" not in profile and "double_images_per_second" not in profile, "30 images are not twice 16"
    events = json.loads(gzip.decompress((tmp_path / "trace.json.gz").read_bytes()))["traceEvents"]
    assert sum(event.get("name") == "backward" and event["ph"] == "X" for event in events) == 6
    json.dumps(profile, allow_nan=False)


# --- several ranks, little memory ----------------------------------------------------------------------------


def shared_out(place: Place, folder: Path, row_s: tuple[float, float], hidden: int) -> dict[str, Any]:
    sets = slow(folder / str(place.rank), row_s[place.rank])
    params = parameters(optimizer="sgd", lr=1e-4)
    return profile_steps(params, lambda: (large_network(hidden), *sets), place, 12)


def judged(profile: dict[str, Any], rule: str) -> tuple[Severity, str]:
    finding = {one.rule: one for one in diagnose(Evidence(profile, [], "", None, {1: 1}, 0.0))}[rule]
    return finding.severity, finding.evidence


def test_ranks_are_uneven_where_one_has_a_slow_disk_and_not_where_both_have(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "both").mkdir()
    one, other = both(partial(shared_out, row_s=(0.001, 0.003), hidden=16), tmp_path / "one")
    assert one["alone_s"] == other["alone_s"] and judged(one, "uneven ranks")[0] == WARNING
    same, _ = both(partial(shared_out, row_s=(0.003, 0.003), hidden=16), tmp_path / "both")
    assert judged(same, "uneven ranks")[0] == FINE, same
    assert judged(same, "communication bound")[0] == FINE, same


def test_communication_binds_where_there_is_much_to_exchange_and_little_to_compute(tmp_path: Path) -> None:
    profile, _ = both(partial(shared_out, row_s=(0.0, 0.0), hidden=200_000), tmp_path)
    severity, evidence = judged(profile, "communication bound")
    assert severity == WARNING and "ms alone with the same share" in evidence, profile


def in_little_memory(place: Place, folder: Path) -> dict[str, Any]:
    """Hidden units for which there is no memory left once the network is made."""
    sets = toy(folder / str(place.rank))
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)

    def start() -> tuple[CountingNetwork, Samples, Samples]:
        network = large_network(1_000_000)
        status = Path("/proc/self/status").read_text().split()
        resource.setrlimit(resource.RLIMIT_DATA, (int(status[status.index("VmData:") + 1]) * 1024 + 2**24, hard))
        return network, *sets

    try:
        return profile_steps(parameters(), start, Place(0, 1, torch.device("cpu"), is_main_process=True), 4)
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def test_memory_is_short_where_it_runs_out_and_not_in_a_plain_run(
    tmp_path: Path, evidence_of: Callable[[str], Evidence]
) -> None:
    profile, _ = both(in_little_memory, tmp_path)
    severity, evidence = judged(profile, "batch too large for memory")
    assert severity == ERROR and "lower train.batch_size" in evidence
    plain = {one.rule: one.severity for one in diagnose(evidence_of("plain"))}
    assert plain["batch too large for memory"] == FINE
    nearly = {"peak_memory": 95, "memory": 100}
    assert judged(nearly, "batch too large for memory")[0] == WARNING
