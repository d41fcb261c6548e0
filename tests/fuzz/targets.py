"""Every parser of bytes that somebody else may have written, as a function of these bytes.

Where a format authenticates first, the bytes are sealed with the right key here, so that what comes
behind that is reached: whoever holds the keys must not be able to crash a reader either. A target
returns, or raises one of the errors that its callers expect.
"""

from __future__ import annotations

import atexit
import contextlib
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from cryptfs.crypto.aead import seal
from cryptfs.errors import CryptfsError, IntegrityError
from cryptfs.fs.directory import Directory
from cryptfs.keyslots import recovery
from cryptfs.mount import control, mountpoint
from cryptfs.vault import document, journal, session, xattrs
from cryptfs.vault.content import ContentCipher, Geometry, InvalidTag
from cryptfs.vault.dirlog import DirLog
from cryptfs.vault.header import (
    AREA_SIZE,
    DIRECTORY,
    SEGMENT,
    Header,
    HeaderCodec,
    HeaderInvalid,
    HeaderMissing,
)
from cryptfs.vault.names import NameCipher, NameInvalid, is_entry, is_long, long_entry
from tests.fs.support import VAULT_ID, FakeEpoch, FakeKeyring

_KEY, _ID = b"k" * 32, b"i" * 16
_codec = HeaderCodec(VAULT_ID, FakeKeyring())
_names = NameCipher(_KEY, _ID)
_folder = Path(tempfile.mkdtemp(prefix="cryptfs-fuzz-"))
atexit.register(shutil.rmtree, _folder, ignore_errors=True)


def _header(kind: int) -> Header:
    log2 = 12 if kind == SEGMENT else 0
    return Header(kind, log2, 0, 1, 0o700, 1, _ID, 7, 0, 0, 0, 0, 0, 0, 0, _KEY)


def configuration(data: bytes) -> None:
    with contextlib.suppress(CryptfsError):
        document.parse(data)


def header(data: bytes) -> None:
    with contextlib.suppress(HeaderMissing, HeaderInvalid):
        _codec.read(data)


def journal_record(data: bytes) -> None:
    with contextlib.suppress(HeaderInvalid):
        parsed = journal._decode(data)
        if isinstance(parsed, journal.Record):
            assert journal._decode(parsed.encode()) == parsed


def journal_segment(data: bytes) -> None:
    path = _folder / f"{1:016x}.seg"
    path.write_bytes(_codec.pack(_header(SEGMENT)).ljust(AREA_SIZE, b"\0") + data)
    assert not list(journal.read_segment(str(path), _codec)), "a record without the key"
    path.write_bytes(data)
    with contextlib.suppress(HeaderInvalid):
        assert not list(journal.read_segment(str(path), _codec))


def state(data: bytes) -> None:
    place = _folder / "state-folder"
    place.mkdir(exist_ok=True)
    number = (1).to_bytes(4, "little")
    sealed = seal(session._key(FakeEpoch().key), data, b"cryptfs v1 state" + VAULT_ID + number)
    for content in (b"CFS1" + number + sealed, data):
        (place / "state").write_bytes(content)
        with contextlib.suppress(IntegrityError):
            session.SessionState(str(place), VAULT_ID, FakeKeyring(), 0o600)


def directory_log(data: bytes) -> None:
    place = _folder / "dirs"
    place.mkdir(exist_ok=True)
    (place / "1.log").write_bytes(_codec.pack(_header(DIRECTORY)).ljust(256, b"\0") + data)
    assert [one.object_id for one in DirLog(str(place), 1, _codec, 0o600).candidates(data[:16])] == [_ID]


def name(data: bytes) -> None:
    if is_entry(data) and not is_long(data):
        with contextlib.suppress(NameInvalid):
            _names.decrypt(data)
            raise AssertionError("a name without the key")
    with contextlib.suppress(NameInvalid):
        assert is_entry(long_entry(data))
    plain = data[:255]
    if plain and not {0, 47} & set(plain) and plain not in (b".", b".."):
        assert Directory(-1, _header(DIRECTORY), 0).names.decrypt(_names.encrypt(plain)) == plain


def attributes(data: bytes) -> None:
    store = xattrs.XattrStore(str(_folder), 0o600, 0o700)
    path = _folder / _ID.hex()[:2] / _ID.hex()
    path.parent.mkdir(exist_ok=True)
    for content in (seal(xattrs._key(_KEY), data, b"cryptfs v1 xattr" + _ID), data):
        path.write_bytes(content)
        with contextlib.suppress(IntegrityError):
            store.load(_ID, _KEY)


def chunk(data: bytes) -> None:
    size = Geometry(12).plain_size(len(data))
    assert size is None or Geometry(12).lower_size(size) == len(data)
    with contextlib.suppress(InvalidTag):
        ContentCipher(_KEY, _ID).open(0, True, data)
        raise AssertionError("a chunk without the key")


def recovery_key(data: bytes) -> None:
    with contextlib.suppress(CryptfsError):
        assert recovery.decode(recovery.encode(recovery.decode(data.decode("utf-8", "replace"))))


def control_answer(data: bytes) -> None:
    with contextlib.suppress(CryptfsError):
        control._answered(data)


def mount_table(data: bytes) -> None:
    mountpoint._unescape(data)


TARGETS: dict[str, Callable[[bytes], None]] = {
    function.__name__: function
    for function in (
        configuration, header, journal_record, journal_segment, state, directory_log, name, attributes,
        chunk, recovery_key, control_answer, mount_table,
    )
}  # fmt: skip
