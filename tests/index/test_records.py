"""Records of entries: whatever is put into one comes out of it, and most files' are small."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cryptfs.index import records
from cryptfs.index.records import FileRecord

U32, U64, TIMES = st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1), st.integers(-(2**62), 2**62)
NAMES = st.binary(min_size=1, max_size=255)
FIELDS = st.builds(
    FileRecord,
    st.just(records.FILE), st.integers(0, 255), st.integers(0, 0o177777), U32, U32, U64, U64, U32,
    TIMES, TIMES, TIMES, TIMES,
)  # fmt: skip
AT = 1_700_000_000_123_456_789
USUAL = FileRecord(
    records.FILE, 16, 0o100644, 1000, 1000, 4_123_456, 526_336, 1040, AT - 900, AT - 800, AT - 700, AT
)


@given(FIELDS, NAMES)
def test_any_file_comes_back(record: FileRecord, name: bytes) -> None:
    value = records.file(record, name)
    assert records.kind_of(value) == records.FILE
    assert records.file_of(value) == record
    assert records.fields_of(value) == tuple(record)
    assert records.name_of(value) == name


@given(st.sampled_from(FileRecord._fields[1:]), st.integers(-3, 3), st.sampled_from([16, 31, 32, 63]), NAMES)
def test_at_the_edges_of_the_smaller_sizes(field: str, by: int, bits: int, name: bytes) -> None:
    """One field of a usual record takes values around those that still fit."""
    limits = {"chunk_log2": 8, "mode": 16, "uid": 32, "gid": 32, "blocks": 32, "ino": 64, "size": 64}
    value = (1 << min(bits, limits.get(field, 63) - 1)) + by
    signed = field in ("atime", "mtime", "ctime")
    record = USUAL._replace(**{field: USUAL.changed - value if signed else value})
    assert records.file_of(records.file(record, name)) == record


@given(NAMES, U64)
def test_others_come_back(name: bytes, ino: int) -> None:
    assert records.name_of(records.opaque(name)) == name
    assert records.kind_of(records.opaque(name)) == records.OPAQUE
    folder = records.directory(ino, name)
    assert (records.kind_of(folder), records.inode_of(folder)) == (records.DIRECTORY, ino)
    assert records.name_of(folder) == name


def test_sizes() -> None:
    assert len(records.file(USUAL, b"")) == 38
    assert len(records.file(USUAL._replace(mtime=AT - 10**18, atime=0), b"")) == 46
    assert len(records.file(USUAL._replace(uid=1 << 20), b"")) == 66
    assert records.file(USUAL._replace(blocks=1 << 33), b"n") == records.opaque(b"n")
