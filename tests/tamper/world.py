"""A vault with one of everything, at three moments of its life, and what is in it by object.

* `old`: a first version;
* `clean`: many objects changed, replaced, made or deleted since, and unmounted;
* `killed`: mounted again and killed, with synced overwrites in the journal alone, and a new file that was
  never synced.

All three lie at the same path when they are used, with what the computer remembers of them.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from cryptfs.fs import FileSystem
from cryptfs.fs.types import SetAttr
from cryptfs.keyslots import RecoveryKey
from cryptfs.vault import config
from tests.check.support import _Linking
from tests.golden import independent_reader as reader
from tests.security.archive import Archive, Mounted, entry_of
from tests.tamper.observe import Seen, look
from tests.waiting import wait_for_another_time

LONG, LONG_FOLDER = "n" * 250, "d" * 240
DATABASE, UNSYNCED, SPARSE = "index.db", "anna/unsynced.dcm", "holes.dcm"
HOLE = (1 << 20) + (1 << 14)
FOLDERS = ("", "anna", "anna/ct", "anna/mr", "bert", "void", LONG_FOLDER)
OBJECTS = (
    "anna/ct/1.dcm", "anna/ct/2.dcm", "anna/mr/1.dcm", "anna/report.txt", "anna/twice", f"anna/{LONG}",
    UNSYNCED,
    "bert/gone", "bert/link", "bert/new.dcm", "bert/report.txt", "bert/second", "bert/socket",
    DATABASE, "empty", "fifo", SPARSE, "link", f"{LONG_FOLDER}/inside", "replaced",
)  # fmt: skip
"""All paths that there are at one moment or another."""
WITH_ATTRIBUTES = ("anna", "anna/report.txt", "link", DATABASE)


def noise(label: str, size: int) -> bytes:
    """Bytes that no other object has."""
    return random.Random(label).randbytes(size)


@dataclass
class Moment:
    """The vault at one time: where each path lies in the ciphertext, and what is seen there."""

    folder: Path
    places: dict[str, str] = field(default_factory=dict)
    seen: dict[bytes, Seen] = field(default_factory=dict)


class World:
    """The moments, and the vault that is made of one of them to be attacked."""

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        self.archive = Archive(scratch / "vault")
        self.vault, self.state = self.archive.path, scratch / "state"
        self.archive.state = self.state
        config.add_slot(self.archive.unlock(), RecoveryKey.new())  # now there is a cryptfs.json.previous
        self.moments: dict[str, Moment] = {}
        self._first()
        self._keep("old")
        self._second()
        self._keep("clean")
        self._killed()
        self.versions: dict[bytes, list[Seen]] = {}
        """What each object ever was, by its id."""
        for name in ("old", "clean", "killed"):
            moment = self.moments[name]
            self.put(name)
            moment.places = dict(self._places())
            with self.archive.mounted(xattrs=True) as mount:
                moment.seen = look(mount.fs)
            self._check(name, moment)
            for one in moment.seen.values():
                self.versions.setdefault(one.object_id, []).append(one)
        assert {*FOLDERS, *OBJECTS} == {path for moment in self.moments.values() for path in moment.places}
        self.unsynced = self.moments["killed"].seen[UNSYNCED.encode()].object_id
        self.sparse = self.moments["clean"].seen[SPARSE.encode()].object_id

    # -- making ----------------------------------------------------------------------------------

    def _first(self) -> None:
        with self.archive.mounted(xattrs=True) as mount:
            mount.fs._committer.places.ordered = True  # so that headers are carried, whatever is below
            for folder in ("anna", "anna/ct", "bert", LONG_FOLDER, "void"):
                mount.mkdir(folder)
            mount.write("anna/ct/1.dcm", noise("1", 150_000))
            mount.write("anna/ct/2.dcm", noise("2", 2 * 65_536))
            mount.write("anna/report.txt", b"the first version")
            mount.write("anna/twice", b"linked")
            mount.write(f"anna/{LONG}", b"a long name")
            mount.write(f"{LONG_FOLDER}/inside", b"in a folder with a long name")
            mount.write("bert/report.txt", b"the report of another")
            mount.write("bert/gone", b"deleted since")
            mount.write(DATABASE, noise("database", 5 * 4096 + 100))
            mount.write(SPARSE, noise("end", 5000), offset=HOLE)
            mount.write("empty", b"")
            mount.write("replaced", b"another object since")
            mount.symlink("link", b"anna/ct/1.dcm")
            mount.symlink("bert/link", b"nowhere/" * 30)
            owner = mount.owner
            mount.fs.mknod(1, b"fifo", stat.S_IFIFO | 0o600, 0, owner)
            mount.fs.mknod(mount.ino("bert"), b"socket", stat.S_IFSOCK | 0o600, 0, owner)
            mount.fs.link(mount.ino("anna/twice"), mount.ino("bert"), b"second")
            for path in WITH_ATTRIBUTES:
                mount.fs.setxattr(mount.ino(path), b"user.of", path.encode())
            mount.fs.sync()

    def _second(self) -> None:
        with self.archive.mounted(xattrs=True) as mount:
            mount.fs._committer.places.ordered = True
            _rewrite(mount, "anna/report.txt", b"the second version, which is longer")
            mount.write(DATABASE, noise("new page", 4096), offset=4096)
            mount.fs.setattr(mount.ino("anna/ct"), SetAttr(mode=0o700))
            mount.fs.setattr(mount.ino("bert/report.txt"), SetAttr(mode=0o600))
            mount.fs.setxattr(mount.ino("anna/report.txt"), b"user.of", b"the second version")
            mount.write("bert/new.dcm", noise("new", 70_000))
            mount.write("bert/temporary", b"it has this name since")
            mount.fs.rename(mount.ino("bert"), b"temporary", 1, b"replaced")
            mount.fs.unlink(mount.ino("bert"), b"gone")
            mount.mkdir("anna/mr")
            mount.write("anna/mr/1.dcm", noise("mr", 9000))
            mount.fs.sync()
            look(mount.fs)

    def _killed(self) -> None:
        """What a power cut leaves: the journal has what was synced, and its place has what was before."""
        self.put("clean")
        with self.archive.mounted(xattrs=True) as mount:
            mount.fs._committer.stop()  # all is copied at one instant
            lower = self.archive.lower(DATABASE)
            look(mount.fs)
            mount.fs.sync()
            before = lower.read_bytes()
            mount.write(DATABASE, noise("newest page", 4096), offset=3 * 4096)
            parent, name = mount.ino("anna"), os.path.basename(UNSYNCED).encode()
            handle, _ = mount.fs.create(parent, name, 0o640, mount.owner, os.O_RDWR)
            mount.fs.write(handle, 0, noise("unsynced", 2 * 65_536 + 3000))
            mount.fs.flush(handle)
            self._keep("killed")
            mount.fs.release(handle)
        kept = self.moments["killed"].folder / "vault" / lower.relative_to(self.vault)
        kept.write_bytes(before)
        assert list((self.moments["killed"].folder / "vault/journal").glob("*.seg"))

    def _keep(self, name: str) -> None:
        folder = self.scratch / "kept" / name
        shutil.copytree(self.vault, folder / "vault", symlinks=True, copy_function=_Linking())
        shutil.copytree(self.state, folder / "state")
        self.moments[name] = Moment(folder)

    def put(self, name: str) -> None:
        """Have the vault be as it was at a moment, and the computer know what it knew then."""
        for made, kept in ((self.vault, "vault"), (self.state, "state")):
            shutil.rmtree(made, ignore_errors=True)
            shutil.copytree(self.moments[name].folder / kept, made, symlinks=True, copy_function=_Linking())

    def forget(self, *, witness_only: bool = False) -> None:
        """The computer knows nothing of the vault; or has lost its witness and kept its index."""
        for folder in self.state.glob("*/at-*") if witness_only else [self.state]:
            shutil.rmtree(folder)

    def _places(self) -> Iterator[tuple[str, str]]:
        """Where each path lies, found by the independent reader."""
        keys = self.archive.keys()
        state = (self.vault / "journal/state").read_bytes()
        assert reader.unclean_sessions(state, keys) is not None
        todo = [("", self.vault / "tree")]
        while todo:
            path, folder = todo.pop()
            yield path, folder.relative_to(self.vault).as_posix()
            if not folder.is_dir():
                continue
            header = reader.parse_area((folder / "@dir").read_bytes(), keys)
            assert header is not None
            key = reader.expand(header.key, "cryptfs v1 names", 64)
            for entry in folder.iterdir():
                if entry.name == "@dir" or entry.name.endswith(".name"):
                    continue
                sidecar = entry.with_name(entry.name + ".name")
                text = sidecar.read_text() if sidecar.exists() else entry.name
                name = reader.siv_open(key, reader.unbase64url(text), [header.object_id])
                assert entry_of(folder, header, name) == entry.name
                todo.append((f"{path}/{name.decode()}".lstrip("/"), entry))

    def _check(self, name: str, moment: Moment) -> None:
        """What is seen is what was written, so that nothing is compared with a mistake."""
        seen = moment.seen
        assert {path.encode() for path in moment.places} == set(seen), name
        assert not any(one.error for one in seen.values())
        old, killed = name == "old", name == "killed"
        database = bytearray(noise("database", 5 * 4096 + 100))
        if not old:
            database[4096:8192] = noise("new page", 4096)
        if killed:
            database[3 * 4096 : 4 * 4096] = noise("newest page", 4096)
            assert seen[UNSYNCED.encode()].content == noise("unsynced", 2 * 65_536 + 3000)
        report = b"the first version" if old else b"the second version, which is longer"
        expected = {
            DATABASE: bytes(database),
            "anna/report.txt": report,
            "anna/ct/1.dcm": noise("1", 150_000),
            "anna/ct/2.dcm": noise("2", 2 * 65_536),
            "empty": b"",
            SPARSE: bytes(HOLE) + noise("end", 5000),
            "bert/second": b"linked",
            "replaced": b"another object since" if old else b"it has this name since",
        }
        for path, content in expected.items():
            assert seen[path.encode()].content == content, path
        assert seen[b"link"].target == b"anna/ct/1.dcm"
        assert seen[b"anna/report.txt"].attributes == {
            b"user.of": b"anna/report.txt" if old else b"the second version"
        }

    # -- mounting --------------------------------------------------------------------------------

    @contextlib.contextmanager
    def mounted(self, *, keeps: bool) -> Iterator[FileSystem]:
        """The vault, mounted; with what the computer remembers, or as on one that keeps nothing."""
        self.archive.state = self.state if keeps else None
        with self.archive.mounted(xattrs=True) as mount:
            yield mount.fs

    def wait_for_another_time(self) -> None:
        """Until what is changed from now on has another change time than what was changed before."""
        wait_for_another_time(self.scratch)


def _rewrite(mount: Mounted, path: str, data: bytes) -> None:
    ino = mount.ino(path)
    handle = mount.fs.open(ino, os.O_RDWR | os.O_TRUNC)
    mount.fs.write(handle, 0, data)
    mount.fs.fsync(handle)
    mount.fs.release(handle)
