"""Types and groups of arguments that several commands share."""

import argparse
import math
from pathlib import Path

from bintally.errors import UserError


def positive_int(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' must be a whole number above 0")
    return int(text)


def non_negative_int(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"'{text}' must be a whole number, 0 or above")
    return int(text)


def fraction(text: str) -> float:
    """A number above 0 and below 1."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"'{text}' must be a number between 0 and 1")
    return value


def port(text: str) -> int:
    """A TCP port; 0 stands for any free one."""
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"'{text}' must be a whole number from 0 to 65535")
    return int(text)


def add_source_arguments(parser: argparse.ArgumentParser) -> None:
    """Add SOURCE, --ids, --model and how to reach the S3 server: the photographs, and the model that scores them."""
    help_line = (
        "s3://bucket[/prefix]; a folder laid out like the bucket, or of photographs; a table (.csv, .jsonl, "
        ".parquet) with the columns of fetch.table; a text file of paths, or of ids; data (the default): the bins of "
        "the last `dvc repro`"
    )
    parser.add_argument("source", nargs="?", default="data", metavar="SOURCE", help=help_line)
    parser.add_argument("--ids", type=Path, metavar="FILE", help="use only the ids in this file, one a line")
    parser.add_argument("--model", type=Path, default=Path("models"), metavar="FOLDER", help="default: %(default)s")
    parser.add_argument("--endpoint", metavar="URL", help="the S3 server (default: fetch.endpoint of params.yaml)")
    parser.add_argument("--region", help="region of the bucket (default: fetch.region)")
    parser.add_argument("--sign", action="store_true", help="sign requests with the usual AWS credentials")


def source_access(arguments: argparse.Namespace) -> dict[str, object]:
    """The keys of `fetch` in params.yaml that the arguments replace, with their values."""
    given = {"endpoint": arguments.endpoint, "region": arguments.region, "anonymous": False if arguments.sign else None}
    return {name: value for name, value in given.items() if value is not None}


def require_outs(*files: Path) -> None:
    """Raise UserError if one of the files, which `dvc repro` writes, does not exist."""
    for file in files:
        if not file.is_file():
            raise UserError(f"{file} does not exist: `dvc repro` creates it, `bintally pull` fetches it")
