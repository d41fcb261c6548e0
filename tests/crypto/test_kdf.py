"""The bounds of key derivation: nothing outside them can exist, let alone run."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id as OtherArgon2id
from hypothesis import example, given
from hypothesis import strategies as st

from cryptfs.crypto import kdf
from cryptfs.crypto.kdf import Argon2id, HkdfSha256, calibrate, floor, free_memory_kib
from cryptfs.errors import CryptfsError

SALT = bytes(range(16))
numbers = st.one_of(st.integers(), st.integers(0, 70), st.integers(60_000, 5_000_000))


def allowed(time: int, memory_kib: int, lanes: int) -> bool:
    """Section 3 of the format, written out once more."""
    return (
        2 <= time <= 64
        and 64 * 1024 <= memory_kib <= 4 * 1024 * 1024
        and 1 <= lanes <= 16
        and time * memory_kib >= 196608
    )


@example(2, 98303, 4)
@example(3, 65535, 4)
@example(3, 1 << 30, 4)  # 1 TiB
@given(numbers, numbers, numbers)
def test_parameters_outside_the_bounds_cannot_be_made(time: int, memory_kib: int, lanes: int) -> None:
    parsed = {"name": "argon2id", "salt": "AAECAwQFBgcICQoLDA0ODw==", "time": time}
    parsed |= {"memory_kib": memory_kib, "lanes": lanes}
    if allowed(time, memory_kib, lanes):
        assert msgspec.convert(parsed, Argon2id) == Argon2id(SALT, time, memory_kib, lanes)
        return
    with pytest.raises(ValueError):
        Argon2id(SALT, time, memory_kib, lanes)
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(parsed, Argon2id)


@pytest.mark.parametrize(
    ("time", "memory_kib", "lanes"),
    [(3, 65536, 4), (64, 65536, 1), (2, 98304, 16), (64, 4194304, 16)],
)
def test_the_edges_are_allowed(time: int, memory_kib: int, lanes: int) -> None:
    assert Argon2id(SALT, time, memory_kib, lanes).memory_kib == memory_kib


@pytest.mark.parametrize("size", [0, 15, 17])
def test_salt_size(size: int) -> None:
    with pytest.raises(ValueError):
        Argon2id(bytes(size), 3, 65536, 4)


def test_slot_key_equals_another_implementation() -> None:
    expected = OtherArgon2id(salt=SALT, length=32, iterations=3, lanes=4, memory_cost=65536)
    assert Argon2id(SALT, 3, 65536, 4).derive("passphräse".encode()) == expected.derive("passphräse".encode())


def test_refuses_before_it_starts_when_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kdf, "argon2id", lambda *args: pytest.fail("Argon2 ran"))
    monkeypatch.setattr(kdf, "free_memory_kib", lambda: 1 << 20)
    with pytest.raises(CryptfsError, match="needs 4096 MiB of memory and only 1024 MiB"):
        Argon2id(SALT, 2, 4 << 20, 4).derive(b"secret")


def test_memory_that_the_system_refuses_is_a_sentence() -> None:
    with pytest.raises(CryptfsError, match="which the system refused"):
        # 2^32 - 1 KiB is 4 TiB, more than a process may map here.
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (8 << 30, hard))
        try:
            kdf.argon2id(b"secret", SALT, 1, 2**32 - 1, 1, 32)
        finally:
            resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def test_invalid_use_of_plain_argon2_is_an_error() -> None:
    with pytest.raises(ValueError):
        kdf.argon2id(b"secret", b"short", 1, 64, 1, 32)


def seconds_per_cost(seconds: float) -> object:
    """A machine on which 64 MiB and 3 passes take so long."""
    return lambda found: seconds * found.time * found.memory_kib / kdf.FLOOR_COST


@pytest.mark.parametrize(
    ("seconds", "limit_kib", "memory_mib", "passes"),
    [
        (0.125, 1 << 20, 512, 3),  # memory first
        (0.2, 1 << 20, 256, 3),  # what is left goes into passes
        (0.125, 65536, 64, 24),  # little memory: passes
        (0.0001, 1 << 20, 1024, 64),  # very fast: bounded by both
        (10.0, 1 << 20, 64, 3),  # very slow: the floor
        (0.125, 0, 64, 24),  # memory unknown
    ],
)
def test_calibration(seconds: float, limit_kib: int, memory_mib: int, passes: int) -> None:
    found = calibrate(1.0, limit_kib, seconds_per_cost(seconds))  # type: ignore[arg-type]
    assert (found.memory_kib >> 10, found.lanes) == (memory_mib, 4)
    assert passes == found.time


def test_calibration_takes_a_quarter_of_the_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kdf, "free_memory_kib", lambda: 1 << 20)
    assert calibrate(1.0, None, seconds_per_cost(0.001)).memory_kib == 256 << 10  # type: ignore[arg-type]
    monkeypatch.setattr(kdf, "free_memory_kib", lambda: None)
    assert calibrate(1.0, None, seconds_per_cost(0.001)).memory_kib == 64 << 10  # type: ignore[arg-type]


def test_salts_are_new() -> None:
    first = floor()
    assert first.fresh().salt != first.salt
    assert (first.fresh().time, first.fresh().memory_kib) == (3, 65536)
    assert HkdfSha256.new() != HkdfSha256.new()


def test_free_memory_counts_swap_and_obeys_the_control_group(tmp_path: Path) -> None:
    proc, cgroups = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    group = cgroups / "system.slice/cryptfs.service"
    group.mkdir(parents=True)
    assert free_memory_kib(proc, cgroups) is None
    (proc / "meminfo").write_text("MemTotal: 9000 kB\nMemAvailable:    5000 kB\nSwapFree: 1000 kB\n")
    assert free_memory_kib(proc, cgroups) == 6000
    (proc / "self/cgroup").write_text("0::/system.slice/cryptfs.service\n")
    (group / "memory.max").write_text("max\n")
    (group / "memory.current").write_text("1024\n")
    assert free_memory_kib(proc, cgroups) == 6000
    (group / "memory.max").write_text(f"{3 << 20}\n")
    assert free_memory_kib(proc, cgroups) == 3071
    (group / "memory.current").write_text(f"{4 << 20}\n")
    assert free_memory_kib(proc, cgroups) == 0
