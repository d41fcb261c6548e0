"""Extended attributes, sealed by object (docs/format.md section 11)."""

from __future__ import annotations

import base64
import json
import os
import re
import urllib.parse
from collections.abc import Iterator

import msgspec

from cryptfs.crypto.aead import InvalidTag, open_sealed, seal
from cryptfs.crypto.derive import expand
from cryptfs.errors import IntegrityError
from cryptfs.vault.diskio import NotRegular, fsync_path, make_folder, open_regular, replace_file

_LABEL = b"cryptfs v1 xattr"
_MAX_FILE = 1 << 22
_ID = re.compile("[0-9a-f]{32}")
_DAMAGED = (
    FileNotFoundError, NotADirectoryError, NotRegular, InvalidTag, msgspec.MsgspecError, ValueError,
    RecursionError,
)  # fmt: skip


class XattrStore:
    """The folder `xattr/` of a vault."""

    def __init__(self, path: str, file_mode: int, dir_mode: int) -> None:
        self._path = path
        self._file_mode = file_mode
        self._dir_mode = dir_mode

    def _place(self, object_id: bytes) -> tuple[str, str]:
        text = object_id.hex()
        return f"{self._path}/{text[:2]}", text

    def load(
        self, object_id: bytes, object_key: bytes, former_key: bytes | None = None
    ) -> dict[bytes, bytes]:
        """All attributes of an object; IntegrityError if the file is gone or does not authenticate.

        `former_key` is that of a directory's `@old` (section 13), under which they may still be.
        """
        folder, name = self._place(object_id)
        try:
            with open(open_regular(f"{folder}/{name}"), "rb") as file:
                data = file.read(_MAX_FILE)
            try:
                text = open_sealed(_key(object_key), data, _LABEL + object_id)
            except InvalidTag:
                if former_key is None:
                    raise
                text = open_sealed(_key(former_key), data, _LABEL + object_id)
            decoded = msgspec.json.decode(text, type=dict[str, bytes])
        except _DAMAGED:
            raise IntegrityError("extended attributes are damaged or missing") from None
        return {urllib.parse.unquote_to_bytes(key): value for key, value in decoded.items()}

    def save(self, object_id: bytes, object_key: bytes, attributes: dict[bytes, bytes]) -> None:
        """Durably replace all attributes of an object."""
        folder, name = self._place(object_id)
        value = {_quote(key): base64.b64encode(data).decode() for key, data in attributes.items()}
        text = json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
        if not os.path.isdir(folder):
            self._make(folder)
        directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            replace_file(directory, name, seal(_key(object_key), text, _LABEL + object_id), self._file_mode)
        finally:
            os.close(directory)

    def remove(self, object_id: bytes) -> None:
        """Remove the attributes of an object that is gone; nothing if there are none."""
        folder, name = self._place(object_id)
        try:
            os.unlink(f"{folder}/{name}")
        except FileNotFoundError:
            pass

    def objects(self) -> Iterator[bytes]:
        """The ids of all objects for which there is a file, whether they exist or not."""
        for first in sorted(os.listdir(self._path)):
            try:
                names = os.listdir(f"{self._path}/{first}")
            except (NotADirectoryError, FileNotFoundError):
                continue  # nothing of ours
            for name in names:
                if _ID.fullmatch(name) and name.startswith(first):
                    yield bytes.fromhex(name)

    def _make(self, folder: str) -> None:
        """A new folder in `xattr/`, durably: a header will promise what lies in it."""
        try:
            make_folder(folder, self._dir_mode)
        except FileExistsError:
            return
        try:
            fsync_path(self._path)
        except BaseException:
            os.rmdir(folder)
            raise


def _key(object_key: bytes) -> bytes:
    return expand(object_key, "cryptfs v1 xattr", 32)


def _quote(name: bytes) -> str:
    return "".join(chr(c) if 0x21 <= c < 0x7F and c != 0x25 else f"%{c:02X}" for c in name)
