"""The command `bintally`: what a person runs beside `dvc`."""

import argparse
import sys
from pathlib import Path

from bintally.faults import Fault
from bintally.progress import log_to_stderr


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bintally", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("repro", help="dvc repro, push what is new, write the plots page, print the metrics")
    commands.add_parser("pull", help="dvc pull with the run-cache, from a loopback remote too")
    export = commands.add_parser(
        "export", help="the model as ONNX and as a PyTorch program, compared on bins of the data"
    )
    export.add_argument("--to", type=Path, default=Path("exports"), metavar="FOLDER", help="default: exports")
    export.add_argument("--format", choices=["onnx", "torch", "both"], default="both", help="default: both")
    errors = commands.add_parser("errors", help="a page of the test bins whose record the model finds least likely")
    errors.add_argument(
        "--to", type=Path, default=Path("exports/errors.html"), metavar="PAGE", help="default: %(default)s"
    )
    errors.add_argument("--number", type=_positive, default=60, help="of bins (default: %(default)s)")
    report = commands.add_parser("report", help="a page of figures of the data, the split and the model's answers")
    report.add_argument(
        "--to", type=Path, default=Path("exports/report.html"), metavar="PAGE", help="default: %(default)s"
    )
    tune = commands.add_parser("tune", help="a search over parameters, every trial an experiment")
    tune.add_argument(
        "--trials", type=_positive, default=20, help="there are to be in the study (default: %(default)s)"
    )
    tune.add_argument(
        "--storage", metavar="URL", help="a database that several machines share, such as postgresql+psycopg://..."
    )
    tune.add_argument("--jobs", type=_positive, default=2, help="trials at once on this machine (default: %(default)s)")
    diagnosis = commands.add_parser(
        "diagnose",
        help="what is wrong with a training and what to change; exits with 10 after a warning, 20 after an error",
    )
    diagnosis.add_argument(
        "--to", type=Path, default=Path("exports/diagnose"), metavar="FOLDER", help="default: %(default)s"
    )
    diagnosis.add_argument("--steps", type=_positive, default=20, help="to be timed (default: %(default)s)")
    store = commands.add_parser("store", help="the loopback S3 server, in the foreground")
    store.add_argument("--dir", type=Path, default=Path(".store"), help="where its data lies (default: .store)")
    store.add_argument("--port", type=int, help="default: that of the default DVC remote")
    store.add_argument(
        "--public",
        action="append",
        default=[],
        metavar="BUCKET",
        help="a bucket anyone may list and read (repeatable)",
    )
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' must be a whole number above 0")
    return int(text)


def main() -> None:
    """Run a command; a Fault becomes one line and exit code 1."""
    arguments = _parser().parse_args()
    log_to_stderr()
    try:
        if arguments.command == "repro":
            from bintally.apps.repro import reproduce

            reproduce()
        elif arguments.command == "pull":
            from bintally.apps.repro import pull

            pull()
        elif arguments.command == "export":
            from bintally.apps.export import export_model

            export_model(arguments.to, ["onnx", "torch"] if arguments.format == "both" else [arguments.format])
        elif arguments.command == "errors":
            from bintally.apps.errors import write_errors_page

            write_errors_page(arguments.to, arguments.number)
        elif arguments.command == "report":
            from bintally.apps.report import write_report

            write_report(arguments.to)
        elif arguments.command == "tune":
            from bintally.apps.tune import tune

            tune(arguments.trials, arguments.storage, arguments.jobs)
        elif arguments.command == "diagnose":
            from bintally.apps.diagnose import run_diagnosis

            sys.exit(run_diagnosis(arguments.to, arguments.steps))
        else:
            from bintally.apps.remote import serve_forever

            serve_forever(arguments.dir, arguments.port, arguments.public)
    except Fault as fault:
        print(f"bintally: {fault}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
