"""Digests that decide whether interrupted work may be resumed."""

import hashlib
from pathlib import Path

import bintally


def sha256_hex(*parts: bytes) -> str:
    """SHA-256 of byte strings, each hashed with its length, in hexadecimal."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8) + part)
    return digest.hexdigest()


def file_digest(path: Path) -> bytes:
    """SHA-256 of a file of any size."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def source_code(*paths: str) -> bytes:
    """The source of modules of the package (``"model/images.py"``), or of all modules in a folder (``"model"``)."""
    root = Path(bintally.__file__).parent
    modules = (sorted((root / path).glob("*.py")) if (root / path).is_dir() else [root / path] for path in paths)
    return b"".join(module.read_bytes() for chosen in modules for module in chosen)
