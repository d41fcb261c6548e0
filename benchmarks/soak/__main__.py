"""Entry point of `python3 -m benchmarks.soak`."""

from benchmarks.soak.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
