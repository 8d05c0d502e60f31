"""`bintally audit`: rank bins by how likely their record is wrong, and take recounts into the corrections."""

import argparse
from dataclasses import replace
from pathlib import Path

from bintally import paths
from bintally.apps.arguments import add_source_arguments, fraction, positive_int, source_access
from bintally.errors import printable

NAMED = 5  # ids in a message


def configure(parser: argparse.ArgumentParser) -> None:
    add_source_arguments(parser)
    add = parser.add_argument
    add("--to", type=Path, default=Path("exports/audit"), metavar="FOLDER", help="default: %(default)s")
    help_line = "fraction of records assumed to be wrong (default: calibrate.record_error_rate)"
    add("--error-rate", type=fraction, metavar="FRACTION", help=help_line)
    add("--all", action="store_true", help="include bins that the model was trained on")
    add("--budget", type=positive_int, metavar="N", help="number of bins that can be recounted: mark the first N")
    add("--show", type=positive_int, metavar="N", help="number of bins on the page (default: 300, or the budget)")
    add("--accept", type=Path, metavar="MARKS.csv", help="merge what the page exported into data/corrections.csv")
    parser.set_defaults(func=run)


def run(arguments: argparse.Namespace) -> None:
    if arguments.accept:
        accept_recounts(arguments.accept)
    else:
        write_audit(arguments)


def write_audit(arguments: argparse.Namespace) -> None:
    """Write ``audit.csv``, ``rejected.csv`` and ``index.html`` to a folder and print a summary.

    Raises UserError if there is nothing to audit, or as :func:`bintally.apps.scores.score_photographs` does.
    """
    # torch comes with these, `bintally --help` does without it.
    from bintally.apps.audit_output import (
        print_ranking,
        recount_estimates,
        rejected_rows,
        render_page,
        summary,
        write_table,
    )
    from bintally.apps.audit_ranking import rank_bins, read_records, without_training
    from bintally.apps.photographs import open_photographs
    from bintally.apps.scores import score_photographs
    from bintally.files import check_writable, file_lock, write_csv, write_text

    table, rejected, page = (arguments.to / name for name in ("audit.csv", "rejected.csv", "index.html"))
    for path in (table, rejected, page):
        check_writable(path)
    photographs = open_photographs(arguments.source, source_access(arguments), arguments.ids)
    if not arguments.all:
        photographs = without_training(photographs, arguments.model)
    records = read_records(photographs)
    photographs = replace(photographs, ids=list(records.bins))
    with score_photographs(photographs, arguments.model) as scores:
        audit = rank_bins(photographs.name, records, scores, arguments.error_rate)
        notes = summary(photographs.name, audit)
        estimates = recount_estimates(audit, arguments.budget)
        html = render_page(audit, photographs.images, [*notes, *estimates], arguments.budget, arguments.show)
        with file_lock(table):  # the three files of one audit, where two write to the same folder
            write_table(table, audit, arguments.budget)
            write_csv(rejected, ["id", "reason"], rejected_rows(audit))
            write_text(page, html)
    print(*map(printable, notes), "", sep="\n")
    print_ranking(audit)
    print("", *estimates, "", *(printable(str(path)) for path in (table, rejected, page)), sep="\n")


def accept_recounts(marks: Path) -> None:
    """Merge the counts of an exported file into the corrections. Raises UserError if it is malformed."""
    from bintally.bins.corrections import merge_corrections
    from bintally.bins.shards import read_index

    has_bins = (paths.BINS / "index.csv").is_file()
    known = {entry.id for entry in read_index(paths.BINS)} if has_bins else set()
    merged = merge_corrections(paths.CORRECTIONS, marks, known)
    numbers = f"{merged.new:,} bins new, {merged.changed:,} with another count, {merged.same:,} unchanged"
    print(f"{paths.CORRECTIONS}: {numbers}; `dvc repro` uses them")
    if merged.unknown:
        first = ", ".join(merged.unknown[:NAMED]) + (", …" if len(merged.unknown) > NAMED else "")
        print(f"{len(merged.unknown):,} of them are not in {paths.BINS}, and wait until it has these bins: {first}")
