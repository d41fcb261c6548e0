"""No damage is found in what cryptfs itself leaves: released vaults, random histories, vaults in use."""

from __future__ import annotations

import os
import random
import shutil
import threading
from pathlib import Path

import hypothesis
import pytest
from hypothesis.stateful import rule, run_state_machine_as_test

from cryptfs.check.finding import Finding, Kind, Severity
from cryptfs.check.run import Check
from cryptfs.fs import FileSystem, FsOptions
from cryptfs.fs.types import SetAttr
from cryptfs.vault import Vault, config
from cryptfs.vault.keyring import Keyring
from cryptfs.vault.layout import create_tree
from tests.check.support import check, check_path, context_of, damage, fill, kinds, notices
from tests.fs.model import machine_settings
from tests.fs.support import ME, snapshot
from tests.fs.test_stateful import FsMachine, FsTree
from tests.fs.trees import Tree, scratch
from tests.golden.make_golden import RECOVERY
from tests.golden.test_golden import GOLDEN, unpack
from tests.security.archive import Archive


@pytest.mark.parametrize("name", GOLDEN)
def test_released_vaults_are_clean(name: str, tmp_path: Path) -> None:
    path = unpack(name, tmp_path / "vault")
    unlocked = config.unlock(config.load(path), RECOVERY)
    report = check_path(path, unlocked.vault_id, unlocked.keyring)
    assert damage(report) == []
    assert report.verdict == "clean"
    assert report.tally.counts["files"] >= 1
    FileSystem(Vault(path, unlocked.vault_id, unlocked.keyring)).close()
    report = check_path(path, unlocked.vault_id, unlocked.keyring)
    assert damage(report) == []
    assert Kind.PENDING not in notices(report)


def test_one_of_everything_is_clean_and_counted(archive: Archive) -> None:
    fill(archive)
    report = check(archive)
    assert [str(finding) for finding in report.tally.findings] == []
    counts = report.tally.counts
    assert (counts["directories"], counts["files"], counts["links"]) == (3, 7, 1)
    with archive.mounted(read_only=True) as mount:
        sizes = sum(
            mount.fs.getattr(mount.ino(path)).size
            for path in ("anna/ct/1.dcm", "anna/ct/2.dcm", "index.db", "anna/second name", "empty", "sparse")
        )
    # The link's target is content, too.
    assert counts["content_bytes"] == sizes + len("a long name") + len("anna/ct/1.dcm")


class CheckedMachine(FsMachine):
    """Random operations; now and then, with files open and things in the journal, the vault is checked."""

    xattrs = True
    options = FsOptions(xattrs=True)
    checks = 0

    def make_subject(self) -> Tree:
        self.vault_path = scratch("cryptfs-vault-")
        self.vault_id, self.keyring = os.urandom(16), Keyring.new()
        create_tree(
            self.vault_path, self.vault_id, self.keyring, backup_group=False, mode=0o700, uid=0, gid=0
        )
        return FsTree(lambda: FileSystem(Vault(self.vault_path, self.vault_id, self.keyring), self.options))

    @rule()
    def check_what_a_kill_would_leave(self) -> None:
        type(self).checks += 1
        assert isinstance(self.subject, FsTree)
        copy = snapshot(self.subject.fs, scratch("cryptfs-copy-") / "vault")
        try:
            self._check(copy)
            FileSystem(Vault(copy, self.vault_id, self.keyring), self.options).close()
            self._check(copy)
        finally:
            shutil.rmtree(copy.parent)

    @rule()
    def check_in_use(self) -> None:
        self._check(self.vault_path)

    def _check(self, path: Path) -> None:
        found = damage(check_path(path, self.vault_id, self.keyring, jobs=2))
        # A copy has no hard links any more, which is a finding of its own.
        assert [finding for finding in found if finding.kind is not Kind.DUPLICATE] == []


def test_whatever_the_state_machine_leaves_is_clean(seed: int) -> None:
    CheckedMachine.checks = 0
    run_state_machine_as_test(hypothesis.seed(seed)(CheckedMachine), settings=machine_settings(8, 30))
    assert CheckedMachine.checks


def test_what_happens_after_the_check_has_begun_is_no_damage(tmp_path: Path) -> None:
    """State and journal were read when nothing was mounted; what they say now is asked before it is said."""
    vault_id, keyring = os.urandom(16), Keyring.new()
    path = tmp_path / "vault"
    path.mkdir()
    create_tree(path, vault_id, keyring, backup_group=False, mode=0o700, uid=ME.uid, gid=ME.gid)
    with context_of(path, vault_id, keyring) as context:
        fs = FileSystem(Vault(path, vault_id, keyring))
        fs.create(1, b"being written", 0o600, ME, os.O_RDWR)
        (path / "tree" / ("A" * 24)).touch()  # an object file that has no header yet, nor the right name
        (path / "tree" / ("B" * 24)).mkdir()  # and a directory
        report = Check(context).run()
        fs.close()
    assert {finding.kind for finding in damage(report)} == {Kind.NAME}
    assert Kind.REMNANT in notices(report)


def test_a_vault_in_use_gives_no_false_alarm(tmp_path: Path, seed: int) -> None:
    """Files made, overwritten, cut, renamed and removed as fast as one thread can while it is checked."""
    vault_id, keyring = os.urandom(16), Keyring.new()
    path = tmp_path / "vault"
    path.mkdir()
    create_tree(path, vault_id, keyring, backup_group=False, mode=0o700, uid=ME.uid, gid=ME.gid)
    fs = FileSystem(Vault(path, vault_id, keyring), FsOptions(xattrs=True))
    stop, failures, rounds = threading.Event(), [], [0]

    def work() -> None:
        rng = random.Random(seed)
        try:
            while not stop.is_set():
                _one_operation(fs, rng)
                rounds[0] += 1
        except Exception as failure:
            failures.append(failure)

    worker = threading.Thread(target=work)
    worker.start()
    found: list[Finding] = []
    try:
        done = 0
        while done < 4 or (rounds[0] < 100 and not failures):
            report = check_path(path, vault_id, keyring, jobs=2)
            found += [item for item in report.tally.findings if item.severity is not Severity.NOTICE]
            done += 1
    finally:
        stop.set()
        worker.join()
        fs.close()
    assert failures == []
    assert found == []
    assert kinds(check_path(path, vault_id, keyring)) == set()


def _one_operation(fs: FileSystem, rng: random.Random) -> None:
    names = [b"a.dcm", b"index.db", b"l" * 230, b"b.dcm"]
    name, other = rng.choice(names), rng.choice(names)
    try:
        match rng.randrange(9):
            case 0 | 1 | 2:
                handle, attr = fs.create(1, name, 0o600, ME, os.O_RDWR)
                for _ in range(rng.randrange(6)):
                    fs.write(handle, rng.randrange(400_000), rng.randbytes(rng.randrange(1, 150_000)))
                if rng.random() < 0.5:
                    fs.fsync(handle)
                fs.release(handle)
                fs.forget(attr.ino, 1)
            case 3 | 4:
                attr = fs.lookup(1, name)
                handle = fs.open(attr.ino, os.O_RDWR)
                fs.write(handle, rng.randrange(attr.size + 1), rng.randbytes(rng.randrange(1, 9000)))
                fs.fsync(handle)
                fs.release(handle)
                fs.forget(attr.ino, 1)
            case 5:
                attr = fs.lookup(1, name)
                fs.setattr(attr.ino, SetAttr(size=rng.randrange(300_000)))
                fs.setxattr(attr.ino, b"user.x", rng.randbytes(20))
                fs.forget(attr.ino, 1)
            case 6:
                fs.unlink(1, name)
            case 7:
                fs.rename(1, name, 1, other)
            case 8:
                inner = fs.mkdir(1, b"d", 0o700, ME).ino
                handle, attr = fs.create(inner, name, 0o600, ME, os.O_RDWR)
                fs.release(handle)
                fs.unlink(inner, name)
                fs.forget(attr.ino, 1)
                fs.rmdir(1, b"d")
                fs.forget(inner, 1)
    except (FileNotFoundError, FileExistsError):
        pass
