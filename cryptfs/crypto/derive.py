"""HKDF-Expand with SHA-256: the keys below a key, one per label."""

from __future__ import annotations

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand


def expand(key: bytes, label: str, size: int) -> bytes:
    """`size` bytes for `label` (docs/format.md section 1)."""
    return HKDFExpand(SHA256(), size, label.encode("ascii")).derive(key)
