"""From a slot's secret to its 32-byte slot key (docs/format.md section 3).

The parameters are types that cannot exist outside their bounds, so that a
hostile cryptfs.json can ask neither for a hash too cheap nor for one that
takes all memory. msgspec runs `__post_init__` while it parses.
"""

from __future__ import annotations

import hmac
import os
import time as clock
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import msgspec
from _argon2_cffi_bindings import ffi, lib
from msgspec import Meta

from cryptfs.crypto.derive import expand
from cryptfs.errors import CryptfsError

KEY_SIZE = 32
SALT_SIZE = 16
MIN_MEMORY_KIB = 64 << 10
MAX_MEMORY_KIB = 4 << 20
# RFC 9106 section 4, second recommended option: t = 3, 4 lanes, 64 MiB.
FLOOR_TIME = 3
FLOOR_LANES = 4
FLOOR_COST = FLOOR_TIME * MIN_MEMORY_KIB
# More than this would lock out the small machine on which a backup is restored.
CALIBRATED_MEMORY_KIB = 1 << 20

Salt = Annotated[bytes, Meta(min_length=SALT_SIZE, max_length=SALT_SIZE)]


class Argon2id(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="name", tag="argon2id"):
    """Argon2id version 0x13; ValueError outside the bounds of section 3."""

    salt: Salt
    time: Annotated[int, Meta(ge=2, le=64)]
    memory_kib: Annotated[int, Meta(ge=MIN_MEMORY_KIB, le=MAX_MEMORY_KIB)]
    lanes: Annotated[int, Meta(ge=1, le=16)]

    def __post_init__(self) -> None:
        # Meta bounds hold for parsed values only; these hold for all.
        within = 2 <= self.time <= 64 and MIN_MEMORY_KIB <= self.memory_kib <= MAX_MEMORY_KIB
        if not within or not 1 <= self.lanes <= 16 or len(self.salt) != SALT_SIZE:
            raise ValueError("Argon2id parameters out of bounds")
        if self.time * self.memory_kib < FLOOR_COST:
            raise ValueError("Argon2id parameters too weak: time · memory_kib must be at least 196608")

    def fresh(self) -> Argon2id:
        """The same cost with a new random salt."""
        return msgspec.structs.replace(self, salt=os.urandom(SALT_SIZE))

    def derive(self, secret: bytes) -> bytes:
        """The slot key. Needs `memory_kib` of memory: CryptfsError, before it starts, if that is not free."""
        free = free_memory_kib()
        if free is not None and free < self.memory_kib:
            raise CryptfsError(
                f"This key slot needs {self.memory_kib >> 10} MiB of memory and only "
                f"{free >> 10} MiB are free: stop other programs, or use the recovery key, which needs none."
            )
        return argon2id(secret, self.salt, self.time, self.memory_kib, self.lanes, KEY_SIZE)


class HkdfSha256(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="name", tag="hkdf-sha256"
):
    """HKDF with SHA-256, for secrets that have 256 bits of their own."""

    salt: Salt

    @classmethod
    def new(cls) -> HkdfSha256:
        return cls(os.urandom(SALT_SIZE))

    def derive(self, secret: bytes) -> bytes:
        """The slot key."""
        return expand(hmac.digest(self.salt, secret, "sha256"), "cryptfs v1 slot", KEY_SIZE)


Kdf = Argon2id | HkdfSha256


def floor() -> Argon2id:
    """The cheapest parameters we write: RFC 9106's second recommended option."""
    return Argon2id(os.urandom(SALT_SIZE), FLOOR_TIME, MIN_MEMORY_KIB, FLOOR_LANES)


def calibrate(
    target: float = 1.0,
    limit_kib: int | None = None,
    measure: Callable[[Argon2id], float] | None = None,
) -> Argon2id:
    """Parameters that take about `target` seconds here, never below `floor()`.

    Memory is spent first, because it is what makes guessing on graphics cards
    expensive: it doubles until half the time is used or until `limit_kib` (default: a
    quarter of the free memory, at most 1 GiB). What time is left goes into passes.
    """
    measure = measure or _seconds
    if limit_kib is None:
        limit_kib = min(CALIBRATED_MEMORY_KIB, (free_memory_kib() or 0) // 4)
    limit_kib = min(limit_kib, MAX_MEMORY_KIB)
    found = floor()
    elapsed = measure(found)
    while elapsed * 2 <= target and found.memory_kib * 2 <= limit_kib:
        found = msgspec.structs.replace(found, memory_kib=found.memory_kib * 2)
        elapsed = measure(found)
    passes = int(found.time * target / elapsed) if elapsed > 0 else 64
    return msgspec.structs.replace(found, time=max(FLOOR_TIME, min(passes, 64)))


def _seconds(kdf: Argon2id) -> float:
    begin = clock.perf_counter()
    kdf.derive(b"calibration")
    return clock.perf_counter() - begin


def argon2id(
    secret: bytes,
    salt: bytes,
    time: int,
    memory_kib: int,
    lanes: int,
    size: int,
    key: bytes = b"",
    associated: bytes = b"",
) -> bytes:
    """Plain Argon2id of RFC 9106, unbounded; `key` and `associated` are its K and X.

    Releases the GIL while it runs. CryptfsError if the memory cannot be had.
    """
    out = ffi.new("uint8_t[]", size)
    # The buffers must outlive the call; the secret's copy is cleared by the library.
    buffers = [ffi.new("uint8_t[]", part) for part in (secret, salt, key, associated)]
    context = ffi.new(
        "argon2_context *",
        {
            "out": out,
            "outlen": size,
            "pwd": buffers[0],
            "pwdlen": len(secret),
            "salt": buffers[1],
            "saltlen": len(salt),
            "secret": buffers[2] if key else ffi.NULL,
            "secretlen": len(key),
            "ad": buffers[3] if associated else ffi.NULL,
            "adlen": len(associated),
            "t_cost": time,
            "m_cost": memory_kib,
            "lanes": lanes,
            "threads": lanes,
            "version": lib.ARGON2_VERSION_13,
            "allocate_cbk": ffi.NULL,
            "free_cbk": ffi.NULL,
            "flags": lib.ARGON2_FLAG_CLEAR_PASSWORD,
        },
    )
    code = lib.argon2_ctx(context, lib.Argon2_id)
    if code == lib.ARGON2_MEMORY_ALLOCATION_ERROR:
        raise CryptfsError(
            f"This key slot needs {memory_kib >> 10} MiB of memory, which the system refused: "
            "stop other programs, or use the recovery key, which needs none."
        )
    if code != lib.ARGON2_OK:
        raise ValueError(ffi.string(lib.argon2_error_message(code)).decode("ascii"))
    return bytes(ffi.buffer(out, size))


def free_memory_kib(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> int | None:
    """What can be allocated without harm: available memory and swap, and what the control group leaves.

    None where the system does not say.
    """
    try:
        lines = (proc / "meminfo").read_text("ascii").splitlines()
        table = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)}
        free = table["MemAvailable"] + table.get("SwapFree", 0)
    except (OSError, ValueError, KeyError, IndexError):
        return None
    try:
        group = (proc / "self/cgroup").read_text("ascii").strip().rpartition("::")[2].lstrip("/")
        folder = cgroups / group
        most = int((folder / "memory.max").read_text("ascii"))
        used = int((folder / "memory.current").read_text("ascii"))
        free = min(free, max(0, most - used) >> 10)
    except (OSError, ValueError):
        pass  # no limit ("max"), or no unified hierarchy
    return free
