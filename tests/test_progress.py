"""Plain lines with the time left in a log, a bar on a terminal."""

import logging
import os
import pty
import subprocess
import sys
import termios
import time

import pytest

from bintally.progress import progress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The monotonic time in seconds, to be changed."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_a_log_gets_a_line_every_few_seconds_with_the_time_left(
    clock: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "bintally")
    with progress("fetch", 100, "bins") as advance:
        for _ in range(40):
            clock[0] += 0.5
            advance(1)
    assert caplog.messages == [
        "fetch: 20 of 100, 40 s left (2.0 bins/s)",
        "fetch: 40 of 100, 30 s left (2.0 bins/s)",
        "fetch: 40 bins in 20.0 s (2.0 bins/s)",
    ]


def test_a_message_is_one_line_and_no_command_to_the_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    code = "import logging; from bintally.progress import log_to_stderr; log_to_stderr();"
    code += "logging.getLogger('bintally').info('%s: %s', '\\x1b[2J\\u202e棚', 'a\\nb')"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert capfd.readouterr().err == "\\x1b[2J\\u202e棚: a\\nb\n"


def test_no_progress_yet_is_logged_too(clock: list[float], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "bintally")
    with progress("fetch", 100, "bins") as advance:
        clock[0] += 11
        advance(0)
    assert caplog.messages[0] == "fetch: 0 of 100, time left unknown (0.0 bins/s)"


@pytest.mark.parametrize(("seconds", "lines"), [(1.0, 0), (12.0, 2)])
def test_a_brief_task_is_not_logged(
    clock: list[float], caplog: pytest.LogCaptureFixture, seconds: float, lines: int
) -> None:
    caplog.set_level(logging.INFO, "bintally")
    with progress("validate", 10, "images", brief=True) as advance:
        clock[0] += seconds
        advance(5)
    assert len(caplog.messages) == lines


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (24, 80))
    with os.fdopen(slave, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        with progress("train", 4, "steps") as advance:
            advance(1)
            advance(3)
        shown = b""
        while b"train: 100%" not in shown:  # a terminal passes on what was written a little later
            shown += os.read(master, 10_000)
    os.close(master)
