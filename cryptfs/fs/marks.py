"""What is still to be done in a vault that is being re-encrypted, by the names alone (fs.respelling)."""

from __future__ import annotations

from cryptfs.fs.directory import Directory, lower_name


class Marks:
    """Tells what is done, and keeps it so when names change. The caller holds the namespace lock.

    A directory that was made since the re-encryption began has had one key only, and nothing in it is to be
    done, until something that is not done is moved into it: then it is begun like any other.
    """

    def __init__(self) -> None:
        self._made: set[bytes] = set()

    def made(self, directory_id: bytes) -> None:
        """A directory was made; its object id."""
        self._made.add(directory_id)

    def unmake(self, directory: Directory) -> None:
        """Something that is not done comes into a directory: it has to be begun, if it was not."""
        self._made.discard(directory.header.object_id)

    def is_begun(self, directory: Directory) -> bool:
        """Whether nothing has to be done to the directory itself."""
        return directory.old is not None or directory.header.object_id in self._made

    def is_done(self, directory: Directory, lname: bytes) -> bool:
        """Whether an entry is done: the content of a file, or the name of a directory."""
        if directory.old is None:
            return directory.header.object_id in self._made
        return directory.is_new(lname)

    def place(
        self, is_done: bool, directory: Directory, name: bytes, found: tuple[bytes, bytes | None]
    ) -> tuple[bytes, bytes | None]:
        """The entry for a new name of a file: under the old key if the file is still to be done.

        `found` is what `Directory.lower_name` gave.
        """
        if is_done:
            return found
        if directory.old is None:
            self.unmake(directory)
            return found
        return found if directory.has(found[0]) else lower_name(directory.old, name)
