#!/usr/bin/env python3
"""`benchmarks/run.py`: the same as `python3 -m benchmarks`, from any working directory."""

import runpy
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    runpy.run_module("benchmarks", run_name="__main__")
