"""Talking with the person at the terminal, whatever stdin and stdout are connected to."""

from __future__ import annotations

import getpass
from pathlib import Path

from cryptfs.errors import UsageError

_TTY = Path("/dev/tty")


def available() -> bool:
    """Whether there is a terminal to ask on."""
    try:
        with _TTY.open("rb"):
            return True
    except OSError:
        return False


def say(text: str) -> None:
    """Show a text on the terminal and nowhere else: it may be a secret."""
    with _TTY.open("w", encoding="utf-8", errors="replace") as terminal:
        terminal.write(text + "\n")


def ask(prompt: str) -> str:
    """One line typed at the terminal, shown while it is typed."""
    with _TTY.open("r", encoding="utf-8", errors="replace") as keyboard:
        with _TTY.open("w", encoding="utf-8") as screen:
            screen.write(prompt)
        line = keyboard.readline()
    if not line:
        raise UsageError("Nothing was typed.")
    return line.strip()


def ask_secret(prompt: str) -> str:
    """One line typed at the terminal, not shown."""
    try:
        return getpass.getpass(prompt)
    except EOFError:
        raise UsageError("Nothing was typed.") from None
    except UnicodeDecodeError:
        raise UsageError("What was typed is not valid text in this terminal's encoding.") from None
