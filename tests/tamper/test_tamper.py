"""Whatever is done to the stored bytes, a reader gets the right data or an error, and the mount goes on.

`CRYPTFS_TAMPER=long` tries thousands of examples with up to four attacks each, `CRYPTFS_TAMPER=20000` so
many; then the examples are new in each run, and printed when one fails. Otherwise they are always the same.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from cryptfs.errors import CryptfsError
from cryptfs.fs import FileSystem
from cryptfs.index import catalog
from tests.fs.support import ME
from tests.tamper.damaging import At, Chunks, Cut, Extend, Fill, Flip, HeaderSlots
from tests.tamper.effects import Effects
from tests.tamper.expect import problems
from tests.tamper.misplacing import Duplicate, Exchange
from tests.tamper.observe import look
from tests.tamper.replaying import Replay, ReplayPart
from tests.tamper.scene import Attack, Scene, Spot
from tests.tamper.strangers import STRANGERS, Alien, Delete, Stranger
from tests.tamper.world import (
    DATABASE,
    FOLDERS,
    LONG,
    LONG_FOLDER,
    OBJECTS,
    SPARSE,
    UNSYNCED,
    WITH_ATTRIBUTES,
    World,
)

pytestmark = pytest.mark.thorough

_MODE = os.environ.get("CRYPTFS_TAMPER", "")
EXAMPLES = {"": 16, "long": 5000}.get(_MODE) or int(_MODE)

_objects = st.sampled_from([Spot("object", path) for path in OBJECTS])
_folders = st.sampled_from([Spot("folder", path) for path in FOLDERS])
_headers = st.sampled_from([Spot("header", path) for path in FOLDERS])
_around = st.sampled_from(
    [
        *(Spot("sidecar", path) for path in (LONG_FOLDER, f"anna/{LONG}")),
        *(Spot("attributes", path) for path in WITH_ATTRIBUTES),
        *(Spot(role) for role in ("log", "segment", "journal/state", "journal/lock")),
        *(Spot(role) for role in ("cryptfs.json", "cryptfs.json.previous", "cryptfs.lock")),
    ]
)
_files = _objects | _headers | _around
_entries = _objects | _folders
_places = st.builds(At, st.integers(0, 40), st.sampled_from([0, 0, 0, -1, 1])) | st.builds(
    At, st.none(), share=st.floats(0, 1, width=16)
)
_lengths = st.sampled_from([1, 40, 192, 4096, 4136, 65536, 65576])
_aliens = st.sampled_from(
    [
        "link to outside", "link to itself", "link to the same content", "pipe", "socket", "folder",
        "folder with a file", "empty file",
    ]
)  # fmt: skip
_of_vault = st.sampled_from([Spot(role) for role in ("tree", "journal", "dirs", "xattr")])

ATTACKS: dict[str, st.SearchStrategy[Attack]] = {
    "flip": st.builds(Flip, _files, _places, st.integers(0, 7)),
    "fill": st.builds(
        Fill, _files, _places, _lengths, st.sampled_from(["zeros", "ones", "noise"])
    ),
    "cut": st.builds(Cut, _files, _places),
    "extend": st.builds(Extend, _files, _lengths, st.sampled_from(["zeros", "noise", "itself"])),
    "chunks": st.builds(
        Chunks, _objects, _objects, st.sampled_from(["swap", "copy", "drop", "repeat", "foreign"]),
        st.integers(0, 5), st.integers(0, 5),
    ),
    "header": st.builds(
        HeaderSlots, _objects | _headers, _objects | _headers,
        st.sampled_from(["zero first", "zero second", "zero both", "exchange", "foreign"]),
    ),
    "replay": st.builds(
        Replay, _files, st.sampled_from(["all", "chunks", "header"]), st.booleans()
    ),
    "replay a part": st.builds(
        ReplayPart,
        st.sampled_from(["all", "tree", "dirs", "journal", "xattr", "cryptfs.json", "cryptfs.json.previous"]),
    ),
    "exchange": st.builds(
        Exchange, _entries, _entries, st.sampled_from(["exchange", "copy", "write", "link", "move"])
    ),
    "duplicate": st.builds(Duplicate, _objects, _folders, st.sampled_from(["", "H" * 24, "~"])),
    "delete": st.builds(Delete, _files | _entries | _of_vault),
    "alien": st.builds(Alien, _files | _entries | _of_vault, _aliens),
    "stranger": st.builds(
        Stranger, _folders | _of_vault, _objects | st.just(Spot("segment")),
        st.sampled_from(sorted(STRANGERS)),
    ),
}  # fmt: skip
_several = st.lists(st.one_of(*ATTACKS.values()), min_size=2, max_size=4 if _MODE else 3)
"""Attacks together; alone each kind has examples of its own."""

HOSTS = ["nothing", "witness", "index", "index alone"]
"""What the computer remembers: nothing; what was there before; that, and an index closed in order; the index
without the rest, which was lost."""


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    shm = Path("/dev/shm")
    scratch = Path(tempfile.mkdtemp(prefix="cryptfs-", dir=shm if os.access(shm, os.W_OK) else None))
    logging.disable(logging.CRITICAL)
    with pytest.MonkeyPatch.context() as patch:
        # Two seconds after the index was closed: so long nobody wants to wait for each example.
        patch.setattr(catalog, "RACY_NS", 0)
        yield World(scratch)
    logging.disable(logging.NOTSET)
    shutil.rmtree(scratch)


def tampered(world: World, moment: str, host: str, attacks: list[Attack]) -> str:
    """Attack the vault, mount it, look at everything, write to it, and look again at the next mount.

    Returns how it went, in a word or two.
    """
    world.put(moment)
    if host == "nothing":
        world.forget()
    if host.startswith("index") and moment != "killed":  # which would not be killed any more
        with world.mounted(keeps=True) as fs:
            look(fs)
        world.wait_for_another_time()
    if host == "index alone":
        world.forget(witness_only=True)
    keeps, remembers = host != "nothing", host in ("witness", "index")
    effects = Effects()
    scene = Scene(world, moment, effects, len(attacks) == 1)
    for attack in attacks:
        attack.apply(scene)
    ask = {path.encode() for path in scene.places}
    with contextlib.ExitStack() as stack:
        try:
            fs = stack.enter_context(world.mounted(keeps=keeps))
        except CryptfsError as error:
            assert effects.opening or effects.on(""), f"does not open: {error}"
            with contextlib.suppress(CryptfsError):
                look_read_only(world)
            return "does not open"
        seen = look(fs, ask)
        wrong = list(problems(world, moment, effects, seen, remembers=remembers))
        assert not wrong, "; ".join(wrong)
        counted = fs.stats()["witness"]
        if remembers and scene.alone and moment == "clean" and effects.reports:
            assert any(counted.get(kind) for kind in effects.reports), f"{effects.reports} was not reported"
        write_everywhere(fs)
        before = look(fs, ask)
    with world.mounted(keeps=keeps) as fs:
        after = look(fs, ask)
    first, second = ({path: one.again() for path, one in look_.items()} for look_ in (before, after))
    differ = [path for path in {*first, *second} if first.get(path) != second.get(path)]
    assert not differ, f"the next mount shows something else at {differ}"
    assert after[b"written/new"].content == b"a new file", "what was written afterwards"
    return "opens"


def look_read_only(world: World) -> None:
    with world.archive.mounted(read_only=True, xattrs=True) as mount:
        look(mount.fs)


_REFUSALS = {
    errno.EIO,
    errno.ENOENT,
    errno.EEXIST,
    errno.ENOTEMPTY,
    errno.EISDIR,
    errno.ENOTDIR,
    errno.ENODATA,
}


def _try(do: Callable[[], object]) -> None:
    """Something that may be refused, for damage or because things are not what they were."""
    try:
        do()
    except OSError as error:
        assert error.errno in _REFUSALS, error


def write_everywhere(fs: FileSystem) -> None:
    """Change files, names and attributes as a program would that does not know of the attack."""

    def ino(path: str) -> int:
        found = 1
        for name in path.split("/") if path else []:
            found = fs.lookup(found, name.encode()).ino
        return found

    def write(path: str, offset: int, data: bytes, flags: int = os.O_RDWR) -> None:
        handle = fs.open(ino(path), flags)
        try:
            fs.write(handle, offset, data)
            fs.fsync(handle)
        finally:
            fs.release(handle)

    new = fs.mkdir(1, b"written", 0o755, ME).ino
    handle, _ = fs.create(new, b"new", 0o644, ME, os.O_RDWR)
    fs.write(handle, 0, b"a new file")
    fs.fsync(handle)
    fs.release(handle)
    for path in (DATABASE, "anna/ct/2.dcm", "bert/second", UNSYNCED):
        _try(lambda path=path: write(path, 5000, b"in place"))  # type: ignore[misc]
    _try(lambda: write("anna/report.txt", 0, b"begun anew", os.O_RDWR | os.O_TRUNC))
    _try(lambda: write("empty", 0, b"no longer"))
    _try(lambda: fs.setxattr(ino("anna"), b"user.new", b"value"))
    _try(lambda: fs.setxattr(ino(DATABASE), b"user.new", b"value"))
    _try(lambda: fs.rename(ino("anna/mr"), b"1.dcm", ino("anna/ct"), b"3.dcm"))
    _try(lambda: fs.rename(1, b"link", ino("bert"), b"link"))
    _try(lambda: fs.unlink(ino("anna"), LONG.encode()))
    _try(lambda: fs.unlink(1, b"replaced"))
    _try(lambda: fs.rmdir(1, b"void"))
    _try(lambda: fs.mkdir(1, b"void", 0o755, ME))
    _try(lambda: fs.release(fs.create(ino(LONG_FOLDER), b"beside", 0o644, ME, os.O_RDWR | os.O_EXCL)[0]))
    fs.sync()


_settings = settings(
    max_examples=EXAMPLES, deadline=None, database=None, derandomize=not _MODE, print_blob=True,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip


@pytest.mark.parametrize("kind", ATTACKS)
def test_one_attack(world: World, kind: str) -> None:
    @settings(_settings, max_examples=max(EXAMPLES // 8, 3))
    @given(st.sampled_from(["clean", "killed"]), st.sampled_from(HOSTS), ATTACKS[kind])
    def run(moment: str, host: str, attack: Attack) -> None:
        event(tampered(world, moment, host, [attack]))

    run()


@_settings
@given(st.sampled_from(["clean", "killed"]), st.sampled_from(HOSTS), _several)
def test_several_attacks(world: World, moment: str, host: str, attacks: list[Attack]) -> None:
    event(tampered(world, moment, host, attacks))


MANY_CHUNKS = ("anna/ct/1.dcm", "anna/ct/2.dcm", "bert/new.dcm", DATABASE, SPARSE)
HARMS: list[Callable[[Spot], Attack]] = [
    *(lambda spot, how=how, pair=pair: Chunks(spot, Spot("object", DATABASE), how, *pair)  # type: ignore[misc]
      for how in ("swap", "copy", "foreign") for pair in ((0, 1), (1, 0), (2, 1))),
    *(lambda spot, how=how, one=one: Chunks(spot, spot, how, one, one)  # type: ignore[misc]
      for how in ("drop", "repeat") for one in (0, 1, -1)),
    *(lambda spot, edge=edge: Cut(spot, At(edge)) for edge in range(11, 20)),  # type: ignore[misc]
    lambda spot: Extend(spot, 40, "zeros"),
    lambda spot: Extend(spot, 65576, "itself"),
    lambda spot: Fill(spot, At(11), 4136, "zeros"),
]  # fmt: skip
"""Each of these is done to each of these files, to all of them in the same vault."""


@pytest.mark.parametrize("number", range(len(HARMS)))
def test_every_harm_to_content(world: World, number: int) -> None:
    attacks = [
        HARMS[(number + 5 * turn) % len(HARMS)](Spot("object", path)) for turn, path in enumerate(MANY_CHUNKS)
    ]
    assert tampered(world, "clean", HOSTS[number % len(HOSTS)], attacks) == "opens"


FOUND: dict[str, tuple[str, str, list[Attack]]] = {
    "a pipe in the place of a long name": (
        "clean", "witness", [Alien(Spot("sidecar", f"anna/{LONG}"), "pipe")],
    ),
    "a folder in the place of a long name": (
        "clean", "index", [Alien(Spot("sidecar", LONG_FOLDER), "folder")],
    ),
    "a link in the place of a file": (
        "clean", "nothing", [Alien(Spot("object", "anna/ct/1.dcm"), "link to outside")],
    ),
    "a socket in the place of a file": (
        "clean", "index", [Alien(Spot("object", DATABASE), "socket")],
    ),
    "a link in the place of a folder's header, the folder emptied": (
        "clean", "nothing", [Alien(Spot("header", "anna/mr"), "link to outside")],
    ),
    "a file in the place of the attributes": ("clean", "witness", [Alien(Spot("xattr"), "empty file")]),
    "a link to itself in the place of the tree": (
        "clean", "index alone", [Alien(Spot("tree"), "link to itself")],
    ),
    "a pipe in the place of the configuration": (
        "clean", "nothing", [Alien(Spot("cryptfs.json"), "pipe")],
    ),
    "a link to a file in the place of the copies of headers, one of which is needed": (
        "clean", "nothing",
        [Alien(Spot("dirs"), "link to outside"), Delete(Spot("header", "anna/mr"))],
    ),
    "a link to itself there": (
        "clean", "index", [Alien(Spot("dirs"), "link to itself"), Delete(Spot("header", "anna/mr"))],
    ),
    "the header of a file that was never synced over another": (
        "killed", "nothing",
        [HeaderSlots(Spot("object", "anna/ct/2.dcm"), Spot("object", UNSYNCED), "foreign")],
    ),
}  # fmt: skip
"""What was wrong once, or nearly."""


@pytest.mark.parametrize("what", FOUND)
def test_what_was_found_before(world: World, what: str) -> None:
    moment, host, attacks = FOUND[what]
    tampered(world, moment, host, attacks)


@pytest.mark.parametrize(
    ("moment", "host"), [*(("clean", host) for host in HOSTS), ("killed", "nothing"), ("killed", "witness")]
)
def test_without_an_attack_all_is_right(world: World, moment: str, host: str) -> None:
    assert tampered(world, moment, host, []) == "opens"
