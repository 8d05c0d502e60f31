"""The rules of a diagnosis: each is a function that checks the evidence, with a condition and advice in words."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from bintally.diagnosis.evidence import NEAR_DUPLICATE, Evidence, NoEvidence
from bintally.scoring.decoding import decode_counts
from bintally.scoring.metrics import Floats, confusion

INPUT_WAIT, INPUT_WAIT_ERROR = 0.2, 0.5
LOW_UTILISATION = 0.5
BATCH_SPEED_UP = 1.3
MEMORY_FULL = 0.9
SLOW_START_S, SLOW_START_RATIO = 5.0, 10.0
UNEVEN_RANKS = 1.25
COMMUNICATION = 0.3
MIN_FALL = 0.02
FITTED = 0.9  # training accuracy above which little is left to fit
REVERSALS, SWING = 0.5, 0.1
DIVERGED = 1.3
OVERFITTED = 1.05
PLATEAU = 0.01
VANISHED, VANISHED_STAGE = 1e-3, 1e-4
EXPLODED = 10.0
DEAD_UNITS = 0.5
SATURATED_PROBABILITY, SATURATED, SATURATED_WRONG = 0.99, 0.2, 0.1
IMBALANCE, IMBALANCE_WARNING = 3.0, 10.0
NEAR_DUPLICATES = 0.01
TINY = 1e-300  # instead of a division by zero


class Severity(IntEnum):
    """How bad a finding is; NOT_CHECKED if there is no evidence."""

    NOT_CHECKED = -1
    FINE = 0
    ADVICE = 1
    WARNING = 2
    ERROR = 3

    @property
    def label(self) -> str:
        return self.name.lower().replace("_", " ")


@dataclass(frozen=True)
class Finding:
    """The result of one rule."""

    rule: str
    severity: Severity
    condition: str
    evidence: str
    advice: str


Check = Callable[[Evidence], tuple[Severity, str]]
"""Returns the severity and the evidence in words. Raises NoEvidence if it cannot be checked."""


@dataclass(frozen=True)
class Rule:
    name: str
    condition: str
    advice: str
    check: Check


RULES: list[Rule] = []


def _rule(condition: str, advice: str) -> Callable[[Check], Check]:
    """Add a check to RULES; the rule has its name."""

    def add(check: Check) -> Check:
        RULES.append(Rule(check.__name__.replace("_", " "), condition, advice, check))
        return check

    return add


def diagnose(evidence: Evidence) -> list[Finding]:
    """Check every rule, in the order of RULES."""
    findings = []
    for rule in RULES:
        try:
            severity, measured = rule.check(evidence)
        except NoEvidence as reason:
            severity, measured = Severity.NOT_CHECKED, str(reason)
        findings.append(Finding(rule.name, severity, rule.condition, measured, rule.advice))
    return findings


def markdown_table() -> str:
    """Return the rules as a Markdown table: name, condition, advice."""
    rows = [("rule", "condition", "advice"), ("---", "---", "---")]
    rows += [(rule.name, rule.condition, rule.advice) for rule in RULES]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _when(holds: bool, severity: Severity = Severity.WARNING) -> Severity:
    return severity if holds else Severity.FINE


def _graded(value: float, warning: float, error: float) -> Severity:
    return _when(value > warning, Severity.ERROR if value > error else Severity.WARNING)


def _last_third(losses: Floats) -> float:
    return float(losses[-max(1, len(losses) // 3) :].mean())


def _fall(losses: Floats) -> float:
    """The share by which a loss falls from the first epoch to the last third."""
    return 1 - _last_third(losses) / float(losses[0])


# --- speed and memory ------------------------------------------------------------------------------------
@_rule(
    f"waiting for samples takes more than {INPUT_WAIT:.0%} of a step (error: {INPUT_WAIT_ERROR:.0%})",
    "put data/encoded on a local disk; or train fewer stages (model.trainable), so that more is computed only once",
)
def input_wait(evidence: Evidence) -> tuple[Severity, str]:
    share = evidence.profile_value("time_shares")["input"]
    return _graded(share, INPUT_WAIT, INPUT_WAIT_ERROR), f"{share:.0%} of a step"


@_rule(
    f"the cores, or the GPU, compute for less than {LOW_UTILISATION:.0%} of the time",
    "raise train.batch_size; on a CPU set launch.ranks: 1, which uses all cores",
)
def low_utilisation(evidence: Evidence) -> tuple[Severity, str]:
    utilisation = evidence.profile_value("utilisation")
    return _when(utilisation < LOW_UTILISATION), f"{utilisation:.0%} utilisation"


@_rule(
    f"with batches twice as large, images per second rise by a factor of {BATCH_SPEED_UP} or more",
    "raise train.batch_size, and train.lr with it",
)
def batch_too_small(evidence: Evidence) -> tuple[Severity, str]:
    rate = evidence.profile_value("images_per_second")
    if "double_images_per_second" not in evidence.profile:
        raise NoEvidence(evidence.profile.get("double_failure", "batches twice as large exceed the training bins"))
    speed_up = evidence.profile["double_images_per_second"] / rate
    measured = f"{speed_up:.2f} times the {rate:,.0f} images/s of batches of {evidence.profile['batch_size']}"
    return _when(speed_up >= BATCH_SPEED_UP, Severity.ADVICE), measured


@_rule(
    f"the peak is above {MEMORY_FULL:.0%} of the memory (error: memory ran out)",
    "lower train.batch_size or model.image_size, or raise train.accumulation_steps",
)
def batch_too_large_for_memory(evidence: Evidence) -> tuple[Severity, str]:
    if failure := evidence.failure_containing("out of memory"):
        return Severity.ERROR, failure
    peak, memory = evidence.profile_value("peak_memory_bytes"), evidence.profile["memory_bytes"]
    return _when(peak > MEMORY_FULL * memory), f"{peak / 2**20:,.0f} of {memory / 2**20:,.0f} MiB"


@_rule(
    f"the first step takes {SLOW_START_S:.0f} s longer than the others and {SLOW_START_RATIO:.0f} times as long",
    "set train.compile: false in short runs; read data/encoded once before the run, so that it is in the file cache",
)
def slow_first_step(evidence: Evidence) -> tuple[Severity, str]:
    first, step = evidence.profile_value("first_step_s"), evidence.profile["step_s"]
    slow = first > SLOW_START_S + step and first > SLOW_START_RATIO * step
    return _when(slow, Severity.ADVICE), f"{first:.2f} s, the others {step:.4f} s"


@_rule(
    f"without the others, the slowest rank takes {UNEVEN_RANKS} times as long as the fastest for its share of a batch",
    "give all ranks equal devices and cores, and stop other programs on them: every step waits for the slowest rank",
)
def uneven_ranks(evidence: Evidence) -> tuple[Severity, str]:
    solo = evidence.solo_step_s()
    measured = f"{min(solo) * 1000:.1f} to {max(solo) * 1000:.1f} ms per step over {len(solo)} ranks"
    return _when(max(solo) / min(solo) >= UNEVEN_RANKS), measured


@_rule(
    f"communication takes more than {COMMUNICATION:.0%} of a step",
    "use fewer ranks, larger batches (train.batch_size) or a faster network; on one CPU set launch.ranks: 1",
)
def communication_bound(evidence: Evidence) -> tuple[Severity, str]:
    solo, step = max(evidence.solo_step_s()), evidence.profile["step_s"]
    share = max(0.0, 1 - solo / step)
    measured = f"{share:.0%}: {step * 1000:.1f} ms per step, {solo * 1000:.1f} ms without the other ranks"
    return _when(share > COMMUNICATION), measured


# --- optimisation ----------------------------------------------------------------------------------------
@_rule(
    f"the training loss falls by less than {MIN_FALL:.0%} from the first epoch to the last third, with a training "
    f"accuracy below {FITTED:.0%}",
    "raise train.lr tenfold, or lower it if the loss oscillates; check the labels",
)
def loss_not_falling(evidence: Evidence) -> tuple[Severity, str]:
    losses, accuracy = evidence.curve("train_loss", 3), evidence.epochs[-1]["train_accuracy"]
    measured = f"{losses[0]:.4g} in the first epoch, {_last_third(losses):.4g} in the last third"
    holds = _fall(losses) < MIN_FALL and accuracy < FITTED
    return _when(holds, Severity.ERROR), f"{measured}, training accuracy {accuracy:.0%}"


@_rule(
    f"after the first third, the validation loss changes direction at {REVERSALS:.0%} of the epochs or more, and by "
    f"{SWING:.0%} per epoch",
    "lower train.lr, raise train.batch_size, set train.ema_decay: 0.99 or train.schedule: one_cycle",
)
def oscillating(evidence: Evidence) -> tuple[Severity, str]:
    losses = evidence.curve("validation_loss", 6)[len(evidence.epochs) // 3 :]
    changes = np.diff(losses)
    reversals, swing = (changes[1:] * changes[:-1] < 0).mean(), np.abs(changes).mean() / losses.mean()
    measured = f"changes direction at {reversals:.0%} of the epochs, by {swing:.1%} per epoch"
    return _when(reversals >= REVERSALS and swing >= SWING), measured


@_rule(
    f"a loss is not finite, or the training loss ends at {DIVERGED} times its minimum",
    "lower train.lr, set train.clip_grad_norm: 1, or add a warm-up (train.warmup)",
)
def diverging(evidence: Evidence) -> tuple[Severity, str]:
    if failure := evidence.failure_containing("loss is not finite"):
        return Severity.ERROR, failure
    if number := sum(not math.isfinite(epoch["validation_loss"]) for epoch in evidence.epochs):
        return Severity.ERROR, f"the validation loss is not finite in {number} of {len(evidence.epochs)} epochs"
    losses = evidence.curve("train_loss", 2)
    measured = f"{losses[-1]:.3f} at the end, minimum {losses.min():.3f}"
    return _when(losses[-1] > DIVERGED * losses.min(), Severity.ERROR), measured


@_rule(
    f"the validation loss ends {OVERFITTED - 1:.0%} above its minimum while the training loss still falls",
    "fewer train.epochs, a lower train.lr, train.weight_decay, train.label_smoothing, stronger augmentation (augment), "
    "or more bins; the epoch with the lowest validation loss is kept in any case",
)
def overfitting(evidence: Evidence) -> tuple[Severity, str]:
    validation, train = evidence.curve("validation_loss", 3), evidence.curve("train_loss", 3)
    best = int(validation.argmin())
    holds = validation[-1] > OVERFITTED * validation[best] and train[-1] < train[best]
    measured = (
        f"validation {validation[best]:.3f} in epoch {evidence.epochs[best]['epoch']:.0f}, {validation[-1]:.3f} in the "
        f"last; training {train[best]:.3f} and {train[-1]:.3f}"
    )
    return _when(holds), measured


@_rule(
    f"the validation loss is within {PLATEAU:.0%} of its minimum in the first third of the epochs, and ends near it",
    "fewer train.epochs; or a falling learning rate (train.schedule: cosine), more trainable stages (model.trainable)",
)
def early_plateau(evidence: Evidence) -> tuple[Severity, str]:
    losses = evidence.curve("validation_loss", 6)
    first = np.flatnonzero(losses <= (1 + PLATEAU) * losses.min())[0]
    falls = _fall(evidence.curve("train_loss", 6)) >= MIN_FALL
    holds = first < len(losses) / 3 and losses[-1] <= OVERFITTED * losses.min() and falls
    measured = f"within {PLATEAU:.0%} after {first + 1} of {len(losses)} epochs, {losses[-1]:.3f} at the end"
    return _when(holds, Severity.ADVICE), measured


@_rule(
    f"the gradient of a stage is below {VANISHED_STAGE:g} of the largest, or the norm of the whole gradient falls to "
    f"{VANISHED:g} of the first epoch's with a training accuracy below {FITTED:.0%}",
    "lower train.lr (large steps can leave units dead), or train fewer stages (model.trainable)",
)
def vanishing_gradients(evidence: Evidence) -> tuple[Severity, str]:
    stages = [value for value in evidence.profile_value("gradient_rms") if value is not None]
    ratio = min(stages, default=0.0) / max(max(stages, default=0.0), TINY)
    measured = f"the smallest of {len(stages)} stages has {ratio:.1e} of the largest"
    holds = ratio < VANISHED_STAGE
    if evidence.epochs:
        first, last = evidence.epochs[0], evidence.epochs[-1]
        measured += f"; norm {first['gradient_norm']:.2e} in the first epoch, {last['gradient_norm']:.2e} in the last"
        fall = last["gradient_norm"] / max(first["gradient_norm"], TINY)
        holds |= fall < VANISHED and last["train_accuracy"] < FITTED
    return _when(holds), measured


@_rule(
    f"the norm of the gradient grows to {EXPLODED:.0f} times the first epoch's (error: it is not finite)",
    "set train.clip_grad_norm: 1, lower train.lr, or add a warm-up (train.warmup)",
)
def exploding_gradients(evidence: Evidence) -> tuple[Severity, str]:
    if failure := evidence.failure_containing("gradient is not finite"):
        return Severity.ERROR, failure
    if None in evidence.profile.get("gradient_rms", []):
        return Severity.ERROR, "not finite in the profiled steps"
    if number := sum(not math.isfinite(epoch["gradient_norm"]) for epoch in evidence.epochs):
        return Severity.ERROR, f"not finite in {number} of {len(evidence.epochs)} epochs"
    norms = evidence.curve("gradient_norm", 2)
    growth = norms.max() / max(norms[0], TINY)
    return _when(growth >= EXPLODED), f"{growth:.1f} times {norms[0]:.2e}"


# --- outputs ---------------------------------------------------------------------------------------------
@_rule(
    f"more than {DEAD_UNITS:.0%} of the hidden units are zero for every validation bin (error: all)",
    "lower train.lr, or train.hidden if that many units are not needed",
)
def dead_units(evidence: Evidence) -> tuple[Severity, str]:
    share = evidence.validation_outputs().dead_units
    return _graded(share, DEAD_UNITS, 1 - 1e-9), f"{share:.0%} of the hidden units"


@_rule(
    f"more than {SATURATED:.0%} of the predictions have a probability above {SATURATED_PROBABILITY:.0%}, and more than "
    f"{SATURATED_WRONG:.0%} of these are wrong",
    "lower train.lr, fewer train.epochs, train.label_smoothing: 0.1, train.weight_decay",
)
def saturated_outputs(evidence: Evidence) -> tuple[Severity, str]:
    predictions = evidence.validation_outputs().predictions
    saturated = predictions.probabilities.max(1) > SATURATED_PROBABILITY
    counts = decode_counts(predictions.probabilities, predictions.counts, "most_probable")
    wrong = (counts != predictions.truth)[saturated].sum() / max(saturated.sum(), 1)
    holds = saturated.mean() > SATURATED and wrong > SATURATED_WRONG
    return _when(holds), f"{saturated.mean():.0%} of the predictions, {wrong:.0%} of these wrong"


@_rule(
    "a count is never the most probable one on validation (error: all predictions are the same count)",
    "more bins with that count, a lower train.lr, or merge the highest counts (fetch.open_ended)",
)
def count_never_predicted(evidence: Evidence) -> tuple[Severity, str]:
    predictions = evidence.validation_outputs().predictions
    numbers = confusion(predictions, "most_probable").sum(0)
    never = [str(count) for count, number in zip(predictions.counts, numbers, strict=True) if not number]
    if not never:
        return Severity.FINE, f"the rarest prediction occurs {numbers.min()} times"
    return _graded(len(never), 0, len(predictions.counts) - 2), f"{', '.join(never)} for {len(predictions.truth)} bins"


@_rule(
    "the 95 % interval of the validation accuracy, bootstrapped by group, is not above the accuracy of always "
    "predicting the majority class",
    "see the findings on the loss first; then more trainable stages (model.trainable), more train.epochs, more bins",
)
def near_chance(evidence: Evidence) -> tuple[Severity, str]:
    outputs = evidence.validation_outputs()
    (accuracy, low), majority = outputs.accuracy(), outputs.majority_share()
    measured = f"accuracy {accuracy:.1%}, interval from {low:.1%}; majority class {majority:.1%}"
    return _when(low <= majority, Severity.ERROR), measured


# --- data ------------------------------------------------------------------------------------------------
@_rule(
    f"one count has {IMBALANCE:.0f} times as many training bins as another (warning: {IMBALANCE_WARNING:.0f} times)",
    "limit the bins of each count (fetch.per_count), or leave rare counts out (fetch.counts)",
)
def class_imbalance(evidence: Evidence) -> tuple[Severity, str]:
    numbers = evidence.train_counts
    most, fewest = max(numbers, key=numbers.__getitem__), min(numbers, key=numbers.__getitem__)
    ratio = numbers[most] / max(numbers[fewest], 1)
    severity = Severity.WARNING if ratio >= IMBALANCE_WARNING else Severity.ADVICE
    return _when(ratio >= IMBALANCE, severity), f"{numbers[most]} bins with {most}, {numbers[fewest]} with {fewest}"


@_rule(
    f"more than {NEAR_DUPLICATES:.0%} of the bins have a near-duplicate with another count (closer than "
    f"{NEAR_DUPLICATE:.0%} of the median distance to the nearest neighbour)",
    "recount these bins (bintally audit): one of the two records is wrong",
)
def inconsistent_labels(evidence: Evidence) -> tuple[Severity, str]:
    return _when(evidence.near_duplicates > NEAR_DUPLICATES), f"{evidence.near_duplicates:.1%} of the bins"
