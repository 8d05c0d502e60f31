"""One module a stage of dvc.yaml. Each reads the parameters, calls the rooms, and writes the stage's outs."""

import logging
import os
import signal
import sys
from collections.abc import Callable

from bintally.errors import UserError, disk_full_as_user_error
from bintally.interruption import terminate_with_parent
from bintally.params import Params, load_params
from bintally.progress import log_to_stderr
from bintally.resources import limit_resources

log = logging.getLogger("bintally")


def run(stage: str, work: Callable[[Params], None]) -> None:
    """Run a stage; where it fails, say why in one line, put its earlier outs back and exit with 1."""
    log_to_stderr()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if "DVC_STAGE" in os.environ:
        terminate_with_parent()
    try:
        with disk_full_as_user_error("the outs of " + stage):
            params = load_params()
            limit_resources(params.launch.ranks if stage == "train" else 1)
            work(params)
    except UserError as fault:
        fail(stage, fault)
        sys.exit(1)
    except KeyboardInterrupt:
        _put_back(stage)
        sys.exit(130)


def fail(stage: str, fault: UserError) -> None:
    """Say why in one line and put the stage's earlier outs back."""
    print(f"{stage}: {fault}", file=sys.stderr, flush=True)
    _put_back(stage)


def _put_back(stage: str) -> None:
    """Link a stage's outs from DVC's cache: DVC removes them before it runs the stage."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo
    from dvc.stage.exceptions import StageNotFound

    try:
        with Repo() as repo:
            for out in repo.stage.load_one(name=stage).outs:
                # The run-cache keeps a copy of the outs that git keeps, too.
                out.use_cache = True
                if out.hash_info:
                    out.checkout(force=True)
    except (DvcException, StageNotFound, OSError) as error:
        log.warning("%s: its earlier outs are not in the cache (%s); `dvc checkout` and `git checkout`", stage, error)
