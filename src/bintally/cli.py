"""The command `bintally`: what a person runs beside `dvc`."""

import argparse
import math
import sys
from pathlib import Path

from bintally.errors import UserError
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
    predict = commands.add_parser("predict", help="what the model says of photographs, as a CSV or Parquet file")
    _source(predict)
    predict.add_argument("--to", type=Path, required=True, metavar="FILE", help="FILE.csv or FILE.parquet")
    audit = commands.add_parser(
        "audit", help="a page of bins in order of how likely their record is wrong, to be recounted"
    )
    _source(audit)
    audit.add_argument("--to", type=Path, default=Path("exports/audit"), metavar="FOLDER", help="default: %(default)s")
    audit.add_argument(
        "--wrong",
        type=_share,
        metavar="SHARE",
        help="of records taken to be wrong (default: calibrate.record_error_rate)",
    )
    audit.add_argument("--all", action="store_true", help="bins that the model has learned from, too")
    audit.add_argument("--show", type=_positive, metavar="N", help="bins on the page (default: 300, or the budget)")
    audit.add_argument("--budget", type=_positive, metavar="N", help="bins that can be recounted: mark the best N")
    audit.add_argument(
        "--accept", type=Path, metavar="MARKS.csv", help="take what the page exported into data/corrections.csv"
    )
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
    serve = commands.add_parser(
        "serve",
        help="the model behind HTTP, with a page to try it; on loopback by default",
        description="Counts the items in photographs over HTTP: POST /invocations takes JPEG or PNG, /openapi.json "
        "says what else there is, / is a page to try it. SIGTERM answers what was taken in and ends with 0. A token is "
        "read from the environment variable BINTALLY_TOKEN or from --token-file; those who ask then send it as "
        "'Authorization: Bearer TOKEN'.",
    )
    serve.add_argument("--host", default="127.0.0.1", help="the address to listen on (default: %(default)s)")
    serve.add_argument("--port", type=_port, default=8080, help="0 takes a free one (default: %(default)s)")
    source = serve.add_mutually_exclusive_group()
    source.add_argument(
        "--model",
        type=Path,
        default=Path("models"),
        metavar="FOLDER",
        help="with model.safetensors, card.json, calibration.json (default: %(default)s)",
    )
    source.add_argument(
        "--rev", help="the model of this tag, branch, commit or experiment of the repository, through DVC"
    )
    serve.add_argument(
        "--queue", type=_positive, default=64, help="images taken in at most before answers (default: %(default)s)"
    )
    serve.add_argument(
        "--wait-ms",
        type=_not_negative,
        default=5,
        help="a batch that is not full waits for images being decoded (default: %(default)s)",
    )
    serve.add_argument(
        "--max-bytes", type=_positive, default=10 * 2**20, help="of a request's body (default: %(default)s)"
    )
    serve.add_argument(
        "--timeout",
        type=_positive,
        default=30,
        metavar="SECONDS",
        help="refuse what would wait longer, and stop at the latest after that (default: %(default)s)",
    )
    serve.add_argument("--token-file", type=Path, metavar="FILE", help="holds the token; before BINTALLY_TOKEN")
    serve.add_argument("--open", action="store_true", help="listen beyond loopback without a token")
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


def _source(parser: argparse.ArgumentParser) -> None:
    """The arguments that name photographs and the model to score them with."""
    parser.add_argument(
        "source",
        nargs="?",
        default="data",
        metavar="SOURCE",
        help="s3://bucket[/prefix]; a folder laid out like the bucket, or of .jpg and .png files; a text file of their "
        "paths, or of ids; data (the default): the bins of the last `dvc repro`",
    )
    parser.add_argument("--ids", type=Path, metavar="FILE", help="of the ids to keep to, one a line")
    parser.add_argument("--model", type=Path, default=Path("models"), metavar="FOLDER", help="default: %(default)s")
    parser.add_argument("--endpoint", metavar="URL", help="of the S3 server (default: fetch.endpoint of params.yaml)")
    parser.add_argument("--region", help="of the bucket (default: fetch.region)")
    parser.add_argument("--sign", action="store_true", help="requests, with the usual AWS credentials")


def _access(arguments: argparse.Namespace) -> dict[str, object]:
    """What is to be otherwise than `fetch` of params.yaml has it."""
    given = {"endpoint": arguments.endpoint, "region": arguments.region, "anonymous": False if arguments.sign else None}
    return {name: value for name, value in given.items() if value is not None}


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' must be a whole number above 0")
    return int(text)


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"'{text}' must be between 0 and 1")
    return value


def _not_negative(text: str) -> int:
    return 0 if text == "0" else _positive(text)


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"'{text}' must be a whole number from 0 to 65535")
    return int(text)


def main() -> None:
    """Run a command; a UserError becomes one line and exit code 1."""
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
        elif arguments.command == "predict":
            from bintally.apps.predict import write_predictions

            write_predictions(arguments.source, arguments.to, arguments.model, _access(arguments), arguments.ids)
        elif arguments.command == "audit" and arguments.accept:
            from bintally.apps.audit import accept

            accept(arguments.accept)
        elif arguments.command == "audit":
            from bintally.apps.audit import AuditOptions, write_audit

            write_audit(
                AuditOptions(
                    arguments.source,
                    arguments.to,
                    arguments.model,
                    _access(arguments),
                    arguments.ids,
                    arguments.wrong,
                    arguments.all,
                    arguments.show,
                    arguments.budget,
                )
            )
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
        elif arguments.command == "serve":
            from bintally.serving.endpoint import Limits
            from bintally.serving.server import serve

            limits = Limits(arguments.queue, arguments.wait_ms / 1000, arguments.max_bytes, arguments.timeout)
            serve(
                arguments.host,
                arguments.port,
                arguments.model,
                arguments.rev,
                limits,
                arguments.token_file,
                arguments.open,
            )
        else:
            from bintally.apps.remote import run_store

            run_store(arguments.dir, arguments.port, arguments.public)
    except UserError as fault:
        print(f"bintally: {fault}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
