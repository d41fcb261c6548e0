"""How fast Orthanc takes CT slices by C-STORE with its storage and its index on each system.

`python3 -m benchmarks.orthanc_store`: Orthanc and dcmsend talk over the loopback of a network namespace of
their own, without Nagle's algorithm, which would otherwise hide the file system behind 40 ms pauses.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian

from benchmarks import cli, report
from benchmarks.backing import working_directory
from benchmarks.errors import BenchmarkError
from benchmarks.figures import Figure
from benchmarks.measure import Meter, drop_caches, touch_memory
from benchmarks.runner import rotated
from benchmarks.systems import SYSTEMS, Plain

STORE = Figure("orthanc-store", "files/s", "C-STORE of CT slices of 526 KB, dcmsend from start to end")
ORTHANC = "/usr/sbin/Orthanc"
DICOM_PORT, HTTP_PORT = 4242, 8042
SLICES_PER_STUDY = 100
SLICE_BYTES = 512 * 512 * 2
PATIENCE = 30.0  # seconds for Orthanc to start or stop
VERIFIED = 5  # instances whose stored MD5 Orthanc checks after each run
INSIDE = "CRYPTFS_BENCH_NAMESPACE"  # set in the process that runs inside the namespace


def main() -> int:
    """Run the benchmark; exit codes as for `python3 -m benchmarks`."""
    options = _parser().parse_args()
    if INSIDE not in os.environ:
        return cli.guarded(_enter_namespace)
    return cli.guarded(lambda: _run(options))


def make_slices(folder: Path, count: int) -> list[Path]:
    """Write `count` CT slices of 512 x 512 x 16 bits, in studies of 100, with unique instance UIDs.

    The pixels are random: they compress as badly as noise, and no two slices are alike.
    """
    paths = []
    for number in range(count):
        study = number // SLICES_PER_STUDY
        root = f"1.2.826.0.1.3680043.10.1.{study + 1}"
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = CTImageStorage
        meta.MediaStorageSOPInstanceUID = UID(f"{root}.1.{number + 1}")
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        path = folder / f"{number:06}.dcm"
        image = FileDataset(str(path), {}, file_meta=meta, preamble=bytes(128))
        image.SOPClassUID = meta.MediaStorageSOPClassUID
        image.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
        image.StudyInstanceUID, image.SeriesInstanceUID = root, f"{root}.1"
        image.PatientID, image.PatientName = f"BENCH{study:04}", f"Benchmark^Study {study}"
        image.StudyDate, image.StudyTime, image.Modality = "20240131", "120000", "CT"
        image.StudyDescription, image.SeriesDescription = "Chest", "Axial 1 mm"
        image.InstanceNumber = number % SLICES_PER_STUDY + 1
        image.Rows = image.Columns = 512
        image.BitsAllocated = image.BitsStored = 16
        image.HighBit, image.PixelRepresentation, image.SamplesPerPixel = 15, 0, 1
        image.PhotometricInterpretation = "MONOCHROME2"
        image.PixelData = os.urandom(SLICE_BYTES)
        image.save_as(path, enforce_file_format=True)
        paths.append(path)
    return paths


class Orthanc:
    """An Orthanc server with its storage and its index in one folder."""

    def __init__(self, storage: Path, private: Path) -> None:
        private.mkdir(exist_ok=True)
        self._log = private / "orthanc.log"
        self._configuration = private / "orthanc.json"
        self._configuration.write_text(
            json.dumps(
                {
                    "Name": "benchmark",
                    "StorageDirectory": str(storage),
                    "IndexDirectory": str(storage),
                    "TemporaryDirectory": str(private),
                    "HttpPort": HTTP_PORT,
                    "DicomPort": DICOM_PORT,
                    "DicomAet": "ORTHANC",
                    "RemoteAccessAllowed": False,
                    "AuthenticationEnabled": False,
                    "Plugins": [],
                }
            )
        )

    @contextmanager
    def running(self) -> Iterator[None]:
        """Start it, wait until it answers, and stop it afterwards."""
        with self._log.open("ab") as log:
            process = subprocess.Popen([ORTHANC, str(self._configuration)], stdout=log, stderr=log)
        try:
            self._wait_until_ready(process)
            yield
        finally:
            process.terminate()
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def instances(self) -> list[str]:
        """The identifiers of all stored instances."""
        identifiers: list[str] = json.loads(self._request("/instances"))
        return identifiers

    def verify(self, instance: str) -> None:
        """Let Orthanc compare a stored file with the MD5 in its index; raises OSError if they differ."""
        self._request(f"/instances/{instance}/attachments/dicom/verify-md5", b"")

    def _request(self, path: str, body: bytes | None = None) -> bytes:
        """GET, or POST if there is a body; never by a proxy."""
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"http://127.0.0.1:{HTTP_PORT}{path}", body, timeout=PATIENCE) as answer:
            content: bytes = answer.read()
        return content

    def _wait_until_ready(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                self._request("/system")
                return
            except OSError as error:
                if process.poll() is not None or time.monotonic() > deadline:
                    lines = self._log.read_text(errors="replace").strip().splitlines() or ["no log"]
                    raise BenchmarkError(f"Orthanc does not start: {lines[-1]}") from error
                time.sleep(0.05)


def store(system: Plain, round_number: int, slices: list[Path], private: Path) -> Meter:
    """Mount, start Orthanc on an empty folder, send all slices, check what arrived, and clean up."""
    meter = Meter(system.name, round_number, system.daemon_pids)
    storage = Path(system.root) / "orthanc"
    environment = {**os.environ, "TCP_NODELAY": "1"}
    command = ["dcmsend", "-q", "-aec", "ORTHANC", "127.0.0.1", str(DICOM_PORT), *map(str, slices)]
    try:
        system.mount()
        storage.mkdir()
        orthanc = Orthanc(storage, private)
        with orthanc.running():
            with meter.timing(STORE, len(slices)):
                sent = subprocess.run(command, env=environment, check=False)
            if sent.returncode:
                raise BenchmarkError(f"dcmsend failed with exit code {sent.returncode}.")
            instances = orthanc.instances()
            if len(instances) != len(slices):
                found = f"{len(instances)} of {len(slices)}"
                raise BenchmarkError(f"Orthanc on {system.name} has {found} slices.")
            for instance in instances[:: max(1, len(instances) // VERIFIED)]:
                orthanc.verify(instance)
        shutil.rmtree(storage)
        system.unmount()
    except BaseException:
        system.abandon()
        raise
    return meter


def _run(options: argparse.Namespace) -> None:
    for program in (ORTHANC, "dcmsend"):
        if shutil.which(program) is None:
            raise BenchmarkError(f"{program} is not installed.")
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    os.environ["TCP_NODELAY"] = "1"  # DCMTK's own switch, for Orthanc too
    names = cli.choose(options.systems, SYSTEMS, "system")
    rounds = options.rounds or 3
    with working_directory("tmpfs") as source, working_directory(options.backing) as working:
        cli.say(f"making {options.files} slices")
        slices = make_slices(source, options.files)
        systems = [SYSTEMS[name](working) for name in names]
        about = cli.about("benchmarks.orthanc_store", options, systems, working)
        about |= {"rounds": rounds, "files": options.files}
        for system in systems:
            system.create()
        samples = []
        for number in range(rounds):
            for system in rotated(systems, number):
                cli.say(f"round {number + 1} of {rounds}: {system.name}")
                drop_caches()
                touch_memory(4 * options.files * SLICE_BYTES)
                samples += store(system, number, slices, working / "private").samples
    found = report.summaries([STORE], samples)
    print(cli.heading(about) + f"{rounds} rounds of {options.files} slices\n")
    print(report.text_report(found, names))
    print(_share_of_plain(found[0].medians))
    if options.json:
        report.write_json(options.json, report.json_report(samples, found, about))


def _share_of_plain(medians: dict[str, float]) -> str:
    if Plain.name not in medians:
        return ""
    shares = (
        f"{name} {value / medians[Plain.name]:.2f}" for name, value in medians.items() if name != Plain.name
    )
    return "\nShare of the plain file system's rate: " + ", ".join(shares)


def _enter_namespace() -> None:
    """Start this program again in a network namespace that ends with it."""
    if os.geteuid() != 0:
        raise BenchmarkError("Run this benchmark as root: it makes a network namespace.")
    os.environ[INSIDE] = "1"
    again = [sys.executable, "-m", "benchmarks.orthanc_store", *sys.argv[1:]]
    os.execvp("unshare", ["unshare", "--net", *again])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="benchmarks.orthanc_store", description="Measure Orthanc's rate of storing on each system."
    )
    cli.add_common_options(parser, "disk")
    parser.add_argument(
        "--files", type=cli.count, default=300, metavar="N", help="slices to send (default 300)"
    )
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
