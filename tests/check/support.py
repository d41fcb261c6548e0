"""Checking a vault that a test made, from outside."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from cryptfs.check.context import CheckOptions, Context
from cryptfs.check.finding import Finding, Kind, Severity
from cryptfs.check.report import Report
from cryptfs.check.run import Check
from cryptfs.vault import config
from cryptfs.vault.keyring import Keyring
from tests.security.archive import Archive

DICOM_LIKE = b"\0" * 128 + b"DICM"


@contextlib.contextmanager
def context_of(path: Path, vault_id: bytes, keyring: Keyring, **options: object) -> Iterator[Context]:
    context = Context(path, vault_id, keyring, CheckOptions(**options))  # type: ignore[arg-type]
    with contextlib.closing(context):
        yield context


def check_path(path: Path, vault_id: bytes, keyring: Keyring, **options: object) -> Report:
    with context_of(path, vault_id, keyring, **options) as context:
        return Check(context).run()


def check(archive: Archive, **options: object) -> Report:
    """Check the whole archive."""
    unlocked = archive.unlock()
    with context_of(archive.path, unlocked.vault_id, unlocked.keyring, **options) as context:
        context.proves = lambda text: config.is_authentic(unlocked, text)
        return Check(context).run()


def damage(report: Report) -> list[Finding]:
    return [finding for finding in report.tally.findings if finding.severity is Severity.DAMAGE]


def kinds(report: Report) -> set[Kind]:
    """The kinds of damage that were found."""
    return {finding.kind for finding in damage(report)}


def notices(report: Report) -> set[Kind]:
    return {finding.kind for finding in report.tally.findings if finding.severity is Severity.NOTICE}


def fill(archive: Archive) -> None:
    """One of everything: images, a database, an empty and a sparse file, links, long names, attributes."""
    with archive.mounted(xattrs=True) as mount:
        mount.mkdir("anna")
        mount.mkdir("anna/ct")
        mount.write("anna/ct/1.dcm", DICOM_LIKE + os.urandom(150_000))
        mount.write("anna/ct/2.dcm", DICOM_LIKE + os.urandom(65_536 * 2 - 132))
        mount.write("anna/" + "n" * 250, b"a long name")
        mount.write("index.db", os.urandom(30_000))
        mount.write("empty", b"")
        mount.write("sparse", b"end", offset=5 << 20)
        mount.symlink("link", b"anna/ct/1.dcm")
        anna = mount.ino("anna")
        mount.fs.link(mount.ino("index.db"), anna, b"second name")
        mount.fs.setxattr(mount.ino("index.db"), b"user.a", b"value")
        mount.fs.setxattr(anna, b"user.b", b"of a directory")


def copy(archive: Archive, to: Path) -> Archive:
    """A copy with the hard links of the original."""
    shutil.copytree(archive.path, to, symlinks=True, copy_function=_Linking())
    return Archive(to, copy_of=archive)


class _Linking:
    """Copies a file the first time, and links its further names to the copy."""

    def __init__(self) -> None:
        self._made: dict[int, str] = {}

    def __call__(self, source: str, target: str) -> str:
        status = os.lstat(source)
        if status.st_nlink > 1 and status.st_ino in self._made:
            os.link(self._made[status.st_ino], target)
        else:
            shutil.copy2(source, target)
            self._made[status.st_ino] = target
        return target
