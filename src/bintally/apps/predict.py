"""`bintally predict`: predicted counts of any number of photographs, as a CSV or Parquet file."""

import argparse
from collections import Counter
from pathlib import Path

from bintally import paths
from bintally.apps.arguments import add_source_arguments, require_outs, source_access
from bintally.errors import UserError, printable
from bintally.files import check_writable, file_lock, spreadsheet_text, write_csv


def configure(parser: argparse.ArgumentParser) -> None:
    add_source_arguments(parser)
    parser.add_argument("--to", type=Path, required=True, metavar="FILE", help="FILE.csv or FILE.parquet")
    help_line = "also read the records: the count given their products, and what is likely wrong with each"
    parser.add_argument("--records", action="store_true", help=help_line)
    parser.set_defaults(func=run)


def run(arguments: argparse.Namespace) -> None:
    """Write predictions to ``--to``, and what could not be used to ``<to>-rejected.csv`` with the reason.

    Raises UserError if a file cannot be written, source or model are missing, a source fails or has no records that are
    asked for, or another process scores the same photographs.
    """
    to: Path = arguments.to
    if to.suffix not in (".csv", ".parquet"):
        raise UserError(f"--to: '{to}' must end in .csv or .parquet")
    rejected_file = to.with_name(f"{to.stem}-rejected.csv")
    for path in (to, rejected_file):
        check_writable(path)

    # torch comes with these, `bintally --help` does without it.
    from bintally.apps.photographs import open_photographs
    from bintally.apps.predictions import RecordColumns, write_predictions
    from bintally.apps.scores import score_photographs
    from bintally.scoring.record_model import require_record_model

    require_outs(*(arguments.model / name for name in paths.MODEL_FILES))
    photographs = open_photographs(arguments.source, source_access(arguments), arguments.ids)
    records = RecordColumns(photographs, require_record_model(arguments.model)) if arguments.records else None
    with score_photographs(photographs, arguments.model) as scores, file_lock(to):
        # Both files are of one run, where two write to the same folder.
        write_predictions(to, scores, records)
        unscored = [row for part in scores for row in part.rejected]
        without_record = records.rejected if records else []
        rejected = [tuple(map(spreadsheet_text, row)) for row in (*unscored, *without_record)]
        write_csv(rejected_file, ["id", "reason"], rejected)
    print(printable(f"{to}: {len(photographs.ids) - len(unscored):,} photographs of {photographs.name}"))
    of_records = f", {len(without_record):,} that have no usable record" if records else ""
    print(printable(f"{rejected_file}: {len(unscored):,} that could not be scored{of_records}"))
    for reason, number in Counter(reason for _, reason in rejected).most_common(5):
        print(printable(f"  {number:,}: {reason}"))
    if records and records.not_judged:
        print(f"{records.not_judged:,} records not judged: the model does not predict their numbers of items")
