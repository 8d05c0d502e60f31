"""Inject errors into the records of test bins and measure how many of them rankings find.

Judged is the altered record alone. What the model assumes of errors is measured first, then what it does not assume.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

import numpy as np

from bintally import paths
from bintally.bins.contents import read_contents
from bintally.errors import UserError
from bintally.files import METRIC_DIGITS, read_columns, write_csv, write_json
from bintally.params import ErrorShares, Params
from bintally.scoring import figures
from bintally.scoring.audit import expected_recall_curve, found_by_kind, ranking_metrics, recall_curve
from bintally.scoring.decoding import FOR_ACCURACY, decode_counts
from bintally.scoring.judgement import judge
from bintally.scoring.lists import Lists
from bintally.scoring.metrics import Counts, Floats
from bintally.scoring.record_errors import (
    ERROR_KINDS,
    FURTHEST,
    AlteredRecords,
    error_probability,
    inject_errors,
)
from bintally.scoring.record_model import RecordModel, require_record_model
from bintally.stages import run

SEED = 1
BOTH = "photograph and list"  # the ranking that `bintally audit` makes
SHARES = np.linspace(0, 1, 101)  # of the bins recounted, at which curves are kept
RECOUNTED = 0.1
NOT_ASSUMED = ("auc", "found_at_10", "expected_at_10", "expected_over_actual")  # metrics of errors not assumed
FEWER = 2  # so many times fewer draws of errors that are not assumed
ONLY_QUANTITY = ErrorShares(quantity=1, unlisted=0, missing=0)  # all that records without names can have
KINDS = dict(zip(ERROR_KINDS, ("one off", "two off", "left out", "not there"), strict=True))


@dataclass(frozen=True)
class Errors:
    """Errors to inject."""

    rate: float
    """Fraction of records made wrong."""
    shares: ErrorShares
    furthest: int = FURTHEST
    """Items that a wrong quantity is off at most."""


@dataclass(frozen=True)
class Bins:
    """Test bins whose contents are known."""

    probabilities: Floats
    """(n, counts) of the photograph alone."""
    lists: Lists
    """What truly lies in them."""
    groups: list[str]

    def take(self, rows: Counts) -> "Bins":
        return Bins(self.probabilities[rows], self.lists.take(rows), [self.groups[row] for row in rows])


def main(params: Params) -> None:
    model = require_record_model(paths.MODELS, beside_calibration=False)
    bins = _read_bins(model)
    shares = model.error_shares if bins.lists.named.all() else ONLY_QUANTITY
    number, assumed = params.audit.draws, Errors(model.answers.record_error_rate, shares)
    measurement = _Measurement(model, assumed.rate)
    random = np.random.default_rng(SEED)
    draws = measurement.repeat(bins, assumed, number, random)
    # The intervals: other errors in other bins.
    resampled = [
        draw
        for _ in range(number)
        for draw in measurement.repeat(bins.take(_resample_groups(bins.groups, random)), assumed, 1, random)
    ]
    fewer = -(-number // FEWER)
    others = {name: measurement.repeat(bins, errors, fewer, random) for name, errors in _not_assumed(assumed).items()}
    if not draws or not resampled:
        raise UserError(
            f"no record of the {len(bins.groups)} test bins can be made wrong so that it has one of the counts "
            f"{model.answers.counts}; raise fetch.per_count, or change calibrate.counts or calibrate.error_shares"
        )
    rankings = list(draws[0].metrics)
    summaries = {
        name: _summary([draw.metrics[name] for draw in draws], [draw.metrics[name] for draw in resampled])
        for name in rankings
    }
    content = {
        "images": len(bins.groups),
        "record_error_rate": assumed.rate,
        "error_shares": assumed.shares.model_dump(),
        **{name.replace(" ", "_"): summary for name, summary in summaries.items()},
        "not_assumed": {
            name: {
                ranking.replace(" ", "_"): _means(
                    [{metric: draw.metrics[ranking][metric] for metric in NOT_ASSUMED} for draw in of_others]
                )
                for ranking in rankings[:2]
            }
            for name, of_others in others.items()
            if of_others
        },
    }
    write_json(paths.AUDIT_METRICS, content, METRIC_DIGITS)
    curves = {name: np.mean([draw.curves[name] for draw in draws], 0) for name in draws[0].curves}
    write_csv(paths.AUDIT_CURVES, ["recounted", *curves], zip(SHARES, *curves.values(), strict=True), METRIC_DIGITS)
    _draw(params, content, summaries[BOTH], curves)


def _not_assumed(assumed: Errors) -> dict[str, Errors]:
    """Errors other than those that the model assumes."""
    others = {
        "none_missing": Errors(assumed.rate, ErrorShares(quantity=0.5, unlisted=0.5, missing=0)),
        "many_missing": Errors(assumed.rate, ErrorShares(quantity=0.35, unlisted=0.35, missing=0.3)),
        "only_by_one": Errors(assumed.rate, ONLY_QUANTITY, furthest=1),
        "only_left_out": Errors(assumed.rate, ErrorShares(quantity=0, unlisted=1, missing=0)),
        "rate_3_percent": Errors(0.03, assumed.shares),
        "rate_20_percent": Errors(0.2, assumed.shares),
    }
    if assumed.shares != ONLY_QUANTITY:
        return others
    return {name: errors for name, errors in others.items() if errors.shares == ONLY_QUANTITY}


def _read_bins(model: RecordModel) -> Bins:
    """Raises UserError if the predictions are too few, or not of this calibration and these bins."""
    columns = [f"p{count}" for count in model.answers.counts]
    try:
        ids, groups, *chances = read_columns(paths.PREDICTIONS, "id", "group", *columns)
        probabilities = np.stack([np.array(column, np.float64) for column in chances], 1)
        contents = read_contents(paths.BINS, paths.CORRECTIONS, ids)
        lists, known = Lists.of_contents(contents)
    except KeyError as error:
        raise UserError(
            f"{paths.PREDICTIONS} is not of this calibration or of these bins: {error} is missing; run `dvc repro`"
        ) from error
    if not lists.named.any():
        known[:] = True
    rows = np.flatnonzero(known & model.totals.allow(lists.totals))
    if len(rows) < 2:
        raise UserError(f"{len(rows)} test bins are too few to measure how errors are found; raise fetch.per_count")
    return Bins(probabilities[rows], lists.take(rows), [groups[row] for row in rows])


@dataclass(frozen=True)
class Draw:
    """What was found of errors that were injected once."""

    metrics: dict[str, dict[str, float]]
    """By ranking."""
    curves: dict[str, Floats]
    """The fraction of the errors that each ranking finds at SHARES; last ``expected`` of BOTH."""


class _Measurement:
    """Injects errors and ranks the records, assuming ``rate`` of them to be wrong."""

    def __init__(self, model: RecordModel, rate: float) -> None:
        self._model, self._rate = model, rate

    def repeat(self, bins: Bins, errors: Errors, number: int, random: np.random.Generator) -> list[Draw]:
        """So many draws of errors in the same bins, without those in which no record could be made wrong."""
        lists = bins.lists
        right = self._scores(bins.probabilities, lists)
        draws = []
        for _ in range(number):
            altered = inject_errors(
                lists.quantities, lists.sizes, errors.rate, errors.shares, self._model.totals, random, errors.furthest
            )
            wrong = np.flatnonzero(altered.is_wrong)  # the others are judged as before
            if not len(wrong):
                continue
            of_wrong = self._scores(
                bins.probabilities[wrong],
                replace(lists, quantities=altered.quantities, sizes=altered.sizes).take(wrong),
            )
            scores = {name: values.copy() for name, values in right.items()}
            for name, values in of_wrong.items():
                scores[name][wrong] = values
            draws.append(_measure(scores, altered))
        return draws

    def _scores(self, probabilities: Floats, lists: Lists) -> dict[str, Floats]:
        """The scores, (n,), by which each ranking orders records, the highest first."""
        counts = self._model.answers.counts
        records = np.asarray(counts)[self._model.totals.column(lists.totals)]
        judged = judge(self._model, probabilities, lists, self._rate)
        return {
            BOTH: judged.error,
            "photograph": error_probability(probabilities, counts, records, self._rate),
            "list": judged.error_by_list,
            "disagreement": (decode_counts(probabilities, counts, FOR_ACCURACY) != records).astype(np.float64),
            "chance": np.zeros(len(records)),
        }


def _measure(scores: Mapping[str, Floats], altered: AlteredRecords) -> Draw:
    is_wrong = altered.is_wrong
    metrics = {name: ranking_metrics(values, is_wrong) for name, values in scores.items()}
    curves = {name: _at_shares(recall_curve(values, is_wrong)) for name, values in scores.items()}
    for name in (BOTH, "photograph"):
        expected = _at_shares(expected_recall_curve(scores[name]))
        metrics[name]["expected_at_10"] = float(np.interp(RECOUNTED, SHARES, expected))
        metrics[name]["expected_over_actual"] = float(scores[name].sum() / is_wrong.sum())
        metrics[name] |= found_by_kind(scores[name], altered.kinds, RECOUNTED)
    curves["expected"] = _at_shares(expected_recall_curve(scores[BOTH]))
    return Draw(metrics, curves)


def _at_shares(curve: Floats) -> Floats:
    """A curve over 0, 1, … bins, interpolated at SHARES."""
    return np.asarray(np.interp(SHARES, np.linspace(0, 1, len(curve)), curve))


def _resample_groups(groups: Sequence[str], random: np.random.Generator) -> Counts:
    """The rows of as many groups, drawn with replacement: photographs of the same bin come together."""
    _, member, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    rows = np.split(np.argsort(member, kind="stable"), sizes.cumsum()[:-1])
    return np.concatenate([rows[number] for number in random.integers(len(rows), size=len(rows))])


def _means(draws: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each metric over the draws that have it: few errors may lack a kind."""
    return {name: fmean(draw[name] for draw in draws if name in draw) for name in _names(draws)}


def _summary(draws: Sequence[Mapping[str, float]], resampled: Sequence[Mapping[str, float]]) -> dict[str, object]:
    """The means over ``draws`` and the 95 % intervals over ``resampled`` of the metrics that both have."""
    intervals = {
        name: np.percentile([draw[name] for draw in resampled if name in draw], [2.5, 97.5]).tolist()
        for name in _names(resampled)
    }
    means = {name: value for name, value in _means(draws).items() if name in intervals}
    return {**means, "interval_95": {name: intervals[name] for name in means}}


def _names(draws: Sequence[Mapping[str, float]]) -> list[str]:
    return list(dict.fromkeys(name for draw in draws for name in draw))


def _draw(
    params: Params,
    content: Mapping[str, Any],
    summary: Mapping[str, Any],
    curves: dict[str, Floats],
) -> None:
    expected = curves.pop("expected")
    names = {f"{kind}_found_at_10": label for kind, label in KINDS.items()}
    found = {label: (summary[name], *summary["interval_95"][name]) for name, label in names.items() if name in summary}
    of_others = {
        name.replace("_", " "): others["photograph_and_list"] for name, others in content["not_assumed"].items()
    }
    promised = {
        name: (values["expected_at_10"], values["found_at_10"])
        for name, values in {"as assumed": summary, **of_others}.items()
    }
    source = figures.source_name(params.fetch.source)
    rate = content["record_error_rate"]
    title = f"errors in {rate:.0%} of the records of {content['images']:,} test bins ({source})"
    figures.save(figures.audit_figure(curves, expected, found, promised, title), paths.AUDIT_FIGURE)


if __name__ == "__main__":
    run("audit", main)
