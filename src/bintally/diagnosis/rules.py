"""What is wrong with a training and what to change: named rules, each with its threshold, evidence and advice."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from bintally.diagnosis.evidence import COPY, Evidence, NoEvidence
from bintally.scoring.decoding import decode_counts
from bintally.scoring.metrics import Floats, confusion

INPUT_WAIT, INPUT_WAIT_SEVERE = 0.2, 0.5
BUSY = 0.5
BATCH_GAIN = 1.3
MEMORY_FULL = 0.9
SLOW_START_S, SLOW_START_TIMES = 5.0, 10.0
UNEVEN = 1.25
COMMUNICATION = 0.3
FALL = 0.02
FITTED = 0.9  # share of training bins that are right, above which there is little left to learn
REVERSALS, SWING = 0.5, 0.1
DIVERGED = 1.3
OVERFITTED = 1.05
FLAT = 0.01
VANISHED, VANISHED_STAGE = 1e-3, 1e-4
EXPLODED = 10.0
DEAD = 0.5
SURE, SATURATED, SATURATED_WRONG = 0.99, 0.2, 0.1
IMBALANCE, IMBALANCE_SEVERE = 3.0, 10.0
COPIES = 0.01


class Severity(IntEnum):
    """How bad it is; ``NOT_CHECKED`` where there is no evidence."""

    NOT_CHECKED = -1
    FINE = 0
    ADVICE = 1
    WARNING = 2
    ERROR = 3


@dataclass(frozen=True)
class Finding:
    """What became of one rule."""

    rule: str
    severity: Severity
    threshold: str
    evidence: str
    advice: str


Check = Callable[[Evidence], tuple[Severity, str]]


@dataclass(frozen=True)
class _Rule:
    name: str
    threshold: str
    advice: str
    check: Check


RULES: list[_Rule] = []


def _rule(name: str, threshold: str, advice: str) -> Callable[[Check], Check]:
    def add(check: Check) -> Check:
        RULES.append(_Rule(name, threshold, advice, check))
        return check

    return add


def diagnose(evidence: Evidence) -> list[Finding]:
    """Every rule held against the evidence, in the order they stand here."""
    findings = []
    for rule in RULES:
        try:
            severity, found = rule.check(evidence)
        except NoEvidence as unknown:
            severity, found = Severity.NOT_CHECKED, str(unknown)
        findings.append(Finding(rule.name, severity, rule.threshold, found, rule.advice))
    return findings


def verdict(evidence: Evidence) -> str:
    """One sentence on whether it is learning."""
    if evidence.fault:
        return f"The run failed: {evidence.fault}."
    if not evidence.epochs:
        return "No run of these parameters is here, so whether it learns is not known."
    first, last = evidence.epochs[0], evidence.epochs[-1]
    said = f"training loss {first['train_loss']:.3f} → {last['train_loss']:.3f} in {len(evidence.epochs)} epochs"
    if evidence.learned is None:
        return f"Under way or stopped: {said}."
    accuracy, low, majority = evidence.learned.against_chance()
    return (
        f"It {'is' if low > majority else 'is NOT'} learning: {said}, {accuracy:.1%} of the validation bins right "
        f"(95 % at least {low:.1%}), {majority:.1%} by always answering the most frequent count."
    )


# --- speed and memory ------------------------------------------------------------------------------------


@_rule(
    "input wait",
    f"a step spends more than {INPUT_WAIT:.0%} of its time waiting for samples (error: {INPUT_WAIT_SEVERE:.0%})",
    "put data/encoded on a local disk; let less learn (model.trainable), so that more is computed once",
)
def _input_wait(evidence: Evidence) -> tuple[Severity, str]:
    share = evidence.profiled("shares")["input"]
    return _graded(share, INPUT_WAIT, INPUT_WAIT_SEVERE), f"{share:.0%} of a step"


@_rule(
    "low utilisation",
    f"less than {BUSY:.0%} of the cores, or of the GPU's time, compute",
    "raise train.batch_size; on a CPU set launch.ranks: 1, which uses all cores",
)
def _low_utilisation(evidence: Evidence) -> tuple[Severity, str]:
    busy = evidence.profiled("busy")
    return _when(busy < BUSY), f"{busy:.0%} busy"


@_rule(
    "batch too small",
    f"twice the batch takes at least {BATCH_GAIN} times as many images a second",
    "raise train.batch_size, and train.lr with it",
)
def _batch_too_small(evidence: Evidence) -> tuple[Severity, str]:
    now = evidence.profiled("images_per_second")
    if "double_images_per_second" not in evidence.profile:
        raise NoEvidence(evidence.profile.get("double_fault", "twice the batch is more than there are training bins"))
    gain = evidence.profile["double_images_per_second"] / now
    return (
        Severity.ADVICE if gain >= BATCH_GAIN else Severity.FINE,
        f"{gain:.2f} times the {now:,.0f} images/s of batches of {evidence.profile['batch_size']}",
    )


@_rule(
    "batch too large for memory",
    f"more than {MEMORY_FULL:.0%} of the memory is taken (error: all of it)",
    "lower train.batch_size or model.image_size, or raise train.accumulation_steps",
)
def _batch_too_large(evidence: Evidence) -> tuple[Severity, str]:
    if fault := evidence.fault_with("out of memory"):
        return Severity.ERROR, fault
    peak, memory = evidence.profiled("peak_memory"), evidence.profile["memory"]
    return _when(peak > MEMORY_FULL * memory), f"{peak / 2**20:,.0f} of {memory / 2**20:,.0f} MiB"


@_rule(
    "slow first step",
    f"the first step takes {SLOW_START_S:.0f} s and {SLOW_START_TIMES:.0f} times longer than the others",
    "train.compile: true pays only in long runs; warm the cache of the disk that data/encoded is on",
)
def _slow_first_step(evidence: Evidence) -> tuple[Severity, str]:
    first, step = evidence.profiled("first_step_s"), evidence.profile["step_s"]
    slow = first > SLOW_START_S + step and first > SLOW_START_TIMES * step
    return _when(slow, Severity.ADVICE), f"{first:.2f} s, the others {step:.4f} s"


@_rule(
    "uneven ranks",
    f"the slowest rank, alone with its share, takes {UNEVEN} times as long as the fastest",
    "give the ranks equal devices and cores, and end what else runs on them: every step waits for the slowest",
)
def _uneven_ranks(evidence: Evidence) -> tuple[Severity, str]:
    alone = evidence.alone_s()
    ratio = max(alone) / min(alone)
    said = f"{min(alone) * 1000:.1f} to {max(alone) * 1000:.1f} ms a step over {len(alone)} ranks"
    return _when(ratio >= UNEVEN), said


@_rule(
    "communication bound",
    f"exchange makes up more than {COMMUNICATION:.0%} of a step",
    "fewer ranks, larger batches (train.batch_size), or a faster network; on one CPU launch.ranks: 1",
)
def _communication_bound(evidence: Evidence) -> tuple[Severity, str]:
    alone, step = max(evidence.alone_s()), evidence.profile["step_s"]
    share = max(0.0, 1 - alone / step)
    said = f"{share:.0%}: {step * 1000:.1f} ms together, {alone * 1000:.1f} ms alone with the same share"
    return _when(share > COMMUNICATION), said


# --- learning --------------------------------------------------------------------------------------------


@_rule(
    "loss not falling",
    f"the training loss falls by less than {FALL:.0%} from the first epoch to the last third",
    "raise train.lr tenfold, or lower it where it swings; look at the labels",
)
def _loss_not_falling(evidence: Evidence) -> tuple[Severity, str]:
    losses, right = evidence.curve("train_loss", 3), evidence.epochs[-1]["train_accuracy"]
    said = f"{losses[0]:.4g} in the first epoch, {_last_third(losses):.4g} in the last third"
    still = _fall(losses) < FALL and right < FITTED
    return _when(still, Severity.ERROR), f"{said}, {right:.0%} of the training bins right"


@_rule(
    "oscillating",
    f"the validation loss turns at {REVERSALS:.0%} of the epochs or more, and moves by {SWING:.0%} an epoch",
    "lower train.lr, raise train.batch_size, or average the weights (train.ema_decay: 0.99); train.schedule: one_cycle",
)
def _oscillating(evidence: Evidence) -> tuple[Severity, str]:
    losses = evidence.curve("validation_loss", 6)[len(evidence.epochs) // 3 :]
    moves = np.diff(losses)
    reversals, swing = float((moves[1:] * moves[:-1] < 0).mean()), float(np.abs(moves).mean() / losses.mean())
    swings = reversals >= REVERSALS and swing >= SWING
    said = f"it turns at {reversals:.0%} of the epochs and moves by {swing:.1%}, after the first third"
    return _when(swings), said


@_rule(
    "diverging",
    f"a loss is not finite, or the training loss ends {DIVERGED} times as high as it has been",
    "lower train.lr, set train.clip_grad_norm: 1, or let the rate rise slowly (train.warmup)",
)
def _diverging(evidence: Evidence) -> tuple[Severity, str]:
    if fault := evidence.fault_with("loss is not finite"):
        return Severity.ERROR, fault
    if wrong := sum(not math.isfinite(epoch["validation_loss"]) for epoch in evidence.epochs):
        return Severity.ERROR, f"the validation loss is not finite in {wrong} of {len(evidence.epochs)} epochs"
    losses = evidence.curve("train_loss", 2)
    ratio = losses[-1] / losses.min()
    said = f"{losses[-1]:.3f} at the end, {losses.min():.3f} at the least"
    return _when(ratio > DIVERGED, Severity.ERROR), said


@_rule(
    "overfitting",
    f"the validation loss ends {OVERFITTED - 1:.0%} above its least while the training loss falls on",
    "fewer train.epochs, a lower train.lr, train.dropout, train.weight_decay, train.label_smoothing, stronger augment, "
    "or more bins; the epoch with the least loss is the one kept",
)
def _overfitting(evidence: Evidence) -> tuple[Severity, str]:
    held, train = evidence.curve("validation_loss", 3), evidence.curve("train_loss", 3)
    best = int(held.argmin())
    over = held[-1] > OVERFITTED * held[best] and train[-1] < train[best]
    epoch = evidence.epochs[best]["epoch"]
    said = f"validation {held[best]:.3f} in epoch {epoch:.0f}, {held[-1]:.3f} in the last; "
    return _when(over), said + f"training {train[best]:.3f} and {train[-1]:.3f}"


@_rule(
    "plateau reached early",
    f"the validation loss comes within {FLAT:.0%} of its least in the first third, and ends near it",
    "fewer train.epochs; or a falling rate (train.schedule: cosine), more that learns (model.trainable)",
)
def _plateau(evidence: Evidence) -> tuple[Severity, str]:
    losses = evidence.curve("validation_loss", 6)
    near = np.flatnonzero(losses <= (1 + FLAT) * losses.min())[0]
    learns = _fall(evidence.curve("train_loss", 6)) >= FALL
    early = near < len(losses) / 3 and losses[-1] <= OVERFITTED * losses.min() and learns
    said = f"within {FLAT:.0%} after {near + 1} of {len(losses)} epochs, {losses[-1]:.3f} at the end"
    return _when(early, Severity.ADVICE), said


@_rule(
    "vanishing gradients",
    f"a stage's gradient is below {VANISHED_STAGE:g} of the largest, or that of all falls to {VANISHED:g} of the first "
    f"epoch's with less than {FITTED:.0%} of the training bins right",
    "lower train.lr (units die of too large steps), or let fewer stages learn (model.trainable)",
)
def _vanishing(evidence: Evidence) -> tuple[Severity, str]:
    stages = [value for value in evidence.profiled("gradients") if value is not None]
    ratio = min(stages, default=0.0) / max(max(stages, default=0.0), 1e-300)
    said = f"the smallest of {len(stages)} stages has {ratio:.1e} of the largest"
    vanished = ratio < VANISHED_STAGE
    if evidence.epochs:
        first, last = evidence.epochs[0], evidence.epochs[-1]
        fall = last["gradient_norm"] / max(first["gradient_norm"], 1e-300)
        said += f"; all {first['gradient_norm']:.2e} in the first epoch, {last['gradient_norm']:.2e} in the last"
        vanished |= fall < VANISHED and last["train_accuracy"] < FITTED
    return _when(vanished), said


@_rule(
    "exploding gradients",
    f"the norm of the gradient grows to {EXPLODED:.0f} times the first epoch's (error: it is not finite)",
    "set train.clip_grad_norm: 1, lower train.lr, or let the rate rise slowly (train.warmup)",
)
def _exploding(evidence: Evidence) -> tuple[Severity, str]:
    if fault := evidence.fault_with("gradient is not finite"):
        return Severity.ERROR, fault
    if None in evidence.profile.get("gradients", []):
        return Severity.ERROR, "it is not finite in the profiled steps"
    if wrong := sum(not math.isfinite(epoch["gradient_norm"]) for epoch in evidence.epochs):
        return Severity.ERROR, f"it is not finite in {wrong} of {len(evidence.epochs)} epochs"
    norms = evidence.curve("gradient_norm", 2)
    growth = norms.max() / max(norms[0], 1e-300)
    return _when(growth >= EXPLODED), f"{growth:.1f} times {norms[0]:.2e}"


@_rule(
    "dead units",
    f"more than {DEAD:.0%} of the hidden units are zero for every validation bin (error: all)",
    "lower train.lr, or train.hidden where so many are of no use",
)
def _dead_units(evidence: Evidence) -> tuple[Severity, str]:
    dead = evidence.model().dead_units
    return _graded(dead, DEAD, 1 - 1e-9), f"{dead:.0%} of them"


@_rule(
    "saturated outputs",
    f"{SATURATED:.0%} of the answers have a probability above {SURE:.0%}, {SATURATED_WRONG:.0%} of them wrong",
    "lower train.lr, fewer train.epochs, train.label_smoothing: 0.1, train.weight_decay",
)
def _saturated(evidence: Evidence) -> tuple[Severity, str]:
    scored = evidence.model().scored
    sure = scored.probabilities.max(1) > SURE
    answers = decode_counts(scored.probabilities, scored.counts, "most_probable")
    wrong = (answers != scored.truth)[sure].sum() / max(sure.sum(), 1)
    bad = sure.mean() > SATURATED and wrong > SATURATED_WRONG
    return _when(bad), f"{sure.mean():.0%} of the answers, {wrong:.0%} of them wrong"


@_rule(
    "a count never answered",
    "a count that is learned is never the most probable one on validation (error: only one ever is)",
    "more bins of that count, a lower train.lr, or counts that are taken together (fetch.open_ended)",
)
def _never_answered(evidence: Evidence) -> tuple[Severity, str]:
    scored = evidence.model().scored
    answered = confusion(scored, "most_probable").sum(0)
    never = [str(count) for count, number in zip(scored.counts, answered, strict=True) if not number]
    if not never:
        return Severity.FINE, f"the rarest answer is given {answered.min()} times"
    severity = Severity.ERROR if len(never) == len(scored.counts) - 1 else Severity.WARNING
    return severity, f"{', '.join(never)} of {len(scored.truth)} bins"


@_rule(
    "near chance",
    "the accuracy on validation is not above that of always answering the most frequent count, its 95 % interval "
    "(bootstrapped by group) included",
    "read the rules on the loss first; then more that learns (model.trainable), more train.epochs, more bins",
)
def _near_chance(evidence: Evidence) -> tuple[Severity, str]:
    accuracy, low, majority = evidence.model().against_chance()
    said = f"{accuracy:.1%}, at least {low:.1%}; the most frequent count has {majority:.1%}"
    return _when(low <= majority, Severity.ERROR), said


# --- data ------------------------------------------------------------------------------------------------


@_rule(
    "counts out of balance",
    f"one count has {IMBALANCE:.0f} times as many training bins as another (warning: {IMBALANCE_SEVERE:.0f} times)",
    "fetch.per_count evens them out; fetch.counts leaves rare ones out",
)
def _imbalance(evidence: Evidence) -> tuple[Severity, str]:
    most, least = max(evidence.bins, key=evidence.bins.__getitem__), min(evidence.bins, key=evidence.bins.__getitem__)
    ratio = evidence.bins[most] / max(evidence.bins[least], 1)
    said = f"{evidence.bins[most]} of {most}, {evidence.bins[least]} of {least}"
    if ratio < IMBALANCE:
        return Severity.FINE, said
    return Severity.WARNING if ratio >= IMBALANCE_SEVERE else Severity.ADVICE, said


@_rule(
    "labels inconsistent",
    f"more than {COPIES:.0%} of the bins look all but like another one with another count (nearer than "
    f"{COPY:.0%} of the median distance to the nearest)",
    "recount them: their records cannot both be right",
)
def _inconsistent(evidence: Evidence) -> tuple[Severity, str]:
    return _when(evidence.copies > COPIES), f"{evidence.copies:.1%} of the bins"


# --- what several of them need ----------------------------------------------------------------------------


def _when(holds: bool, severity: Severity = Severity.WARNING) -> Severity:
    return severity if holds else Severity.FINE


def _graded(value: float, warning: float, error: float) -> Severity:
    return _when(value > warning, Severity.ERROR if value > error else Severity.WARNING)


def _last_third(losses: Floats) -> float:
    return float(losses[-max(1, len(losses) // 3) :].mean())


def _fall(losses: Floats) -> float:
    """Share by which a loss falls from the first epoch to the last third."""
    return 1 - _last_third(losses) / float(losses[0])
