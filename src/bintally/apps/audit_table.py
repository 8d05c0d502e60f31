"""An audit as CSV tables and as lines for the terminal."""

import math
from collections import Counter
from pathlib import Path

from bintally.apps.audit_judging import Audit
from bintally.apps.predictions import GIVEN_PRODUCTS, PREDICTION_COLUMNS
from bintally.errors import printable
from bintally.files import spreadsheet_text, write_csv
from bintally.scoring.audit import estimate_recounts

BUDGETS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)  # fractions of the bins that estimates are printed for
PRINTED = 10  # bins on the terminal
JUDGEMENT_COLUMNS = ("likely_count", "verdict", "error_by_list", "list_factor", "photograph_factor")
GIVEN_PRODUCTS_COLUMNS = ("most_probable", "low", "high")


def write_table(path: Path, audit: Audit, budget: int | None) -> None:
    """Write every bin, the first ``budget`` marked to be recounted; bins that are not ranked have no judgement."""
    header = ["rank", "id", "record", "error_probability", "recount", *JUDGEMENT_COLUMNS, *PREDICTION_COLUMNS]
    header += [*(GIVEN_PRODUCTS + name for name in GIVEN_PRODUCTS_COLUMNS), "group"]
    header += [*(f"p{count}" for count in audit.bins.calibration.counts), "location", "at_stake", "photograph", "items"]
    write_csv(path, header, (_row(audit, row, budget or 0) for row in range(len(audit.bins.ids))))


def _row(audit: Audit, row: int, budget: int) -> list[object]:
    products, judged = audit.bins.records[row], audit.judged
    rank: object = ""
    probability, at_stake, judgement = "", "", [""] * len(JUDGEMENT_COLUMNS)
    if row < audit.ranked:
        at_stake = f"{audit.at_stake[row]:.8g}"
        rank, probability = row + 1, f"{judged.error[row]:.8g}"
        numbers = judged.error_by_list[row], audit.evidence.list[row], audit.evidence.photograph[row]
        verdict = spreadsheet_text(audit.explain(row)[1])
        judgement = [str(audit.likely_counts[row]), verdict, *(f"{number:.4g}" for number in numbers)]
    given_products = dict(zip(PREDICTION_COLUMNS, audit.given_products[row], strict=True))
    return [
        rank,
        audit.bins.ids[row],
        audit.record_counts[row],
        probability,
        int(row < min(budget, audit.ranked)),
        *judgement,
        *audit.photograph[row],
        *(given_products[name] if audit.can_count[row] else "" for name in GIVEN_PRODUCTS_COLUMNS),
        audit.groups[row],
        *(f"{value:.8g}" for value in audit.bins.probabilities[row]),
        spreadsheet_text(audit.bins.locations[row]),
        at_stake,
        spreadsheet_text(audit.bins.photographs[row]),
        spreadsheet_text("; ".join(f"{one.quantity} × {one.name}" for one in products)),
    ]


def write_rejected(path: Path, audit: Audit) -> None:
    """Write id and reason of each bin that could not be used, by id."""
    rows = [[spreadsheet_text(printable(text)) for text in row] for row in sorted(audit.bins.rejected)]
    write_csv(path, ["id", "reason"], rows)


def summary(audit: Audit) -> list[str]:
    """How many records were ranked, and how many were not for which reason."""
    bins = audit.bins
    lines = [
        f"{bins.source}: {audit.ranked:,} records ranked, {audit.judged.error.sum():,.1f} expected to be wrong "
        f"({audit.error_rate:.1%} before their lists and photographs are seen)"
    ]
    if audit.stakes.tolerance or audit.stakes.values is not None:
        lines.append(f"{audit.at_stake.sum():,.{_digits(audit)}f} {_what(audit)} expected; ranked by these")
    unknown = Counter(audit.record_counts[audit.ranked :].tolist())
    if unknown:
        values = ", ".join(f"{count} ({number:,})" for count, number in sorted(unknown.items())[:8])
        lines.append(
            f"{unknown.total():,} not ranked: the model does not predict the counts of their records, {values}"
        )
    lines += [f"{number:,} left out: {reason}" for reason, number in bins.left_out.items()]
    if bins.rejected:
        lines.append(f"{len(bins.rejected):,} without a usable record or photograph: rejected.csv has the reasons")
    return lines


def recount_estimates(audit: Audit, budget: int | None) -> list[str]:
    """What recounting the first bins is expected to find: for the budget, or for BUDGETS."""
    if not audit.ranked:
        return []
    numbers = [budget] if budget else sorted({math.ceil(share * audit.ranked) for share in BUDGETS})
    estimates = [estimate_recounts(audit.at_stake, number) for number in numbers]
    return [
        f"recounting the first {estimate.recounts:,} is expected to find {estimate.errors:,.{_digits(audit)}f} "
        f"{_what(audit)}, "
        f"{estimate.recall:.1%} of all; a random {estimate.recounts:,} would find "
        f"{estimate.recounts / audit.ranked:.1%}"
        for estimate in estimates
    ]


def _what(audit: Audit) -> str:
    """What the ranking is by, as words that follow a number of it."""
    beyond = f" by more than {audit.stakes.tolerance}" if audit.stakes.tolerance else ""
    return f"wrong records{beyond}" if audit.stakes.values is None else f"of value in items that are wrong{beyond}"


def _digits(audit: Audit) -> int:
    return 1 if audit.stakes.values is None else 2


def print_ranking(audit: Audit) -> None:
    """Print the first bins of the ranking: both counts, the probability of an error, and the verdict."""
    if not audit.ranked:
        return
    first = PREDICTION_COLUMNS.index("most_probable")
    places = [f"{audit.bins.ids[row]} {printable(audit.bins.locations[row])}".rstrip() for row in range(audit.ranked)]
    width = max(12, *map(len, places[:PRINTED]))
    columns = f"{'record':>6} {'likely':>6} {'photograph':>10} {'given products':>14} {'error':>6}"
    print(f"{'rank':>4}  {'id':<{width}} {columns}")
    for row, probability in enumerate(audit.judged.error[:PRINTED]):
        given_products = audit.given_products[row, first] if audit.can_count[row] else ""
        print(
            f"{row + 1:>4}  {places[row]:<{width}} {audit.record_counts[row]:>6} {audit.likely_counts[row]:>6} "
            f"{audit.photograph[row, first]:>10} {given_products:>14} {probability:>6.1%}  "
            f"{printable(audit.explain(row)[1])}"
        )
    if audit.ranked > PRINTED:
        print(f"… and {audit.ranked - PRINTED:,} more in audit.csv")
