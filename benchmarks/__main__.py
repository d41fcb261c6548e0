"""Entry point of `python3 -m benchmarks`."""

from benchmarks.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
