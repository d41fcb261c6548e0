"""Rotation of keys on a live mount: what `cryptfs rotate` asks of the daemon (docs/rotation.md).

The command line holds the secret and writes the configuration. The daemon holds the keyring only, learns a
new one from `cryptfs.json` itself (`cryptfs.vault.rotation.learn`), and does the work in a thread that gives
way to requests.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import trio

from cryptfs.errors import CryptfsError, UsageError, VaultInUse
from cryptfs.fs import FileSystem
from cryptfs.fs.jobs import Job
from cryptfs.fs.reencrypt import reencrypt_job
from cryptfs.fs.rewrap import rewrap_job
from cryptfs.fs.throttle import Throttle
from cryptfs.mount.control import Command, Request
from cryptfs.vault.keyring import Keyring
from cryptfs.vault.rotation import learn

KINDS = ("rewrap", "reencrypt")
_END_SECONDS = 60.0


class RotationControl:
    """The rotation jobs of one mount, at most one at a time. `activity` counts its requests."""

    def __init__(self, fs: FileSystem, activity: Callable[[], int]) -> None:
        self._fs = fs
        self._activity = activity
        self._job: Job | None = None

    def commands(self) -> dict[str, Command]:
        """By their names on the control socket."""
        return {"keyring": self._keyring, "rotate": self._rotate, "rotation": self._rotation}

    def close(self) -> None:
        """End the job before the filesystem is closed."""
        if self._job is not None:
            self._job.stop()

    async def _keyring(self, request: Request) -> dict[str, Any]:
        """Go on with the keyring that stands in `cryptfs.json`, if it is this vault's."""
        return await trio.to_thread.run_sync(self._learn, request.key)

    def _learn(self, key: bytes) -> dict[str, Any]:
        vault = self._fs.vault
        if not isinstance(vault.keyring, Keyring):
            raise CryptfsError("This mount was not made from a configuration.")
        keyring = learn(vault.path, vault.vault_id, key, vault.keyring)
        self._fs.use_keyring(keyring)
        if len(keyring) == 1 and not vault.read_only:
            self._fs.reencryption_ended()
        return self._epochs()

    def _epochs(self) -> dict[str, Any]:
        keyring = self._fs.vault.keyring
        numbers = [epoch.number for epoch in keyring] if isinstance(keyring, Keyring) else []
        return {"epochs": numbers}

    async def _rotate(self, request: Request) -> dict[str, Any]:
        """Begin a job; one that runs already goes on, at the limit given."""
        if self._fs.vault.read_only:
            raise VaultInUse("The vault is mounted read-only: its keys are rotated where it is written.")
        job = self._job
        if job is not None and job.state == "running":
            if job.kind != request.action:
                raise VaultInUse(f"A job ({job.kind}) is under way: let it end, or stop it first.")
            job.throttle.limit = request.limit
            job.throttle.go()
        else:
            self._job = self._make(request)
            self._job.start()
        return self._snapshot()

    def _make(self, request: Request) -> Job:
        throttle = Throttle(request.limit, self._activity)
        if request.action == "rewrap":
            return rewrap_job(self._fs, throttle)
        if request.action == "reencrypt":
            return reencrypt_job(self._fs, throttle, despite_damage=request.despite_damage)
        raise UsageError("The daemon does not know this kind of rotation: is it of another version?")

    async def _rotation(self, request: Request) -> dict[str, Any]:
        """How the job does; `action` may be "stop", "pause" or "resume"."""
        job = self._job
        if job is not None and job.state == "running":
            if request.action == "stop":
                job.throttle.stop()
                await trio.to_thread.run_sync(job.wait, _END_SECONDS)
            elif request.action == "pause":
                job.throttle.hold()
            elif request.action == "resume":
                job.throttle.go()
        return self._snapshot()

    def _snapshot(self) -> dict[str, Any]:
        found = self._job.snapshot() if self._job is not None else {"state": "none"}
        return {
            **found, **self._epochs(), "kinds": KINDS,
            "reencryption": self._fs.vault.reencryption.phase.value,
        }  # fmt: skip
