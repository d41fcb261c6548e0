"""The process that reads DICOM headers: `python -m cryptfs.practice.worker`, started by `reader`.

A process of its own because parsing takes half a millisecond of Python for each image: in the mount's process
it would hold up requests. Here it takes the processor only when nobody else wants it, and a
file that needs too much time or memory ends this process, not the mount. It holds no key.

Standard input brings frames (`FRAME`: length of the data, whether the file ends there; then the data).
Standard output takes a frame for each (`LENGTH`, then msgpack of kind and tags). The end of the input is
the end.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import struct
import sys
from typing import BinaryIO, NoReturn

import msgspec

from cryptfs.practice.tags import START_MAX, Kind, Tags, read_tags

FRAME = struct.Struct("<I?")
LENGTH = struct.Struct("<I")
MEMORY = 1 << 30
"""Bytes of address space; reading an image takes a tenth."""
SECONDS = 3.0
"""Processor time for one file, after which it counts as damaged. The longest file of 1 MiB takes a tenth."""


class Outcome(msgspec.Struct, array_like=True):
    """What goes back for one file."""

    kind: Kind
    tags: Tags


class _TooLong(BaseException):
    """Not an Exception, so that no parser takes it for its own."""


def _too_long(number: int, frame: object) -> NoReturn:
    raise _TooLong


def bound(*, idle: bool) -> None:
    """Give this process its limits; with `idle` it runs on what others leave of the processors."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    if idle:
        with contextlib.suppress(OSError):
            os.nice(19)
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    # The terminal's Ctrl-C is for the command, which then closes our input.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGVTALRM, _too_long)
    # What does not come back to the interpreter for so long is ended by the kernel.
    signal.signal(signal.SIGPROF, signal.SIG_DFL)


def judge(start: bytes, whole: bool) -> Outcome:
    """`read_tags` within `SECONDS`."""
    try:
        signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
        signal.setitimer(signal.ITIMER_PROF, 4 * SECONDS)
        try:
            kind, tags = read_tags(start, whole)
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
            signal.setitimer(signal.ITIMER_PROF, 0)
    except _TooLong:
        return Outcome(Kind.DAMAGED, Tags())
    return Outcome(kind, tags)


def serve(requests: BinaryIO, answers: BinaryIO) -> None:
    """Answer until the input ends."""
    while len(head := requests.read(FRAME.size)) == FRAME.size:
        size, whole = FRAME.unpack(head)
        if size > START_MAX:
            return
        start = requests.read(size)
        if len(start) < size:
            return
        data = msgspec.msgpack.encode(judge(start, whole))
        answers.write(LENGTH.pack(len(data)) + data)
        answers.flush()


# The smallest file that goes through the whole parser.
_SAMPLE = (
    bytes(128) + b"DICM\x02\x00\x10\x00UI\x14\x001.2.840.10008.1.2.1\0"
    b"\x08\x00\x05\x00CS\x0a\x00ISO_IR 100\x10\x00\x10\x00PN\x04\x00A^B "
)


def main() -> None:
    # What is loaded only when it is needed is loaded now, while this process still gets its share.
    read_tags(_SAMPLE, True)
    bound(idle="--idle" in sys.argv)
    with contextlib.suppress(BrokenPipeError):
        serve(sys.stdin.buffer, sys.stdout.buffer)
    os._exit(0)


if __name__ == "__main__":
    main()
