"""Where an interrupted training goes on from."""

import shutil
from pathlib import Path
from typing import Any

import torch

from bintally.faults import Fault
from bintally.files import replacing


class Checkpoint:
    """The state after the last whole epoch, in a folder named by a hash of everything the run depends on.

    No out of DVC, so that the run-cache works and changed parameters never go on from another run's state.
    """

    def __init__(self, root: Path, key: str) -> None:
        self._folder = root / key[:16]
        self._key = key

    @property
    def _path(self) -> Path:
        return self._folder / "state.pt"

    def save(self, state: dict[str, Any]) -> None:
        with replacing(self._path) as temporary:
            torch.save({"key": self._key, **state}, temporary)

    def load(self) -> dict[str, Any] | None:
        """The saved state, or None at the start of a run. Raises Fault if it is damaged or another run's."""
        if not self._path.exists():
            return None
        try:
            state: dict[str, Any] = torch.load(self._path, map_location="cpu", weights_only=True)
        except Exception as error:
            raise Fault(f"the checkpoint {self._path} is damaged; remove it to start anew") from error
        if state.pop("key", None) != self._key:
            raise Fault(f"the checkpoint {self._path} is of another run; remove it to start anew")
        return state

    def remove(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)
