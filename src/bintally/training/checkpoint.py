"""Where an interrupted training goes on from."""

import hashlib
import io
import logging
import shutil
import time
from pathlib import Path
from typing import Any

import torch

from bintally.files import atomic_write

log = logging.getLogger("bintally")
KEPT = 2  # the newest and one to fall back on
KEPT_RUNS = 3  # unfinished ones, of other parameters
DIGEST_BYTES = 32

State = dict[str, Any]


class Checkpoints:
    """The states of an unfinished run, in a folder named by a hash of everything the run depends on.

    No out of DVC, so that the run-cache works and changed parameters never go on from another run's state. A file is
    the SHA-256 of what follows, then that: it is named by the number of steps done.
    """

    def __init__(self, root: Path, key: str, every_s: float) -> None:
        self.key = key
        self._folder = root / key[:16]
        self._every_s = every_s
        self._last = time.monotonic()

    def due(self) -> bool:
        return time.monotonic() - self._last >= self._every_s

    def save(self, step: int, state: State) -> None:
        """Raises UserError if the disk is full; the earlier checkpoints stay."""
        if not self._folder.exists():
            self._forget_other_runs()
        content = io.BytesIO()
        torch.save({"key": self.key, **state}, content)
        with atomic_write(self._folder / f"{step:010}.pt") as temporary, temporary.open("wb") as file:
            file.write(hashlib.sha256(content.getbuffer()).digest())
            file.write(content.getbuffer())
        for path in self._newest()[KEPT:]:
            path.unlink()
        self._last = time.monotonic()

    def newest(self) -> tuple[int, bytes]:
        """Number of steps and content of the newest checkpoint that is whole, (-1, nothing) if there is none."""
        for path in self._newest():
            content = path.read_bytes()
            if hashlib.sha256(content[DIGEST_BYTES:]).digest() == content[:DIGEST_BYTES]:
                return int(path.stem), content[DIGEST_BYTES:]
            log.warning("train: the checkpoint %s is damaged; going on from the one before it", path)
            path.unlink()  # else it would push out those saved after it
        return -1, b""

    def remove(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    def _newest(self) -> list[Path]:
        return sorted(self._folder.glob("*.pt"), reverse=True)

    def _forget_other_runs(self) -> None:
        runs = sorted(self._folder.parent.glob("*/"), key=lambda run: run.stat().st_mtime, reverse=True)
        for run in runs[KEPT_RUNS - 1 :]:
            shutil.rmtree(run, ignore_errors=True)


def read_state(content: bytes) -> State:
    """The state in a checkpoint's content; nothing but tensors and plain values is read."""
    state: State = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    return state
