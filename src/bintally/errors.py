"""The one exception a user is meant to read."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager


class UserError(Exception):
    """Something the user can mend: one sentence with the offending value and the remedy."""


def printable(text: str) -> str:
    """``text`` in one line, its control characters and lone surrogates as escapes, so that a terminal shows them."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


@contextmanager
def disk_full_as_user_error(where: object) -> Iterator[None]:
    """Turn "no space left" below into a :class:`UserError` that names ``where``."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(f"the disk is full: could not write {where}; free some space and run it again") from error
