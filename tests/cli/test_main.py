"""One line and one exit code for whatever happens."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

import cryptfs.errors
from cryptfs import __version__
from cryptfs.cli import main
from cryptfs.errors import CryptfsError, WrongSecret

from .conftest import Cryptfs

DOCUMENTED = Path(__file__).parents[2] / "docs/exit-codes.md"


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> list[BaseException]:
    """A command `fail` that raises what is put in the list."""
    raised: list[BaseException] = []

    @click.command()
    def command() -> None:
        raise raised[0]

    monkeypatch.setattr(sys.modules[__name__], "command", command, raising=False)
    monkeypatch.setitem(main.COMMANDS, "fail", (f"{__name__}:command", "Fail."))
    return raised


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (WrongSecret("Wrong passphrase."), 10, "cryptfs: Wrong passphrase.\n"),
        (CryptfsError("Colours \x1b[31m and\nlines."), 1, "cryptfs: Colours \\x1b[31m and\\nlines.\n"),
        (KeyboardInterrupt(), 130, "cryptfs: Interrupted.\n"),
        (MemoryError(), 1, "cryptfs: There is not enough memory: stop other programs and try again.\n"),
        (SystemExit(7), 7, ""),
    ],
)
def test_errors_are_one_line(
    failing: list[BaseException], cryptfs: Cryptfs, error: BaseException, code: int, message: str
) -> None:
    failing.append(error)
    result = cryptfs("fail")
    assert (result.code, result.out) == (code, "")
    assert result.err.lstrip("\n") == message


@pytest.mark.parametrize(
    ("number", "sentence"),
    [
        (errno.ENOSPC, "The disk is full (/v/a): free some space"),
        (errno.EDQUOT, "The disk quota is used up (/v/a)"),
        (errno.EACCES, "Permission denied (/v/a)"),
        (errno.EROFS, "The disk is read-only (/v/a)"),
        (errno.ENOENT, "There is no such file or folder (/v/a)"),
        (errno.EIO, "The disk failed (/v/a)"),
        (errno.EPROTO, "The system refused (/v/a): Protocol error."),
    ],
)
def test_errors_of_the_system_are_sentences(
    failing: list[BaseException], cryptfs: Cryptfs, number: int, sentence: str
) -> None:
    failing.append(OSError(number, os.strerror(number), "/v/a"))
    result = cryptfs("fail")
    assert result.code == 19
    assert result.err.startswith(f"cryptfs: {sentence}")
    assert result.err.count("\n") == 1


def test_an_error_without_file_name() -> None:
    assert main.describe(OSError(errno.ENOSPC, "x")) == "The disk is full: free some space and try again."
    assert main.describe(OSError()) == "The system refused: OSError."


def test_unexpected_exceptions_show_no_message(
    failing: list[BaseException], cryptfs: Cryptfs, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing.append(ValueError("could not decode 'my passphrase'"))
    result = cryptfs("fail")
    assert result.code == 70
    pattern = r"cryptfs: Internal error \(ValueError in command, test_main\.py line \d+\): .*\n"
    assert re.fullmatch(pattern, result.err)
    assert "passphrase" not in result.err


def test_debugging_shows_the_traceback(
    failing: list[BaseException], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CRYPTFS_DEBUG", "1")
    failing.append(ValueError("x"))
    assert main.run(["fail"]) == 70
    assert "Traceback" in capfd.readouterr().err


def test_wrong_usage(cryptfs: Cryptfs) -> None:
    result = cryptfs("key", "list")
    assert (result.code, result.out) == (2, "")
    assert result.err == "cryptfs: Missing argument 'VAULT'. (`cryptfs key list --help` explains it)\n"
    assert cryptfs("nonsense").code == 2
    assert cryptfs("init", "--nonsense").code == 2


def test_version_and_help(cryptfs: Cryptfs) -> None:
    assert cryptfs("--version").out == f"cryptfs {__version__}\n"
    shown = cryptfs("--help")
    assert shown.code == 0
    for name, (_, text) in main.COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(text)}$", shown.out, re.MULTILINE)
    nothing = cryptfs()
    assert nothing.code == 2
    assert "Usage: cryptfs" in nothing.err


@pytest.mark.parametrize("name", sorted(main.COMMANDS))
def test_every_command_of_the_table_loads(name: str, cryptfs: Cryptfs) -> None:
    shown = cryptfs(name, "--help")
    assert (shown.code, shown.err) == (0, "")
    assert shown.out.startswith(f"Usage: cryptfs {name} ")


def test_help_loads_no_command_and_no_cryptography() -> None:
    code = (
        "import sys; from cryptfs.cli.main import run; run(['--help']);"
        "print([m for m in sys.modules if m.startswith(('cryptfs.cli.', 'cryptography', 'msgspec'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "['cryptfs.cli.main']"


def test_no_core_dumps_and_not_traceable() -> None:
    code = (
        "import resource, ctypes; from cryptfs.cli.main import protect_memory; protect_memory();"
        "print(resource.getrlimit(resource.RLIMIT_CORE), ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "(0, 0) 0\n"


def test_whoever_read_our_output_has_gone() -> None:
    code = "from cryptfs.cli.main import main; main()"
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-c", code, "--help"], stdout=writer, stderr=subprocess.PIPE, check=False
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, b"")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shell_completion(shell: str) -> None:
    code = "from cryptfs.cli.main import main; main()"
    environment = os.environ | {"_CRYPTFS_COMPLETE": f"{shell}_source"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    )
    assert "_CRYPTFS_COMPLETE" in done.stdout


def test_completion_knows_the_commands() -> None:
    code = "from cryptfs.cli.main import main; main()"
    environment = os.environ | {
        "_CRYPTFS_COMPLETE": "bash_complete",
        "COMP_WORDS": "cryptfs key rem",
        "COMP_CWORD": "2",
    }
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    )
    assert done.stdout == "plain,remove\n"


def family(root: type[CryptfsError]) -> list[type[CryptfsError]]:
    own = [child for child in root.__subclasses__() if child.__module__ == cryptfs.errors.__name__]
    return [root, *(found for child in own for found in family(child))]


def test_exit_codes_are_documented_as_they_are() -> None:
    rows = re.findall(r"^\| (\d+) \| ?(\w*) \| (.*) \|$", DOCUMENTED.read_text("utf-8"), re.MULTILINE)
    documented = {name: (int(code), meaning) for code, name, meaning in rows if name}
    defined = {
        error.__name__: (error.exit_code, (error.__doc__ or "").strip()) for error in family(CryptfsError)
    }
    assert documented == defined
    codes = [int(code) for code, _, _ in rows]
    assert codes == sorted(set(codes))
    assert {0, main.INTERNAL_ERROR, main.INTERRUPTED} <= set(codes)
