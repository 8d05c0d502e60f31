"""A request to stop is noted, and a process ends with its parent."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from bintally.interruption import StopRequest

# Starts the process that is to end with it, and waits.
PARENT = """
import subprocess, sys, time
subprocess.Popen([sys.executable, "-c", sys.argv[1]])
time.sleep(60)
"""
# SIGTERM is reported; anything else ends it silently.
CHILD = """
import os, signal, sys
from bintally.interruption import terminate_with_parent

def report(number, frame):
    print("SIGTERM", flush=True)
    sys.exit()

signal.signal(signal.SIGTERM, report)
signal.alarm(30)
{start}
print("ready", flush=True)
while True:
    signal.pause()
"""


@pytest.fixture
def stop() -> Iterator[StopRequest]:
    """A request that listens; earlier handlers are restored after it."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    request = StopRequest()
    request.listen()
    yield request
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_request_to_stop_is_noted(stop: StopRequest, number: signal.Signals) -> None:
    assert not stop.came
    os.kill(os.getpid(), number)
    assert stop.came


def test_a_wait_ends_with_its_time_or_with_the_request(stop: StopRequest) -> None:
    stop.wait(0.1)
    assert not stop.came
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()
    stop.wait(3600)
    assert stop.came


def test_a_process_gets_sigterm_when_its_parent_is_killed() -> None:
    child = CHILD.format(start="terminate_with_parent()")
    with subprocess.Popen([sys.executable, "-c", PARENT, child], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "ready\n"
        parent.kill()
        # The end of the pipe comes when the child has ended too.
        assert parent.stdout.read() == "SIGTERM\n"


def test_a_process_whose_parent_ended_just_before_gets_sigterm_too() -> None:
    # The parent ends between the child's two calls of getppid.
    start = """
real = os.getppid
def parent_ends_first():
    os.getppid = real
    parent = real()
    os.kill(parent, signal.SIGKILL)
    while real() == parent:
        pass
    return parent
os.getppid = parent_ends_first
terminate_with_parent()"""
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, CHILD.format(start=start)], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        assert parent.stdout.read() == "SIGTERM\n"
