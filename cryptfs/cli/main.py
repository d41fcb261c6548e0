"""The `cryptfs` command: finds the subcommand, and turns every error into one line and an exit code.

Commands are one file each and loaded only when they are called, so that
`cryptfs --help` and shell completion start fast.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import importlib
import os
import resource
import sys
import traceback
from collections.abc import Sequence

import click

from cryptfs import __version__
from cryptfs.errors import CryptfsError, StorageError

INTERNAL_ERROR = 70
INTERRUPTED = 130

# command -> (module:attribute, what `cryptfs --help` says of it)
COMMANDS: dict[str, tuple[str, str]] = {
    "init": ("cryptfs.cli.init:command", "Make a new vault."),
    "mount": ("cryptfs.cli.mount:command", "Unlock a vault and mount it."),
    "unmount": ("cryptfs.cli.unmount:command", "Unmount a vault and lock it."),
    "accept-restore": ("cryptfs.cli.accept_restore:command", "Accept what was restored from a backup."),
    "status": ("cryptfs.cli.status:command", "Show what is mounted and how it does."),
    "freeze": ("cryptfs.cli.freeze:command", "Hold the ciphertext still while a backup is made."),
    "rotate": ("cryptfs.cli.rotate:command", "Replace the keys, while the vault is used or not."),
    "index": ("cryptfs.cli.index:command", "Look after this computer's index of a vault."),
    "find": ("cryptfs.cli.find:command", "Find the images of a patient or a study."),
    "stats": ("cryptfs.cli.stats:command", "Count people, studies and images."),
    "key": ("cryptfs.cli.key:command", "List, add, change and remove key slots."),
    "verify": ("cryptfs.cli.verify:command", "Check a vault for damage, and repair it."),
}

_ERRNO_SENTENCES = {
    errno.ENOSPC: "The disk is full{where}: free some space and try again.",
    errno.EDQUOT: "The disk quota is used up{where}: free some space and try again.",
    errno.EACCES: "Permission denied{where}: run as the owner of the vault, or correct the permissions.",
    errno.EPERM: "The system does not permit that{where}: run as the owner of the vault.",
    errno.EROFS: "The disk is read-only{where}: look in the kernel log whether it failed.",
    errno.ENOENT: "There is no such file or folder{where}.",
    errno.ENOTDIR: "That is not a folder{where}.",
    errno.EISDIR: "That is a folder, not a file{where}.",
    errno.EEXIST: "That exists already{where}: choose another name, or remove it first.",
    errno.EIO: "The disk failed{where}: look at the kernel log before anything else.",
    errno.ELOOP: "There are too many symbolic links{where}.",
    errno.ENAMETOOLONG: "The name is too long{where}.",
    errno.EMFILE: "Too many files are open: raise the limit (ulimit -n).",
    errno.ESTALE: "The network folder went away{where}: mount it again.",
    errno.EBADF: "No such file descriptor is open{where}.",
}


class LazyGroup(click.Group):
    """The commands of the table above, imported when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        loaded = getattr(importlib.import_module(module), attribute)
        assert isinstance(loaded, click.Command)
        return loaded

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="cryptfs", message="%(prog)s %(version)s")
def cli() -> None:
    """Transparent file encryption for medical imaging archives.

    Exit codes are listed in docs/exit-codes.md. Shell completion:
    add eval "$(_CRYPTFS_COMPLETE=bash_source cryptfs)" to ~/.bashrc
    (zsh_source and fish_source for the other shells).
    """


def main() -> None:
    """The entry point of the `cryptfs` program."""
    protect_memory()
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code; nothing is raised."""
    try:
        code = cli.main(list(arguments), prog_name="cryptfs", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except CryptfsError as error:
        return _fail(str(error), error.exit_code)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return error.exit_code
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else "cryptfs"
        return _fail(f"{error.format_message()} (`{command} --help` explains it)", error.exit_code)
    except click.ClickException as error:
        return _fail(error.format_message(), error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        return _fail("Interrupted.", INTERRUPTED)
    except BrokenPipeError:
        # Whoever read our output has gone; the interpreter must not complain again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    except OSError as error:
        _debug()
        return _fail(describe(error), StorageError.exit_code)
    except MemoryError:
        return _fail("There is not enough memory: stop other programs and try again.", 1)
    except SystemExit as done:  # click's shell completion ends this way
        return done.code if isinstance(done.code, int) else 0
    except Exception as error:
        # The message of an unknown exception might quote a secret: it is not shown.
        _debug()
        return _fail(
            f"Internal error ({type(error).__name__}{_place(error)}): this is a defect of cryptfs; "
            "CRYPTFS_DEBUG=1 shows more.",
            INTERNAL_ERROR,
        )


def describe(error: OSError) -> str:
    """One sentence for an error of the system, with the file it was about."""
    name = error.filename
    where = f" ({os.fsdecode(name)})" if isinstance(name, str | bytes) else ""
    known = _ERRNO_SENTENCES.get(error.errno or 0)
    if known:
        return known.format(where=where)
    return f"The system refused{where}: {error.strerror or type(error).__name__}."


def protect_memory() -> None:
    """No core dumps and no ptrace by the same user: the process holds keys."""
    pr_set_dumpable = 4
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(pr_set_dumpable, 0, 0, 0, 0)


def printable(text: str) -> str:
    """Text that cannot move the cursor or change the title of a terminal."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def size_text(count: float) -> str:
    """So many bytes, for people."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} B" if unit == "B" else f"{count:,.1f} {unit}"
        count /= 1024
    return f"{count:,.1f} TiB"


def _fail(message: str, code: int) -> int:
    with contextlib.suppress(OSError):
        click.echo(f"cryptfs: {printable(message)}", err=True)
    return code


def _debug() -> None:
    if os.environ.get("CRYPTFS_DEBUG") == "1":
        traceback.print_exc()


def _place(error: Exception) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return ""
    return f" in {frames[-1].name}, {os.path.basename(frames[-1].filename)} line {frames[-1].lineno}"
