"""Make records of test bins wrong and see how many of them a ranking by photograph finds."""

import json
from collections.abc import Sequence

import numpy as np

from bintally import paths
from bintally.bins.shards import ShardReader, read_index
from bintally.files import read_csv, write_csv, write_json
from bintally.params import Params
from bintally.scoring import figures
from bintally.scoring.audit import KINDS, expected_recall_curve, inject_errors, ranking_metrics, recall_curve, wrong
from bintally.scoring.calibration import Calibration, load_calibration
from bintally.scoring.decoding import FOR_ACCURACY, decode_counts
from bintally.scoring.metrics import Counts, Floats, LabelledPredictions
from bintally.stages import run

BEST, CURVE = "photograph_and_twins", 101
SHOWN_AT = 0.1


def main(params: Params) -> None:
    calibration = load_calibration(paths.MODELS)
    rows, counts = read_csv(paths.PREDICTIONS), calibration.counts
    scored = LabelledPredictions(
        np.array([[float(row[f"p{count}"]) for count in counts] for row in rows]),
        np.array([int(row["count"]) for row in rows]),
        [row["group"] for row in rows],
        counts,
    )
    products = _products([row["id"] for row in rows])
    random = np.random.default_rng(SEED)
    draws = [_draw(scored, products, calibration, random) for _ in range(params.audit.draws)]
    # Of other bins, too: a bin comes with all of its photographs.
    spread = [_draw(*_resampled(scored, products, random), calibration, random)[0] for _ in range(params.audit.draws)]
    write_json(
        paths.AUDIT_METRICS,
        {
            "images": len(rows),
            "record_error_rate": calibration.record_error_rate,
            **{
                name: _over_draws([draw[0][name] for draw in draws], [draw[name] for draw in spread])
                for name in draws[0][0]
            },
        },
    )
    curves = {name: np.mean([draw[1][name] for draw in draws], 0) for name in draws[0][1]}
    promised = np.mean([draw[2] for draw in draws], 0)
    write_csv(
        paths.AUDIT_CURVES,
        ["recounted", *curves, "promised"],
        ([f"{value:.6g}" for value in row] for row in zip(_recounted(), *curves.values(), promised, strict=True)),
    )
    whose = "demo bins, rendered" if params.fetch.source == "demo" else params.fetch.source
    title = f"{calibration.record_error_rate:.0%} of the records of {len(rows):,} test bins ({whose}) made wrong"
    figures.save(figures.audit_picture(curves, promised, title), paths.AUDIT_FIGURE)


def _products(ids: Sequence[str]) -> list[list[int]]:
    """The quantity of every product of some bins."""
    reader, entries = ShardReader(paths.BINS), {entry.id: entry for entry in read_index(paths.BINS)}
    records = [json.loads(reader.record(entries[one])) for one in ids]
    return [[item["quantity"] for item in record["BIN_FCSKU_DATA"].values() if item["quantity"]] for record in records]


def _draw(
    scored: LabelledPredictions,
    products: Sequence[Sequence[int]],
    calibration: Calibration,
    random: np.random.Generator,
) -> tuple[dict[str, dict[str, float]], dict[str, Floats], Floats]:
    """Figures and curve of each ranking on records of which some were made wrong, and the curve that was promised."""
    share, counts = calibration.record_error_rate, calibration.counts
    records, kinds = inject_errors(scored.truth, products, counts, share, random)
    is_wrong = records != scored.truth
    rankings = {
        BEST: wrong(scored.probabilities, counts, records, share, scored.groups, calibration.kinship),
        "photograph": wrong(scored.probabilities, counts, records, share),
        "disagreement": (decode_counts(scored.probabilities, counts, FOR_ACCURACY) != records).astype(np.float64),
        "chance": np.zeros(len(records)),
    }
    figures = {name: ranking_metrics(scores, is_wrong) for name, scores in rankings.items()}
    promised = expected_recall_curve(rankings[BEST])
    figures[BEST]["promised_at_10"] = float(_shares(promised)[round(SHOWN_AT * (CURVE - 1))])
    figures[BEST] |= _found_by_kind(rankings[BEST], np.array(kinds))
    curves = {name: _shares(recall_curve(scores, is_wrong)) for name, scores in rankings.items()}
    return figures, curves, _shares(promised)


def _over_draws(draws: list[dict[str, float]], spread: list[dict[str, float]]) -> dict[str, object]:
    """The mean over the draws of each figure that all of them have, and its interval over others."""
    figures = [name for name in draws[0] if all(name in draw for draw in (*draws, *spread))]
    return {
        **{figure: float(np.mean([draw[figure] for draw in draws])) for figure in figures},
        "interval_95": {
            figure: np.percentile([draw[figure] for draw in spread], [2.5, 97.5]).tolist() for figure in figures
        },
    }


def _found_by_kind(scores: Floats, kinds: np.ndarray) -> dict[str, float]:
    """The share of each kind of mistake among the tenth of the bins ranked first."""
    first = np.argsort(-scores, kind="stable")[: round(SHOWN_AT * len(scores))]
    return {
        f"{kind}_found_at_10": float((kinds[first] == kind).sum() / (kinds == kind).sum())
        for kind in KINDS
        if kind in kinds
    }


def _recounted() -> Floats:
    return np.linspace(0, 1, CURVE)


def _shares(curve: Floats) -> Floats:
    """A curve over numbers of bins, read at shares of them."""
    return np.asarray(np.interp(_recounted(), np.linspace(0, 1, len(curve)), curve))


def _resampled(
    scored: LabelledPredictions, products: Sequence[Sequence[int]], random: np.random.Generator
) -> tuple[LabelledPredictions, list[Sequence[int]]]:
    """As many groups, drawn with replacement; one drawn twice is two."""
    members: dict[str, list[int]] = {}
    for row, group in enumerate(scored.groups):
        members.setdefault(group, []).append(row)
    names = sorted(members)
    drawn = [(names[number], time) for time, number in enumerate(random.integers(len(names), size=len(names)))]
    rows: Counts = np.array([row for name, _ in drawn for row in members[name]])
    groups = [f"{name} {time}" for name, time in drawn for _ in members[name]]
    return LabelledPredictions(scored.probabilities[rows], scored.truth[rows], groups, scored.counts), [
        products[r] for r in rows
    ]


if __name__ == "__main__":
    run("audit", main)
