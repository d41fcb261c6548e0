"""What is durable, and in which order it becomes so (DESIGN: the durability contract).

fsync of a file, step by step, with what is on disk after each:

1. its changed chunks are in the journal (durable files) or in place (new files), unsynced:
   a power cut shows the old content, or for a new file none;
2. the journal is synced: every change of every file up to now survives;
3. what the journal holds is written in place, unsynced: a power cut may tear it there, and
   recovery writes it again;
4. a new file is synced in place; if the journal had something older for it, `settled` follows;
5. the headers of new directories are synced, and every directory on the way from the root that
   has a new name in it (`places`; for a new file step 4 does this as well where it can).
"""

from __future__ import annotations

import errno
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from cryptfs.fs.directory import DirectoryCache
from cryptfs.fs.file import File
from cryptfs.fs.gate import Gate
from cryptfs.fs.nodes import Node
from cryptfs.fs.places import Places
from cryptfs.fs.refused import Refused
from cryptfs.fs.witnessing import Witness
from cryptfs.vault.diskio import syncfs
from cryptfs.vault.vault import Vault

log = logging.getLogger(__name__)

COMMIT_INTERVAL = 1.0
"""Seconds after which a change that nobody synced is at least durable in the journal."""
SETTLE_INTERVAL = 30.0
"""Seconds after which closed files are synced, as the kernel does with its own (dirty_expire)."""
SETTLE_AT = 4096
"""So many closed, unsynced files are the most that are remembered."""
JOURNAL_MAX = 16 << 20
"""Bytes of journal after which everything is put in place and synced."""
JOURNAL_FULL = 64 << 20
"""Bytes of journal at which whoever writes has to do so at once."""
OPEN_MAX = 128
"""So many closed files with live journal records are the most that are kept open."""
_TRIES = 8
"""After so many syncs of a file that is written to meanwhile its writers have to wait for one."""


@dataclass(eq=False, slots=True)
class Unsettled:
    """A closed file of which something is not known to be durable.

    `durable` says whether its content is (then only the header is not), `slot` which header
    slot holds the last durable header, -1 for none.
    """

    node: Node
    durable: bool
    slot: int


class Committer:
    """Journal, sync order and background settling of one mounted vault."""

    def __init__(
        self, vault: Vault, directories: DirectoryCache, namespace: threading.RLock, witness: Witness
    ) -> None:
        self._vault = vault
        self._namespace = namespace
        self._witness = witness
        self.journal = vault.journal
        self.session = vault.session
        self.codec = vault.codec
        self.file_mode = vault.modes.file
        self.phase = 1
        """Part of the session in which content is begun now (format section 9)."""
        self.refused = Refused()
        self.places = Places(vault, directories, namespace)
        self.paths = threading.Lock()
        """Held while a path is put into the journal, and while a rename changes paths."""
        self._lock = threading.Lock()
        self._checkpointing = threading.Lock()
        self._settling = threading.Lock()
        self._pending: dict[bytes, File] = {}
        self._live: dict[bytes, File] = {}
        self._unsettled: dict[int, Unsettled] = {}
        self._failed: OSError | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.gate = Gate()
        """Nothing is done in the background while it is closed."""
        self.hold: Callable[[File], bool] = lambda file: True
        """Keeps a file open until `let_go`, so that its descriptor is its own; False if it is closed."""
        self.let_go: Callable[[File], None] = lambda file: None
        """Called, without locks, for a file that was held: it is closed if nobody needs it any more."""
        self.on_moved: Callable[[Node], None] | None = None
        """Called, with the namespace lock held, for an object that has another name now: a job that
        goes over the whole tree must not miss it."""
        self.open_files: Callable[[], list[File]] = list
        """All files in use."""
        self.note: Callable[[File], None] = lambda file: None
        """Called, with the namespace lock, for each of them before what is durable is recorded."""

    # -- what files tell -----------------------------------------------------------------

    def journaled(self, file: File) -> None:
        """A file has put something into the journal."""
        with self._lock:
            self._pending[file.header.object_id] = file
            self._live[file.header.object_id] = file

    def begun(self, file: File) -> None:
        """A file with live journal records is written in place from now on."""
        with self._lock:
            if self.journal.live(file.header.object_id):
                self._live[file.header.object_id] = file

    def needs(self, file: File) -> bool:
        """Whether the committer still needs the file open."""
        return file.header.object_id in self._live or file in self.refused

    def closing(self, file: File) -> None:
        """A file's last handle is gone; remember what is not durable."""
        with self._lock:
            if file.unsynced and not file.unlinked:
                self._unsettled[file.node.ino] = Unsettled(file.node, file.durable, file.slot)
            else:
                self._unsettled.pop(file.node.ino, None)

    def unsettled(self, ino: int) -> Unsettled | None:
        """What is not durable of a closed file, or None if it all is."""
        return self._unsettled.get(ino)

    def unsettled_below(self, directory: Node) -> list[Node]:
        """Closed files in a directory of which something is not durable."""
        return [left.node for left in list(self._unsettled.values()) if left.node.parent is directory]

    def moved(self, node: Node) -> None:
        """An object has another name now, or one more."""
        left = self._unsettled.get(node.ino)
        if left is not None:
            left.node = node
        if self.on_moved is not None:
            self.on_moved(node)

    def deleted(self, file: File | None, ino: int) -> None:
        """The last name of an object is gone."""
        with self._lock:
            self._unsettled.pop(ino, None)
            if file is not None:
                self.refused.forget(file.header.object_id)
                self.journal.forget(file.header.object_id)
                self._live.pop(file.header.object_id, None)
                self._pending.pop(file.header.object_id, None)

    # -- making durable --------------------------------------------------------------------

    def commit(self) -> None:
        """Make everything in the journal durable and put it in place."""
        self.journal.sync()
        with self._lock:
            pending = list(self._pending.values())
        for file in pending:
            if self.places.wandering(file.node):
                self.places.sync(file.node.parent)
            file.apply()
            with self._lock:
                if not file.has_pending():
                    self._pending.pop(file.header.object_id, None)

    def fsync(self, file: File) -> None:
        """All steps for one file. Every error is the caller's."""
        if file.unlinked:
            return
        file.flush()
        if file.has_pending():
            self.commit()
        if file.unsynced:
            plan = None if file.durable else self.places.plan(file.node.parent)
            if plan is not None:
                file.carry(plan.headers)
            self._sync_in_place(file)
            if plan is not None:
                self.places.synced(plan.marks)
                return
        self.places.sync(file.node.parent)

    def _sync_in_place(self, file: File) -> None:
        """Sync a file in place; what is in place is newer than what recovery would write over it."""
        journaled = self.journal.live(file.header.object_id)
        for _ in range(_TRIES):
            if self._settle_file(file):
                break
            # Somebody wrote to it meanwhile, behind what must not be applied any more: once again.
            self.commit()
        else:
            # It is written to all the time: everybody waits for one sync.
            with self._namespace, file.lock:
                self.settle_held(file)
        if journaled:
            self.journal.sync()

    def _settle_file(self, file: File) -> bool:
        """Sync a file in place, and void its journal records unless one was added meanwhile.

        As long as they are not void, a file that was emptied counts as not synced: recovery would empty it
        again, whatever is in place, and would not write that anew.
        """
        object_id = file.header.object_id
        try:
            at = file.sync_in_place()
        except OSError as error:
            self._failed = error
            raise
        with file.lock:
            if self.journal.live(object_id):
                # A `settled` behind a record that is not durable in place would lose it.
                if at is None or at != file.journaled_at:
                    return False
                self.journal.settle(object_id)
                if file.emptied:
                    self.journal.sync()
                with self._lock:
                    self._live.pop(object_id, None)
            file.emptied = False
            return True

    def make_durable(self, file: File) -> None:
        """The content, not yet the name."""
        file.flush()
        if file.has_pending():
            self.commit()
        if file.unsynced:
            self._sync_in_place(file)

    def settle_fully(self, file: File) -> None:
        """Put everything of a file in place, durably, and void what the journal has of it so far."""
        file.flush()
        if file.has_pending():
            self.commit()
        if file.unsynced or self.journal.live(file.header.object_id):
            self._sync_in_place(file)

    def settle_held(self, file: File) -> None:
        """The same with the namespace lock and the file's lock held, so that nothing comes in between."""
        file.flush()
        if not (file.unsynced or file.has_pending() or self.journal.live(file.header.object_id)):
            return
        self.journal.sync()
        if self.places.wandering(file.node):
            self.places.sync(file.node.parent)
        file.apply()
        with self._lock:
            self._pending.pop(file.header.object_id, None)
        if not self._settle_file(file):
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
        self.journal.sync()

    def header_replaced(self, node: Node, slot: int) -> Unsettled:
        """A closed file's header was written by a job, to the slot that is not `slot`, and not synced."""
        with self._lock:
            left = self._unsettled[node.ino] = Unsettled(node, True, slot)
            return left

    def headers_synced(self, left: Iterable[Unsettled]) -> None:
        """What `header_replaced` returned is durable, unless it changed since."""
        with self._lock:
            for token in left:
                if self._unsettled.get(token.node.ino) is token:
                    del self._unsettled[token.node.ino]

    def checkpoint(self, file: File) -> None:
        """Put a file's journal records in place and sync it, so that recovery has nothing to do for it."""
        file.flush()
        self.commit()
        if file.emptied:
            self._sync_in_place(file)
        elif self.journal.live(file.header.object_id):
            self._settle_file(file)

    def hold_back(self) -> None:
        """Empty a journal that grows faster than the background work empties it."""
        if self.journal.size > JOURNAL_FULL:
            self.checkpoint_all()

    def checkpoint_all(self) -> None:
        """Put everything in place, sync it, and remove the journal's segments; one caller at a time."""
        with self._checkpointing:
            self._checkpoint_all()

    def _checkpoint_all(self) -> None:
        with self._lock:
            files = list(self._live.values())
        for file in files:
            if self.hold(file):
                try:
                    self.checkpoint(file)
                finally:
                    self.let_go(file)
        if self.journal.deletions:
            self._sync_everything()
        if not self.journal.any_live():
            self.journal.reset()

    def settle(self) -> bool:
        """Sync the files that were closed without fsync, and all names, in one go.

        This ends a phase of the session: after a power cut only files begun in a later one are
        suspected of having lost something. False if there was nothing to do.
        """
        with self._lock:
            unsettled = dict(self._unsettled)
        marks, made = self.places.all_marks(), self.places.unplaced()
        if not unsettled and not marks and not made and self._vault.state.phase == self.phase - 1:
            return False
        ended, self.phase = self.phase, self.phase + 1
        self.places.sync_headers()
        self._sync_everything()
        with self._lock:
            for ino, token in unsettled.items():
                if self._unsettled.get(ino) is token:
                    del self._unsettled[ino]
        self.places.synced(marks)
        self.places.placed(made)
        # A file that is still being written holds its own phase back.
        still = [
            file.header.phase
            for file in self.open_files()
            if (file.emptied or not file.durable) and not file.unlinked
        ]
        self._vault.state.completed(min([ended, *(phase - 1 for phase in still)]))
        return True

    def _sync_everything(self) -> None:
        """syncfs. Once a sync of content failed, this fails for good, with the same error.

        The kernel may have dropped what it could not write. The phase, and so the session, is not
        recorded as synced, and the next mount checks what was begun in it.
        """
        if self._failed is not None:
            raise OSError(self._failed.errno, self._failed.strerror)
        try:
            syncfs(self._vault.tree_fd)
        except OSError as error:
            self._failed = error
            raise

    def sync_all(self) -> None:
        """Everything given to the disk so far is durable, and nothing is left in the journal.

        The rollback witness hears of it then: it records only what a power cut cannot take back.
        """
        with self._settling:
            with self._namespace:
                for file in self.open_files():
                    self.note(file)
                batch = self._witness.cut()
            try:
                self.checkpoint_all()
                if not self.settle() and batch is not None:
                    self.places.sync_headers()
                    self._sync_everything()
            except BaseException:
                if batch is not None:
                    with self._namespace:
                        self._witness.give_back(batch)
                raise
            if batch is not None:
                self._witness.commit(batch)

    # -- in the background -------------------------------------------------------------------

    def start(self) -> None:
        """Begin to commit and settle in the background."""
        self._thread = threading.Thread(target=self._run, name="cryptfs-commit", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the background work; what it had not done yet stays to be done."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _run(self) -> None:
        settled = time.monotonic()
        while not self._stop.wait(COMMIT_INTERVAL):
            try:
                with self.gate.try_change() as may_change:
                    if may_change:
                        settled = self._round(settled)
            except OSError as error:
                # Nothing is lost: it all stays in the journal or in memory, and whoever
                # calls fsync gets the error himself.
                log.error("cannot sync the vault: %s", error.strerror)
            except Exception as error:  # this thread must live as long as the mount
                log.error("syncing in the background failed with %s", type(error).__name__)

    def _round(self, settled: float) -> float:
        """What there is to do in the background; when everything was last settled (monotonic seconds)."""
        if self.refused:
            self.refused.give_again(self.hold, self.let_go)
        if self._pending:
            self.commit()
        if self.journal.size > JOURNAL_MAX or len(self._live) > OPEN_MAX:
            self.checkpoint_all()
        if (
            time.monotonic() - settled > SETTLE_INTERVAL
            or len(self._unsettled) > SETTLE_AT
            or self.places.crowded(SETTLE_AT)
            or self._witness.crowded
        ):
            settled = time.monotonic()
            self.sync_all()
        return settled
