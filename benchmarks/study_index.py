"""How long the study index takes to be filled, to be searched, and what it weighs.

    python3 -m benchmarks.study_index [--instances 1000000] [--folder DIR]

Fills an index with synthetic instances (40 to a study, some 15 studies to 10 patients), closes and opens
it, and asks each kind of question a few times. Times are of this process alone, without the way over the
control socket. A page has 500 files or studies.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from cryptfs.index.environment import Environment
from cryptfs.index.studies import State, StudyIndex
from cryptfs.index.studysearch import Query, Search
from cryptfs.index.tags import Kind, Tags

SYLLABLES = [consonant + vowel for consonant in "bdfhklmnrst" for vowel in "aeio"]
MODALITIES = ["CT"] * 4 + ["MR"] * 3 + ["DX", "US", "CR"]
SYNTAXES = ["1.2.840.10008.1.2.1", "1.2.840.10008.1.2.4.70", "1.2.840.10008.1.2.4.90"]
ROOT = bytes(16)


class Key:
    number, key = 1, b"e" * 32


class Keyring:
    """One epoch: the index needs no more of a vault."""

    current = Key()

    def get(self, number: int) -> Key | None:
        return self.current if number == 1 else None


def name(rng: random.Random) -> str:
    def word() -> str:
        return "".join(rng.choice(SYLLABLES) for _ in range(rng.randint(2, 4))).title()

    return f"{word()}^{word()}"


def fill(index: StudyIndex, instances: int) -> list[Tags]:
    """One tag set of each study."""
    rng = random.Random(1895)
    index.listed(index.root)
    studies: list[Tags] = []
    made = study = 0
    patient, patient_name = "", ""
    while made < instances:
        if study % 3 != 1:
            patient, patient_name = f"PID{study:07}", name(rng)
        study += 1
        uid = f"1.2.826.0.1.3680043.8.498.{rng.getrandbits(90)}"
        day = f"{rng.randint(2004, 2026)}{rng.randint(1, 12):02}{rng.randint(1, 28):02}"
        modality, syntax = rng.choice(MODALITIES), rng.choice(SYNTAXES)
        folder = study.to_bytes(16, "big")
        index.named(ROOT, f"{study:07}".encode(), folder, is_dir=True)
        for number in range(min(40, instances - made)):
            made += 1
            tags = Tags(
                patient, patient_name, uid, f"{uid}.{number // 20}", f"{uid}.{number // 20}.{number}",
                modality, day, f"ACC{study:07}", syntax, "1.2.840.10008.5.1.4.1.1.2",
            )  # fmt: skip
            file = (1 << 64 | made).to_bytes(16, "big")
            index.named(folder, f"IM{number:06}".encode(), file, is_dir=False)
            index.found(index.file_key(file), State(526_000, 1, 1), Kind.INSTANCE, tags)
        studies.append(tags)
        if len(index.batch) > 3000:
            index.flush()
    index.flush()
    return studies


def measured(question: Callable[[int], object], times: int = 15) -> str:
    taken = []
    for number in range(times):
        started = time.perf_counter()
        question(number)
        taken.append((time.perf_counter() - started) * 1e3)
    return f"{statistics.median(taken):8.1f} ms  (first {taken[0]:.1f}, worst {max(taken):.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--instances", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, help="where the index is made; default: the temporary folder")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        run(Path(folder), options.instances)


def run(folder: Path, instances: int) -> None:
    def opened() -> Environment:
        return Environment.open(folder, "studies", bytes(16), Keyring(), durable=True)

    environment = opened()
    before = os.times()
    studies = fill(StudyIndex(environment, ROOT), instances)
    spent = os.times()
    seconds = spent.user + spent.system - before.user - before.system
    environment.close()
    size = (folder / "studies" / "data.mdb").stat().st_blocks * 512
    print(f"{instances:,} instances, {len(studies):,} studies")
    print(f"filled in {seconds:.0f} s of processor time: {seconds / instances * 1e6:.0f} µs an instance")
    print(f"on the disk {size / 1e6:.0f} MB: {size / instances:.0f} bytes an instance")
    environment = opened()
    started = time.perf_counter()
    search = Search(StudyIndex(environment, ROOT))
    print(f"opened in {(time.perf_counter() - started) * 1e3:.1f} ms")
    rng = random.Random(4711)
    some = [rng.choice(studies) for _ in range(100)]

    def files(make: Callable[[Tags], Query]) -> Callable[[int], object]:
        return lambda number: search.files(make(some[number]))

    def found(make: Callable[[Tags], Query]) -> Callable[[int], object]:
        return lambda number: search.studies(make(some[number]))

    questions: dict[str, Callable[[int], object]] = {
        "files by patient identifier": files(lambda tags: Query(patient=tags.patient_id)),
        "files by words of a name": files(lambda tags: Query(patient=tags.patient_name.lower())),
        "files by study UID": files(lambda tags: Query(study=tags.study)),
        "files by series UID": files(lambda tags: Query(series=tags.series)),
        "files by SOP instance UID": files(lambda tags: Query(instance=tags.instance)),
        "files by accession number": files(lambda tags: Query(accession=tags.accession)),
        "studies of a day": found(lambda tags: Query(first_date=tags.date, last_date=tags.date)),
        "studies of a month, one modality": found(
            lambda tags: Query(first_date=tags.date[:6] + "01", last_date=tags.date[:6] + "31", modality="MR")
        ),
        "studies of a year, first page": found(
            lambda tags: Query(first_date=tags.date[:4] + "0101", last_date=tags.date[:4] + "1231")
        ),
        "studies of a modality, first page": found(lambda tags: Query(modality="US")),
        "studies by name with *": found(lambda tags: Query(patient=tags.patient_name[:5] + "*")),
        "studies by name with * in front": found(lambda tags: Query(patient="*" + tags.patient_name[-5:])),
        "any file, first page": files(lambda tags: Query()),
        "summary (stats)": lambda number: search.summary(),
    }
    for text, question in questions.items():
        print(f"{text:36}{measured(question, 3 if 'summary' in text else 15)}")
    environment.close()
    print(f"memory at most {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")


if __name__ == "__main__":
    main()
