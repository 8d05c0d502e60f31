"""One module for each stage of dvc.yaml, which reads the parameters and writes the stage's outs."""

import logging
import os
import signal
import sys
from collections.abc import Callable

from bintally.errors import UserError, disk_full_as_user_error, missing_out_as_user_error, printable
from bintally.interruption import terminate_with_parent
from bintally.params import Params, load_params
from bintally.progress import log_to_stderr
from bintally.resources import limit_resources

log = logging.getLogger("bintally")

if "DVC_STAGE" in os.environ:
    terminate_with_parent()  # before the seconds that a stage's imports take


def run(stage: str, main: Callable[[Params], None], ranks: Callable[[Params], int] = lambda _params: 1) -> None:
    """Run a stage; if it fails, print the reason in one line, restore its earlier outs and exit with 1.

    Args:
        ranks: the number of processes on this machine among which the stage divides its share of cores and GPUs.
    """
    log_to_stderr()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with disk_full_as_user_error("the outs of " + stage), missing_out_as_user_error():
            params = load_params()
            limit_resources(ranks(params))
            main(params)
    except UserError as error:
        report_failure(stage, error)
        sys.exit(1)
    except KeyboardInterrupt:
        restore_outs(stage)
        sys.exit(130)


def report_failure(stage: str, error: UserError) -> None:
    """Print the reason in one line and restore the stage's earlier outs."""
    print(printable(f"{stage}: {error}"), file=sys.stderr, flush=True)
    restore_outs(stage)


def restore_outs(stage: str) -> None:
    """Link a stage's outs from DVC's cache: DVC removes them before it runs the stage."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo
    from dvc.stage.exceptions import StageNotFound

    try:
        with Repo() as repo:
            for out in repo.stage.load_one(name=stage).outs:
                # The run-cache has a copy of the outs that git tracks, too.
                out.use_cache = True
                if out.hash_info:
                    out.checkout(force=True)
    except (DvcException, StageNotFound, OSError) as error:
        log.warning("%s: its earlier outs are not in the cache (%s): `dvc checkout` and `git checkout`", stage, error)
