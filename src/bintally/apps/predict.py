"""`bintally predict`: predicted counts of photographs, as a CSV or Parquet file, or as one part of a dataset."""

import argparse
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from bintally import paths
from bintally.apps.arguments import add_source_arguments, require_outs, source_access
from bintally.errors import UserError, printable
from bintally.files import check_writable, file_lock, spreadsheet_text, write_csv

if TYPE_CHECKING:  # torch comes with it, `bintally --help` does without
    from bintally.apps.photographs import Photographs


def configure(parser: argparse.ArgumentParser) -> None:
    add_source_arguments(parser)
    help_line = "FILE.csv or FILE.parquet; with --part the folder of a Parquet dataset"
    parser.add_argument("--to", type=Path, required=True, metavar="FILE", help=help_line)
    help_line = "also read the records: the count given their products, and what is likely wrong with each"
    parser.add_argument("--records", action="store_true", help=help_line)
    help_line = "score the K-th of N shares of the photographs, such as 3/16, so that N machines score them all"
    parser.add_argument("--part", metavar="K/N", help=help_line)
    parser.set_defaults(func=run)


def run(arguments: argparse.Namespace) -> None:
    """Write predictions to ``--to``, and what could not be used to ``<to>-rejected.csv`` with the reason.

    Raises UserError if a file cannot be written, source or model are missing, a source fails or has no records that are
    asked for, the dataset has other parts, or another process scores the same photographs.
    """
    to: Path = arguments.to
    if arguments.part:
        from bintally.apps.dataset import Part

        part = Part.parse(arguments.part, to)
        to, rejected_file = part.file, part.rejected_file
    elif to.suffix in (".csv", ".parquet"):
        part, rejected_file = None, to.with_name(f"{to.stem}-rejected.csv")
    else:
        raise UserError(f"--to: '{to}' must end in .csv or .parquet")
    for path in (to, rejected_file):
        check_writable(path)

    # torch comes with these, `bintally --help` does without it.
    from bintally.apps.photographs import open_photographs

    require_outs(*(arguments.model / name for name in paths.MODEL_FILES))
    photographs = open_photographs(arguments.source, source_access(arguments), arguments.ids)
    if part:
        run_key = part.key(photographs, arguments.model, arguments.records)
        _write(arguments, replace(photographs, ids=part.of(photographs.ids)), to, rejected_file, run_key)
        print(printable(part.progress(run_key)))
    else:
        _write(arguments, photographs, to, rejected_file)


def _write(
    arguments: argparse.Namespace, photographs: "Photographs", to: Path, rejected_file: Path, run_key: str = ""
) -> None:
    from bintally.apps.predictions import RecordColumns, write_predictions
    from bintally.apps.scores import score_photographs
    from bintally.bins.record import with_photograph
    from bintally.scoring.record_model import require_record_model

    records = RecordColumns(photographs, require_record_model(arguments.model)) if arguments.records else None
    with score_photographs(photographs, arguments.model) as scores, file_lock(to):
        # Both files are of one run, where two write to the same folder.
        write_predictions(to, scores, records, run_key)
        unscored = [row for part in scores for row in part.rejected]
        without_record = records.rejected if records else []
        rejected = [*unscored, *without_record]
        named = ((one, with_photograph(reason, photographs.path(one))) for one, reason in rejected)
        write_csv(rejected_file, ["id", "reason"], (tuple(map(spreadsheet_text, row)) for row in named))
    print(printable(f"{to}: {len(photographs.ids) - len(unscored):,} photographs of {photographs.name}"))
    of_records = f", {len(without_record):,} that have no usable record" if records else ""
    print(printable(f"{rejected_file}: {len(unscored):,} that could not be scored{of_records}"))
    for reason, number in Counter(reason for _, reason in rejected).most_common(5):
        print(printable(f"  {number:,}: {reason}"))
    if records and records.not_judged:
        print(f"{records.not_judged:,} records not judged: the model does not predict their numbers of items")
