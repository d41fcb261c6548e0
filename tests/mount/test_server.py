"""A mount's life: coming up, being unmounted in every way, going idle, being killed."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import IO

import pytest

from cryptfs.errors import CryptfsError
from cryptfs.mount import control, mountpoint, runtime
from tests.mount.conftest import REPOSITORY, Passthrough
from tests.waiting import HANG, wait_until

pytestmark = pytest.mark.system


def unmount_request(setup: Passthrough, **fields: object) -> dict[str, object]:
    request = control.Request("unmount", **fields)  # type: ignore[arg-type]
    return control.ask(runtime.socket_path(str(setup.at)), request, timeout=HANG)


def test_the_mount_answers_when_the_command_returns(passthrough: Passthrough) -> None:
    passthrough.mount()
    assert os.stat(passthrough.at).st_dev != os.stat(passthrough.at.parent).st_dev
    assert runtime.is_alive(passthrough.record())


def test_the_kernel_reads_ahead_a_mebibyte(mounted: Passthrough) -> None:
    device = os.stat(mounted.at).st_dev
    setting = Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb")
    assert setting.read_text().strip() == "1024"


def test_the_daemon_leaves_no_core_and_no_way_in(mounted: Passthrough) -> None:
    process = Path(f"/proc/{mounted.record().pid}")
    limits = {line.split("  ")[0]: line.split() for line in (process / "limits").read_text().splitlines()}
    assert limits["Max core file size"][-3:-1] == ["0", "0"]


def test_unmount_by_command(mounted: Passthrough) -> None:
    record = mounted.record()
    assert unmount_request(mounted) == {"closed": True}
    assert not mounted.is_mounted()
    wait_until(lambda: not runtime.is_alive(record))
    assert runtime.find(str(mounted.at)) is None


def test_unmount_by_umount(mounted: Passthrough) -> None:
    record = mounted.record()
    subprocess.run(["umount", mounted.at], check=True)
    wait_until(lambda: not runtime.is_alive(record))
    assert runtime.find(str(mounted.at)) is None


def test_a_busy_mount_names_who_uses_it(mounted: Passthrough) -> None:
    (mounted.at / "file").write_text("x")
    with (mounted.at / "file").open(), pytest.raises(CryptfsError) as refused:
        unmount_request(mounted)
    assert refused.value.exit_code == 15
    assert f"({os.getpid()})" in str(refused.value)
    assert (mounted.at / "file").read_text() == "x"


def test_unmount_waits_for_open_files(mounted: Passthrough) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", "import sys; print(flush=True); sys.stdin.read()"],
        cwd=mounted.at,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert holder.stdout is not None and holder.stdin is not None
    holder.stdout.readline()
    with pytest.raises(CryptfsError):
        unmount_request(mounted)
    waiting = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys; from cryptfs.mount import control, runtime;"
            "print(flush=True);"
            "control.ask(runtime.socket_path(sys.argv[1]), control.Request('unmount', timeout=300))",
            mounted.at,
        ],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
    )
    assert waiting.stdout is not None
    waiting.stdout.readline()
    holder.stdin.close()
    holder.wait()
    assert waiting.wait() == 0
    assert not mounted.is_mounted()


def test_lazy_unmount_serves_open_files_to_their_end(mounted: Passthrough) -> None:
    record = mounted.record()
    with (mounted.at / "file").open("w+b") as file:
        assert unmount_request(mounted, lazy=True) == {"closed": False}
        assert not mounted.is_mounted()
        file.write(b"late")
        file.flush()
        file.seek(0)
        assert file.read() == b"late"
    wait_until(lambda: not runtime.is_alive(record))
    assert (mounted.below / "file").read_bytes() == b"late"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_unmount_cleanly(mounted: Passthrough, number: signal.Signals) -> None:
    record = mounted.record()
    (mounted.at / "file").write_bytes(b"data")
    mounted.kill(number)
    wait_until(lambda: not runtime.is_alive(record))
    assert not mounted.is_mounted()
    assert (mounted.below / "file").read_bytes() == b"data"
    assert runtime.find(str(mounted.at)) is None


def test_what_an_open_file_was_given_survives_two_signals(mounted: Passthrough) -> None:
    record = mounted.record()
    fd = os.open(mounted.at / "file", os.O_CREAT | os.O_WRONLY)
    os.write(fd, b"dirty in the page cache")
    mounted.kill(signal.SIGTERM)
    wait_until(lambda: not mounted.is_mounted())
    mounted.kill(signal.SIGTERM)
    wait_until(lambda: not runtime.is_alive(record))
    with pytest.raises(OSError):
        os.close(fd)
    assert (mounted.below / "file").read_bytes() == b"dirty in the page cache"


def test_hangup_is_ignored(mounted: Passthrough) -> None:
    mounted.kill(signal.SIGHUP)
    assert mounted.status()["open_files"] == 0
    assert mounted.is_mounted()


def test_an_idle_mount_unmounts_itself(passthrough: Passthrough) -> None:
    passthrough.mount(idle_seconds=0.5)
    wait_until(passthrough.is_gone)
    assert "idle" in passthrough.log_text()


def test_an_open_file_keeps_a_mount_from_being_idle(passthrough: Passthrough) -> None:
    (passthrough.below / "file").write_text("x")
    idle_seconds, file = mounted_with_open_file(passthrough)
    with file:
        record = passthrough.record()
        # Without any request of ours; a second mount's life is long enough to have been idle.
        other = Passthrough(passthrough.below, passthrough.at.parent / "other", passthrough.log)
        other.at.mkdir()
        other.mount(idle_seconds=2 * idle_seconds)
        wait_until(other.is_gone)
        assert runtime.is_alive(record)
        assert file.read() == "x"
    wait_until(lambda: not runtime.is_alive(record))


def mounted_with_open_file(setup: Passthrough) -> tuple[float, IO[str]]:
    """A mount that ends when it is idle, and a file that was opened before it was: how long, and the file."""
    for tries in itertools.count():
        idle_seconds = 0.3 * 2**tries
        setup.mount(idle_seconds=idle_seconds)
        try:
            return idle_seconds, (setup.at / "file").open()
        except FileNotFoundError:  # this machine is so busy that the mount was gone by then
            wait_until(setup.is_gone)
    raise AssertionError


def test_a_killed_daemons_mount_is_dead_and_the_next_mount_removes_it(mounted: Passthrough) -> None:
    record = mounted.record()
    os.stat(mounted.at)
    mounted.kill(signal.SIGKILL)
    wait_until(lambda: not runtime.is_alive(record))
    assert mountpoint.is_dead(str(mounted.at))
    (mounted.below / "file").write_text("still there")
    mounted.mount()
    assert (mounted.at / "file").read_text() == "still there"
    assert len([mount for mount in mountpoint.mounts() if mount.mountpoint == str(mounted.at)]) == 1


def test_an_unexpected_end_is_reported_without_its_text(passthrough: Passthrough) -> None:
    done = passthrough.run(die_at_start=True)
    assert done.returncode == 70
    assert "RuntimeError" in done.stderr and "must not be shown" not in done.stderr + passthrough.log_text()
    assert not passthrough.is_mounted()


def test_a_second_mount_at_the_same_place_is_refused(mounted: Passthrough) -> None:
    done = mounted.run()
    assert done.returncode == 15 and "already mounted" in done.stderr


def test_the_control_socket_refuses_nonsense(mounted: Passthrough) -> None:
    with pytest.raises(CryptfsError) as refused:
        control.ask(runtime.socket_path(str(mounted.at)), control.Request("format-disk"), timeout=HANG)
    assert refused.value.exit_code == 2
    assert mounted.status()["open_files"] == 0


def test_systemd_is_told_when_the_mount_is_there_and_when_it_ends(
    passthrough: Passthrough, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import socket

    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(HANG)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        command = [sys.executable, "-m", "tests.mount.mount_passthrough"]
        with subprocess.Popen(
            [*command, passthrough.below, passthrough.at, '{"foreground": true}'],
            cwd=REPOSITORY,
            stderr=subprocess.PIPE,
        ) as process:
            assert manager.recv(100) == b"READY=1"
            assert passthrough.is_mounted()
            process.terminate()
            assert manager.recv(100) == b"STOPPING=1"
            assert process.wait(HANG) == 0
