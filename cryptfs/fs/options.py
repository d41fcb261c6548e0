"""How a vault is to be served, and which files get small chunks."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fnmatch import translate

SMALL_CHUNK_PATTERNS = (
    "index",  # Orthanc
    "index-*",
    "index.dat",  # dcmqrscp
    "*.db",
    "*.db-*",
    "*.db3",
    "*.db3-*",
    "*.sqlite*",
    "*.sql",  # OsiriX and Horos
    "*.sql-*",
    "*-wal",
    "*-shm",
    "*-journal",
    "*.dbf",  # dBase: Conquest
    "*.cdx",
    "*.ndx",
    "*.mdb",
    "*.ldb",
    "*.mdf",
    "*.ibd",
    "ibdata*",
    "ib_logfile*",
    "*.fdb",
    "*.lck",
)
"""Names (without their directory, case ignored) of files that are overwritten in place."""


@dataclass(frozen=True)
class FsOptions:
    """`xattrs` turns extended attributes on, `index` allows a metadata index.

    The patterns are shell patterns of file names. With `compare` off, nothing is refused or reported
    because it differs from what this host remembers.
    """

    xattrs: bool = False
    index: bool = True
    small_chunk_patterns: tuple[str, ...] = SMALL_CHUNK_PATTERNS
    compare: bool = True


class SmallChunks:
    """Decides by its name whether a new file gets 4 KiB chunks."""

    def __init__(self, patterns: tuple[str, ...]) -> None:
        lowered = [pattern.lower() for pattern in patterns]
        # Together, those that begin with a star pass over the name once.
        starred = "|".join(translate(pattern[1:]) for pattern in lowered if pattern.startswith("*"))
        others = [translate(pattern) for pattern in lowered if not pattern.startswith("*")]
        self._match = re.compile("|".join([*others, f"(?s:.*?)(?:{starred or '(?!)'})"])).match

    def __call__(self, name: bytes) -> bool:
        return self._match(name.decode("utf-8", "replace").lower()) is not None
