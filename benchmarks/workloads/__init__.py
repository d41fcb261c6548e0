"""The workloads, by theme."""

from benchmarks.workloads.base import Place, Workload
from benchmarks.workloads.database import sqlite
from benchmarks.workloads.imaging import ct, ct_orthanc, mix, mix_orthanc
from benchmarks.workloads.sequential import sequential
from benchmarks.workloads.small_files import folders, small_files, walk

__all__ = ["WORKLOADS", "Place", "Workload"]

# In the order of the report.
WORKLOADS: dict[str, Workload] = {
    workload.name: workload
    for workload in (sequential, ct, ct_orthanc, mix, mix_orthanc, walk, small_files, folders, sqlite)
}
