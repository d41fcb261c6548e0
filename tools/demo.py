"""The whole job of cryptfs, shown on DICOM images through the `cryptfs` command.

A vault is made and mounted, images are stored in it as an imaging server would, the ciphertext is
searched for the patients, the images are read back after a new mount, and a copy of the ciphertext
is opened with the recovery key alone. Every claim printed is checked; the exit code is 0 only if all
of them held. Everything happens in a temporary folder, which is removed.

The images are those of $CRYPTFS_DICOM_DEV, a .tar.zst of DICOM files, or of
`../shared/data/dicom-dev.tar.zst` beside the checkout; they are decompressed straight into the
mount, so that their plaintext never touches the disk. With neither, synthetic slices are made.
"""

from __future__ import annotations

import hashlib
import math
import os
import secrets
import subprocess
import sys
import tarfile
import tempfile
import time
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

import pydicom
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.errors import InvalidDicomError
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

PROJECT = Path(__file__).resolve().parents[1]
CRYPTFS = Path(sys.executable).with_name("cryptfs")
HEADER_AREA = 8192  # docs/format.md section 4: what precedes the content of every ciphertext file
SAMPLE = 16 << 20  # bytes looked at for the entropy
TERM_MIN = 6  # shorter names turn up in that much random data by chance


class DemoFailed(Exception):
    """A claim of the demonstration did not hold; the message says which."""


@contextmanager
def step(title: str) -> Iterator[None]:
    """Announces a step and says how long it took."""
    print(f"\n== {title}", flush=True)
    started = time.monotonic()
    yield
    print(f"   {time.monotonic() - started:.1f} s", flush=True)


def say(text: str) -> None:
    print(f"   {text}", flush=True)


def require(claim: bool, failure: str) -> None:
    if not claim:
        raise DemoFailed(failure)


def development_set() -> Path | None:
    """The archive of real images, if there is one at hand."""
    if given := os.environ.get("CRYPTFS_DICOM_DEV"):
        path = Path(given)
        require(path.is_file(), f"$CRYPTFS_DICOM_DEV names {given}, which is not a file")
        return path
    path = PROJECT.parent / "shared" / "data" / "dicom-dev.tar.zst"
    return path if path.is_file() else None


def archived_images(archive: Path) -> Iterator[bytes]:
    """The files of a .tar.zst, one after the other, without unpacking it anywhere."""
    with (
        subprocess.Popen(["zstd", "-dcq", archive], stdout=subprocess.PIPE) as zstd,
        tarfile.open(fileobj=zstd.stdout, mode="r|") as tar,
    ):
        for member in tar:
            if member.isfile() and (content := tar.extractfile(member)):
                yield content.read()
    require(zstd.returncode == 0, f"{archive} does not decompress")


def synthetic_images(patients: int = 12, slices: int = 8) -> Iterator[bytes]:
    """CT slices of invented people, half a megabyte each, as a scanner sends them."""
    surnames = ("Marchand", "Lefèvre", "Kowalski", "Okonkwo", "Nakamura", "Delacroix")
    for patient in range(patients):
        study, series = generate_uid(), generate_uid()
        for number in range(slices):
            meta = FileMetaDataset()
            meta.MediaStorageSOPClassUID = CTImageStorage
            meta.MediaStorageSOPInstanceUID = generate_uid()
            meta.TransferSyntaxUID = ExplicitVRLittleEndian
            image = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
            image.SpecificCharacterSet = "ISO_IR 192"
            image.PatientName = f"{surnames[patient % len(surnames)]}^Demonstration{patient:02}"
            image.PatientID = f"DEMO-{patient:06}"
            image.Modality = "CT"
            image.SOPClassUID, image.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
            image.StudyInstanceUID, image.SeriesInstanceUID = study, series
            image.InstanceNumber = number + 1
            image.Rows = image.Columns = 512
            image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
            image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 12, 11, 0
            row = b"".join(abs((x + number) % 512 - 256).to_bytes(2, "little") for x in range(512))
            image.PixelData = row * 512
            buffer = BytesIO()
            image.save_as(buffer, enforce_file_format=True)
            yield buffer.getvalue()


@dataclass
class Archive:
    """What was stored: enough to know the images again and to look for the patients."""

    digests: dict[Path, str] = field(default_factory=dict)  # path below the mount → SHA-256
    identities: set[bytes] = field(default_factory=set)  # patients' names and ids, as the files spell them
    size: int = 0

    def store(self, mount: Path, images: Iterable[bytes]) -> None:
        """Writes each image to `PATIENT/MODALITY-NUMBER.dcm`, as servers that name files by patient do."""
        for number, image in enumerate(images):
            patient, modality = self._identify(image)
            path = Path(patient) / f"{modality}-{number:05}.dcm"
            (mount / patient).mkdir(exist_ok=True)
            (mount / path).write_bytes(image)
            self.digests[path] = hashlib.sha256(image).hexdigest()
            self.size += len(image)

    def _identify(self, image: bytes) -> tuple[str, str]:
        """Name and modality, made fit for a path; remembers the patient's name and id as raw bytes."""
        tags = ("PatientName", "PatientID", "Modality")
        try:
            dataset = pydicom.dcmread(BytesIO(image), specific_tags=list(tags), stop_before_pixels=True)
            values = [element.value if (element := dataset.get_item(tag)) else b"" for tag in tags]
        except InvalidDicomError:
            values = []
        name, patient_id, modality = [bytes(value or b"").strip(b" \0") for value in values] or [b""] * 3
        self.identities |= {term for term in (name, patient_id) if len(term) >= TERM_MIN}
        readable = (name or patient_id).decode("utf-8", "replace").replace("/", "_").strip(".")
        return readable[:60] or "unnamed", modality.decode("ascii", "replace") or "OT"

    def compare(self, mount: Path) -> None:
        """DemoFailed unless exactly the stored images are there, bit for bit."""
        found = {path.relative_to(mount) for path in mount.rglob("*") if path.is_file()}
        require(
            found == self.digests.keys(), f"{len(found ^ self.digests.keys())} files are missing or extra"
        )
        for path, digest in self.digests.items():
            actual = hashlib.sha256((mount / path).read_bytes()).hexdigest()
            require(actual == digest, f"{path} is not the image that was stored")
        say(f"all {len(self.digests)} images are identical to those stored (SHA-256)")


def files_naming(terms: set[bytes], folder: Path) -> int:
    """How many files below a folder contain one of the terms, in their content or their path."""
    argv = [
        "grep",
        "--recursive",
        "--files-with-matches",
        "--null",
        "--text",
        "--fixed-strings",
        "--file=-",
        ".",
    ]
    result = subprocess.run(
        argv, cwd=folder, input=b"\n".join(terms), stdout=subprocess.PIPE, env=os.environ | {"LC_ALL": "C"}
    )
    require(result.returncode in (0, 1), f"grep could not read {folder}")  # 1: nothing found
    matches = {Path(os.fsdecode(path)) for path in result.stdout.split(b"\0") if path}
    for path in folder.rglob("*"):
        relative = path.relative_to(folder)
        if path.is_file() and any(term in os.fsencode(relative) for term in terms):
            matches.add(relative)
    return len(matches)


def entropy(files: Iterable[Path], skip: int = 0) -> float:
    """Shannon entropy in bits per byte of a sample of the files' content; random data has 8."""
    sample = bytearray()
    for path in files:
        with path.open("rb") as handle:
            handle.seek(skip)
            sample += handle.read(SAMPLE - len(sample))
        if len(sample) >= SAMPLE:
            break
    frequencies = [count / len(sample) for byte in range(256) if (count := sample.count(byte))]
    return -sum(frequency * math.log2(frequency) for frequency in frequencies)


def regular_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


class Vaults:
    """The `cryptfs` command, and the mounts that must not outlive the demonstration."""

    def __init__(self, workspace: Path) -> None:
        self._workspace = workspace
        self._environment = os.environ | {"XDG_STATE_HOME": str(workspace / "state")}

    def _run(self, *arguments: str) -> int:
        argv = [str(CRYPTFS), *arguments]
        return subprocess.call(argv, cwd=self._workspace, env=self._environment, stdin=subprocess.DEVNULL)

    def command(self, *arguments: str) -> None:
        """Shows and runs one command; paths are relative to the workspace."""
        say(" ".join(["$ cryptfs", *arguments]))
        code = self._run(*arguments)
        require(code == 0, f"cryptfs {arguments[0]} ended with exit code {code}")

    @contextmanager
    def mounted(self, vault: str, mountpoint: str, *secret: str) -> Iterator[Path]:
        """Mounts, and unmounts at the end whatever happened in between."""
        self.command("mount", vault, mountpoint, *secret)
        images = self._workspace / mountpoint
        try:
            yield images
        except BaseException:
            self._run("unmount", mountpoint)
            raise
        self.command("unmount", mountpoint)
        require(not any(images.iterdir()), "images are still visible after unmounting")


def demonstrate(workspace: Path) -> None:
    (workspace / "images").mkdir()
    passphrase = workspace / "passphrase"
    passphrase.touch(0o600)
    passphrase.write_text(secrets.token_urlsafe(24) + "\n")
    vaults, archive = Vaults(workspace), Archive()
    source = development_set()

    with step("Make a vault, with a passphrase and a recovery key"):
        vaults.command(
            *("init", "vault", "--passphrase-file", "passphrase", "--recovery-key-file", "recovery-key")
        )

    with (
        step("Mount it and store images, as an imaging server would"),
        vaults.mounted("vault", "images", "--passphrase-file", "passphrase") as images,
    ):
        archive.store(images, archived_images(source) if source else synthetic_images())
        kind = "images of the development set" if source else "synthetic CT slices"
        say(f"{len(archive.digests)} {kind}, {archive.size / 1e6:.0f} MB")
        say(f"for example {next(iter(archive.digests))}")
        plain_entropy = entropy(regular_files(images))
        named = files_naming(archive.identities, images)
        require(named > 0, "the search finds no patient in the images, so it would prove nothing")
        say(f"through the mount, grep finds a patient's name or id in {named} files")

    with step("What the disk, the NAS and the backup see"):
        vault = workspace / "vault"
        objects = [path for path in regular_files(vault / "tree") if path.name != "@dir"]
        for path in objects[:3]:
            say(f"{path.relative_to(workspace)}  {path.stat().st_size} bytes")
        named = files_naming(archive.identities, vault)
        require(named == 0, f"a patient's name or id is readable in {named} ciphertext files")
        say(f"grep finds none of {len(archive.identities)} patients' names and ids, in no file and no path")
        cipher_entropy = entropy(objects, HEADER_AREA)
        require(
            cipher_entropy > 7.99, f"the ciphertext has only {cipher_entropy:.3f} bits of entropy per byte"
        )
        say(f"entropy {cipher_entropy:.4f} bits per byte (the images: {plain_entropy:.4f}; random data: 8)")

    with (
        step("Mount again and read everything back"),
        vaults.mounted("vault", "images", "--passphrase-file", "passphrase") as images,
    ):
        archive.compare(images)

    with step("Copy the ciphertext elsewhere and open the copy with the recovery key alone"):
        say("$ cp --archive vault restored-vault")
        subprocess.run(["cp", "--archive", "vault", "restored-vault"], cwd=workspace, check=True)
        passphrase.unlink()
        with vaults.mounted("restored-vault", "images", "--recovery-key-file", "recovery-key") as images:
            archive.compare(images)


def main() -> int:
    started = time.monotonic()
    warnings.filterwarnings("ignore", module="pydicom")  # real images bend the standard in many places
    try:
        with tempfile.TemporaryDirectory(prefix="cryptfs-demo-") as workspace:
            print(f"Working in {workspace}")
            demonstrate(Path(workspace))
    except KeyboardInterrupt:
        print("\ninterrupted; nothing is left behind", file=sys.stderr)
        return 130
    except (DemoFailed, OSError, subprocess.CalledProcessError) as error:
        print(f"\nThe demonstration failed: {error}", file=sys.stderr)
        return 1
    print(f"\nAll of it held, in {time.monotonic() - started:.0f} s; nothing is left behind.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
