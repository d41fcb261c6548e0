"""Benchmarks of cryptfs beside gocryptfs, securefs and the bare file system (see README.md)."""
