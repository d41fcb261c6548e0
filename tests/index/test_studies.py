"""The study index against a plain model of the tree and its images, and what its searches find."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from cryptfs.index.environment import Environment
from cryptfs.index.studies import State, StudyIndex
from cryptfs.index.studysearch import PAGE, FoundFile, Query, Search, Summary
from cryptfs.index.tags import Kind, Tags

from .support import open_environment

ROOT = b"root".ljust(16)
SYNTAX = "1.2.840.10008.1.2.1"


def tags(
    patient: str = "P1",
    study: str = "1.2",
    series: str = "1.2.1",
    instance: str = "1.2.1.1",
    *,
    name: str = "Muster^Anna",
    modality: str = "CT",
    date: str = "20200131",
    accession: str = "A1",
    syntax: str = SYNTAX,
) -> Tags:
    return Tags(patient, name, study, series, instance, modality, date, accession, syntax, "1.2.3")


class Filled:
    """An index to which files are added by path."""

    def __init__(self, place: Path) -> None:
        self.environment: Environment = open_environment(place)
        self.index = StudyIndex(self.environment, ROOT)
        self.search = Search(self.index)
        self._count = 0

    def add(self, name: bytes, image: Tags | None, size: int = 1000, kind: Kind = Kind.INSTANCE) -> bytes:
        self._count += 1
        oid = self._count.to_bytes(16, "big")
        self.index.named(ROOT, name, oid, is_dir=False)
        self.index.written(oid)
        if image is not None:
            self.index.skip(self.index.file_key(oid))
            self.index.found(self.index.file_key(oid), State(size, 1, 1), kind, image)
        return oid

    def files(self, **query: str) -> set[bytes]:
        return {file.path for file in everything(self.search, Query(**query))}

    def studies(self, **query: str) -> set[str]:
        found, after = self.search.studies(Query(**query))
        assert after == b""
        return {study.study for study in found}


def everything(search: Search, query: Query) -> list[FoundFile]:
    found: list[FoundFile] = []
    after = b""
    while True:
        page, after = search.files(query, after)
        found += page
        if not after:
            return found


@pytest.fixture
def filled(tmp_path: Path) -> Filled:
    filled = Filled(tmp_path)
    filled.add(b"a1", tags())
    filled.add(b"a2", tags(instance="1.2.1.2"))
    filled.add(b"a-mr", tags(series="1.2.2", instance="1.2.2.1", modality="MR"))
    filled.add(
        b"b", tags("P2", "1.3", "1.3.1", "1.3.1.1", name="Müller^Hans", date="20210601", accession="B7")
    )
    filled.add(
        b"c", tags("P3", "1.4", "1.4.1", "1.4.1.1", name="Müller^Eva", date="", accession="", modality="US")
    )
    filled.add(b"cd", None)
    return filled


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({}, {b"a1", b"a2", b"a-mr", b"b", b"c"}),
        ({"patient": "P1"}, {b"a1", b"a2", b"a-mr"}),
        ({"patient": "p1"}, {b"a1", b"a2", b"a-mr"}),
        ({"patient": "muller"}, {b"b", b"c"}),
        ({"patient": "Hans Müller"}, {b"b"}),
        ({"patient": "Hans Muster"}, set()),
        ({"patient": "m*"}, {b"a1", b"a2", b"a-mr", b"b", b"c"}),
        ({"patient": "*ller E*"}, {b"c"}),
        ({"patient": "P*"}, {b"a1", b"a2", b"a-mr", b"b", b"c"}),
        ({"patient": "*2"}, {b"b"}),
        ({"patient": "*"}, {b"a1", b"a2", b"a-mr", b"b", b"c"}),
        ({"study": "1.3"}, {b"b"}),
        ({"study": "1.*"}, {b"a1", b"a2", b"a-mr", b"b", b"c"}),
        ({"series": "1.2.2"}, {b"a-mr"}),
        ({"series": "1.2.*"}, {b"a1", b"a2", b"a-mr"}),
        ({"instance": "1.2.1.2"}, {b"a2"}),
        ({"instance": "*.1.1"}, {b"a1", b"b", b"c"}),
        ({"accession": "b7"}, {b"b"}),
        ({"accession": "*7"}, {b"b"}),
        ({"modality": "mr"}, {b"a-mr"}),
        ({"modality": "CT", "patient": "P1"}, {b"a1", b"a2"}),
        ({"first_date": "20200131", "last_date": "20200131"}, {b"a1", b"a2", b"a-mr"}),
        ({"first_date": "20200101", "last_date": "20200231"}, {b"a1", b"a2", b"a-mr"}),
        ({"first_date": "20200201"}, {b"b"}),
        ({"last_date": "20201231"}, {b"a1", b"a2", b"a-mr"}),
        ({"first_date": "19000101", "last_date": "20991231"}, {b"a1", b"a2", b"a-mr", b"b"}),
        ({"first_date": "20210101", "last_date": "20211231", "modality": "MR"}, set()),
        ({"patient": "P1", "accession": "B7"}, set()),
        ({"series": "1.2.2", "modality": "CT"}, set()),
        ({"patient": "nobody"}, set()),
    ],
    ids=lambda value: str(sorted(value)) if isinstance(value, set) else str(value),
)
def test_searches(filled: Filled, query: dict[str, str], expected: set[bytes]) -> None:
    assert filled.files(**query) == expected
    owners = {b"a1": "1.2", b"a2": "1.2", b"a-mr": "1.2", b"b": "1.3", b"c": "1.4"}
    assert filled.studies(**query) == {owners[path] for path in expected}


def test_what_is_said_of_a_file_and_a_study(filled: Filled) -> None:
    (file,), _ = filled.search.files(Query(study="1.3"))
    assert file == FoundFile(
        b"b", "P2", "Müller^Hans", "1.3", "20210601", "B7", "1.3.1", "CT", "1.3.1.1", SYNTAX, 1000
    )
    (study,), _ = filled.search.studies(Query(study="1.2"))
    assert (study.series, study.instances, study.files, study.size) == (2, 3, 3, 3000)
    assert study.modalities == ["CT", "MR"]


def test_summary(filled: Filled) -> None:
    filled.add(b"a1-again", tags(), size=500)
    filled.add(b"notes", Tags(), kind=Kind.NOT_DICOM)
    filled.add(b"nobody", tags("", "1.5", "1.5.1", "1.5.1.1", syntax="1.2.840.10008.1.2.4.50"))
    assert filled.search.summary() == Summary(
        patients=4,
        studies=4,
        series=5,
        instances=6,
        files=7,
        size=6500,
        all_files=9,
        kinds={"instance": 7, "not dicom": 1},
        modalities={"CT": [3, 3, 4, 5, 4500], "MR": [1, 1, 1, 1, 1000], "US": [1, 1, 1, 1, 1000]},
        years={"2020": [2, 4, 5, 4500], "2021": [1, 1, 1, 1000], "": [1, 1, 1, 1000]},
        syntaxes={SYNTAX: [6, 5500], "1.2.840.10008.1.2.4.50": [1, 1000]},
        without_patient_id=1,
    )
    assert filled.index.to_read == 1


def test_pages(tmp_path: Path) -> None:
    """No file twice, none left out, whether a study ends with a page or not."""
    filled = Filled(tmp_path)
    expected = set()
    for number in range(2 * PAGE + 7):
        study = number % 3
        name = str(number).encode()
        filled.add(name, tags("P1", f"1.{study}", f"1.{study}.{number % 7}", f"1.{study}.{number}"))
        expected.add(name)
    found = everything(filled.search, Query())
    assert len(found) == len(expected)
    assert {file.path for file in found} == expected


def test_pages_of_studies(tmp_path: Path) -> None:
    filled = Filled(tmp_path)
    for number in range(PAGE + 5):
        filled.add(str(number).encode(), tags("P1", f"1.{number}", f"1.{number}.1", f"1.{number}.1.1"))
    first, after = filled.search.studies(Query())
    rest, end = filled.search.studies(Query(), after)
    assert (len(first), len(rest), end) == (PAGE, 5, b"")
    assert len({study.study for study in first + rest}) == PAGE + 5


def test_a_wildcard_sees_a_patient_who_came_later(filled: Filled) -> None:
    assert filled.files(patient="zz*") == set()
    filled.add(b"z", tags("P9", "1.9", "1.9.1", "1.9.1.1", name="Zzyx^Q"))
    assert filled.files(patient="zz*") == {b"z"}


def test_another_patient_in_the_same_file(filled: Filled) -> None:
    oid = filled.add(b"x", tags("P8", "1.8", "1.8.1", "1.8.1.1", name="Alt^A"))
    filled.index.found(
        filled.index.file_key(oid), State(7, 2, 2), Kind.INSTANCE,
        tags("P7", "1.7", "1.7.1", "1.7.1.1", name="Neu^N"),
    )  # fmt: skip
    assert filled.files(patient="alt") == filled.files(study="1.8") == set()
    assert filled.files(patient="neu") == {b"x"}


def test_whether_a_file_is_as_it_was_read(filled: Filled) -> None:
    key = filled.index.file_key(filled.add(b"x", tags()))
    assert filled.index.is_current(key, State(1000, 1, 1))
    assert not filled.index.is_current(key, State(1000, 2, 1))


def test_it_is_there_again(tmp_path: Path) -> None:
    filled = Filled(tmp_path)
    filled.add(b"a", tags())
    filled.add(b"later", None)
    filled.index.close("session")
    filled.environment.close()
    again = Filled(tmp_path)
    assert again.environment.found == ""
    assert again.index.totals.session == "session"
    assert again.files(patient="muster") == {b"a"}
    assert (again.index.to_read, again.index.to_list) == (1, 1)


def test_another_form_is_begun_anew(tmp_path: Path) -> None:
    filled = Filled(tmp_path)
    filled.add(b"a", tags())
    filled.index.totals.format = 999
    filled.index.close("")
    filled.environment.close()
    again = Filled(tmp_path)
    assert again.files() == set()
    assert again.index.to_list == 1


@pytest.mark.parametrize("exchange", [False, True])
def test_moves(filled: Filled, exchange: bool) -> None:
    index = filled.index
    index.named(ROOT, b"dir", b"d" * 16, is_dir=True)
    index.moved(ROOT, b"b", b"d" * 16, b"new", exchange=False)
    assert filled.files(study="1.3") == {b"dir/new"}
    index.moved(b"d" * 16, b"new", ROOT, b"c", exchange=exchange)
    assert filled.files(study="1.3") == {b"c"}
    assert filled.files(study="1.4") == ({b"dir/new"} if exchange else set())
    index.moved(ROOT, b"c", ROOT, b"dir", exchange=True)
    assert filled.files(study="1.3") == {b"dir"}
    assert filled.files(study="1.4") == ({b"c/new"} if exchange else set())


def test_a_move_of_what_is_not_known_is_looked_up_later(filled: Filled) -> None:
    index = filled.index
    index.listed(index.root)
    index.moved(ROOT, b"unknown", ROOT, b"a1", exchange=False)
    assert index.next_listings(10) == [(index.root, False)]


NAMES = st.sampled_from([b"a", b"b", b"c", b"d"])
IMAGES = st.builds(
    tags,
    st.sampled_from(["P1", "P2", ""]),
    st.sampled_from(["1.1", "1.2"]),
    st.sampled_from(["1.1.1", "1.1.2"]),
    st.sampled_from(["1.1.1.1", "1.1.1.2"]),
    name=st.sampled_from(["Muster^Anna", "Müller^Hans", ""]),
    modality=st.sampled_from(["CT", "MR"]),
    date=st.sampled_from(["20200131", "20210101", ""]),
    syntax=st.sampled_from([SYNTAX, "1.2.840.10008.1.2"]),
)
DIRECTORY = dict[bytes, bytes]


class Tree(RuleBasedStateMachine):
    """Directories and files by object id; what the index says is compared after every step."""

    def __init__(self) -> None:
        super().__init__()
        self._folder = tempfile.TemporaryDirectory()
        self.environment = open_environment(Path(self._folder.name))
        self.index = StudyIndex(self.environment, ROOT)
        self.index.listed(self.index.root)
        self.search = Search(self.index)
        self.directories: dict[bytes, DIRECTORY] = {ROOT: {}}
        self.images: dict[bytes, tuple[Tags, int] | None] = {}
        self.count = 0

    def teardown(self) -> None:
        """When all is removed, nothing of it is left in the environment."""
        while self.directories[ROOT]:
            self._remove(ROOT, next(iter(self.directories[ROOT])))
        self.index.flush()
        left = [key for letter in b"pdftrslukqnixy" for key, _ in self.environment.scan(bytes([letter]))]
        assert left == []
        totals = self.index.totals
        assert (totals.files, totals.patients, totals.studies, totals.series, totals.instances) == (0,) * 5
        self.environment.close()
        self._folder.cleanup()

    def _pick(self, data: st.DataObject) -> bytes:
        return data.draw(st.sampled_from(sorted(self.directories)))

    def _new(self) -> bytes:
        self.count += 1
        return self.count.to_bytes(16, "big")

    def _remove(self, directory: bytes, name: bytes, tell: bool = True) -> None:
        child = self.directories[directory].pop(name)
        if child in self.directories:
            # What is in it is forgotten with it, unasked: after unseen changes nobody can tell of it.
            for inner in list(self.directories[child]):
                self._remove(child, inner, tell=False)
            del self.directories[child]
        else:
            self._drop(child)
        if tell:
            self.index.removed(directory, name)

    def _drop(self, file: bytes) -> None:
        if not any(file in entries.values() for entries in self.directories.values()):
            del self.images[file]

    @rule(data=st.data(), name=NAMES)
    def mkdir(self, data: st.DataObject, name: bytes) -> None:
        parent = self._pick(data)
        if name not in self.directories[parent] and len(self.directories) < 6:
            oid = self._new()
            self.directories[parent][name] = oid
            self.directories[oid] = {}
            self.index.named(parent, name, oid, is_dir=True)

    @rule(data=st.data(), name=NAMES, image=IMAGES)
    def create(self, data: st.DataObject, name: bytes, image: Tags) -> None:
        parent = self._pick(data)
        if name not in self.directories[parent]:
            oid = self._new()
            self.directories[parent][name] = oid
            self.images[oid] = None
            self.index.named(parent, name, oid, is_dir=False)
            self.index.written(oid)

    @precondition(lambda self: self.images)
    @rule(data=st.data(), image=IMAGES, size=st.integers(0, 100))
    def read(self, data: st.DataObject, image: Tags, size: int) -> None:
        oid = data.draw(st.sampled_from(sorted(self.images)))
        self.images[oid] = image, size
        self.index.skip(self.index.file_key(oid))
        self.index.found(self.index.file_key(oid), State(size, 1, 1), Kind.INSTANCE, image)

    @precondition(lambda self: self.images)
    @rule(data=st.data(), name=NAMES)
    def link(self, data: st.DataObject, name: bytes) -> None:
        oid, parent = data.draw(st.sampled_from(sorted(self.images))), self._pick(data)
        if name not in self.directories[parent]:
            self.directories[parent][name] = oid
            self.index.named(parent, name, oid, is_dir=False)

    @rule(data=st.data(), name=NAMES)
    def remove(self, data: st.DataObject, name: bytes) -> None:
        parent = self._pick(data)
        if name in self.directories[parent]:
            self._remove(parent, name)

    @rule(data=st.data(), old=NAMES, new=NAMES, exchange=st.booleans())
    def move(self, data: st.DataObject, old: bytes, new: bytes, exchange: bool) -> None:
        source, target = self._pick(data), self._pick(data)
        child, other = self.directories[source].get(old), self.directories[target].get(new)
        if child is None or self._is_below(target, child) or (other and self._is_below(source, other)):
            return
        if exchange and other is None:
            return
        replaces = child != other and other is not None and not exchange
        if replaces and ((child in self.directories) != (other in self.directories)):
            return  # what rename(2) refuses
        if replaces and self.directories.get(other or b""):
            return
        self.index.moved(source, old, target, new, exchange=exchange)
        if child == other:
            return
        if exchange:
            assert other is not None
            self.directories[source][old], self.directories[target][new] = other, child
            return
        del self.directories[source][old]
        self.directories[target][new] = child
        if other is not None:
            if other in self.directories:
                del self.directories[other]
            else:
                self._drop(other)

    def _is_below(self, directory: bytes, above: bytes) -> bool:
        if directory == above:
            return True
        return any(self._is_below(directory, child) for child in self.directories.get(above, {}).values())

    @rule()
    def flush(self) -> None:
        self.index.flush()

    def _paths(self, directory: bytes = ROOT, prefix: bytes = b"") -> list[tuple[bytes, bytes]]:
        found = []
        for name, child in self.directories[directory].items():
            path = prefix + name
            found += self._paths(child, path + b"/") if child in self.directories else [(path, child)]
        return found

    @invariant()
    def what_it_says(self) -> None:
        expected = Counter(
            (path, image[0].patient_id, image[0].study, image[0].series, image[0].instance, image[1])
            for path, oid in self._paths()
            if (image := self.images[oid])
        )
        found = Counter(
            (file.path, file.patient_id, file.study, file.series, file.instance, file.size)
            for file in everything(self.search, Query())
        )
        assert found == expected
        read = [image for image in self.images.values() if image]
        totals = self.index.totals
        assert totals.files == len(self.images)
        assert totals.unread == len(self.images) - len(read) == len(self.index.next_reads(100))
        images = [image for image, _ in read]
        assert totals.patients == len({image.patient_id for image in images})
        assert totals.studies == len({(i.patient_id, i.study) for i in images})
        assert totals.series == len({(i.patient_id, i.study, i.series) for i in images})
        assert totals.instances == len({(i.patient_id, i.study, i.series, i.instance) for i in images})
        summary = self.search.summary()
        assert (summary.files, summary.size) == (len(read), sum(size for _, size in read))
        assert {uid: counts[0] for uid, counts in summary.syntaxes.items()} == Counter(
            image.transfer_syntax for image in images
        )
        for patient in ("P1", "P2"):
            assert {file.path for file in everything(self.search, Query(patient=patient))} == {
                row[0] for row in expected if row[1] == patient
            }


TestTree = Tree.TestCase
TestTree.settings = settings(max_examples=20, stateful_step_count=30, deadline=None)
