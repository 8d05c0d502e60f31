"""What is answered for a photograph, and for one with its record."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, NotRequired

import numpy as np
from pydantic import ConfigDict, Field, with_config
from typing_extensions import TypedDict

from bintally.bins.products import Product
from bintally.scoring import explain
from bintally.scoring.calibration import Calibration, predict_counts
from bintally.scoring.judgement import Judgements, judge
from bintally.scoring.lists import Lists
from bintally.scoring.metrics import Floats
from bintally.scoring.record_errors import Totals, error_probability
from bintally.scoring.record_model import FILE, RecordModel

Count = Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Factor = Annotated[
    float, Field(ge=0, description="how many times as likely an error becomes, as odds; below 1 speaks for the record")
]
_exactly = with_config(ConfigDict(extra="forbid"))  # so that the schema allows nothing else
NO_RECORD_MODEL = f"the model has no {FILE}, so that only the record's count was read; `dvc repro` writes it"


@_exactly
class CountedItems(TypedDict):
    """The number of items in a bin, as probabilities and as answers."""

    counts: list[Count]
    probabilities: Annotated[list[Fraction], Field(description="one for each of counts")]
    most_probable: Count
    rounded_mean: Count
    median: Count
    set: Annotated[
        list[Count], Field(description="lowest and highest count of the prediction set", min_length=2, max_length=2)
    ]
    coverage: Annotated[Fraction, Field(description="fraction of bins whose prediction set contains the true count")]
    unsure: bool


@_exactly
class RecordCheck(TypedDict):
    """The count of a record compared with the photograph."""

    expected: Count
    error_probability: Annotated[Fraction | None, Field(description="probability that the record is wrong")]
    reason: NotRequired[Annotated[str, Field(description="why there is no probability, or no more than it")]]


@_exactly
class Hypothesis(TypedDict):
    """One way in which a bin and its record may agree or differ."""

    kind: Annotated[
        explain.Kind,
        Field(
            description="right: as recorded; quantity: another one of a listed product; missing: a listed product is "
            "not there; unlisted: something that is not listed"
        ),
    ]
    probability: Fraction
    product: Annotated[str | None, Field(description="key of the listed product, of the kinds quantity and missing")]
    name: Annotated[str | None, Field(description="its name")]
    recorded: Annotated[Count | None, Field(description="its quantity in the record")]
    quantity: Annotated[Count | None, Field(description="the likely one; for the kind unlisted, of what is not listed")]
    text: Annotated[str, Field(description="in words")]


@_exactly
class Evidence(TypedDict):
    """What speaks for an error in a record, and what against it."""

    list: Annotated[Factor, Field(description="by what is listed, beside the share of records assumed to be wrong")]
    photograph: Annotated[Factor, Field(description="by the photograph, beside what is listed")]
    text: Annotated[list[str], Field(description="both in words", min_length=2, max_length=2)]


@_exactly
class RecordJudgement(TypedDict):
    """A record judged by its photograph and by what it lists."""

    expected: Annotated[Count, Field(description="number of items in the record")]
    error_probability: Annotated[Fraction, Field(description="probability that the record is wrong")]
    error_by_list: Annotated[Fraction, Field(description="the same before the photograph is seen")]
    likely_count: Annotated[Count, Field(description="most probable number of items, all hypotheses together")]
    verdict: Annotated[str, Field(description="the likeliest hypotheses in words")]
    hypotheses: Annotated[
        list[Hypothesis], Field(description="the most probable ones, in order", min_length=1, max_length=explain.MOST)
    ]
    evidence: Evidence


@_exactly
class Prediction(CountedItems):
    """The prediction for one image: of the photograph alone, but for given_products and record."""

    given_products: NotRequired[
        Annotated[
            CountedItems, Field(description="the count given which products the record lists, and the photograph")
        ]
    ]
    record: NotRequired[RecordJudgement | RecordCheck]


@_exactly
class Predictions(TypedDict):
    predictions: Annotated[list[Prediction], Field(description="in the order of the images")]


@dataclass(frozen=True)
class Reading:
    """What a record adds to the prediction for its photograph."""

    given_products: CountedItems | None
    """None: no count that the model knows is possible with the products listed."""
    record: RecordJudgement | RecordCheck


def counted_items(probabilities: Floats, calibration: Calibration) -> list[CountedItems]:
    """Answers from calibrated probabilities, (n, counts)."""
    predicted = predict_counts(probabilities, calibration)
    return [
        {
            "counts": calibration.counts,
            "probabilities": probabilities[row].tolist(),
            "most_probable": int(predicted.by_rule["most_probable"][row]),
            "rounded_mean": int(predicted.by_rule["rounded_mean"][row]),
            "median": int(predicted.by_rule["median"][row]),
            "set": [int(predicted.low[row]), int(predicted.high[row])],
            "coverage": calibration.coverage,
            "unsure": bool(predicted.unsure[row]),
        }
        for row in range(len(probabilities))
    ]


def check_count(probabilities: Sequence[float], expected: int, calibration: Calibration) -> RecordCheck:
    """The probability that a record of which the count alone is known is wrong, or the reason why there is none.

    ``probabilities``: of the calibration's counts, given the photograph.
    """
    counts = calibration.counts
    if not Totals(counts, calibration.open_ended).allow(np.array([expected]))[0]:
        return _unknown_count(expected, counts)
    record = np.array([min(expected, counts[-1])])
    probability = error_probability(np.array([probabilities]), counts, record, calibration.record_error_rate)
    return {"expected": expected, "error_probability": float(probability[0])}


def _unknown_count(expected: int, counts: Sequence[int]) -> RecordCheck:
    known = ", ".join(map(str, counts))
    reason = f"the model distinguishes the counts {known}, not {expected}"
    return {"expected": expected, "error_probability": None, "reason": reason}


def read_records(
    model: RecordModel | None,
    calibration: Calibration,
    probabilities: Floats,
    tables: Floats,
    records: Sequence[Sequence[Product]],
) -> list[Reading]:
    """What the records of n photographs add to their predictions.

    Args:
        model: None for a model without one.
        calibration: of the photographs' predictions.
        probabilities: (n, counts) of the photographs alone.
        tables: (n, features, counts) of evidence in them.
        records: the products that each lists.
    """
    if model is None:
        totals = [sum(product.quantity for product in products) for products in records]
        checks = [
            check_count(row, total, calibration) for row, total in zip(probabilities.tolist(), totals, strict=True)
        ]
        return [Reading(None, _without_record_model(check)) for check in checks]
    lists = Lists.of(records)
    can_count = model.can_count(lists)
    given = counted_items(model.count_given_products(probabilities, tables, lists), model.answers)
    rows = np.flatnonzero(model.totals.allow(lists.totals))
    judgements: dict[int, RecordJudgement] = {}
    if len(rows):
        judged = judge(model, probabilities[rows], lists.take(rows), calibration.record_error_rate)
        in_order = _judgements(model, calibration, judged, [records[row] for row in rows.tolist()])
        judgements = dict(zip(rows.tolist(), in_order, strict=True))
    return [
        Reading(
            given[row] if can_count[row] else None,
            judgements.get(row) or _unknown_count(int(lists.totals[row]), calibration.counts),
        )
        for row in range(len(records))
    ]


def _without_record_model(check: RecordCheck) -> RecordCheck:
    reasons = [check["reason"]] if "reason" in check else []
    return {**check, "reason": "; ".join([*reasons, NO_RECORD_MODEL])}


def _judgements(
    model: RecordModel, calibration: Calibration, judged: Judgements, records: Sequence[Sequence[Product]]
) -> list[RecordJudgement]:
    likely = explain.likely_counts(judged, model.totals.counts)
    evidence = explain.evidence(judged, calibration.record_error_rate)
    judgements: list[RecordJudgement] = []
    for row, products in enumerate(records):
        names, quantities = [one.name for one in products], [one.quantity for one in products]
        found = explain.hypotheses(judged, row, quantities)
        factors = {"the list": float(evidence.list[row]), "the photograph": float(evidence.photograph[row])}
        by_list, by_photograph = factors.values()
        judgements.append(
            {
                "expected": sum(quantities),
                "error_probability": float(judged.error[row]),
                "error_by_list": float(judged.error_by_list[row]),
                "likely_count": int(likely[row]),
                "verdict": explain.verdict(found, names, quantities),
                "hypotheses": [_hypothesis(one, products, names, quantities) for one in found],
                "evidence": {
                    "list": by_list,
                    "photograph": by_photograph,
                    "text": [explain.evidence_in_words(factor, what) for what, factor in factors.items()],
                },
            }
        )
    return judgements


def _hypothesis(
    one: explain.Hypothesis, products: Sequence[Product], names: Sequence[str], quantities: Sequence[int]
) -> Hypothesis:
    product = None if one.product is None else products[one.product]
    return {
        "kind": one.kind,
        "probability": min(one.probability, 1.0),  # a sum may exceed it by rounding
        "product": product.key if product else None,
        "name": product.name if product else None,
        "recorded": product.quantity if product else None,
        "quantity": one.quantity,
        "text": explain.in_words(one, names, quantities),
    }
