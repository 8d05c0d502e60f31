"""The one exception a user is meant to read, and its words for what pydantic and the system say."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from bintally.paths import OUT_FOLDERS

if TYPE_CHECKING:  # takes time, and commands begin with this module
    from pydantic import BaseModel, ValidationError


class UserError(Exception):
    """Something the user can mend: one sentence with the offending value and the remedy."""


def printable(text: str) -> str:
    """``text`` in one line, its control characters and lone surrogates as escapes, so that a terminal shows them."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def first_wrong_field(error: "ValidationError") -> str:
    """The first field of a file that is not as it must be, and why."""
    first = error.errors()[0]
    return ": ".join(filter(None, [".".join(map(str, first["loc"])), first["msg"]]))


def wrong_fields(error: "ValidationError", model: "type[BaseModel]") -> str:
    """All fields that are not as ``model`` has them, with their values and what is allowed."""
    messages = []
    for detail in error.errors():
        key = ".".join(map(str, detail["loc"])) or "the file"
        if detail["type"] == "value_error":
            reason = str(detail["ctx"]["error"])
            messages.append(f"{key}: {reason}" if len(detail["loc"]) > 1 and not reason.startswith(key) else reason)
        elif detail["type"] == "extra_forbidden":
            known = model
            for part in detail["loc"][:-1]:
                known = known.model_fields[str(part)].annotation  # type: ignore[assignment]
            value = f"its value: {_short(detail['input'])}"
            messages.append(f"{key}: there is no such parameter ({value}), only {', '.join(known.model_fields)}")
        elif detail["type"] == "missing":
            messages.append(f"{key}: is missing")
        else:
            messages.append(f"{key}: {_short(detail['input'])} is not allowed: {detail['msg'].lower()}")
    return "; ".join(messages)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}…"


@contextmanager
def disk_full_as_user_error(where: object) -> Iterator[None]:
    """Turn "no space left" below into a :class:`UserError` that names ``where``."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(f"the disk is full: could not write {where}; free some space and run it again") from error


@contextmanager
def missing_out_as_user_error() -> Iterator[None]:
    """Turn "no such file" below into a :class:`UserError` if it is one that an earlier stage writes."""
    try:
        yield
    except FileNotFoundError as error:
        name = os.fsdecode(error.filename or "")
        if not name.startswith(OUT_FOLDERS):
            raise
        raise UserError(f"{name} does not exist: `dvc repro` creates it") from error
