"""Ciphertext names while a vault is being re-encrypted (docs/format.md section 13).

A directory that was begun has two keys. *What stands under the old one is still to be done, what stands under
the new one is done*: the names are the only record of it, so nothing is lost by a cut, and nothing has to be
written down. Everybody who gives an object a name keeps that true (`Marks`): what is not done and is moved
into a directory that was begun gets its name there under that directory's old key.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from cryptfs.fs.commit import Committer
from cryptfs.fs.directory import Directory, DirectoryCache, lower_name
from cryptfs.fs.knowledge import Knowledge
from cryptfs.fs.marks import Marks
from cryptfs.fs.namespace import Namespace
from cryptfs.fs.nodes import Node
from cryptfs.fs.witnessing import Witness
from cryptfs.vault.vault import Vault

__all__ = ["Marks", "Respeller", "keeping_times"]


@contextmanager
def keeping_times(directory_fd: int) -> Iterator[None]:
    """Change a ciphertext directory and leave its times as they are: they are those of the plaintext one."""
    st = os.fstat(directory_fd)
    try:
        yield
    finally:
        os.utime(directory_fd, ns=(st.st_atime_ns, st.st_mtime_ns))


class Respeller:
    """Gives entries another ciphertext name for the same plaintext one. The namespace lock is held."""

    def __init__(
        self,
        vault: Vault,
        directories: DirectoryCache,
        committer: Committer,
        names: Namespace,
        knowledge: Knowledge,
        witness: Witness,
    ) -> None:
        self._vault = vault
        self._directories = directories
        self._committer = committer
        self._names = names
        self._knowledge = knowledge
        self._witness = witness

    def renew(self, parent: Node, directory: Directory, child: Node, lname: bytes) -> bytes:
        """Have the name of an entry be under the key that its directory has now; the new ciphertext name.

        The journal must not know the child, or anything below it, by its path. OSError leaves the old name.
        """
        name = directory.plain_name(lname)
        return self._respell(parent, directory, child, lname, name, lower_name(directory.names, name))

    def mark(self, parent: Node, directory: Directory, child: Node, lname: bytes) -> bytes:
        """Have an entry be one that is still to be done; its ciphertext name. As `renew`."""
        if directory.old is None or not directory.is_new(lname):
            return lname
        name = directory.plain_name(lname)
        return self._respell(parent, directory, child, lname, name, lower_name(directory.old, name))

    def _respell(
        self, parent: Node, directory: Directory, child: Node, lname: bytes, name: bytes,
        to: tuple[bytes, bytes | None],
    ) -> bytes:  # fmt: skip
        new, text = to
        if new == lname:
            return new
        directory_id = directory.header.object_id
        self._witness.changing(directory_id, lname)
        self._witness.changing(directory_id, new)
        with keeping_times(directory.fd):
            directory.add_long(new, text, self._vault.modes.file)
            os.rename(lname, new, src_dir_fd=directory.fd, dst_dir_fd=directory.fd)
            self._names.drop_long(lname, directory)
        self._witness.moved((directory_id, lname), (directory_id, new))
        child.respelled(parent, lname, new)
        self._knowledge.gone(parent, lname)
        self._knowledge.made(parent, new, name, child)
        self._committer.places.moved(child)
        self._committer.places.entry_changed(parent)
        return new
