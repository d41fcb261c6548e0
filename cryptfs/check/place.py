"""Where a ciphertext directory is, without keeping a path of any length or depth in memory."""

from __future__ import annotations

_SHOWN = 100


class Place:
    """One ciphertext directory: its name and the directory above it. The tree's root has none above."""

    __slots__ = ("lname", "parent")

    def __init__(self, parent: Place | None, lname: bytes) -> None:
        self.parent = parent
        self.lname = lname

    def components(self) -> list[bytes]:
        """The names from below the root down to here."""
        found: list[bytes] = []
        step: Place | None = self
        while step is not None and step.parent is not None:
            found.append(step.lname)
            step = step.parent
        found.reverse()
        return found

    def path(self, lname: bytes | None = None) -> bytes:
        """Relative to the vault: `tree/…`, of the directory or of an entry in it."""
        names = self.components()
        if len(names) > _SHOWN:
            # Nobody's archive: a path of a megabyte in each finding would be an attack on memory.
            names = [*names[: _SHOWN // 2], b"...", *names[-_SHOWN // 2 :]]
        return b"/".join([b"tree", *names, *([lname] if lname is not None else [])])
