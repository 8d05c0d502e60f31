"""`bintally serve` as a process over the small model."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from bintally.model.card import save_model
from bintally.scoring.calibration import save_calibration
from small import CALIBRATION, CARD, bins, counter

JPEG = {"content-type": "image/jpeg"}
START_S = 600.0


@dataclass(frozen=True)
class Served:
    """A server that is up."""

    url: str
    process: "subprocess.Popen[str]"

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def wait_until_ready(self) -> None:
        end = time.monotonic() + START_S
        while httpx.get(f"{self.url}/ready", timeout=60).status_code != 200:
            assert self.process.poll() is None and time.monotonic() < end
            time.sleep(0.1)


def saved_model(folder: Path) -> Path:
    save_model(folder, counter(), CARD)
    save_calibration(folder, CALIBRATION)
    return folder


@contextmanager
def serving(folder: Path, *options: str, wait: bool = True, **environment: str) -> Iterator[Served]:
    """A server on a free port while the block runs."""
    process = subprocess.Popen(
        [sys.executable, "-c", "from bintally.cli import main; main()", "serve", "--port", "0", *options],
        stdout=subprocess.PIPE,
        text=True,
        cwd=folder,
        env=os.environ | environment,
    )
    try:
        assert process.stdout
        served = Served(process.stdout.readline().strip(), process)
        if wait:
            served.wait_until_ready()
        yield served
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            raise


def photographs() -> list[bytes]:
    return [one.image for one in bins()]
