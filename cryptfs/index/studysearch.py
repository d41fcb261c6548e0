"""Searching the study index.

Whole identifiers, words of names, dates and modalities are looked up by their keyed hash. What has a `*` in
it is compared with a list of all patients, which is made when it is first needed. Nothing here looks at
more than a page of files at a time, so that a search never keeps the mount waiting.
"""

from __future__ import annotations

import bisect
import re
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import date, timedelta

import msgspec

from cryptfs.index.studies import StudyIndex
from cryptfs.index.studyrows import HASH, FileRow, PatientRow, SeriesRow, StudyBatch, StudyRow
from cryptfs.index.text import Pattern, fold

PAGE = 500
"""How many files or studies a page has at most."""
_EXAMINED = 4000
"""After so many studies that do not fit a page ends, even if it is empty."""
_DAYS = 3700
"""A longer range of dates is not looked up day by day."""


class Query(msgspec.Struct, frozen=True):
    """What is looked for; all that is given must fit. Empty: anything. `*` in a text stands for anything.

    `patient` is an identifier, or words of a name. Dates are YYYYMMDD, both ends belong to the range.
    """

    patient: str = ""
    study: str = ""
    series: str = ""
    instance: str = ""
    accession: str = ""
    modality: str = ""
    first_date: str = ""
    last_date: str = ""


class FoundStudy(msgspec.Struct):
    """A study; sizes in bytes, counts of what the vault holds of it."""

    patient_id: str
    patient_name: str
    study: str
    date: str
    accession: str
    modalities: list[str]
    series: int
    instances: int
    files: int
    size: int


class FoundFile(msgspec.Struct):
    """A file; `path` are the names from the root of the vault, joined by slashes."""

    path: bytes
    patient_id: str
    patient_name: str
    study: str
    date: str
    accession: str
    series: str
    modality: str
    instance: str
    transfer_syntax: str
    size: int


class Summary(msgspec.Struct):
    """What the index knows of the whole vault.

    By modality: studies, series, instances, files, bytes. By year (of the study; "" without a date): studies,
    instances, files, bytes. By transfer syntax: files, bytes.
    """

    patients: int
    studies: int
    series: int
    instances: int
    files: int
    size: int
    all_files: int
    kinds: dict[str, int]
    modalities: dict[str, list[int]]
    years: dict[str, list[int]]
    syntaxes: dict[str, list[int]]
    without_patient_id: int


class _Matcher:
    """Whether a study, series or file fits a query."""

    def __init__(self, query: Query, batch: StudyBatch) -> None:
        self._query = query
        self._batch = batch
        self._study = _pattern(query.study)
        self._accession = _pattern(query.accession)
        self._series = _pattern(query.series)
        self._instance = _pattern(query.instance)
        self._patient = _pattern(query.patient)
        self.modality = query.modality.upper()

    def study(self, row: StudyRow) -> bool:
        query = self._query
        if query.first_date and not query.first_date <= row.date:
            return False
        if query.last_date and not (row.date and row.date <= query.last_date):
            return False
        if self.modality and self.modality not in row.modalities:
            return False
        if not _fits(self._study, row.uid) or not _fits(self._accession, row.accession):
            return False
        return self._patient is None or self._is_patient(row)

    def _is_patient(self, row: StudyRow) -> bool:
        assert self._patient is not None
        if self._patient.matches_identifier(fold(row.patient_id)):
            return True
        patient = self._batch.row(self._batch.key(b"q", row.patient), PatientRow)
        return patient is not None and self._patient.matches_any(patient.names)

    def series(self, row: SeriesRow) -> bool:
        return (not self.modality or row.modality == self.modality) and _fits(self._series, row.uid)

    def file(self, row: FileRow) -> bool:
        return _fits(self._instance, row.instance)


def _pattern(text: str) -> Pattern | None:
    return Pattern(text) if text else None


def _fits(pattern: Pattern | None, text: str) -> bool:
    return pattern is None or pattern.matches_identifier(fold(text))


class Catalogue:
    """All patients in one text, to be searched for what has a `*` in it."""

    def __init__(self, index: StudyIndex) -> None:
        lines: list[str] = []
        self._keys: list[bytes] = []
        self._starts: list[int] = []
        at = 0
        for key in index.batch.keys(b"q"):
            row = index.batch.row(b"q" + key, PatientRow)
            if row is None:
                continue
            names = " ".join(word for name in row.names for word in _words(name))
            line = f"\n{_flat(fold(row.patient_id))}\x1f {names} "
            self._keys.append(key)
            self._starts.append(at)
            lines.append(line)
            at += len(line)
        self._text = "".join(lines)

    def search(self, text: str) -> list[bytes]:
        """The keys of the patients whose identifier fits, or whose name has all these words."""
        pattern = Pattern(text)
        found = self._lines("\n" + _wild(_flat(pattern.whole), "[^\n\x1f]*") + "\x1f")
        by_word = [self._lines(" " + _wild(word, "[^ \n\x1f]*") + "(?= )") for word in pattern.words]
        if by_word:
            found |= set.intersection(*by_word)
        return [self._keys[line] for line in found]

    def _lines(self, pattern: str) -> set[int]:
        return {bisect.bisect(self._starts, match.start()) - 1 for match in re.finditer(pattern, self._text)}


def _words(name: str) -> list[str]:
    return Pattern(name).words


def _flat(text: str) -> str:
    return text.replace("\n", " ").replace("\x1f", " ")


def _wild(text: str, anything: str) -> str:
    return anything.join(map(re.escape, re.split(r"\*+", text)))


class Search:
    """Answers from one index. Commits what waits in it first, so that it is found."""

    def __init__(self, index: StudyIndex) -> None:
        self._index = index
        self._batch = index.batch
        self._catalogue: tuple[int, Catalogue] | None = None

    # -- studies ---------------------------------------------------------------------------------

    def studies(self, query: Query, after: bytes = b"") -> tuple[list[FoundStudy], bytes]:
        """A page of studies in no particular order, and where the next page begins, b"" at the end."""
        self._index.flush()
        found: list[FoundStudy] = []
        files = bool(query.series or query.instance)
        for key, row, matcher in self._matching(query, after):
            after = key
            if row is not None and (not files or any(True for _ in self._files(key, row, matcher, b""))):
                found.append(_found_study(row))
            if row is None or len(found) >= PAGE:
                return found, after
        return found, b""

    def _matching(self, query: Query, after: bytes) -> Iterator[tuple[bytes, StudyRow | None, _Matcher]]:
        """Studies that fit; one without a row says that it took long enough to get there."""
        matcher = _Matcher(query, self._batch)
        for examined, key in enumerate(self._candidates(query, after)):
            row = self._batch.row(self._batch.key(b"u", key), StudyRow)
            if row is not None and matcher.study(row):
                yield key, row, matcher
            elif examined > _EXAMINED:
                yield key, None, matcher

    def _candidates(self, query: Query, after: bytes) -> Iterable[bytes]:
        """Keys of studies, ascending and behind `after`, among which are all that fit."""
        index, batch = self._index, self._batch
        for kind, text in (
            (b"series", query.series),
            (b"study", query.study),
            (b"accession", query.accession),
        ):
            if text and "*" not in text:
                return batch.keys(batch.key(b"x", index.term(kind, fold(text))), after)
        if query.instance and "*" not in query.instance:
            return self._sorted(self._studies_of_instance(query.instance), after)
        if query.patient:
            studies = (
                study
                for patient in self._patients(query.patient)
                for study in batch.keys(batch.key(b"n", patient))
            )
            return self._sorted(studies, after)
        days = _days(query.first_date, query.last_date)
        if days is not None:
            return self._sorted(
                (key for day in days for key in batch.keys(batch.key(b"x", index.term(b"date", day)))), after
            )
        if query.modality:
            return batch.keys(batch.key(b"x", index.term(b"modality", query.modality.upper())), after)
        return batch.keys(b"u", after)

    @staticmethod
    def _sorted(keys: Iterable[bytes], after: bytes) -> list[bytes]:
        return sorted({key for key in keys if key > after})

    def _studies_of_instance(self, uid: str) -> Iterator[bytes]:
        batch = self._batch
        for key in batch.keys(batch.key(b"i", self._index.term(b"instance", fold(uid)))):
            series = batch.row(batch.key(b"s", key[:HASH]), SeriesRow)
            if series is not None:
                yield series.study

    def _patients(self, text: str) -> set[bytes]:
        index, batch = self._index, self._batch
        if "*" in text:
            if self._catalogue is None or self._catalogue[0] != index.generation:
                self._catalogue = index.generation, Catalogue(index)
            return set(self._catalogue[1].search(text))
        pattern = Pattern(text)
        found = set(batch.keys(batch.key(b"y", index.term(b"id", pattern.whole))))
        by_word = [set(batch.keys(batch.key(b"y", index.term(b"word", word)))) for word in pattern.words]
        return found | (set.intersection(*by_word) if by_word else set())

    # -- files -----------------------------------------------------------------------------------

    def files(self, query: Query, after: bytes = b"") -> tuple[list[FoundFile], bytes]:
        """A page of files, those of a study together, and where the next page begins, b"" at the end."""
        self._index.flush()
        found: list[FoundFile] = []
        begin, within = after[:HASH], after[HASH:]
        if within:
            # The page before ended in the middle of this study.
            row = self._batch.row(self._batch.key(b"u", begin), StudyRow)
            matcher = _Matcher(query, self._batch)
            if row is not None and matcher.study(row):
                for file_at, names in self._files(begin, row, matcher, within):
                    found += names
                    if len(found) >= PAGE:
                        return found, begin + file_at
        for key, row, matcher in self._matching(query, begin):
            if row is None:
                return found, key
            for file_at, names in self._files(key, row, matcher, b""):
                found += names
                if len(found) >= PAGE:
                    return found, key + file_at
        return found, b""

    def _files(
        self, study_key: bytes, study: StudyRow, matcher: _Matcher, after: bytes
    ) -> Iterator[tuple[bytes, list[FoundFile]]]:
        """The files of a study that fit, behind `after`: each with its key in the study, at all its names."""
        batch = self._batch
        for series_key in batch.keys(batch.key(b"k", study_key)):
            if series_key < after[:HASH]:
                continue
            series = batch.row(batch.key(b"s", series_key), SeriesRow)
            if series is None or not matcher.series(series):
                continue
            behind = after[HASH:] if series_key == after[:HASH] else b""
            for file_key in batch.keys(batch.key(b"l", series_key), behind):
                row = batch.row(batch.key(b"f", file_key), FileRow)
                if row is None or not matcher.file(row):
                    continue
                paths = [self._index.path_of(place) for place in row.places]
                found = [
                    _found_file(study, series, row, b"/".join(path)) for path in paths if path is not None
                ]
                if found:
                    yield series_key + file_key, found

    # -- the whole -------------------------------------------------------------------------------

    def summary(self, rest: Callable[[], None] = lambda: time.sleep(0)) -> Summary:
        """Counts of everything; `rest` is called now and then."""
        self._index.flush()
        totals = self._index.totals
        modalities: dict[str, list[int]] = {}
        years: dict[str, list[int]] = {}
        syntaxes: dict[str, list[int]] = {}
        nameless = 0
        for number, key in enumerate(self._batch.keys(b"u")):
            if number % 128 == 0:
                rest()
            row = self._batch.row(self._batch.key(b"u", key), StudyRow)
            if row is None:
                continue
            nameless += not row.patient_id
            year = years.setdefault(row.date[:4], [0, 0, 0, 0])
            year[0] += 1
            for modality, counts in row.modalities.items():
                _add(modalities.setdefault(modality, [0] * 5), [1, *counts])
                _add(year, [0, *counts[1:]])
            for syntax, counts in row.syntaxes.items():
                _add(syntaxes.setdefault(syntax, [0, 0]), counts)
        return Summary(
            patients=totals.patients,
            studies=totals.studies,
            series=totals.series,
            instances=totals.instances,
            files=sum(counts[3] for counts in modalities.values()),
            size=sum(counts[4] for counts in modalities.values()),
            all_files=totals.files,
            kinds={kind: count for kind, count in totals.kinds.items() if count},
            modalities=modalities,
            years=years,
            syntaxes=syntaxes,
            without_patient_id=nameless,
        )


def _add(to: list[int], counts: list[int]) -> None:
    for place, count in enumerate(counts):
        to[place] += count


def _days(first: str, last: str) -> list[str] | None:
    """All days of a range, None if it has no end or too many days."""
    try:
        begin, end = _date(first), _date(last)
    except ValueError:
        return None
    count = (end - begin).days + 1
    if count > _DAYS:
        return None
    return [(begin + timedelta(days)).strftime("%Y%m%d") for days in range(count)]


def _date(text: str) -> date:
    """A day; the last of the month for one that the month does not have. ValueError for no date at all."""
    year, month, day = int(text[:4]), int(text[4:6]), int(text[6:])
    while day > 28:
        try:
            return date(year, month, day)
        except ValueError:
            day -= 1
    return date(year, month, day)


def _found_study(row: StudyRow) -> FoundStudy:
    counts = [sum(column) for column in zip(*row.modalities.values(), strict=True)]
    return FoundStudy(
        patient_id=row.patient_id,
        patient_name=row.patient_name,
        study=row.uid,
        date=row.date,
        accession=row.accession,
        modalities=sorted(row.modalities),
        series=counts[0],
        instances=counts[1],
        files=counts[2],
        size=counts[3],
    )


def _found_file(study: StudyRow, series: SeriesRow, row: FileRow, path: bytes) -> FoundFile:
    return FoundFile(
        path=path,
        patient_id=study.patient_id,
        patient_name=study.patient_name,
        study=study.uid,
        date=study.date,
        accession=study.accession,
        series=series.uid,
        modality=series.modality,
        instance=row.instance,
        transfer_syntax=row.transfer_syntax,
        size=row.size,
    )
