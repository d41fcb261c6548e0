"""`cryptfs status`, for programs and for people."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.test_mount import Place, failed, place
from tests.waiting import wait_until

__all__ = ["place"]

pytestmark = pytest.mark.system


def test_status_for_programs(place: Place) -> None:
    assert place.status() == []
    place.mount("--read-only")
    (mount,) = place.status()
    assert mount["vault"] == str(place.vault)
    assert mount["state"] == "mounted"
    assert mount["read_only"] is True
    assert mount["cipher"] == "XAES-256-GCM"
    assert mount["unlocked_with"].startswith("recovery ")
    assert mount["open_files"] == 0
    assert 10 << 20 < mount["memory_bytes"] < 1 << 30
    assert mount["index"] == "none (mounted read-only: there is none yet)"
    assert Path(f"/proc/{mount['pid']}").exists()


def test_status_counts_traffic_and_open_files(place: Place) -> None:
    place.mount()
    (place.at / "file").write_bytes(bytes(300_000))
    with (place.at / "file").open("rb"):
        # The kernel tells of the end of the first one in its own time.
        wait_until(lambda: place.status(place.at)[0]["open_files"] == 1)
        (mount,) = place.status(place.at)
    assert mount["bytes_written"] == 300_000
    assert {"bytes_read", "read_bytes_per_second", "written_bytes_per_second", "since"} <= set(mount)


def test_status_for_people(place: Place) -> None:
    failed(place.run("status", place.at), 17, "No vault is mounted at")
    place.mount()
    shown = place.run("status", place.at).stdout
    assert str(place.at) in shown and str(place.vault) in shown and "XAES-256-GCM" in shown
    place.run("unmount", place.at)
    assert str(place.at) not in place.run("status").stdout


def test_the_study_index(place: Place) -> None:
    place.mount("--no-studies")
    shown = place.run("status", place.at).stdout
    assert "study index:   none (the vault was mounted with --no-studies)" in shown
    (mount,) = place.status()
    assert mount["studies"]["state"] == "none"
    place.run("unmount", place.at)
    place.mount()
    (mount,) = place.status()
    assert mount["studies"]["state"] in ("reading", "complete")
    assert "study index:   " in place.run("status", place.at).stdout


@pytest.mark.parametrize(
    "command", [("verify",), ("rotate",), ("index", "status"), ("key", "list"), ("freeze", "--", "true")]
)
def test_the_mountpoint_is_not_taken_for_the_vault(place: Place, command: tuple[str, ...]) -> None:
    place.mount()
    words = list(command)
    at = words.index("--") if "--" in words else len(words)
    words.insert(at, str(place.at))
    failed(
        place.run(*words), 13, f"{place.at} is where the vault is mounted; the vault itself is {place.vault}"
    )
