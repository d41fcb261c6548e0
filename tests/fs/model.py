"""A state machine that does the same random operations on two trees and compares all it can see.

One tree is always a plain directory, which is the model. What the other is, a subclass says: a
`FileSystem` in this process or a real mount. Files are named by their path below the root of the
tree, open files by small numbers.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import stat
from collections.abc import Iterator

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from .trees import RENAME_EXCHANGE, RENAME_NOREPLACE, SET_BEFORE_NS, PlainTree, Stat, Tree, scratch

_sizes = st.sampled_from([0, 1, 4096, 8192, 65536, 131072, 200_000])
_nearby = st.integers(-2, 2)
_offsets = st.builds(lambda size, more: max(0, size + more), _sizes, _nearby)
_lengths = st.builds(lambda size, more: max(1, size + more), _sizes, _nearby)
_handles = st.integers(0, 4)
# Chosen by number, so that an example can be read when hypothesis prints it.
NAMES = ["a", "b", "DOE^JANE.dcm", "index.dat", "é" * 127, "n" * 176, "n" * 255]
TARGETS = ["nowhere", "nowhere/../b", "nowhere/é" * 300]
_modes = st.sampled_from([0o600, 0o644, 0o000, 0o755, 0o1777, 0o2755, 0o4711])
_xattr_names = st.sampled_from(["user.a", "user.é=%", "user." + "x" * 200])
_set_times = st.integers(-(10**18), SET_BEFORE_NS - 1)


class TreeMachine(RuleBasedStateMachine):
    """Random operations on the model and on the subject; subclasses say what the subject is."""

    xattrs = True

    def make_subject(self) -> Tree:
        raise NotImplementedError

    def __init__(self) -> None:
        super().__init__()
        self._umask = os.umask(0)
        self.model = PlainTree(scratch("cryptfs-model-"))
        self.open_handles: dict[int, int] = {}
        self._history: list[str] = []
        self._differ = False
        self.subject: Tree = self.make_subject()

    def both(self, operation: str, *arguments: object) -> object:
        """Does one thing on both trees; they must give the same answer or the same errno."""
        answers = []
        self._differ = True  # until it is shown that they do not, whatever is raised meanwhile
        for tree in (self.model, self.subject):
            try:
                answers.append((getattr(tree, operation)(*arguments), None))
            except OSError as error:
                answers.append((None, os.strerror(error.errno or 0)))
        self._history.append(f"{operation}({', '.join(map(_short, arguments))})")
        self._differ = answers[0] != answers[1]
        assert not self._differ, self._difference(*answers)
        return answers[0][0] if answers[0][1] is None else OSError

    def _difference(self, expected: object, actual: object) -> str:
        """Both answers, shortened to where they part, and how it came to that."""
        left, right = repr(expected), repr(actual)
        if len(left) + len(right) > 1000:
            pairs = enumerate(zip(left, right, strict=False))
            at = next((i for i, (a, b) in pairs if a != b), min(len(left), len(right)))
            left, right = (
                f"…{text[max(0, at - 40) : at + 200]}… ({len(text)} characters)" for text in (left, right)
            )
        before = "\n    ".join(step for step in self._history[-60:] if not step.startswith("fstat"))
        answers = f"  plain directory: {left}\n  cryptfs:         {right}"
        return f"{self._history[-1]}\n{answers}\n  after\n    {before}"

    # -- choosing paths: mostly what is there, sometimes what is not

    def _walk(self, path: str = "") -> Iterator[str]:
        yield path
        with os.scandir(f"{self.model.root}/{path}") as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                below = f"{path}/{entry.name}".strip("/")
                if entry.is_dir(follow_symlinks=False):
                    yield from self._walk(below)
                else:
                    yield below

    def _existing(self, data: st.DataObject) -> str:
        paths = list(self._walk())
        return paths[data.draw(st.integers(0, len(paths) - 1), "path")]

    def _new(self, data: st.DataObject) -> str:
        """A name in an existing directory (sometimes in a file, which must fail), often free."""
        places = [path for path in self._walk() if path.count("/") < 3]
        directory = places[data.draw(st.integers(0, len(places) - 1), "directory")]
        name = NAMES[data.draw(st.integers(0, len(NAMES) - 1), "name")]
        return f"{directory}/{name}".strip("/")

    def _any(self, data: st.DataObject) -> str:
        return self._new(data) if data.draw(st.integers(0, 3), "existing") == 3 else self._existing(data)

    def _file(self, data: st.DataObject) -> str:
        files = [p for p in self._walk() if stat.S_ISREG(os.lstat(f"{self.model.root}/{p}").st_mode)]
        return files[data.draw(st.integers(0, len(files) - 1), "file")] if files else self._new(data)

    @initialize(lengths=st.lists(_lengths, min_size=3, max_size=3))
    def begin(self, lengths: list[int]) -> None:
        """A few files and directories, else most operations would find nothing to work on."""
        self.both("mkdir", "a", 0o755)
        self.both("mkdir", "a/b", 0o755)
        places = ("DOE^JANE.dcm", "index.dat", "a/" + "n" * 255)
        for handle, (path, length) in enumerate(zip(places, lengths, strict=True)):
            self._open(handle, path, os.O_RDWR | os.O_CREAT, 0o644)
            self.both("write", handle, 0, random.Random(length).randbytes(length))

    # -- files

    @rule(data=st.data(), handle=_handles, mode=_modes, flags=st.sampled_from([0, os.O_EXCL, os.O_TRUNC]))
    def create(self, data: st.DataObject, handle: int, mode: int, flags: int) -> None:
        self._open(handle, self._new(data), os.O_RDWR | os.O_CREAT | flags, mode)

    @rule(
        data=st.data(),
        handle=_handles,
        flags=st.sampled_from([os.O_RDONLY, os.O_RDWR, os.O_RDWR | os.O_TRUNC]),
    )
    def open(self, data: st.DataObject, handle: int, flags: int) -> None:
        self._open(handle, self._file(data), flags, 0)

    def _open(self, handle: int, path: str, flags: int, mode: int) -> None:
        with contextlib.suppress(OSError):
            kind = stat.S_IFMT(self.model.stat(path).mode)
            if kind == stat.S_IFIFO:  # opening it would wait for a writer
                return
            if kind == stat.S_IFDIR and flags == os.O_RDONLY:  # listdir does that
                return
        if handle in self.open_handles:
            self._close(handle)
        if self.both("open", handle, path, flags, mode) is not OSError:
            self.open_handles[handle] = flags

    def _opened(self, data: st.DataObject, writable: bool = True) -> int | None:
        """One of the open files."""
        handles = [handle for handle, flags in self.open_handles.items() if not writable or flags & os.O_RDWR]
        return handles[data.draw(st.integers(0, len(handles) - 1), "open file")] if handles else None

    def _close(self, handle: int) -> None:
        del self.open_handles[handle]
        self.both("close", handle)

    @precondition(lambda self: self.open_handles)
    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        handle = self._opened(data, writable=False)
        if handle is not None:
            self._close(handle)

    @precondition(lambda self: self.open_handles)
    @rule(data=st.data(), offset=_offsets, length=_lengths, fill=st.integers(0, 255))
    def write(self, data: st.DataObject, offset: int, length: int, fill: int) -> None:
        handle = self._opened(data)
        if handle is not None:
            content = random.Random(fill).randbytes(length) if fill else bytes(length)
            self.both("write", handle, offset, content)

    @precondition(lambda self: self.open_handles)
    @rule(data=st.data(), length=_lengths, fill=st.integers(0, 255))
    def append(self, data: st.DataObject, length: int, fill: int) -> None:
        handle = self._opened(data)
        if handle is not None and (self.model.fstat(handle).size or 0) < 1_000_000:
            self.both("append", handle, random.Random(fill).randbytes(length))

    @precondition(lambda self: self.open_handles)
    @rule(data=st.data(), offset=_offsets, count=st.integers(2, 12), step=st.sampled_from([24, 4096, 4120]))
    def write_run(self, data: st.DataObject, offset: int, count: int, step: int) -> None:
        """Many small writes one after the other, as every imaging server does."""
        handle = self._opened(data)
        if handle is not None:
            for number in range(count):
                self.both("write", handle, offset + number * step, random.Random(number).randbytes(step))

    @precondition(lambda self: self.open_handles)
    @rule(data=st.data(), offset=_offsets, length=_lengths)
    def read(self, data: st.DataObject, offset: int, length: int) -> None:
        self.both("read", self._opened(data, writable=False), offset, length)

    @precondition(lambda self: self.open_handles)
    @rule(data=st.data(), size=_offsets)
    def ftruncate(self, data: st.DataObject, size: int) -> None:
        handle = self._opened(data)
        if handle is not None:
            self.both("ftruncate", handle, size)

    @rule(data=st.data(), size=_offsets)
    def truncate(self, data: st.DataObject, size: int) -> None:
        path = self._file(data)
        with contextlib.suppress(OSError):
            if self.model.stat(path).size == size:  # whether that changes the mtime is up to the filesystem
                return
        self.both("truncate", path, size)

    @precondition(lambda self: self.open_handles)
    @rule(data=st.data(), how=st.sampled_from(["flush", "fsync", "fdatasync"]))
    def sync(self, data: st.DataObject, how: str) -> None:
        handle = self._opened(data, writable=False)
        if how == "flush":
            self.both("flush", handle)
        else:
            self.both("fsync", handle, how == "fdatasync")

    # -- attributes

    @rule(data=st.data(), mode=_modes)
    def chmod(self, data: st.DataObject, mode: int) -> None:
        self.both("chmod", self._any(data), mode)

    @rule(data=st.data(), atime_ns=_set_times, mtime_ns=_set_times)
    def utime(self, data: st.DataObject, atime_ns: int, mtime_ns: int) -> None:
        self.both("utime", self._any(data), atime_ns, mtime_ns)

    @precondition(lambda self: self.xattrs)
    @rule(
        data=st.data(), name=_xattr_names, value=st.binary(max_size=100), flags=st.sampled_from([0, 0, 1, 2])
    )
    def setxattr(self, data: st.DataObject, name: str, value: bytes, flags: int) -> None:
        self.both("setxattr", self._any(data), name, value, flags)

    @precondition(lambda self: self.xattrs)
    @rule(data=st.data(), name=_xattr_names, operation=st.sampled_from(["getxattr", "removexattr"]))
    def look_at_xattr(self, data: st.DataObject, name: str, operation: str) -> None:
        self.both(operation, self._any(data), name)

    # -- names

    @rule(data=st.data(), mode=_modes)
    def mkdir(self, data: st.DataObject, mode: int) -> None:
        self.both("mkdir", self._new(data), mode)

    @rule(data=st.data(), mode=_modes)
    def mkfifo(self, data: st.DataObject, mode: int) -> None:
        self.both("mkfifo", self._new(data), mode)

    @rule(data=st.data(), number=st.integers(0, len(TARGETS) - 1))
    def symlink(self, data: st.DataObject, number: int) -> None:
        path = self._new(data)
        if self.both("symlink", TARGETS[number], path) is not OSError:
            self.both("readlink", path)

    @rule(data=st.data())
    def link(self, data: st.DataObject) -> None:
        self.both("link", self._any(data), self._new(data))

    @rule(data=st.data(), flags=st.sampled_from([0, 0, RENAME_NOREPLACE, RENAME_EXCHANGE]))
    def rename(self, data: st.DataObject, flags: int) -> None:
        old, new = self._any(data), self._any(data)
        if old and new:
            self.both("rename", old, new, flags)

    @rule(data=st.data())
    def unlink(self, data: st.DataObject) -> None:
        if path := self._any(data):
            self.both("unlink", path)

    @rule(data=st.data())
    def rmdir(self, data: st.DataObject) -> None:
        if path := self._any(data):
            self.both("rmdir", path)

    @rule(data=st.data())
    def fsyncdir(self, data: st.DataObject) -> None:
        path = self._existing(data)
        with contextlib.suppress(OSError):
            if stat.S_ISDIR(self.model.stat(path).mode):
                self.both("fsyncdir", path)

    # -- comparing

    @invariant()
    def same_open_files(self) -> None:
        for handle in self.open_handles:
            self.both("fstat", handle)

    @rule()
    def compare_everything(self) -> None:
        for path in list(self._walk()):
            status = self.both("stat", path)
            assert isinstance(status, Stat)
            if stat.S_ISDIR(status.mode):
                self.both("listdir", path)
            elif stat.S_ISLNK(status.mode):
                self.both("readlink", path)
            elif stat.S_ISREG(status.mode):
                self.both("open", -1, path, os.O_RDONLY, 0)
                self.both("read", -1, 0, 2_000_000)
                self.both("close", -1)
            if self.xattrs and not stat.S_ISLNK(status.mode):
                for name in self.both("listxattr", path):  # type: ignore[attr-defined]
                    self.both("getxattr", path, name)

    @rule()
    def reopen(self) -> None:
        """Nothing may live in memory alone."""
        for handle in list(self.open_handles):
            self._close(handle)
        self.model.reopen()
        self._differ = True
        self.subject.reopen()
        self.compare_everything()

    def teardown(self) -> None:
        try:
            if not self._differ:
                self.compare_everything()
                self.reopen()
        finally:
            os.umask(self._umask)
            try:
                self.subject.destroy()
            finally:
                self.model.destroy()


def _short(argument: object) -> str:
    """An argument as the report of a difference shows it."""
    if isinstance(argument, bytes):
        return f"{len(argument)} bytes"
    return re.sub(r"(.+?)\1{9,}", lambda run: f"{run[1]}…{len(run[0])}…", repr(argument))


def machine_settings(examples: int, steps: int, shrink: bool = True) -> settings:
    """Settings of a run; CRYPTFS_TEST_EXAMPLES replaces the number of examples for a long one.

    Without `shrink` a difference is reported as it was found, at once.
    """
    return settings(
        max_examples=int(os.environ.get("CRYPTFS_TEST_EXAMPLES", examples)),
        stateful_step_count=steps,
        deadline=None,
        database=None,
        print_blob=True,
        phases=[Phase.generate, *([Phase.shrink] if shrink else [])],
        suppress_health_check=list(HealthCheck),
    )
