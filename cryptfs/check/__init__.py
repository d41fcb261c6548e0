"""Checking a vault as it lies on the disk, and repairing it: `cryptfs verify` (docs/verify.md)."""
