"""Images, series, studies, patients, and the terms by which they are found: the lower half of `studies`."""

from __future__ import annotations

from cryptfs.index.studyrows import HASH, FileRow, PatientRow, SeriesRow, StudyBatch, StudyRow, Totals
from cryptfs.index.tags import Tags
from cryptfs.index.text import fold, words

_NAMES_MAX = 20
"""So many different names are kept for one patient's identifier."""


class Content:
    """What the images in one index say. The caller holds the batch's lock."""

    def __init__(self, batch: StudyBatch, totals: Totals) -> None:
        self.batch = batch
        self.totals = totals
        self.generation = 0
        """Grows whenever a patient or a name comes or goes."""

    def term(self, kind: bytes, text: str) -> bytes:
        """The key of a term; `text` as `text.fold` made it."""
        return self.batch.hashed(kind, text.encode("utf-8", "surrogatepass"))

    def add(self, file: bytes, row: FileRow, tags: Tags) -> None:
        """A file is this image; the caller saves `row`."""
        batch = self.batch
        patient_key = batch.hashed(b"patient", tags.patient_id.encode())
        study_key = batch.hashed(b"study", patient_key, tags.study.encode())
        series_key = batch.hashed(b"series", study_key, tags.series.encode())
        row.series, row.instance, row.transfer_syntax = series_key, tags.instance, tags.transfer_syntax
        study = self._study(study_key, patient_key, tags)
        at = batch.key(b"s", series_key)
        series = batch.row(at, SeriesRow)
        counts = study.modalities.setdefault(series.modality if series else tags.modality, [0, 0, 0, 0])
        if series is None:
            series = SeriesRow(study_key, tags.series, tags.modality)
            batch.put(batch.key(b"k", study_key, series_key))
            batch.put(batch.key(b"x", self.term(b"series", fold(tags.series)), study_key))
            self._study_term(study, study_key, b"modality", tags.modality)
            counts[0] += 1
            self.totals.series += 1
        same = batch.key(b"i", self.term(b"instance", fold(tags.instance)), series_key)
        if not batch.any_file(same):
            series.instances += 1
            counts[1] += 1
            self.totals.instances += 1
        batch.put(same + file)
        series.files += 1
        counts[2] += 1
        counts[3] += row.size
        syntax = study.syntaxes.setdefault(tags.transfer_syntax, [0, 0])
        syntax[0] += 1
        syntax[1] += row.size
        batch.put(batch.key(b"l", series_key, file))
        batch.save(at, series)
        batch.save(batch.key(b"u", study_key), study)

    def _study(self, study_key: bytes, patient_key: bytes, tags: Tags) -> StudyRow:
        """The study of an image; what the first of its images left empty, a later one fills in."""
        study = self.batch.row(self.batch.key(b"u", study_key), StudyRow)
        if study is None:
            study = StudyRow(patient_key, tags.study, tags.patient_id, "", "", "", {}, {}, [])
            self.totals.studies += 1
            self._study_term(study, study_key, b"study", fold(tags.study))
            self._patient(patient_key, study_key, tags, new_study=True)
        elif tags.patient_name != study.patient_name:
            self._patient(patient_key, study_key, tags, new_study=False)
        if not study.patient_name:
            study.patient_name = tags.patient_name
        if not study.date and tags.date:
            study.date = tags.date
            self._study_term(study, study_key, b"date", tags.date)
        if tags.accession and not study.accession:
            study.accession = tags.accession
            self._study_term(study, study_key, b"accession", fold(tags.accession))
        return study

    def _study_term(self, study: StudyRow, study_key: bytes, kind: bytes, text: str) -> None:
        key = self.batch.key(b"x", self.term(kind, text), study_key)
        if key[1 : 1 + HASH] not in study.terms:
            study.terms.append(key[1 : 1 + HASH])
            self.batch.put(key)

    def _patient(self, patient_key: bytes, study_key: bytes, tags: Tags, *, new_study: bool) -> None:
        batch = self.batch
        at = batch.key(b"q", patient_key)
        patient = batch.row(at, PatientRow)
        if patient is None:
            patient = PatientRow(tags.patient_id, [], 0, [])
            self.totals.patients += 1
            self.generation += 1
            self._patient_term(patient, patient_key, b"id", fold(tags.patient_id))
        if tags.patient_name and tags.patient_name not in patient.names and len(patient.names) < _NAMES_MAX:
            patient.names.append(tags.patient_name)
            self.generation += 1
            for word in words(tags.patient_name):
                self._patient_term(patient, patient_key, b"word", word)
        if new_study:
            patient.studies += 1
            batch.put(batch.key(b"n", patient_key, study_key))
        batch.save(at, patient)

    def _patient_term(self, patient: PatientRow, patient_key: bytes, kind: bytes, text: str) -> None:
        term = self.term(kind, text)
        if term not in patient.terms:
            patient.terms.append(term)
            self.batch.put(self.batch.key(b"y", term, patient_key))

    def subtract(self, file: bytes, row: FileRow) -> None:
        """A file is not the image that `row` says any more."""
        batch = self.batch
        at = batch.key(b"s", row.series)
        series = batch.row(at, SeriesRow)
        study = None if series is None else batch.row(batch.key(b"u", series.study), StudyRow)
        if series is None or study is None:
            return
        counts = study.modalities[series.modality]
        same = batch.key(b"i", self.term(b"instance", fold(row.instance)), row.series)
        batch.delete(same + file)
        if not batch.any_file(same):
            series.instances -= 1
            counts[1] -= 1
            self.totals.instances -= 1
        batch.delete(batch.key(b"l", row.series, file))
        series.files -= 1
        counts[2] -= 1
        counts[3] -= row.size
        syntax = study.syntaxes[row.transfer_syntax]
        syntax[0] -= 1
        syntax[1] -= row.size
        if not syntax[0]:
            del study.syntaxes[row.transfer_syntax]
        if series.files:
            batch.save(at, series)
        else:
            counts[0] -= 1
            self.totals.series -= 1
            batch.delete(at)
            batch.delete(batch.key(b"k", series.study, row.series))
            batch.delete(batch.key(b"x", self.term(b"series", fold(series.uid)), series.study))
            if not counts[0]:
                del study.modalities[series.modality]
        if study.modalities:
            batch.save(batch.key(b"u", series.study), study)
        else:
            self._remove_study(series.study, study)

    def _remove_study(self, study_key: bytes, study: StudyRow) -> None:
        batch = self.batch
        self.totals.studies -= 1
        for term in study.terms:
            batch.delete(batch.key(b"x", term, study_key))
        batch.delete(batch.key(b"u", study_key))
        batch.delete(batch.key(b"n", study.patient, study_key))
        at = batch.key(b"q", study.patient)
        patient = batch.row(at, PatientRow)
        if patient is None:
            return
        patient.studies -= 1
        if patient.studies:
            batch.save(at, patient)
            return
        for term in patient.terms:
            batch.delete(batch.key(b"y", term, study.patient))
        batch.delete(at)
        self.totals.patients -= 1
        self.generation += 1
