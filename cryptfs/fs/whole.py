"""An open vault as a whole: what it is made of, what is done to all of it, its end."""

from __future__ import annotations

import errno
import itertools
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from cryptfs.errors import IntegrityError
from cryptfs.fs.commit import Committer
from cryptfs.fs.directory import DirectoryCache
from cryptfs.fs.file import File
from cryptfs.fs.freezing import Freezer
from cryptfs.fs.gate import Gate
from cryptfs.fs.indexing import open_knowledge
from cryptfs.fs.knowledge import Knowledge
from cryptfs.fs.listing import Listing
from cryptfs.fs.namespace import Namespace, error
from cryptfs.fs.nodes import NodeTable
from cryptfs.fs.objects import Objects
from cryptfs.fs.options import FsOptions, SmallChunks
from cryptfs.fs.parts import Parts
from cryptfs.fs.recovery import overlays, recover
from cryptfs.fs.relinking import finish as finish_links
from cryptfs.fs.renaming import Renamer
from cryptfs.fs.respelling import Marks, Respeller
from cryptfs.fs.restoring import Survey
from cryptfs.fs.types import StatFs
from cryptfs.fs.witnessing import Witness
from cryptfs.fs.xattrs import ExtendedAttributes
from cryptfs.index.witness import Found
from cryptfs.vault.header import KeyringLike
from cryptfs.vault.names import NAME_MAX
from cryptfs.vault.reencryption import Phase
from cryptfs.vault.vault import Vault


class OpenVault:
    """The parts of a filesystem over an unlocked vault, without the requests."""

    def __init__(
        self, vault: Vault, options: FsOptions | None = None, *, place: Path | None = None, why_not: str = ""
    ) -> None:
        """Takes the vault over: it is closed by `close`, or at once if this raises.

        `place` is where this host keeps what it remembers of the vault (`cryptfs.index.place.prepare`), or
        None, and `why_not` the reason.

        Raises IntegrityError if the journal, the session state or the root directory is damaged.
        """
        self.vault = vault
        self.options = options or FsOptions()
        self._lock = threading.RLock()
        self._handles: dict[int, File] = {}
        self._listings: dict[int, Listing] = {}
        self._numbers = itertools.count(1)
        self._read_bytes = self._written_bytes = 0
        self._directories = DirectoryCache(vault)
        self.on_rekeyed: Callable[[bytes, bytes, bytes], None] = lambda *_: None
        """Called for a file that was re-encrypted: its directory's object id, its name, its new object id."""
        self.on_rewrapped: Callable[[KeyringLike], None] = lambda keyring: None
        """Called when a rotation brought every header under the current epoch, and no other is needed."""
        self.knowledge = Knowledge()
        self.witness = Witness()
        try:
            self.witness = Witness.open(place, vault, compares=self.options.compare)
            self.knowledge = open_knowledge(vault, place, wanted=self.options.index, why_not=why_not)
            self._begin()
        except BaseException:
            self.witness.close()
            self._directories.close()
            self.knowledge.close(None)
            vault.close()
            raise

    def _begin(self) -> None:
        vault = self.vault
        self._nodes = NodeTable(os.fstat(vault.tree_fd).st_ino)
        pending = overlays(vault) if vault.read_only else recover(vault)
        if not vault.read_only:
            finish_links(vault)
        self.witness.begin(Found(vault.state.last, vault.state.found_open), vault.session)
        self._committer = Committer(vault, self._directories, self._lock, self.witness)
        self._freezer = Freezer(vault, self.sync)
        self._committer.gate = self._freezer.gate
        self._committer.hold, self._committer.let_go = self._hold, self._let_go
        self._committer.open_files = self._files
        self._objects = Objects(
            vault, self._nodes, self._directories, self._committer, pending, self.knowledge, self.witness
        )  # fmt: skip
        self._committer.note = self._objects.note
        self._directories.check = self.witness.check
        self.knowledge.bind(self._lock, self._nodes, self._directories, self._objects)
        self._names = Namespace(
            vault, self._lock, self._nodes, self._directories, self._objects, self._committer,
            SmallChunks(self.options.small_chunk_patterns), self.knowledge, self.witness,
        )  # fmt: skip
        self._xattrs = ExtendedAttributes(vault.xattrs, self._objects, self._directories, self.options.xattrs)
        self._respeller = Respeller(
            vault, self._directories, self._committer, self._names, self.knowledge, self.witness
        )
        self._renamer = Renamer(
            vault, self._lock, self._nodes, self._directories, self._objects, self._committer, self._names,
            self.knowledge, self.witness, self._respeller,
        )  # fmt: skip
        if vault.reencryption.phase is Phase.SWITCHING:
            self._directories.marks = Marks()
        # The root must open, else there is nothing to serve.
        try:
            root = self._directories.get(self._nodes.root)
        except OSError:
            raise IntegrityError(
                f"the header of the root directory of {vault.path} is damaged and no copy of it opens"
            ) from None
        self.witness.check_root(root.header)
        if not vault.read_only:
            vault.state.begin()
            self.witness.confirm()
            self._committer.start()

    # -- files in use ----------------------------------------------------------------------

    def _put(self, file: File) -> None:
        """Give back one use of a file, with the last one all that the disk was not given yet.

        Nobody can know outside the lock which use is the last: the background work holds files, too.
        """
        failed: Exception | None = None
        while True:
            with self._lock:
                given = file.unlinked or not self.vault.changeable or file.is_given
                if file.handles > 1 or given or failed is not None:
                    if file.handles == 1 and not given and isinstance(failed, OSError):
                        self._committer.refused.add(file)
                    file.handles -= 1
                    self._objects.drop(file)
                    break
            try:
                file.flush()
            except Exception as problem:
                failed = problem
        if failed is not None:
            try:
                raise failed
            finally:
                del failed  # an error that its own frames refer to stays for long, with all they hold

    def _hold(self, file: File) -> bool:
        """Use a file that may be closed by somebody else at any time; False if it is."""
        with self._lock:
            if file.node.file is not file:
                return False
            file.handles += 1
            return True

    def _let_go(self, file: File) -> None:
        """Give back what `_hold` took. What the disk refuses of the file is kept, and no error of this."""
        with suppress(OSError):
            self._put(file)

    def _files(self) -> list[File]:
        with self._lock:
            return [node.file for node in self._nodes if node.file is not None]

    def hold_files(self) -> Iterator[File]:
        """The files in use at the moment, one after the other; the caller gives each back."""
        for file in self._files():
            with self._lock:
                if file.node.file is not file:
                    continue
                file.handles += 1
            yield file

    def give_back(self, file: File) -> None:
        """The counterpart of `hold_files`; what the disk refuses of the file is kept, no error of this."""
        self._let_go(file)

    def _for_each_file(self, do: Callable[[File], None]) -> OSError | None:
        """For every file in use, while others may close it; the first error, which does not end it."""
        failed: OSError | None = None
        for file in self._files():
            if self._hold(file):
                try:
                    do(file)
                except OSError as problem:
                    failed = failed or problem
                finally:
                    self._let_go(file)
        return failed

    # -- all of it ------------------------------------------------------------------------

    def statfs(self) -> StatFs:
        st = os.fstatvfs(self.vault.tree_fd)
        return StatFs(
            st.f_bsize, st.f_frsize, st.f_blocks, st.f_bfree, st.f_bavail,
            st.f_files, st.f_ffree, st.f_favail, NAME_MAX,
        )  # fmt: skip

    def sync(self) -> None:
        """Make everything durable that was written so far; an OSError is that of the first that was not."""
        if self.vault.read_only:
            return
        self._names.remover.clear_half_made()
        refused = self._for_each_file(lambda file: file.flush())
        self._committer.sync_all()
        failed = self._for_each_file(
            lambda file: self._committer.make_durable(file) if file.unsynced and not file.unlinked else None
        )
        for problem in (refused, failed):
            if problem is not None:
                raise problem

    def freeze(self) -> None:
        """Hold the ciphertext still, as after an unmount; OSError if not everything could be synced.

        Reading goes on. The caller lets no method in that changes anything until `thaw`.
        """
        self._freezer.freeze()

    def thaw(self) -> None:
        """Let changes go on after `freeze`."""
        self._freezer.thaw()

    @property
    def gate(self) -> Gate:
        """What changes the ciphertext in the background, beside this class, passes it."""
        return self._freezer.gate

    @property
    def parts(self) -> Parts:
        """For long jobs in this layer."""
        return Parts(
            self.vault, self._lock, self._nodes, self._directories, self._objects, self._committer,
            self.knowledge, self.witness, self._respeller,
        )  # fmt: skip

    def use_keyring(self, keyring: KeyringLike) -> None:
        """Go on with another keyring: from now on headers are sealed under its current epoch."""
        with self._lock:
            self.vault.use_keyring(keyring)
            self.witness.use_keyring(keyring)

    def reencryption_ended(self) -> None:
        """The configuration says so: nothing remembers it any more. OSError."""
        with self._lock:
            self.vault.reencryption.end()

    def survey(self) -> Survey:
        """A comparison of the whole vault with what this host remembers: `run` it, and close it."""
        return Survey(self.vault, self.witness, self._objects, self._directories, self._lock)

    def accept(self, survey: Survey) -> None:
        """Remember what a survey found as right, durably. Raises CryptfsError, OSError."""
        self._require_writable()
        survey.accept(self.vault, self.witness, self._lock)
        with self._lock:
            self.knowledge.forget_everything()  # nothing told it of what was restored

    def stats(self) -> dict[str, Any]:
        """Counters for status reports; sizes in bytes."""
        return {
            "open_files": len(self._handles),
            "open_directories": len(self._listings),
            "inodes": len(self._nodes),
            "bytes_read": self._read_bytes,
            "bytes_written": self._written_bytes,
            "journal_bytes": self.vault.journal.size,
            "dirty_bytes": sum(file.dirty_bytes() for file in set(self._handles.values())),
            "unclean_sessions": len(self.vault.state.unclean),
            "index": self.knowledge.status(),
            "witness": self.witness.stats(),
        }

    def close(self) -> None:
        """Sync everything, record a clean stop, and close the vault."""
        self.thaw()
        self._committer.stop()
        ended: int | None = None
        try:
            if not self.vault.read_only:
                self.sync()
                if self.witness.waiting:
                    self._committer.sync_all()
                self.vault.state.end()
                self.witness.end()
                ended = self.vault.session
        finally:
            self.witness.close()
            with self._lock:
                for file in self._files():
                    file.close()
                self._directories.close()
            self.knowledge.close(ended)
            self.vault.close()

    def _require_writable(self) -> None:
        if self.vault.read_only:
            raise error(errno.EROFS)
