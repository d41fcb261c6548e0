"""The extended attributes of one object (docs/format.md section 11)."""

from __future__ import annotations

import os
import stat

from cryptfs.check.context import Context
from cryptfs.check.finding import Finding, Kind
from cryptfs.errors import IntegrityError
from cryptfs.vault.header import FLAG_XATTR, Header
from cryptfs.vault.layout import XATTR


def check(context: Context, header: Header, place: bytes, former: Header | None = None) -> Finding | None:
    """What is wrong with the attributes that a header promises; `former` is that of a directory's `@old`."""
    if not header.flags & FLAG_XATTR:
        return None
    text = header.object_id.hex()
    try:
        # Not opened unless it is a file: somebody may have put a pipe there.
        if stat.S_ISREG(os.lstat(context.path / XATTR / text[:2] / text).st_mode):
            context.xattrs.load(header.object_id, header.key, former.key if former else None)
            return None
    except (FileNotFoundError, NotADirectoryError, IntegrityError):
        pass
    except OSError as problem:
        return Finding.of_error(place, problem, header.object_id)
    return Finding(Kind.ATTRIBUTES, place, header.object_id)
