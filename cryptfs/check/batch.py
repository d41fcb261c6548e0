"""A few entries of one directory, checked by one thread."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial

from cryptfs.check.context import Context
from cryptfs.check.directory import check_name, look_at, plain_name
from cryptfs.check.finding import Finding, Kind
from cryptfs.check.host import Doubt, Undecided
from cryptfs.check.hostindex import HostIndex
from cryptfs.check.objects import ObjectLook, Reader
from cryptfs.check.place import Place
from cryptfs.check.tally import Tally
from cryptfs.check.walk import Position
from cryptfs.vault.header import FILE, SYMLINK, Header
from cryptfs.vault.names import NameCipher, NameInvalid

SIZE = 32
"""So many entries are one batch: what is done again, at most, when a check is resumed."""


@dataclass
class Batch:
    """Entries of the directory open as `fd`, which the batch owns."""

    place: Place
    fd: int
    parent_id: bytes | None
    names: NameCipher | None
    files: list[bytes]
    directories: list[bytes] = field(default_factory=list)
    content: frozenset[bytes] | None = None
    """The places whose content is read; None for all."""
    directory_id: bytes | None = None
    """The object id of the directory, as far as it is known."""
    tally: Tally = field(default_factory=Tally)
    done: bool = False

    @property
    def position(self) -> Position:
        return self.place.components(), self.files[-1] if self.files else b""

    def check(self, reader: Reader) -> None:
        """Look at all entries; at those that seem damaged again, as `look.until_believed` does."""
        context = reader.context
        looks = {lname: self._look(reader, lname, False) for lname in self.files}
        for lname in self.directories:
            looks[lname] = self._look(reader, lname, True)
        doubtful = {lname for lname, look in looks.items() if look.damage}
        for delay in context.delays:
            if not doubtful or context.stop.is_set():
                break
            context.pause(delay)
            context.renew()
            self._renew(context)
            for lname in list(doubtful):
                before, again = looks[lname], self._look(reader, lname, lname in self.directories)
                looks[lname] = again
                same = again.damage == before.damage and again.signature == before.signature
                if same or not again.damage:
                    doubtful.discard(lname)
        for lname in doubtful:
            damage = looks[lname].damage
            looks[lname].findings = [found for found in looks[lname].findings if found not in damage]
            looks[lname].findings.append(Finding(Kind.BUSY, self.place.path(lname)))
        self._compare(reader, looks)
        for lname, look in looks.items():
            self._count(look, lname in self.directories)

    def _look(self, reader: Reader, lname: bytes, is_directory: bool) -> ObjectLook:
        path = self.place.path(lname)
        look = (
            ObjectLook()
            if is_directory or reader.context.stop.is_set()
            else reader.look_at(self.fd, lname, path, content=self.content is None or path in self.content)
        )
        if self.names is not None and not look.gone:
            problem = check_name(self.place, self.fd, self.names, lname)
            if problem is not None:
                look.findings.append(problem)
        return look

    def _compare(self, reader: Reader, looks: dict[bytes, ObjectLook]) -> None:
        """What was seen with what this host remembers of it."""
        context, own = reader.context, self.directory_id
        if own is None:
            return
        if context.host is not None:
            doubts = []
            for lname in self.files:
                header = looks[lname].header
                if header is not None and context.host.differs(own, lname, header):
                    again = partial(self._again, reader, lname)
                    doubts.append(Doubt(own, lname, self.place.path(lname), header, again))
            self.tally.add(context.host.believed(context, doubts))
        if context.index is not None and self.names is not None:
            self.tally.add(self._wrong_records(reader, context.index, own, looks))

    def _again(self, reader: Reader, lname: bytes) -> Header | None:
        look = reader.look_at(self.fd, lname, self.place.path(lname), content=False)
        if look.header is None and not look.gone:
            raise Undecided
        return look.header

    def _wrong_records(
        self, reader: Reader, index: HostIndex, own: bytes, looks: dict[bytes, ObjectLook]
    ) -> Iterator[Finding]:
        """Records of the index that are wrong, seen twice with the file at rest."""
        context, folder = reader.context, os.fstat(self.fd)

        def wrong(lname: bytes, look: ObjectLook) -> bytes:
            assert self.names is not None
            try:
                return index.wrong(folder, own, lname, look, plain_name(self.fd, self.names, lname))
            except (NameInvalid, OSError):
                return b""

        doubtful = {lname: found for lname in self.files if (found := wrong(lname, looks[lname]))}
        for delay in context.delays:
            if not doubtful or context.stop.is_set():
                return
            context.pause(delay)
            context.renew()
            index.renew()
            for lname, before in list(doubtful.items()):
                path = self.place.path(lname)
                look = reader.look_at(self.fd, lname, path, content=False)
                found = wrong(lname, look)
                if found and found == before:
                    yield Finding(Kind.INDEX_WRONG, path, look.header.object_id if look.header else None)
                if not found or found == before:
                    del doubtful[lname]
                else:
                    doubtful[lname] = found

    def _renew(self, context: Context) -> None:
        """The directory may have got another header meanwhile."""
        self.names = look_at(context, self.place, self.fd, self.parent_id).names

    def _count(self, look: ObjectLook, is_directory: bool) -> None:
        tally = self.tally
        tally.add(look.findings)
        if is_directory or look.gone:
            return
        counts, header = tally.counts, look.header
        counts["objects"] += 1
        counts["bytes"] += look.length
        if header is None:
            return
        counts["files" if header.kind == FILE else "links" if header.kind == SYMLINK else "special"] += 1
        counts["content_bytes"] += look.plain
        counts["chunks"] += look.chunks
        counts["content_skipped"] += look.skipped
        tally.epochs.update(look.epochs)
        tally.objects.extend((int.from_bytes(header.object_id[:8], "little"), look.ino, look.nlink))

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
