"""`bintally audit`: rank bins by how likely their record is wrong, and take recounts into the corrections."""

import argparse
from pathlib import Path

from bintally import paths
from bintally.apps.arguments import add_source_arguments, fraction, positive_int, require_outs, source_access
from bintally.errors import UserError, printable

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
    add("--accept", type=Path, metavar="MARKS.csv", help="merge the page's export into data/corrections.csv")
    parser.set_defaults(func=run)


def run(arguments: argparse.Namespace) -> None:
    if arguments.accept:
        accept_recounts(arguments)
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


def accept_recounts(arguments: argparse.Namespace) -> None:
    """Merge what an exported file says into the corrections.

    Raises UserError if it is malformed or does not fit the records, or the bins that were audited cannot be read.
    """
    # torch comes with these, `bintally --help` does without it.
    from bintally.apps.photographs import open_photographs
    from bintally.apps.records import read_products
    from bintally.bins.corrections import merge_corrections
    from bintally.bins.products import Product
    from bintally.bins.record import BadBin

    marks: Path = arguments.accept
    if arguments.source == "data" and not (paths.BINS / "index.csv").is_file():
        remedy = "run `dvc repro fetch` first, or name the source that was audited"
        raise UserError(f"{paths.BINS} does not exist, so the ids in '{marks}' cannot be checked: {remedy}")
    bins = open_photographs(arguments.source, source_access(arguments), arguments.ids)
    if bins.records is None:
        raise UserError(f"{bins.name} has no records that '{marks}' could correct: name the source that was audited")
    read_records = bins.records

    def products(bin_id: str) -> list[Product]:
        ((_, read),) = read_records([bin_id])
        try:
            return read_products(read)
        except BadBin as error:
            raise UserError(
                f"'{marks}' names a product of bin {bin_id}, which has no usable record: {error}"
            ) from error

    merged = merge_corrections(paths.CORRECTIONS, marks, set(bins.ids), products)
    numbers = f"{merged.new:,} bins new, {merged.changed:,} changed, {merged.same:,} unchanged"
    print(f"{paths.CORRECTIONS}: {numbers}; `dvc repro` uses them")
    if merged.uncounted:
        print(f"{merged.uncounted:,} lines of '{printable(str(marks))}' have no count: these bins stay as they are")
    if merged.unknown:
        first = ", ".join(merged.unknown[:NAMED]) + (", …" if len(merged.unknown) > NAMED else "")
        print(printable(f"{len(merged.unknown):,} of them are not in {bins.name}, and wait until it has them: {first}"))
