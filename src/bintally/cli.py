"""The commands that stand beside `dvc`."""

import argparse
import os
import sys
from importlib import import_module

from bintally.errors import UserError, printable

# Module in bintally.apps, with configure(parser) and run(arguments); help.
COMMANDS = {
    "audit": ("audit", "rank bins by how likely their record is wrong, on a page to recount them from"),
    "diagnose": ("diagnose", "find what slows a training or spoils its model; exits with 10 (warning) or 20 (error)"),
    "export": ("export", "write the model as ONNX and as a PyTorch program, and compare both with the original"),
    "predict": ("predict", "count the items in photographs and write a CSV or Parquet file"),
    "pull": ("pull", "run `dvc pull` with the run-cache, from a remote on loopback too"),
    "report": ("report", "write a page of figures of the data, the split and the predictions"),
    "repro": ("repro", "run `dvc repro`, push what is new, write the plots page, print the metrics"),
    "serve": ("serve", "serve the model over HTTP, with a page to try it; on loopback by default"),
    "store": ("store", "run the S3 server of the default remote on loopback, in the foreground"),
    "tune": ("tune", "search over parameters, each trial a DVC experiment"),
    "use": ("use", "write a preset into params.yaml"),
}


def parser_for(command: str | None) -> argparse.ArgumentParser:
    """The parser of the command line: every command with its help, and the arguments of ``command`` alone.

    Only the module of ``command`` is imported, so that `bintally --help` is immediate.
    """
    parser = argparse.ArgumentParser(prog="bintally", description=__doc__)
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (module, help_line) in COMMANDS.items():
        subparser = subparsers.add_parser(name, help=help_line, description=f"{help_line[0].upper()}{help_line[1:]}.")
        if name == command:
            import_module(f"bintally.apps.{module}").configure(subparser)
    return parser


def main() -> None:
    """Run the command of `sys.argv`; a UserError becomes one line and exit code 1."""
    try:
        arguments = parser_for(sys.argv[1] if len(sys.argv) > 1 else None).parse_args()

        from bintally.progress import log_to_stderr

        log_to_stderr()
        code = arguments.func(arguments)
    except UserError as error:
        print(printable(f"bintally: {error}"), file=sys.stderr)
        code = 1
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:  # as of `bintally … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except OSError as error:
        if error.filename is None:
            raise
        print(printable(f"bintally: '{error.filename}': {error.strerror}"), file=sys.stderr)
        code = 1
    if code:
        sys.exit(code)
