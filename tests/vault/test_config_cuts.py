"""A change of the configuration, cut at each call to the system: killed, torn, and with the power gone.

The change runs in a process of its own that ends without any cleaning up. What a power cut takes is
modelled as the worst that a file system may do: names go back to the last sync of the folder, and content
that was not synced is gone. After each cut the configuration that is there opens, and is the old or
the new one.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from cryptfs.keyslots import KeyFile, RecoveryKey
from cryptfs.vault import config, configfile
from cryptfs.vault.document import parse

KEPT = RecoveryKey(bytes(range(32)))
OTHER = KeyFile(b"a key file " * 8)
NEW = KeyFile(b"another one " * 8)
_CUT = 9


class Cutter:
    """Counts the calls of this process that change the disk, and ends it before call number `at`."""

    def __init__(self, vault: Path, names: Path, at: int, torn: bool) -> None:
        self.vault, self.names, self.at, self.torn = vault, names, at, torn
        self.calls = 0
        self.synced: set[int] = set()
        for name in ("open", "fsync", "fchmod", "rename", "unlink"):
            self._wrap(os, name)
        self._real_fdopen = os.fdopen
        os.fdopen = self._fdopen  # type: ignore[assignment]
        real = configfile.sync_folder
        configfile.sync_folder = lambda folder: (real(folder), self._names_are_durable())[0]  # type: ignore[func-returns-value]

    def _step(self) -> None:
        self.calls += 1
        if self.calls == self.at:
            os._exit(_CUT)

    def _wrap(self, owner: object, name: str) -> None:
        real = getattr(owner, name)

        def call(*args: object, **more: object) -> object:
            self._step()
            result = real(*args, **more)
            if name == "open":
                os.dup(result)  # type: ignore[arg-type]  # no inode number is given to a second file
            if name == "fsync":
                self.synced.add(os.fstat(args[0]).st_ino)  # type: ignore[arg-type]
                (self.names.parent / "synced").write_text(" ".join(map(str, self.synced)))
            return result

        setattr(owner, name, call)

    def _fdopen(self, descriptor: int, *args: object, **more: object) -> object:
        stream = self._real_fdopen(descriptor, *args, **more)  # type: ignore[call-overload]
        if stream.writable():
            real = stream.write

            def write(data: bytes) -> int:
                if self.torn and self.calls + 1 == self.at:
                    real(data[: len(data) // 2])
                    stream.flush()
                self._step()
                return int(real(data))

            class Written:
                """The stream, with its writes seen."""

                def __enter__(self) -> Written:
                    return self

                def __exit__(self, *error: object) -> None:
                    stream.close()

                def __getattr__(self, name: str) -> object:
                    return write if name == "write" else getattr(stream, name)

            return Written()
        return stream

    def _names_are_durable(self) -> None:
        """What a power cut goes back to: names as they are now, content by inode."""
        listed = "".join(f"{entry.inode()} {entry.name}\n" for entry in os.scandir(self.vault))
        self.names.write_text(listed)


def run(vault: Path, names: Path, change: Callable[[], object], at: int, torn: bool) -> bool:
    """Whether the change got to its end before the cut."""
    pid = os.fork()
    if pid == 0:
        try:
            cutter = Cutter(vault, names, at, torn)
            cutter._names_are_durable()
            cutter.calls = 0
            change()
            os._exit(0)
        except BaseException:
            os._exit(1)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code in (0, _CUT)
    return code == 0


def without_power(vault: Path, names: Path, before: set[int], lose_names: bool) -> None:
    """Take away what was not synced: content always, names if `lose_names`."""
    synced_file = names.parent / "synced"
    synced = (
        before | {int(number) for number in synced_file.read_text().split()}
        if synced_file.exists()
        else before
    )
    for entry in list(os.scandir(vault)):
        if entry.inode() not in synced and entry.is_file():
            os.truncate(entry.path, os.stat(entry.path).st_size // 3)
    if not lose_names:
        return
    # The inodes that the names of then belong to: some are to be had under their name of now only.
    contents = {entry.inode(): Path(entry.path).read_bytes() for entry in os.scandir(vault)}
    wanted = [line.split(" ", 1) for line in names.read_text().splitlines()]
    kept = names.parent / "kept"
    for number, _ in wanted:
        if int(number) not in contents and (kept / number).exists():
            contents[int(number)] = (kept / number).read_bytes()
    for entry in list(os.scandir(vault)):
        os.unlink(entry.path)
    for number, name in wanted:
        (vault / name).write_bytes(contents.get(int(number), b""))


@pytest.mark.thorough
@pytest.mark.parametrize("way", ["killed", "torn", "power", "power and names"])
@pytest.mark.parametrize("act", ["add", "remove"])
def test_a_cut_at_each_call(tmp_path: Path, act: str, way: str) -> None:
    pristine = tmp_path / "pristine"
    pristine.mkdir()
    first = config.add_slot(config.create(pristine, [(KEPT, "paper")]), OTHER)
    text = (pristine / configfile.NAME).read_bytes()
    seen: set[str] = set()
    at, finished = 0, False
    while not finished:
        at += 1
        base = tmp_path / str(at)
        vault = Path(shutil.copytree(pristine, base / "vault"))
        (base / "kept").mkdir()
        before = set()
        for entry in os.scandir(vault):
            before.add(entry.inode())
            os.link(entry.path, base / "kept" / str(entry.inode()))  # what a rename replaces is not gone
        unlocked = config.unlock(config.load(vault), KEPT)

        def change(unlocked: config.Unlocked = unlocked) -> object:
            if act == "add":
                return config.add_slot(unlocked, NEW)
            return config.remove_slot(unlocked, first.config.slots[1].id)

        finished = run(vault, base / "names", change, at, torn=way == "torn")
        if way.startswith("power"):
            without_power(vault, base / "names", before, lose_names=way == "power and names")
        after = config.unlock(config.load(vault), KEPT)
        assert after.keyring == first.keyring
        is_old = (vault / configfile.NAME).read_bytes() == text
        seen.add("old" if is_old else "new")
        assert not (finished and is_old), "done means durable"
        if not is_old:
            assert len(after.config.slots) == (3 if act == "add" else 1)
        previous = parse((vault / configfile.PREVIOUS).read_bytes())
        assert previous.vault_id == after.vault_id, "the one before is whole, too"
        shutil.rmtree(base)
    assert at > 10
    assert seen == {"old", "new"}
