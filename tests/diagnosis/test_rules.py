"""What rules say where there is no evidence, and which pictures count as copies. The rules themselves are held against
real trainings in tests/training/test_profiling.py."""

import math
from dataclasses import replace

import numpy as np
import pytest

from bintally.diagnosis.evidence import Evidence, near_duplicate_share
from bintally.diagnosis.rules import RULES, Severity, diagnose, verdict

NOTHING = Evidence({"fault": "out of memory on cpu: lower train.batch_size"}, [], "", None, {1: 30, 2: 2}, 0.0)


def test_what_cannot_be_known_is_said_to_be_so() -> None:
    findings = diagnose(NOTHING)
    assert [finding.rule for finding in findings] == [rule.name for rule in RULES]
    known = {finding.rule: finding.severity for finding in findings if finding.severity != Severity.NOT_CHECKED}
    assert known == {
        "batch too large for memory": Severity.ERROR,
        "counts out of balance": Severity.WARNING,
        "labels inconsistent": Severity.FINE,
    }
    reasons = {finding.rule: finding.evidence for finding in findings}
    assert reasons["near chance"] == "no model of these parameters is here: `dvc repro`"
    assert reasons["overfitting"] == "0 epochs of these parameters are here, 3 are needed: `dvc repro`"
    assert "out of memory on cpu" in reasons["input wait"]
    assert verdict(NOTHING) == "No run of these parameters is here, so whether it learns is not known."


def test_curves_that_are_not_finite_are_an_error_and_stop_no_other_rule() -> None:
    epoch = {"train_loss": 1.0, "train_accuracy": 0.5, "gradient_norm": 2.0, "validation_accuracy": 0.5}
    epochs = [epoch | {"epoch": number, "validation_loss": 1.0 / (number + 1)} for number in range(8)]
    epochs[3] |= {"validation_loss": math.nan, "gradient_norm": math.inf}
    found = {finding.rule: finding for finding in diagnose(replace(NOTHING, profile={}, epochs=epochs))}
    errors = {rule for rule, finding in found.items() if finding.severity == Severity.ERROR}
    assert errors == {"diverging", "exploding gradients", "loss not falling"}
    assert found["diverging"].evidence == "the validation loss is not finite in 1 of 8 epochs"
    assert found["overfitting"].evidence == "validation loss: not finite in 1 epochs"
    halted = replace(NOTHING, profile={"gradients": [0.1, None]})
    assert {finding.rule: finding.severity for finding in diagnose(halted)}["exploding gradients"] == Severity.ERROR


@pytest.mark.parametrize(("count_of_the_copy", "share"), [(3, 2 / 1000), (1, 0.0)])
def test_a_copy_is_one_only_where_its_count_is_another(count_of_the_copy: int, share: float) -> None:
    random = np.random.default_rng(0)
    pictures = random.normal(size=(1000, 20))  # more than are compared at once
    counts = random.integers(1, 3, 1000)
    pictures[900], counts[900] = pictures[7] + 1e-3, count_of_the_copy
    counts[7] = 1
    assert near_duplicate_share(pictures, counts.tolist()) == pytest.approx(share)
