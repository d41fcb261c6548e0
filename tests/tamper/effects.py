"""What an attack on the stored bytes of a vault may change of what is seen, path by path.

A reader gets the right data, or EIO, or finds nothing where an entry was taken away. What else may be seen is
listed here, and in docs/security.md, section 3.

Damaging (bytes flipped, overwritten, cut, appended; chunks swapped, repeated, dropped, of another file):

* content: EIO in the chunks concerned, or for the file; `stat` may show a wrong size for a file whose end is
  an error. In a file with holes a chunk of zeros is one;
* the header of an object: EIO; or, where one of its two slots is good still, the mode, owner, times and flags
  of an older header: with a witness EIO. In a vault that was killed, one without a header was never made;
* `@dir`: nothing but an older mode of the folder, because a copy opens it. EIO for the folder and all below
  it if there is no entry to find the copy by, or if entries and copies were attacked, too;
* `.name` of a long name: the entry is not listed; asked for by its name it is right;
* an attribute file: EIO for the attributes of that object; a copy in `dirs/`, `cryptfs.json.previous`,
  lock files: nothing; `cryptfs.json`: the vault does not open, or all is right; `journal/state`: it does not
  open; a journal segment: it does not open, or what was synced last is not there.

Putting back what was authentic, or putting it elsewhere. The second answer is that of a computer with a
witness, which counts an event for each (*reports*):

* older chunks: those chunks are older ones; the same;
* an older file or header, an older folder: they are as they were; EIO, an older header of a folder is served;
* two entries exchanged, one copied, linked or moved over the other, in one folder or in two: each object
  under the other's name; EIO;
* an entry copied to a name of another folder, or to one made up: nothing is seen of it; the same;
* `journal/` or `journal/state` as it was: what was synced last is not there, and what was never synced may
  be cut; the same;
* the vault as a whole: all is as it was; what changed since is EIO, and the age is reported.

Taking away:

* an entry, or a link, pipe, socket or folder in its place: it is not there, or EIO; the same;
* `journal/`: as above; `dirs/`: nothing; `xattr/`: EIO for attributes; `tree/`, `cryptfs.json`: the vault
  does not open.

Strange files beside the others: nothing; in `journal/` the vault may refuse to open.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field


class May(enum.Flag):
    """What may happen to one path, beside being right."""

    NOTHING = 0
    CONTENT = enum.auto()
    """Content is EIO in parts, its length included; what is read is right."""
    HEADER = enum.auto()
    """EIO as a whole; or the attributes of an older header. What is read is right."""
    GONE = enum.auto()
    """It is not there, or EIO."""
    UNLISTED = enum.auto()
    """It is not listed, but found when it is asked for."""
    OTHER = enum.auto()
    """Another object of the vault, in any version that it ever had."""
    OLD_CHUNKS = enum.auto()
    """Chunks are older ones of the same object."""
    OLD = enum.auto()
    """The same object as it was once."""
    ATTRIBUTES = enum.auto()
    """Extended attributes are EIO, or older ones."""
    LAST = enum.auto()
    """What was synced last, and is in the journal alone, is not there: chunks, mode and times."""
    CUT = enum.auto()
    """A file that was never synced, in a session that was killed, is shown as far as it goes."""


NOT_WITH_A_WITNESS = May.OTHER | May.OLD
"""What a computer that saw the vault before refuses: EIO."""


@dataclass
class Effects:
    """What attacks may change; `opening` whether the vault may refuse to open."""

    may: dict[str, May] = field(default_factory=dict)
    below: dict[str, May] = field(default_factory=dict)
    """The same for all that is below a path."""
    opening: bool = False
    reports: set[str] = field(default_factory=set)
    """Events of the rollback witness, one of which must be counted."""

    def add(self, path: str, may: May, *, below: bool = False) -> None:
        self.may[path] = self.may.get(path, May.NOTHING) | may
        if below:
            self.below[path] = self.below.get(path, May.NOTHING) | may

    def carried(self, path: str) -> May:
        """What may happen to a path or to anything below it."""
        found = self.on(path)
        for other, may in self.may.items():
            if other.startswith(path + "/"):
                found |= may
        return found

    def on(self, path: str) -> May:
        """What may happen to a path."""
        found = self.may.get(path, May.NOTHING)
        above = path
        while above:
            above = above.rpartition("/")[0]
            found |= self.below.get(above, May.NOTHING)
        return found
