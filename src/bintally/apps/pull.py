"""`bintally pull`: fetch data, models and the run-cache."""

import argparse

from bintally.apps.remote import remote_server
from bintally.apps.repository import run_dvc


def configure(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(func=run)


def run(_arguments: argparse.Namespace) -> None:
    """Fetch the outs of dvc.lock and the run-cache from the default remote. Raises UserError if that fails."""
    with remote_server():
        run_dvc("pull", "--run-cache")
