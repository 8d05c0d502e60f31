"""`bintally audit`: rank bins by how likely their record is wrong, and take recounts into the corrections."""

import argparse
from pathlib import Path

from bintally import paths
from bintally.apps.arguments import add_source_arguments, fraction, positive_int, require_outs, source_access
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
    add(
        "--by",
        choices=("error", "value"),
        default="error",
        help="rank by how likely an error is (default), or by the value at stake",
    )
    add("--tolerance", type=positive_int, default=0, metavar="N", help="leave out errors of no more than N items")
    add("--show", type=positive_int, metavar="N", help="number of bins on the page (default: 300, or the budget)")
    add("--accept", type=Path, metavar="MARKS.csv", help="merge what the page exported into data/corrections.csv")
    parser.set_defaults(func=run)


def run(arguments: argparse.Namespace) -> None:
    if arguments.accept:
        accept_recounts(arguments.accept)
    else:
        write_audit(arguments)


def write_audit(arguments: argparse.Namespace) -> None:
    """Read bins, judge their records, and tell: ``audit.csv``, ``rejected.csv``, ``index.html`` and a summary.

    Raises UserError if the model cannot judge records, or as :func:`bintally.apps.audit_reading.read_bins` does.
    """
    # torch comes with these, `bintally --help` does without it.
    from bintally.apps.audit_judging import judge_bins
    from bintally.apps.audit_page import render_page
    from bintally.apps.audit_reading import read_bins
    from bintally.apps.audit_table import print_ranking, recount_estimates, summary, write_rejected, write_table
    from bintally.apps.photographs import open_photographs
    from bintally.files import check_writable, file_lock, write_text
    from bintally.scoring.record_model import require_record_model

    table, rejected, page = (arguments.to / name for name in ("audit.csv", "rejected.csv", "index.html"))
    for path in (table, rejected, page):
        check_writable(path)
    require_outs(*(arguments.model / name for name in paths.MODEL_FILES))
    model = require_record_model(arguments.model)
    photographs = open_photographs(arguments.source, source_access(arguments), arguments.ids)
    with read_bins(photographs, arguments.model, arguments.all) as bins:
        audit = judge_bins(bins, model, arguments.error_rate, arguments.by == "value", arguments.tolerance)
        notes, estimates = summary(audit), recount_estimates(audit, arguments.budget)
        html = render_page(audit, photographs.images, [*notes, *estimates], arguments.budget, arguments.show)
        with file_lock(table):  # the three files of one audit, where two write to the same folder
            write_table(table, audit, arguments.budget)
            write_rejected(rejected, audit)
            write_text(page, html)
    print(*map(printable, notes), "", sep="\n")
    print_ranking(audit)
    print("", *estimates, "", *(printable(str(path)) for path in (table, rejected, page)), sep="\n")


def accept_recounts(marks: Path) -> None:
    """Merge what an exported file says into the corrections.

    Raises UserError if it is malformed or does not fit the records.
    """
    from bintally.bins.corrections import merge_corrections
    from bintally.bins.products import Product, listed_products
    from bintally.bins.shards import ShardReader, read_index

    has_bins = (paths.BINS / "index.csv").is_file()
    known = {entry.id: entry for entry in read_index(paths.BINS)} if has_bins else {}
    reader = ShardReader(paths.BINS)

    def products(bin_id: str) -> list[Product]:
        return listed_products(reader.record(known[bin_id]))

    merged = merge_corrections(paths.CORRECTIONS, marks, known, products)
    numbers = f"{merged.new:,} bins new, {merged.changed:,} changed, {merged.same:,} unchanged"
    print(f"{paths.CORRECTIONS}: {numbers}; `dvc repro` uses them")
    if merged.unknown:
        first = ", ".join(merged.unknown[:NAMED]) + (", …" if len(merged.unknown) > NAMED else "")
        print(f"{len(merged.unknown):,} of them are not in {paths.BINS}, and wait until it has these bins: {first}")
