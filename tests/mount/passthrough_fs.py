"""A filesystem with the interface of `cryptfs.fs.FileSystem` over a plain directory, for tests.

It encrypts nothing, so that tests of the mount layer fail only for what that layer does. It counts
references and open handles as strictly as it can: a reference given back twice, or one for an inode
that nobody was told of, is an AssertionError (and so EIO and a line in the log).
"""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from cryptfs.fs.types import Attr, Owner, SetAttr, StatFs

ROOT = 1


@dataclass
class Node:
    ino: int
    refs: int = 0
    opens: int = 0
    links: list[tuple[int, bytes]] = field(default_factory=list)
    kept: int | None = None  # a descriptor of an object without a name
    xattrs: dict[bytes, bytes] = field(default_factory=dict)


class PassthroughFs:
    def __init__(self, directory: str, *, xattrs: bool = False) -> None:
        self.directory = os.fsencode(directory)
        self.xattrs = xattrs
        self.calls: Counter[str] = Counter()
        self.closed = False
        self.lock = threading.RLock()
        self.nodes: dict[int, Node] = {ROOT: Node(ROOT)}
        self.handles: dict[int, tuple[int, int]] = {}  # handle -> (inode, descriptor)
        self.listings: dict[int, tuple[int, list[bytes]]] = {}
        self.offered: dict[int, list[Node]] = {}
        self.kept_xattrs: dict[int, dict[bytes, bytes]] = {}
        self.next_handle = count(1)
        self.bytes_read = self.bytes_written = 0

    # what the tests look at

    def references(self) -> dict[int, int]:
        return {ino: node.refs for ino, node in self.nodes.items() if ino != ROOT and node.refs}

    # helpers

    def path(self, ino: int) -> bytes:
        if ino == ROOT:
            return self.directory
        node = self.nodes.get(ino)
        if node is None or not node.links:
            raise OSError(errno.ESTALE, "no such inode")
        parent, name = node.links[0]
        return self.path(parent) + b"/" + name

    def child(self, parent: int, name: bytes) -> bytes:
        return self.path(parent) + b"/" + name

    def attr(self, ino: int, st: os.stat_result) -> Attr:
        return Attr(
            ino,
            st.st_mode,
            st.st_nlink,
            st.st_uid,
            st.st_gid,
            st.st_rdev,
            st.st_size,
            st.st_blocks,
            st.st_atime_ns,
            st.st_mtime_ns,
            st.st_ctime_ns,
        )

    def node_of(self, parent: int, name: bytes, st: os.stat_result) -> Node:
        node = self.nodes.get(st.st_ino)
        if node is None:
            node = self.nodes[st.st_ino] = Node(st.st_ino, xattrs=self.kept_xattrs.get(st.st_ino, {}))
        if (parent, name) not in node.links:
            node.links.append((parent, name))
        return node

    def enter(self, parent: int, name: bytes) -> Attr:
        st = os.lstat(self.child(parent, name))
        node = self.node_of(parent, name, st)
        node.refs += 1
        return self.attr(node.ino, st)

    def give(self, parent: int, name: bytes, owner: Owner) -> None:
        if os.geteuid() == 0:
            # The directory below has already handed its group down where it is set-group-ID.
            above = os.stat(self.path(parent))
            gid = above.st_gid if above.st_mode & stat.S_ISGID else owner.gid
            os.chown(self.child(parent, name), owner.uid, gid, follow_symlinks=False)

    def drop_if_unused(self, node: Node) -> None:
        if node.refs == 0 and node.opens == 0 and node.ino != ROOT:
            if node.kept is not None:
                os.close(node.kept)
            elif node.xattrs:
                self.kept_xattrs[node.ino] = node.xattrs
            del self.nodes[node.ino]

    def forget_name(self, parent: int, name: bytes) -> None:
        """Before a name goes away: keep hold of an object that is known by it alone."""
        try:
            st = os.lstat(self.child(parent, name))
        except FileNotFoundError:
            return
        node = self.nodes.get(st.st_ino)
        if node is None:
            return
        if st.st_nlink == 1 or stat.S_ISDIR(st.st_mode):
            node.kept = os.open(self.child(parent, name), os.O_PATH | os.O_NOFOLLOW)
        if (parent, name) in node.links:
            node.links.remove((parent, name))

    def fstat(self, ino: int) -> os.stat_result:
        node = self.nodes.get(ino)
        if node is not None and node.kept is not None:
            return os.fstat(node.kept)
        return os.lstat(self.path(ino))

    # inodes

    def lookup(self, parent: int, name: bytes) -> Attr:
        with self.lock:
            self.calls["lookup"] += 1
            return self.enter(parent, name)

    def remember(self, ino: int) -> None:
        with self.lock:
            self.nodes[ino].refs += 1

    def remember_listed(self, dh: int, inos: Iterable[int]) -> None:
        for ino in inos:
            self.remember(ino)

    def forget_all(self, counts: Iterable[tuple[int, int]]) -> None:
        for ino, n in counts:
            self.forget(ino, n)

    def forget(self, ino: int, n: int) -> None:
        with self.lock:
            if ino == ROOT:
                return
            node = self.nodes[ino]
            assert node.refs >= n, "more references given back than taken"
            node.refs -= n
            self.drop_if_unused(node)

    def getattr(self, ino: int) -> Attr:
        with self.lock:
            self.calls["getattr"] += 1
            return self.attr(ino, self.fstat(ino))

    def setattr(self, ino: int, changes: SetAttr, handle: int | None = None) -> Attr:
        with self.lock:
            self.calls["setattr"] += 1
            node = self.nodes[ino]
            fds = [fd for of, fd in self.handles.values() if of == ino]
            target: Any = fds[0] if node.kept is not None and fds else self.path(ino) if node.links else None
            target = self.directory if ino == ROOT else target
            if target is None:
                raise OSError(errno.ESTALE, "no name and no handle")
            link = {} if isinstance(target, int) else {"follow_symlinks": False}
            if changes.size is not None:
                os.truncate(target, changes.size)
            if changes.uid is not None or changes.gid is not None:
                uid = -1 if changes.uid is None else changes.uid
                gid = -1 if changes.gid is None else changes.gid
                os.chown(target, uid, gid, **link)
            if changes.mode is not None:
                os.chmod(target, changes.mode)
            if changes.atime_ns is not None or changes.mtime_ns is not None:
                st = self.fstat(ino)
                atime = st.st_atime_ns if changes.atime_ns is None else changes.atime_ns
                mtime = st.st_mtime_ns if changes.mtime_ns is None else changes.mtime_ns
                os.utime(target, ns=(atime, mtime), **link)
            return self.getattr(ino)

    def readlink(self, ino: int) -> bytes:
        return os.readlink(self.path(ino))

    # directories

    def opendir(self, ino: int) -> int:
        with self.lock:
            self.calls["opendir"] += 1
            dh = next(self.next_handle)
            self.listings[dh] = (ino, [])
            return dh

    def readdir(self, dh: int, offset: int) -> Iterator[tuple[bytes, Attr, int]]:
        self.calls["readdir"] += 1
        ino, names = self.listings[dh]
        if offset == 0:
            names[:] = sorted(os.listdir(self.path(ino)))
        for number, name in enumerate(names[offset:], offset + 1):
            try:
                st = os.lstat(self.child(ino, name))
            except FileNotFoundError:
                continue
            node = self.node_of(ino, name, st)
            self.offered.setdefault(dh, []).append(node)
            yield name, self.attr(node.ino, st), number

    def releasedir(self, dh: int) -> None:
        del self.listings[dh]
        for node in self.offered.pop(dh, []):
            if self.nodes.get(node.ino) is node:
                self.drop_if_unused(node)

    def mkdir(self, parent: int, name: bytes, mode: int, owner: Owner) -> Attr:
        with self.lock:
            self.calls["mkdir"] += 1
            os.mkdir(self.child(parent, name))
            self.give(parent, name, owner)
            inherited = os.stat(self.path(parent)).st_mode & stat.S_ISGID
            os.chmod(self.child(parent, name), mode & 0o7777 | inherited)
            return self.enter(parent, name)

    def mknod(self, parent: int, name: bytes, mode: int, rdev: int, owner: Owner) -> Attr:
        with self.lock:
            os.mknod(self.child(parent, name), mode, rdev)
            self.give(parent, name, owner)
            os.chmod(self.child(parent, name), mode & 0o7777)
            return self.enter(parent, name)

    def symlink(self, parent: int, name: bytes, target: bytes, owner: Owner) -> Attr:
        with self.lock:
            os.symlink(target, self.child(parent, name))
            self.give(parent, name, owner)
            return self.enter(parent, name)

    def link(self, ino: int, new_parent: int, new_name: bytes) -> Attr:
        with self.lock:
            os.link(self.path(ino), self.child(new_parent, new_name), follow_symlinks=False)
            return self.enter(new_parent, new_name)

    def unlink(self, parent: int, name: bytes) -> None:
        with self.lock:
            self.calls["unlink"] += 1
            self.forget_name(parent, name)
            os.unlink(self.child(parent, name))

    def rmdir(self, parent: int, name: bytes) -> None:
        with self.lock:
            st = os.lstat(self.child(parent, name))
            os.rmdir(self.child(parent, name))
            node = self.nodes.get(st.st_ino)
            if node is not None:
                node.links = []

    def rename(self, parent_old: int, name_old: bytes, parent_new: int, name_new: bytes, flags: int) -> None:
        with self.lock:
            self.calls["rename"] += 1
            old, new = self.child(parent_old, name_old), self.child(parent_new, name_new)
            moved = self.nodes.get(os.lstat(old).st_ino)
            if flags & 2:
                swapped = self.nodes.get(os.lstat(new).st_ino)
                os.rename(old, old + b".exchange")
                os.rename(new, old)
                os.rename(old + b".exchange", new)
                self.relink(swapped, (parent_new, name_new), (parent_old, name_old))
            else:
                if flags & 1 and os.path.lexists(new):
                    raise FileExistsError(errno.EEXIST, "exists")
                self.forget_name(parent_new, name_new)
                os.rename(old, new)
            self.relink(moved, (parent_old, name_old), (parent_new, name_new))

    def relink(self, node: Node | None, old: tuple[int, bytes], new: tuple[int, bytes]) -> None:
        if node is not None:
            node.links = [link for link in node.links if link != old] + [new]

    def fsyncdir(self, ino: int) -> None:
        self.calls["fsyncdir"] += 1

    # files

    def create(self, parent: int, name: bytes, mode: int, owner: Owner, flags: int) -> tuple[int, Attr]:
        with self.lock:
            self.calls["create"] += 1
            fd = os.open(self.child(parent, name), flags | os.O_CREAT | os.O_NOFOLLOW, 0o600)
            self.give(parent, name, owner)
            os.fchmod(fd, mode & 0o7777)
            attr = self.enter(parent, name)
            return self.new_handle(attr.ino, fd), attr

    def open(self, ino: int, flags: int) -> int:
        with self.lock:
            self.calls["open"] += 1
            return self.new_handle(ino, os.open(self.path(ino), flags))

    def new_handle(self, ino: int, fd: int) -> int:
        handle = next(self.next_handle)
        self.nodes[ino].opens += 1
        self.handles[handle] = (ino, fd)
        return handle

    def read(self, handle: int, offset: int, size: int) -> bytes:
        data = os.pread(self.handles[handle][1], size, offset)
        self.calls["read"] += 1
        self.bytes_read += len(data)
        return data

    def write(self, handle: int, offset: int, data: bytes | bytearray | memoryview) -> int:
        self.calls["write"] += 1
        self.bytes_written += len(data)
        fd = self.handles[handle][1]
        # With a write-back cache the kernel keeps the times, and sets them when they change.
        before = os.fstat(fd)
        written = os.pwrite(fd, data, offset)
        os.utime(fd, ns=(before.st_atime_ns, before.st_mtime_ns))
        return written

    def flush(self, handle: int) -> None:
        self.calls["flush"] += 1

    def fsync(self, handle: int, datasync: bool) -> None:
        self.calls["fsync"] += 1
        os.fsync(self.handles[handle][1])

    def release(self, handle: int) -> None:
        with self.lock:
            ino, fd = self.handles.pop(handle)
            os.close(fd)
            node = self.nodes[ino]
            node.opens -= 1
            self.drop_if_unused(node)

    # the rest

    def statfs(self) -> StatFs:
        st = os.statvfs(self.directory)
        return StatFs(
            st.f_bsize,
            st.f_frsize,
            st.f_blocks,
            st.f_bfree,
            st.f_bavail,
            st.f_files,
            st.f_ffree,
            st.f_favail,
            st.f_namemax,
        )

    def attributes(self, ino: int) -> dict[bytes, bytes]:
        if not self.xattrs:
            raise OSError(errno.ENOTSUP, "no extended attributes")
        return self.nodes[ino].xattrs

    def getxattr(self, ino: int, name: bytes) -> bytes:
        self.calls["getxattr"] += 1
        value = self.attributes(ino).get(name)
        if value is None:
            raise OSError(errno.ENODATA, "no such attribute")
        return value

    def setxattr(self, ino: int, name: bytes, value: bytes, flags: int) -> None:
        self.attributes(ino)[name] = value

    def listxattr(self, ino: int) -> list[bytes]:
        return list(self.attributes(ino))

    def removexattr(self, ino: int, name: bytes) -> None:
        if self.attributes(ino).pop(name, None) is None:
            raise OSError(errno.ENODATA, "no such attribute")

    def freeze(self) -> None:
        self.frozen = True

    def thaw(self) -> None:
        self.frozen = False

    def sync(self) -> None:
        self.calls["sync"] += 1

    def stats(self) -> dict[str, Any]:
        return {
            "open_files": len(self.handles),
            "bytes_read": self.bytes_read,
            "bytes_written": self.bytes_written,
            "dirty_bytes": 0,
            "inodes": len(self.nodes),
        }

    def close(self) -> None:
        assert not self.handles, "closed with open files"
        self.closed = True
