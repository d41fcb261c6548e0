"""What of an object cannot be read, told from what the disk does not take (docs/durability.md).

Both are EIO. The first is damage of that one object, which a job names and passes over; after the second the
job must not go on.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from cryptfs.errors import IntegrityError


class Unreadable(IntegrityError):
    """An object that a job has to read is damaged."""

    def __init__(self) -> None:
        super().__init__("an object of the vault is damaged: cryptfs verify names it")


@contextmanager
def reading() -> Iterator[None]:
    """Around what only reads an object: Unreadable if it is damaged; other errors are not of this object."""
    try:
        yield
    except OSError as problem:
        if problem.errno != errno.EIO:
            raise
        raise Unreadable from problem
    except IntegrityError as problem:
        raise Unreadable from problem
