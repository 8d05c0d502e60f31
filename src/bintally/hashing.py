"""Digests that tell whether interrupted work may go on."""

import hashlib
from pathlib import Path

import bintally


def sha256_hex(*parts: bytes) -> str:
    """SHA-256 of some byte strings, each hashed with its length, in hexadecimal."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8) + part)
    return digest.hexdigest()


def source_code(*rooms: str) -> bytes:
    """The source of every module in some rooms of the package, such as ``"model"``."""
    root = Path(bintally.__file__).parent
    return b"".join(path.read_bytes() for room in rooms for path in sorted((root / room).glob("*.py")))
