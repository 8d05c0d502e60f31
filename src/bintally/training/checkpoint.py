"""Checkpoints, from which an interrupted training resumes."""

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
KEPT = 2  # checkpoints: the newest and one to fall back on
KEPT_RUNS = 3  # unfinished runs, with different parameters
DIGEST_BYTES = 32

State = dict[str, Any]


class Checkpoints:
    """The checkpoints of a network of an unfinished run, in a folder named by its key, a hash of all it depends on.

    They are no out of DVC, so that the run-cache works and no run resumes from the state of other parameters. A file is
    named by the number of steps done and holds a SHA-256 digest, then the content that it is the digest of.
    """

    def __init__(self, root: Path, key: str, every_s: float, network: int = 0) -> None:
        self.key = key
        self._run = root / key[:16]
        self._folder = self._run / str(network)
        self._every_s = every_s
        self._last = time.monotonic()

    def due(self) -> bool:
        return time.monotonic() - self._last >= self._every_s

    def save(self, step: int, state: State) -> None:
        """Write a checkpoint. Raises UserError if the disk is full; earlier checkpoints stay."""
        if not self._run.exists():
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
        """Number of steps and content of the newest undamaged checkpoint; (-1, b"") without one."""
        for path in self._newest():
            content = path.read_bytes()
            if hashlib.sha256(content[DIGEST_BYTES:]).digest() == content[:DIGEST_BYTES]:
                return int(path.stem), content[DIGEST_BYTES:]
            log.warning("train: the checkpoint %s is damaged; resuming from the one before it", path)
            path.unlink()  # else it would displace later ones
        return -1, b""

    def remove(self) -> None:
        """Remove those of all networks."""
        shutil.rmtree(self._run, ignore_errors=True)

    def _newest(self) -> list[Path]:
        return sorted(self._folder.glob("*.pt"), reverse=True)

    def _forget_other_runs(self) -> None:
        runs = sorted(self._run.parent.glob("*/"), key=lambda run: run.stat().st_mtime, reverse=True)
        for run in runs[KEPT_RUNS - 1 :]:
            shutil.rmtree(run, ignore_errors=True)


def read_state(content: bytes) -> State:
    """The state in a checkpoint's content, which may only hold tensors and plain values: no code is run."""
    state: State = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    return state
