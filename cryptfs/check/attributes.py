"""The extended attributes of one object (docs/format.md section 11)."""

from __future__ import annotations

import os
import stat

from cryptfs.check.context import Context
from cryptfs.check.finding import Finding, Kind
from cryptfs.errors import IntegrityError
from cryptfs.vault.header import FLAG_XATTR, Header
from cryptfs.vault.layout import XATTR


def check(context: Context, header: Header, place: bytes) -> Finding | None:
    """What is wrong with the attributes that a header promises."""
    if not header.flags & FLAG_XATTR:
        return None
    text = header.object_id.hex()
    try:
        # Not opened unless it is a file: somebody may have put a pipe there.
        if stat.S_ISREG(os.lstat(context.path / XATTR / text[:2] / text).st_mode):
            context.xattrs.load(header.object_id, header.key)
            return None
    except (FileNotFoundError, NotADirectoryError, IntegrityError):
        pass
    except PermissionError as problem:
        return Finding(Kind.DENIED, place, header.object_id, problem.strerror or "")
    except OSError as problem:
        return Finding(Kind.UNREADABLE, place, header.object_id, problem.strerror or "")
    return Finding(Kind.ATTRIBUTES, place, header.object_id)
