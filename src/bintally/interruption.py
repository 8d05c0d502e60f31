"""Requests to stop, and processes that end with their parent."""

import ctypes
import os
import signal
import time

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class Stopped(Exception):
    """The work was stopped early by a signal; its state is saved."""


class StopRequest:
    """Whether SIGTERM or SIGINT has come since :meth:`listen`, in ``came``."""

    def __init__(self) -> None:
        self.came = False

    def listen(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._note)

    def wait(self, seconds: float) -> None:
        """Wait until it comes, ``seconds`` at most."""
        end = time.monotonic() + seconds
        while not self.came and time.monotonic() < end:
            time.sleep(0.05)

    def _note(self, _number: int, _frame: object) -> None:
        self.came = True


def terminate_with_parent() -> None:
    """Get SIGTERM when the parent process ends; otherwise a killed `dvc repro` would leave its stage running."""
    parent = os.getppid()
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")
    # It may have ended just before.
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGTERM)
