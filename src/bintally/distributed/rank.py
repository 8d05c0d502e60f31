"""One rank: `python -m bintally.distributed.rank MODULE`, as its agent starts it in a new process."""

import signal
import sys
from collections.abc import Callable
from importlib import import_module

from bintally.errors import UserError, disk_full_as_user_error, missing_out_as_user_error, printable
from bintally.interruption import Stopped, StopRequest, terminate_with_parent
from bintally.params import Params, load_params
from bintally.progress import log_to_stderr

STOPPED = 128 + signal.SIGTERM  # exit code of a rank that was stopped by a signal
UNTIL_AGENT_REPORTS_S = 3.0


def run_as_rank(stage: str, work: Callable[[Params, StopRequest], None]) -> int:
    """Do the work of one rank of a stage; the exit code of its process."""
    stop = StopRequest()
    stop.listen()
    terminate_with_parent()
    from bintally.distributed.process_group import RanksLost, is_main_process  # torch, now that signals are noted
    from bintally.memory import configure_malloc

    configure_malloc()
    log_to_stderr()
    try:
        with disk_full_as_user_error("the outs of " + stage), missing_out_as_user_error():
            work(load_params(), stop)
    except Stopped:
        return STOPPED
    except UserError as error:
        # An error of all ranks is reported by the main one, an error of one by that one. The agent then ends the
        # others, which lose that rank just before.
        if isinstance(error, RanksLost) or not is_main_process():
            stop.wait(UNTIL_AGENT_REPORTS_S)
        if stop.came:
            return STOPPED
        print(printable(f"{stage}: {error}"), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    status = import_module(sys.argv[1]).run_rank()
    from bintally.distributed.process_group import exit_process  # imports torch

    exit_process(status)
