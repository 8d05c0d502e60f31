"""The one exception a user is meant to read."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager


class Fault(Exception):
    """Something the user can mend: one sentence with the offending value and the remedy."""


@contextmanager
def full_disk_is_a_fault(where: object) -> Iterator[None]:
    """Turn "no space left" below into a :class:`Fault` that names ``where``."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise Fault(f"the disk is full: could not write {where}; free some space and run it again") from error
