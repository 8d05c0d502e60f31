"""An audit as a CSV table and as lines for the terminal."""

import math
from collections import Counter
from pathlib import Path

from bintally.apps.audit_ranking import Audit
from bintally.apps.scores import PREDICTION_COLUMNS
from bintally.files import write_csv
from bintally.scoring.audit import estimate_recounts

BUDGETS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)  # fractions of the bins that estimates are printed for
PRINTED = 10  # bins


def write_table(path: Path, audit: Audit, budget: int | None) -> None:
    """Write every bin, the first ``budget`` marked to be recounted; bins that are not ranked have no probability."""
    header = ["rank", "id", "record", "error_probability", "recount", *PREDICTION_COLUMNS, "group"]
    write_csv(
        path,
        [*header, *(f"p{count}" for count in audit.counts), "items"],
        (
            [
                row + 1 if row < audit.ranked else "",
                audit.ids[row],
                contents.record.count,
                f"{audit.error_probabilities[row]:.8g}" if row < audit.ranked else "",
                int(row < min(audit.ranked, budget or 0)),
                *audit.predictions[row],
                audit.groups[row],
                *(f"{p:.8g}" for p in audit.probabilities[row]),
                "; ".join(f"{quantity} × {name}" for quantity, name in contents.items),
            ]
            for row, contents in enumerate(audit.contents)
        ),
    )


def summary(source: str, audit: Audit) -> list[str]:
    """How many records were ranked, and how many were not for which reason."""
    lines = [
        f"{source}: {audit.ranked:,} records ranked, {audit.error_probabilities.sum():,.1f} expected to be wrong "
        f"({audit.error_rate:.1%} before their photographs are seen)"
    ]
    unknown = Counter(contents.record.count for contents in audit.contents[audit.ranked :])
    if unknown:
        values = ", ".join(f"{count} ({number:,})" for count, number in sorted(unknown.items())[:8])
        lines.append(
            f"{unknown.total():,} not ranked: the model does not predict the counts of their records, {values}"
        )
    lines += [f"{number:,} left out: {reason}" for reason, number in audit.left_out.items()]
    if audit.rejected:
        lines.append(f"{len(audit.rejected):,} without a usable record or photograph: rejected.csv has the reasons")
    return lines


def recount_estimates(audit: Audit, budget: int | None) -> list[str]:
    """The wrong records that recounting the first bins is expected to find: for the budget, or for BUDGETS."""
    numbers = [budget] if budget else sorted({math.ceil(share * audit.ranked) for share in BUDGETS})
    estimates = [estimate_recounts(audit.error_probabilities, number) for number in numbers]
    return [
        f"recounting the first {estimate.recounts:,} is expected to find {estimate.errors:,.1f} wrong records, "
        f"{estimate.recall:.1%} of all; a random {estimate.recounts:,} would find "
        f"{estimate.recounts / max(audit.ranked, 1):.1%}"
        for estimate in estimates
    ]


def print_ranking(audit: Audit) -> None:
    """Print the first bins of the ranking."""
    print(f"{'rank':>4}  {'id':<12} {'record':>6} {'model':>6} {'set':>6} {'error probability':>18}")
    for row, probability in enumerate(audit.error_probabilities[:PRINTED]):
        predicted = dict(zip(PREDICTION_COLUMNS, audit.predictions[row], strict=True))
        prediction_set = f"{predicted['low']}-{predicted['high']}"
        print(
            f"{row + 1:>4}  {audit.ids[row]:<12} {audit.contents[row].record.count:>6} "
            f"{predicted['most_probable']:>6} {prediction_set:>6} {probability:>18.1%}"
        )
