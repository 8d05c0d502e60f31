"""`bintally audit`: which records are likeliest wrong, given the photographs, and what recounting is worth.

The page shows photographs and records, so it goes where the data may go.
"""

import base64
import hashlib
import io
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from bintally import paths
from bintally.apps.photographs import Photographs, Reads, open_photographs
from bintally.apps.predict import ANSWERS, Scores, answered, make_folder, scored
from bintally.bins.corrections import merge_corrections, read_corrections
from bintally.bins.groups import group_bins
from bintally.bins.record import BadBin, Record, parse_record
from bintally.errors import UserError
from bintally.files import read_csv, write_csv, write_text
from bintally.page import curves
from bintally.params import load_params
from bintally.progress import progress
from bintally.scoring.audit import budget, wrong
from bintally.scoring.calibration import Floats

THUMBNAIL = 240  # pixels across
NAME = 120  # characters of an item's name
SHOWN = 300
MATTERS = 0.01  # what twins change of a probability for them to be shown
TWINS = 3  # pictures of them beside a bin
SHARES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)  # of the bins to be recounted, in the table
FIRST = 10  # lines of the ranking that are printed


@dataclass(frozen=True)
class AuditOptions:
    """What is to be audited, and how it is shown."""

    source: str = "data"
    to: Path = Path("exports/audit")
    models: Path = paths.MODELS
    access: Mapping[str, object] | None = None
    ids: Path | None = None
    wrong: float | None = None
    """Share of records taken to be wrong before their photographs are looked at; None: `calibrate.record_error_rate`."""
    all: bool = False
    """Whether bins that the model learned from are audited, too."""
    show: int | None = None
    """Bins on the page; None: SHOWN, or the budget where it is more."""
    budget: int | None = None
    """Bins that can be recounted."""


@dataclass(frozen=True)
class BinContents:
    """What the records say of a bin."""

    record: Record
    items: list[tuple[int, str]]
    """Quantity and name, those of quantity 0 left out."""


@dataclass(frozen=True)
class Audit:
    """Bins in order of the probability that their record is wrong, those that are not judged last."""

    ids: list[str]
    books: list[BinContents]
    counts: list[int]
    probabilities: Floats
    """(n, counts)."""
    answers: list[list[int]]
    """By ANSWERS."""
    wrong: Floats
    """(judged,) of the first bins, descending."""
    alone: Floats
    """(judged,) the same without their twins."""
    groups: list[str]
    twins: list[list[int]]
    """The places of the other judged photographs of each bin."""


def write_audit(asked: AuditOptions) -> None:
    """Write ``audit.csv``, ``rejected.csv`` and ``index.html`` to a folder and print the gist of them.

    Raises UserError if there is nothing to audit, or as :func:`bintally.apps.predict.scored` does.
    """
    make_folder(asked.to)
    photographs = open_photographs(asked.source, paths.BINS, lambda: load_params().fetch, asked.access, asked.ids)
    if photographs.records is None:
        raise UserError(
            f"{photographs.name} has no records to audit: `bintally predict` counts what its photographs show"
        )
    learned = set() if asked.all else _learned(asked.source)
    recounted = read_corrections(paths.CORRECTIONS).keys() - learned
    kept = [one for one in photographs.ids if one not in learned and one not in recounted]
    left_out = {
        f"the model learned from them ({paths.SPLITS}), so it says what it was told; --all takes them, too": learned,
        f"recounted already ({paths.CORRECTIONS})": recounted,
    }
    notes = {why: len(ids.intersection(photographs.ids)) for why, ids in left_out.items()}
    books, rejected = _books(photographs.records, kept)
    if not books:
        raise UserError(
            f"{photographs.name} has no bin to audit: {_told(notes)}, {len(rejected)} without a good record"
        )
    photographs = replace(photographs, ids=list(books))
    with scored(photographs, asked.models) as scores:
        share = asked.wrong or scores.calibration.record_error_rate
        rejected += chain.from_iterable(part.rejected for part in scores)
        audit = _judge(books, scores, share)
        table, unusable, page = (asked.to / name for name in ("audit.csv", "rejected.csv", "index.html"))
        _write_table(table, audit, asked.budget)
        write_csv(unusable, ["id", "reason"], sorted(rejected))
        lines = _summary(photographs.name, audit, share, notes, len(rejected))
        key = hashlib.sha256(table.read_bytes()).hexdigest()[:16]
        write_text(page, _page(audit, photographs, asked, lines, key))
    print("\n".join(lines), end="\n\n")
    _print_first(audit)
    print(*_worth(audit, asked.budget), "", table, unusable, page, sep="\n")


def accept(marks: Path) -> None:
    """Take the counts of an exported file into the corrections. Raises UserError if it is malformed."""
    merged = merge_corrections(paths.CORRECTIONS, marks)
    print(
        f"{paths.CORRECTIONS}: {merged.new:,} bins new, {merged.changed:,} with another count than before, "
        f"{merged.same:,} as they were; `dvc repro` learns from it"
    )


def _learned(source: str) -> set[str]:
    """The bins of a source that the model learned from."""
    if source != "data" and source.rstrip("/") != load_params().fetch.source.rstrip("/"):
        return set()
    if not paths.SPLITS.is_file():
        raise UserError(f"{paths.SPLITS}, which says what the model learned from, is not there: `dvc repro`, or --all")
    return {row["id"] for row in read_csv(paths.SPLITS) if row["split"] == "train"}


def _books(reads: Reads, ids: Sequence[str]) -> tuple[dict[str, BinContents], list[tuple[str, str]]]:
    """What the records say of each bin, and the bins with no good record with the reason."""
    books: dict[str, BinContents] = {}
    rejected = []
    with progress("records", len(ids), "bins", brief=True) as advance:
        for one, read in reads(ids):
            try:
                body = read()
                record = parse_record(body)
            except OSError as error:
                rejected.append((one, f"record: {error.strerror or error}"))
            except BadBin as fault:
                rejected.append((one, str(fault)))
            else:
                items = json.loads(body)["BIN_FCSKU_DATA"].values()
                named = [(item["quantity"], str(item.get("name") or "no name")[:NAME]) for item in items]
                books[one] = BinContents(record, [item for item in named if item[0]])
            advance(1)
    return books, rejected


def _judge(books: dict[str, BinContents], scores: Scores, share: float) -> Audit:
    calibration = scores.calibration
    counts = calibration.counts
    parts = list(scores)
    ids = [one for part in parts for one in part.ids]
    if not ids:
        raise UserError(f"none of the photographs can be scored: {parts[0].rejected[0][1]}")
    probabilities = np.concatenate([part.probabilities for part in parts])
    said = np.array([books[one].record.count for one in ids])
    if calibration.open_ended:
        said = np.minimum(said, counts[-1])
    judged = np.isin(said, counts)
    of_bins = group_bins({one: books[one].record.asins for one in ids})
    groups = np.array([of_bins[one] for one in ids])
    here = (probabilities[judged], counts, said[judged], share)
    values, alone = wrong(*here, groups[judged].tolist(), calibration.kinship), wrong(*here)
    rows = np.flatnonzero(judged)
    ranked = np.lexsort((np.array(ids)[judged], -values))
    order = np.concatenate([rows[ranked], np.flatnonzero(~judged)])
    return Audit(
        [ids[row] for row in order],
        [books[ids[row]] for row in order],
        counts,
        probabilities[order],
        answered(probabilities[order], calibration),
        values[ranked],
        alone[ranked],
        groups[order].tolist(),
        _twins(groups[order][: len(rows)]) + [[] for _ in range(len(ids) - len(rows))],
    )


def _twins(groups: NDArray[Any]) -> list[list[int]]:
    members: dict[str, list[int]] = {}
    for place, group in enumerate(groups):
        members.setdefault(group, []).append(place)
    return [[other for other in members[group] if other != place] for place, group in enumerate(groups)]


def _write_table(path: Path, audit: Audit, recounts: int | None) -> None:
    judged = len(audit.wrong)
    shares = (f"p{count}" for count in audit.counts)
    write_csv(
        path,
        ["rank", "id", "record", "wrong", "wrong_alone", "recount", *ANSWERS, "group", "twins", *shares, "items"],
        (
            ([at + 1, one] if at < judged else ["", one])
            + [book.record.count]
            + ([f"{audit.wrong[at]:.8g}", f"{audit.alone[at]:.8g}"] if at < judged else ["", ""])
            + [int(at < min(judged, recounts or 0)), *audit.answers[at], audit.groups[at]]
            + [" ".join(audit.ids[twin] for twin in audit.twins[at])]
            + [f"{p:.8g}" for p in audit.probabilities[at]]
            + ["; ".join(f"{quantity} × {name}" for quantity, name in book.items)]
            for at, (one, book) in enumerate(zip(audit.ids, audit.books, strict=True))
        ),
    )


def _told(notes: Mapping[str, int]) -> str:
    return ", ".join(f"{number:,} left out: {why}" for why, number in notes.items() if number) or "nothing left out"


def _summary(name: str, audit: Audit, share: float, notes: Mapping[str, int], rejected: int) -> list[str]:
    judged = len(audit.wrong)
    others = Counter(book.record.count for book in audit.books[judged:])
    said = ", ".join(f"{count} ({number:,})" for count, number in sorted(others.items())[:8])
    lines = [
        f"{name}: {judged:,} records judged; {audit.wrong.sum():,.1f} of them are expected to be wrong, "
        f"where {share:.1%} are before their photographs are looked at"
    ]
    if others:
        lines.append(f"{others.total():,} not judged: their record is no count the model answers with, but {said}")
    lines += [f"{number:,} left out: {why}" for why, number in notes.items() if number]
    if rejected:
        lines.append(f"{rejected:,} without a good record or photograph: rejected.csv says why")
    return lines


def _print_first(audit: Audit) -> None:
    print(f"{'rank':>4}  {'id':<12} {'record':>6} {'model':>6} {'set':>6} {'wrong':>7}  twins")
    for at, value in enumerate(audit.wrong[:FIRST]):
        said = dict(zip(ANSWERS, audit.answers[at], strict=True))
        twins = "" if abs(value - audit.alone[at]) < MATTERS else f"without them {audit.alone[at]:.1%}"
        between = f"{said['low']}-{said['high']}"
        print(
            f"{at + 1:>4}  {audit.ids[at]:<12} {audit.books[at].record.count:>6} {said['most_probable']:>6} "
            f"{between:>6} {value:>7.1%}  {twins}".rstrip()
        )
    print()


def _worth(audit: Audit, recounts: int | None) -> list[str]:
    """What recounting is worth: so many bins, or some shares of them."""
    judged = len(audit.wrong)
    asked = [recounts] if recounts else sorted({math.ceil(share * judged) for share in SHARES})
    lines = []
    for number in asked:
        found = budget(audit.wrong, number)
        lines.append(
            f"recounting the first {found.recounts:,} is expected to find {found.errors:,.1f} wrong records, "
            f"{found.share:.1%} of all; any {found.recounts:,} would find {found.recounts / max(judged, 1):.1%}"
        )
    return lines


def _page(audit: Audit, photographs: Photographs, asked: AuditOptions, lines: list[str], key: str) -> str:
    judged = len(audit.wrong)
    recounts = min(asked.budget or 0, judged)
    shown = min(judged, asked.show or max(SHOWN, recounts))
    changed = np.abs(audit.wrong - audit.alone) >= MATTERS
    twins = [audit.twins[at][:TWINS] if changed[at] else [] for at in range(shown)]
    pictured = sorted({*range(shown), *(twin for of_bin in twins for twin in of_bin)})
    content = {
        "key": key,
        "notes": [*lines, *_worth(audit, asked.budget)],
        "rest": judged - shown,
        "counts": audit.counts,
        "curve": _curve(audit.wrong, recounts),
        "bins": [
            {
                "id": audit.ids[at],
                "rank": at + 1,
                "record": audit.books[at].record.count,
                "wrong": float(audit.wrong[at]),
                "alone": float(audit.alone[at]),
                "recount": at < recounts,
                **dict(zip(ANSWERS, audit.answers[at], strict=True)),
                "p": audit.probabilities[at].tolist(),
                "items": audit.books[at].items,
                "twins": [{"id": audit.ids[twin], "record": audit.books[twin].record.count} for twin in twins[at]],
            }
            for at in range(shown)
        ],
        "pictures": _pictures(photographs.images, [audit.ids[at] for at in pictured]),
    }
    text = json.dumps(content, ensure_ascii=True, allow_nan=False)
    for mark in "<>&":  # so that nothing of a record ends the script it lies in
        text = text.replace(mark, f"\\u{ord(mark):04x}")
    template = (files("bintally.apps") / "pages/audit.html").read_text(encoding="utf-8")
    return template.replace("{{content}}", text)


def _curve(values: Floats, recounts: int) -> str:
    """How many of the errors each budget is expected to find, as SVG."""
    places = np.unique(np.linspace(0, len(values), 101).round().astype(int))
    found = [(float(at), 100 * budget(values, int(at)).share) for at in places]
    chance = [(0.0, 0.0), (float(len(values)), 100.0)]
    marked = (float(recounts), 100 * budget(values, recounts).share, f"{recounts:,} recounts") if recounts else None
    return curves("Wrong records found, %", "bins recounted", {"as ranked": found, "at random": chance}, marked)


def _pictures(reads: Reads, ids: Sequence[str]) -> dict[str, str]:
    """Small JPEG files as data URIs, by id."""
    pictures = {}
    with progress("pictures", len(ids), "photographs", brief=True) as advance:
        for one, read in reads(ids):
            content = io.BytesIO()
            with Image.open(io.BytesIO(read())) as image:
                image.draft("RGB", (THUMBNAIL, THUMBNAIL))
                small = ImageOps.exif_transpose(image).convert("RGB")
            small.thumbnail((THUMBNAIL, 2 * THUMBNAIL))
            small.save(content, "JPEG", quality=80)
            pictures[one] = "data:image/jpeg;base64," + base64.b64encode(content.getvalue()).decode()
            advance(1)
    return pictures
