"""An audit as a CSV table, as lines for the terminal and as a page to recount bins from.

The page is one HTML file with photographs, so it may only go where the data may go.
"""

import base64
import hashlib
import io
import json
import math
from collections import Counter
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from bintally.apps.audit_ranking import Audit
from bintally.apps.photographs import ReadFiles
from bintally.apps.scores import PREDICTION_COLUMNS
from bintally.bins.images import decode_image
from bintally.errors import UserError, printable
from bintally.files import spreadsheet_text, write_csv
from bintally.page import curves
from bintally.progress import progress
from bintally.scoring.audit import estimate_recounts, expected_recall_curve

BUDGETS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)  # fractions of the bins that estimates are printed for
PRINTED = 10  # bins on the terminal
SHOWN = 300  # bins on the page
THUMBNAIL = 240  # width in pixels


def write_table(path: Path, audit: Audit, budget: int | None) -> None:
    """Write every bin, the first ``budget`` marked to be recounted; bins that are not ranked have no probability."""
    header = ["rank", "id", "record", "error_probability", "recount", *PREDICTION_COLUMNS, "group"]
    rows = []
    for row, contents in enumerate(audit.contents):
        is_ranked = row < audit.ranked
        rows.append(
            [
                row + 1 if is_ranked else "",
                audit.ids[row],
                contents.record.count,
                f"{audit.error_probabilities[row]:.8g}" if is_ranked else "",
                int(is_ranked and row < (budget or 0)),
                *audit.predictions[row],
                audit.groups[row],
                *(f"{p:.8g}" for p in audit.probabilities[row]),
                spreadsheet_text("; ".join(f"{quantity} × {name}" for quantity, name in contents.items)),
            ]
        )
    write_csv(path, [*header, *(f"p{count}" for count in audit.counts), "items"], rows)


def rejected_rows(audit: Audit) -> list[list[str]]:
    """Id and reason of each bin that could not be ranked, by id."""
    return [[spreadsheet_text(printable(text)) for text in row] for row in sorted(audit.rejected)]


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
    if not audit.ranked:
        return []
    numbers = [budget] if budget else sorted({math.ceil(share * audit.ranked) for share in BUDGETS})
    estimates = [estimate_recounts(audit.error_probabilities, number) for number in numbers]
    return [
        f"recounting the first {estimate.recounts:,} is expected to find {estimate.errors:,.1f} wrong records, "
        f"{estimate.recall:.1%} of all; a random {estimate.recounts:,} would find "
        f"{estimate.recounts / audit.ranked:.1%}"
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
    if audit.ranked > PRINTED:
        print(f"… and {audit.ranked - PRINTED:,} more in audit.csv")


def render_page(
    audit: Audit, read_images: ReadFiles, notes: Sequence[str], budget: int | None, show: int | None
) -> str:
    """The page, with ``notes`` above the first ``show`` bins (None: SHOWN, or the budget if it is larger)."""
    recounts = min(budget or 0, audit.ranked)
    shown = min(audit.ranked, show or max(SHOWN, recounts))
    ranking = json.dumps([audit.ids, audit.error_probabilities.tolist()]).encode()
    content = {
        # The browser keeps marks under this key: another audit must not take them over.
        "key": hashlib.sha256(ranking).hexdigest()[:16],
        "notes": notes,
        "rest": audit.ranked - shown,
        "counts": audit.counts,
        "curve": _recall_svg(audit, recounts),
        "bins": [_bin(audit, row, row < recounts) for row in range(shown)],
        "photographs": thumbnails(read_images, audit.ids[:shown]),
    }
    text = json.dumps(content, ensure_ascii=True, allow_nan=False)
    for character in "<>&":  # so that no text of a record can end the script element
        text = text.replace(character, f"\\u{ord(character):04x}")
    template = (files("bintally.apps") / "audit.html").read_text(encoding="utf-8")
    return template.replace("{{content}}", text)


def _bin(audit: Audit, row: int, recount: bool) -> dict[str, Any]:
    contents = audit.contents[row]
    return {
        "id": audit.ids[row],
        "rank": row + 1,
        "record": contents.record.count,
        "error_probability": float(audit.error_probabilities[row]),
        "recount": recount,
        **dict(zip(PREDICTION_COLUMNS, audit.predictions[row].tolist(), strict=True)),
        "p": audit.probabilities[row].tolist(),
        "items": contents.items,
    }


def _recall_svg(audit: Audit, recounts: int) -> str:
    """The fraction of the wrong records that each number of recounts is expected to find."""
    recall = 100 * expected_recall_curve(audit.error_probabilities)
    numbers = np.unique(np.linspace(0, audit.ranked, 101).round().astype(int))
    ranked = [(float(number), float(recall[number])) for number in numbers]
    random = [(0.0, 0.0), (float(audit.ranked), 100.0)]
    marked = (float(recounts), float(recall[recounts]), f"{recounts:,} recounts") if recounts else None
    return curves("Wrong records found, %", "bins recounted", {"as ranked": ranked, "at random": random}, marked)


def thumbnails(read_images: ReadFiles, ids: Sequence[str]) -> dict[str, dict[str, str]]:
    """By id a small JPEG file as a data URI, ``src``, or the reason why there is none, ``reason``."""
    found = {}
    with progress("thumbnails", len(ids), "photographs", brief=True) as advance:
        for bin_id, read in read_images(ids):
            try:
                small = decode_image(read(), THUMBNAIL)
            except (UserError, OSError) as error:
                found[bin_id] = {"reason": printable(str(error))}
            else:
                file = io.BytesIO()
                small.thumbnail((THUMBNAIL, 2 * THUMBNAIL))
                small.save(file, "JPEG", quality=80)
                found[bin_id] = {"src": "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()}
            advance(1)
    return found
