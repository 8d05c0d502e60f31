"""Rules without evidence, rules on curves that are not finite, and near-duplicates.

The rules are checked on real trainings in test_profiling.py.
"""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from bintally.diagnosis.evidence import Evidence, near_duplicate_share
from bintally.diagnosis.report import verdict
from bintally.diagnosis.rules import RULES, Severity, diagnose, markdown_table

FAILED_STEPS = Evidence({"failure": "out of memory on cpu: lower train.batch_size"}, [], "", None, {1: 30, 2: 2}, 0.0)


def test_rules_without_evidence_are_not_checked_and_the_reason_is_given() -> None:
    findings = diagnose(FAILED_STEPS)
    assert [finding.rule for finding in findings] == [rule.name for rule in RULES]
    checked = {finding.rule: finding.severity for finding in findings if finding.severity != Severity.NOT_CHECKED}
    assert checked == {
        "batch too large for memory": Severity.ERROR,
        "class imbalance": Severity.WARNING,
        "inconsistent labels": Severity.FINE,
    }
    reasons = {finding.rule: finding.evidence for finding in findings}
    assert reasons["near chance"] == "no model of these parameters; run `dvc repro`"
    assert reasons["overfitting"] == "0 epochs of these parameters, 3 are needed; run `dvc repro`"
    assert "out of memory on cpu" in reasons["input wait"]
    assert verdict(FAILED_STEPS) == "There is no run of these parameters, so whether the model learns is unknown."


@pytest.mark.parametrize(
    ("rule", "change", "severity"),
    [
        ("input wait", {"time_shares": {"input": 0.3}}, Severity.WARNING),
        ("input wait", {"time_shares": {"input": 0.6}}, Severity.ERROR),
        ("low utilisation", {"utilisation": 0.4}, Severity.WARNING),
        ("batch too small", {"double_images_per_second": 140.0}, Severity.ADVICE),
        ("batch too large for memory", {"peak_memory_bytes": 95}, Severity.WARNING),
        ("slow first step", {"first_step_s": 6.0}, Severity.ADVICE),
        ("uneven ranks", {"solo_step_s": [0.07, 0.1]}, Severity.WARNING),
        ("communication bound", {"solo_step_s": [0.06, 0.06]}, Severity.WARNING),
    ],
)
def test_one_value_of_a_profile_triggers_one_rule(rule: str, change: dict[str, Any], severity: Severity) -> None:
    good = {"time_shares": {"input": 0.1}, "utilisation": 0.9, "peak_memory_bytes": 80, "memory_bytes": 100}
    good |= {"first_step_s": 0.5, "step_s": 0.1, "solo_step_s": [0.09, 0.1], "gradient_rms": [0.1, 0.1]}
    good |= {"batch_size": 10, "images_per_second": 100.0, "double_images_per_second": 110.0}
    evidence = Evidence(good, [], "", None, {1: 30, 2: 30}, 0.0)
    assert max(finding.severity for finding in diagnose(evidence)) == Severity.FINE
    findings = diagnose(replace(evidence, profile=good | change))
    triggered = {finding.rule: finding.severity for finding in findings if finding.severity > Severity.FINE}
    assert triggered == {rule: severity}


def test_curves_that_are_not_finite_are_an_error_and_do_not_stop_other_rules() -> None:
    epoch = {"train_loss": 1.0, "train_accuracy": 0.5, "gradient_norm": 2.0, "validation_accuracy": 0.5}
    epochs = [epoch | {"epoch": number, "validation_loss": 1.0 / (number + 1)} for number in range(8)]
    epochs[3] |= {"validation_loss": math.nan, "gradient_norm": math.inf}
    findings = {finding.rule: finding for finding in diagnose(replace(FAILED_STEPS, profile={}, epochs=epochs))}
    errors = {rule for rule, finding in findings.items() if finding.severity == Severity.ERROR}
    assert errors == {"diverging", "exploding gradients", "loss not falling"}
    assert findings["diverging"].evidence == "the validation loss is not finite in 1 of 8 epochs"
    assert findings["overfitting"].evidence == "validation loss is not finite in 1 epochs"
    profiled = replace(FAILED_STEPS, profile={"gradient_rms": [0.1, None]})
    severities = {finding.rule: finding.severity for finding in diagnose(profiled)}
    assert severities["exploding gradients"] == Severity.ERROR


def test_the_markdown_table_has_a_row_for_every_rule() -> None:
    header, _, *rows = markdown_table().splitlines()
    assert header == "| rule | condition | advice |"
    assert [row.split(" | ")[0] for row in rows] == [f"| {rule.name}" for rule in RULES]
    assert all(row.count("|") == 4 for row in rows)


@pytest.mark.parametrize(("count_of_the_duplicate", "share"), [(3, 2 / 1000), (1, 0.0)])
def test_a_near_duplicate_counts_only_with_another_count(count_of_the_duplicate: int, share: float) -> None:
    random = np.random.default_rng(0)
    signatures = random.normal(size=(1000, 20))
    counts = random.integers(1, 3, 1000)
    signatures[900], counts[900] = signatures[7] + 1e-3, count_of_the_duplicate
    counts[7] = 1
    assert near_duplicate_share(signatures, counts.tolist()) == pytest.approx(share)
