"""What this host remembers of a vault in LMDB, outside the vault; all but the witness can be rebuilt."""

from __future__ import annotations
