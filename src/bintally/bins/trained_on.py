"""The photographs that a model was trained on, by digest: they are known again wherever a copy of them lies."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bintally.errors import UserError
from bintally.files import atomic_write

FILE = "trained_on.bin"  # beside a model
ENCODED_FILE = "photographs.bin"  # beside the encoded bins, of all of them
TYPE = np.dtype("<u8")

Digests = NDArray[np.uint64]


def photograph_digest(body: bytes) -> int:
    """The first 64 bits of the SHA-256 of a photograph's file."""
    return int.from_bytes(hashlib.sha256(body).digest()[:8])


def save_digests(path: Path, digests: Iterable[int]) -> str:
    """Write digests in the order given; return the SHA-256 of the file."""
    body = np.fromiter(digests, TYPE).tobytes()
    with atomic_write(path) as temporary:
        temporary.write_bytes(body)
    return hashlib.sha256(body).hexdigest()


def load_digests(path: Path) -> Digests:
    """Read what :func:`save_digests` has written."""
    return np.frombuffer(path.read_bytes(), TYPE)


class TrainedOn:
    """The photographs that a model was trained on."""

    def __init__(self, path: Path, version: str | None) -> None:
        """Read FILE of a model whose card gives its SHA-256. Raises UserError if it is missing, or another file."""
        if not path.is_file():
            raise UserError(
                f"{path} does not exist: it lists what the model was trained on; copy it from where "
                "the model comes from, train it again, or include the bins it was trained on with --all"
            )
        self.version = hashlib.sha256(path.read_bytes()).hexdigest()
        if self.version != version:
            raise UserError(
                f"{path} is damaged or another model's: its SHA-256 is not in the card.json beside it; copy both "
                "from where the model was trained, or train it again"
            )
        self._sorted = np.sort(load_digests(path))

    def __contains__(self, photograph: bytes) -> bool:
        digest = np.uint64(photograph_digest(photograph))
        place = int(np.searchsorted(self._sorted, digest))
        return place < len(self._sorted) and bool(self._sorted[place] == digest)
