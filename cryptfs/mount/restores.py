"""`accept-restore` on a live mount: first what differs, then taking exactly that for right."""

from __future__ import annotations

import secrets
from typing import Any

import trio

from cryptfs.errors import CryptfsError, StorageError
from cryptfs.fs.restoring import Survey
from cryptfs.mount import control
from cryptfs.mount.backend import Filesystem


class Restores:
    """The last survey of one mount, until it is accepted or the next one. Belongs to the event loop."""

    def __init__(self, fs: Filesystem) -> None:
        self._fs = fs
        self._survey: Survey | None = None
        self._token = ""
        self._busy = trio.Lock()

    async def survey(self, request: control.Request) -> dict[str, Any]:
        """Compare the whole vault with what this host remembers; `token` is what "restore-accept" wants."""
        async with self._busy:
            self.close()
            survey = self._fs.survey()
            try:
                summary = await trio.to_thread.run_sync(survey.run)
            except OSError as error:
                survey.close()
                raise StorageError(f"The vault could not be looked at: {error.strerror}.") from None
            except BaseException:
                survey.close()
                raise
            self._survey, self._token = survey, secrets.token_hex(8)
            return {**summary.as_dict(), "token": self._token}

    async def accept(self, request: control.Request) -> dict[str, Any]:
        """Record what the survey with this token found. CryptfsError if there was another one since."""
        async with self._busy:
            survey = self._survey
            if survey is None or request.token != self._token:
                raise CryptfsError("Somebody else has looked since: run accept-restore again.")
            try:
                await trio.to_thread.run_sync(self._fs.accept, survey)
            except OSError as error:
                raise StorageError(f"It could not be recorded: {error.strerror}.") from None
            self.close()
            return {}

    def close(self) -> None:
        """Forget the survey."""
        if self._survey is not None:
            self._survey.close()
        self._survey, self._token = None, ""
