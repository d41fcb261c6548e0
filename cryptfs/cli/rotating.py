"""Who does the work of a rotation: the daemon that has the vault mounted, or this process."""

from __future__ import annotations

import os
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from cryptfs.errors import CryptfsError, UsageError, VaultInUse

if TYPE_CHECKING:
    from cryptfs.fs import FileSystem
    from cryptfs.fs.jobs import Job
    from cryptfs.mount.runtime import Record
    from cryptfs.vault.config import Unlocked

_ANSWER_SECONDS = 90.0


class Worker(Protocol):
    """Does a job on a vault whose configuration the caller changes."""

    def begin(self, kind: str, unlocked: Unlocked) -> Unlocked: ...
    def learn(self, unlocked: Unlocked) -> None: ...
    def start(self, kind: str, limit: float, *, despite_damage: bool) -> dict[str, Any]: ...
    def poll(self) -> dict[str, Any]: ...
    def wait(self, seconds: float) -> None: ...
    def stop(self) -> dict[str, Any]: ...
    def close(self) -> None: ...


def _new_epoch(kind: str, unlocked: Unlocked) -> Unlocked:
    """A new epoch, unless one is there already that everything was being brought to."""
    from cryptfs.vault import rotation

    if kind == "reencrypt":
        return unlocked if rotation.reencrypts(unlocked) else rotation.begin_reencryption(unlocked)
    if rotation.reencrypts(unlocked):
        raise UsageError(
            "This vault is being re-encrypted: `cryptfs rotate --reencrypt` goes on with that, and ends it."
        )
    return unlocked if rotation.is_under_way(unlocked.keyring) else rotation.begin(unlocked)


class Mounted:
    """The daemons that have the vault mounted: one may write, any number only read."""

    def __init__(self, writer: Record, readers: list[Record]) -> None:
        self._writer = writer
        self._readers = readers

    @classmethod
    def find(cls, vault: Path) -> Mounted | None:
        """The live mounts of this user; None if none of them may write."""
        from cryptfs.mount import runtime

        place = os.path.realpath(vault)
        found = [
            record
            for record in runtime.records()
            if os.path.realpath(record.vault) == place and runtime.is_alive(record)
        ]
        writers = [record for record in found if not record.read_only]
        if not writers:
            return None
        return cls(writers[0], [record for record in found if record.read_only])

    def _ask(self, record: Record, command: str, action: str = "", **fields: Any) -> dict[str, Any]:  # noqa: ANN401
        from cryptfs.mount import control, runtime

        request = control.Request(command, action=action, **fields)
        return control.ask(runtime.socket_path(record.mountpoint), request, timeout=_ANSWER_SECONDS)

    def begin(self, kind: str, unlocked: Unlocked) -> Unlocked:
        """A new epoch in the configuration, known to every mount before anything is rewrapped."""
        # A daemon that does not answer, or of an older version, must not get a new epoch.
        if kind not in self.poll().get("kinds", ("rewrap",)):
            raise CryptfsError(
                "The mount is of an older version of cryptfs: unmount and mount the vault first."
            )
        if kind == "reencrypt" and self._readers:
            raise VaultInUse(
                f"The vault is also mounted read-only at {self._readers[0].mountpoint}, where the new names "
                "of its files would not be noticed: unmount that first."
            )
        unlocked = _new_epoch(kind, unlocked)
        self.learn(unlocked)
        return unlocked

    def learn(self, unlocked: Unlocked) -> None:
        from cryptfs.vault import rotation

        for record in [*self._readers, self._writer]:
            self._ask(record, "keyring", key=rotation.handover(unlocked.keys))

    def start(self, kind: str, limit: float, *, despite_damage: bool) -> dict[str, Any]:
        return self._ask(self._writer, "rotate", kind, limit=limit, despite_damage=despite_damage)

    def poll(self) -> dict[str, Any]:
        return self.control("")

    def control(self, action: str) -> dict[str, Any]:
        """How the job does, after "stop", "pause" or "resume"."""
        return self._ask(self._writer, "rotation", action)

    def wait(self, seconds: float) -> None:
        time.sleep(seconds)

    def stop(self) -> dict[str, Any]:
        return self.control("stop")

    def close(self) -> None:
        """The mount lives on."""


class Alone:
    """This process opens the vault itself, which locks it: VaultInUse if it is mounted by somebody else."""

    def __init__(self, vault: Path, unlocked: Unlocked) -> None:
        from cryptfs.cli.mount import remembered_at
        from cryptfs.fs import FileSystem
        from cryptfs.practice.service import keep_under
        from cryptfs.vault import Vault

        place = remembered_at(unlocked.vault_id, None, (vault,))[0]
        self._fs: FileSystem = FileSystem(Vault.of(vault, unlocked), place=place)
        if place is not None:
            self._fs.on_rewrapped = partial(keep_under, place=place, vault_id=unlocked.vault_id)
        self._job: Job | None = None

    def begin(self, kind: str, unlocked: Unlocked) -> Unlocked:
        """A new epoch in the configuration, and in use."""
        unlocked = _new_epoch(kind, unlocked)
        self.learn(unlocked)
        return unlocked

    def learn(self, unlocked: Unlocked) -> None:
        self._fs.use_keyring(unlocked.keyring)
        if len(unlocked.keyring) == 1:
            self._fs.reencryption_ended()

    def start(self, kind: str, limit: float, *, despite_damage: bool) -> dict[str, Any]:
        from cryptfs.fs.reencrypt import reencrypt_job
        from cryptfs.fs.rewrap import rewrap_job
        from cryptfs.fs.throttle import Throttle

        throttle = Throttle(limit)
        if kind == "reencrypt":
            self._job = reencrypt_job(self._fs, throttle, despite_damage=despite_damage)
        else:
            self._job = rewrap_job(self._fs, throttle)
        self._job.start()
        return self._job.snapshot()

    def poll(self) -> dict[str, Any]:
        assert self._job is not None
        return self._job.snapshot()

    def wait(self, seconds: float) -> None:
        assert self._job is not None
        self._job.wait(seconds)

    def stop(self) -> dict[str, Any]:
        assert self._job is not None
        self._job.stop()
        return self._job.snapshot()

    def close(self) -> None:
        if self._job is not None:
            self._job.stop()
        self._fs.close()
