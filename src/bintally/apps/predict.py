"""`bintally predict`: predicted counts of any number of photographs, as a CSV or Parquet file."""

import argparse
from collections import Counter
from pathlib import Path

from bintally.apps.arguments import add_source_arguments, source_access
from bintally.errors import UserError, printable
from bintally.files import check_writable, file_lock, spreadsheet_text, write_csv


def configure(parser: argparse.ArgumentParser) -> None:
    add_source_arguments(parser)
    parser.add_argument("--to", type=Path, required=True, metavar="FILE", help="FILE.csv or FILE.parquet")
    parser.set_defaults(func=run)


def run(arguments: argparse.Namespace) -> None:
    """Write predictions to ``--to``, and photographs that cannot be scored to ``<to>-rejected.csv`` with the reason.

    Raises UserError if a file cannot be written, source or model are missing, a source fails, or another process scores
    the same photographs.
    """
    to: Path = arguments.to
    if to.suffix not in (".csv", ".parquet"):
        raise UserError(f"--to: '{to}' must end in .csv or .parquet")
    rejected_file = to.with_name(f"{to.stem}-rejected.csv")
    for path in (to, rejected_file):
        check_writable(path)

    from bintally.apps.photographs import open_photographs
    from bintally.apps.scores import score_photographs

    photographs = open_photographs(arguments.source, source_access(arguments), arguments.ids)
    with score_photographs(photographs, arguments.model) as scores:
        rejected = [tuple(map(spreadsheet_text, row)) for part in scores for row in part.rejected]
        with file_lock(to):  # both files of one run, where two write to the same folder
            write_csv(rejected_file, ["id", "reason"], rejected)
            (scores.write_csv if to.suffix == ".csv" else scores.write_parquet)(to)
    print(printable(f"{to}: {len(photographs.ids) - len(rejected):,} photographs of {photographs.name}"))
    print(printable(f"{rejected_file}: {len(rejected):,} that could not be scored"))
    for reason, number in Counter(reason for _, reason in rejected).most_common(5):
        print(printable(f"  {number:,}: {reason}"))
