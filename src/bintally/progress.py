"""Rate and time left: a bar on a terminal, or a line every few seconds in a log."""

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm

from bintally.errors import printable

log = logging.getLogger("bintally")
LOG_EVERY_S = 10.0


class _OneLine(logging.Formatter):
    """A message in one line without control characters; a traceback, if there is one, below it."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return printable(record.message)


def log_to_stderr() -> None:
    """Send the project's log to standard error, one line for each message."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_OneLine())
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    log.setLevel(logging.INFO)


@contextmanager
def progress(
    what: str, total: int, unit: str, quiet: bool = False, brief: bool = False
) -> Iterator[Callable[[int], object]]:
    """Yield a function to call with the number of units just finished.

    Args:
        quiet: show nothing.
        brief: leave no trace of work that takes only a moment, as within a longer task.
    """
    if quiet:
        yield lambda _units: None
        return
    if sys.stderr.isatty():
        with tqdm(desc=what, total=total, unit=unit, dynamic_ncols=True, leave=not brief) as bar:
            yield bar.update
        return
    start = logged = time.monotonic()
    done = 0

    def advance(units: int) -> None:
        nonlocal done, logged
        done += units
        now = time.monotonic()
        if now - logged >= LOG_EVERY_S:
            logged = now
            rate = done / (now - start)
            left = f"{(total - done) / rate:.0f} s left" if rate > 0 else "time left unknown"
            log.info("%s: %d of %d, %s (%.1f %s/s)", what, done, total, left, rate, unit)

    yield advance
    seconds = time.monotonic() - start
    if brief and seconds < LOG_EVERY_S:
        return
    log.info("%s: %d %s in %.1f s (%.1f %s/s)", what, done, unit, seconds, done / max(seconds, 1e-9), unit)
