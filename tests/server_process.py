"""`bintally serve` as a process, and the small model saved and exported for it."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile

import httpx
import torch

from bintally import paths
from bintally.inference.predictor import Predictor
from bintally.model.card import save_model
from bintally.scoring.calibration import save_calibration
from small import CALIBRATION, CARD, bins, counting_network

JPEG = {"content-type": "image/jpeg"}
START_S = 600.0


@dataclass(frozen=True)
class ServerProcess:
    """A server that listens."""

    url: str
    process: "subprocess.Popen[str]"

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_S
        while httpx.get(f"{self.url}/ready", timeout=60).status_code != 200:
            assert self.process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)


@contextmanager
def running_server(folder: Path, *options: str, wait: bool = True, **environment: str) -> Iterator[ServerProcess]:
    """A server on a free port, with ``folder`` as its working directory, until the block ends.

    AssertionError if it has printed a traceback.
    """
    log = TemporaryFile("w+")  # noqa: SIM115 (closed below)
    process = subprocess.Popen(
        [sys.executable, "-c", "from bintally.cli import main; main()", "serve", "--port", "0", *options],
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
        cwd=folder,
        env=os.environ | environment,
    )
    try:
        assert process.stdout
        server = ServerProcess(process.stdout.readline().strip(), process)
        if wait:
            server.wait_until_ready()
        yield server
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        finally:
            log.seek(0)
            messages = log.read()
            log.close()
            print(messages, file=sys.stderr)
        assert "Traceback" not in messages


def save_small_model(folder: Path) -> None:
    save_model(folder, counting_network(), CARD)
    save_calibration(folder, CALIBRATION)


def export_small_model(folder: Path) -> None:
    """Save the small model to ``models`` in a folder, and its ONNX where commands run in that folder look for it."""
    save_small_model(folder / paths.MODELS)
    with chdir(folder):
        Predictor(counting_network(), CARD, CALIBRATION, torch.device("cpu"))


def bin_images() -> list[bytes]:
    return [one.image for one in bins()]
