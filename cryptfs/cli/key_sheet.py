"""`cryptfs key sheet`: the page for the safe, with the recovery key to read, to type and to scan."""

from __future__ import annotations

import html
import io
import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cryptfs.cli import secret_io, terminal
from cryptfs.cli.arguments import vault_argument
from cryptfs.errors import UsageError, WrongSecret

if TYPE_CHECKING:
    from cryptfs.vault.config import Config

_SUFFIXES = (".html", ".txt")


@click.command("sheet")
@vault_argument
@click.argument("file", type=click.Path(readable=False, path_type=Path))
@click.option(
    "--recovery-key-file",
    type=click.Path(dir_okay=False, readable=False, path_type=Path),
    metavar="FILE",
    help="Read the recovery key from FILE instead of asking for it.",
)
def sheet(vault: Path, file: Path, recovery_key_file: Path | None) -> None:
    """Write a one-page recovery sheet for VAULT to the new FILE, for printing.

    FILE ends in .html (with a QR code; print it from a browser) or .txt. The recovery key is typed, or
    read from a file, and tried on the vault first: a sheet with a key that opens nothing would be worse
    than none. FILE is readable by you alone; print it on a printer that you trust, then delete it.
    A sheet for a new vault comes with `cryptfs init --recovery-sheet FILE`.
    """
    from cryptfs.keyslots import RecoveryKey
    from cryptfs.vault import belongs, config

    check_name(file)
    if file.resolve().is_relative_to(vault.resolve()):
        raise UsageError("The recovery key must not be stored in the vault that it opens.")
    loaded = config.load(vault)
    if recovery_key_file is not None:
        key = secret_io.read_recovery_key_file(recovery_key_file)
    elif terminal.available():
        key = RecoveryKey.parse(terminal.ask_secret(f"Recovery key of {vault}: "))
    else:
        raise UsageError("There is no terminal to ask on: use --recovery-key-file.")
    try:
        unlocked = config.unlock(loaded, key)
    except WrongSecret:
        raise WrongSecret(
            "Wrong recovery key: it opens no key slot of this vault, so no sheet is made."
        ) from None
    belongs.check(vault, unlocked)
    write(file, vault, loaded, key.text)
    click.echo(f"Print {file}, put the paper into the safe, then delete the file.")


def check_name(file: Path) -> None:
    """UsageError unless the name says a form that there is, and nothing is there."""
    if file.suffix not in _SUFFIXES:
        raise UsageError(f"A sheet is a .html or a .txt file: {file} is neither.")
    if file.exists():
        raise UsageError(f"{file} exists already: name a file that does not.")


def write(file: Path, vault: Path, config: Config, key: str) -> None:
    """The sheet, in a new file of mode 0600."""
    facts = _facts(vault, config)
    text = _html(facts, key) if file.suffix == ".html" else _text(facts, key)
    secret_io.write_new_secret(file, text)


_STEPS = (
    "Install cryptfs on any Linux machine, or take a program written after its format (docs/format.md).",
    "Get the vault's folder: the disk itself, or the newest backup of it.",
    "cryptfs key recover FOLDER    asks for this key, then for a new passphrase.",
    "cryptfs mount FOLDER EMPTY-FOLDER    shows the files.",
    "Is cryptfs.json damaged or lost? Add --from COPY to the first command: a copy from `cryptfs key "
    "backup`, "
    "or cryptfs.json.previous beside it.",
)
_CARE = (
    "Whoever has this sheet and a copy of the vault reads everything in it. Keep it in a safe, not "
    "beside the "
    "computer, and a second one in another building. Try it once a year: cryptfs key test FOLDER "
    "--recovery-key. "
    "If it is lost or was seen: add a new recovery key (cryptfs key add FOLDER recovery), then remove the "
    "old one (cryptfs key remove)."
)


def _facts(vault: Path, config: Config) -> list[tuple[str, str]]:
    from cryptfs.vault.document import now

    return [
        ("Folder", str(vault.resolve())),
        ("Computer", os.uname().nodename),
        ("Vault", config.vault_id.hex()),
        ("Vault made", config.document.created),
        ("Sheet made", now()),
    ]


def _rows(key: str) -> list[list[tuple[int, str]]]:
    groups = list(enumerate(key.split("-"), 1))
    return [groups[start : start + 3] for start in (0, 3, 6)]


def _text(facts: list[tuple[str, str]], key: str) -> str:
    def wrap(text: str, first: str, width: int = 76) -> str:
        import textwrap

        return textwrap.fill(text, width, initial_indent=first, subsequent_indent=" " * len(first))

    lines = ["RECOVERY SHEET: keep it in a safe", "=" * 33, ""]
    lines += [f"{name + ':':<13}{value}" for name, value in facts]
    lines += ["", "Recovery key:", ""]
    lines += ["    " + "    ".join(f"{number}: {group}" for number, group in row) for row in _rows(key)]
    lines += [
        "",
        "In one line (case, spaces and hyphens do not matter; 0 is zero, 1 is one):",
        "",
        f"    {key}",
    ]
    lines += ["", "When everything else is lost:", ""]
    lines += [wrap(step, f"{number}. ") for number, step in enumerate(_STEPS, 1)]
    lines += ["", wrap(_CARE, ""), "", "Kept by: ____________________    Tested on: ____________________"]
    return "\n".join(lines)


_STYLE = """
@page { size: A4; margin: 18mm }
body { font: 11pt/1.45 sans-serif; color: #000; background: #fff; max-width: 174mm; margin: 0 auto }
h1 { font-size: 20pt; margin: 0 0 1mm } h2 { font-size: 12pt; margin: 6mm 0 2mm }
table.facts td { padding: 0 5mm 0 0; vertical-align: top; overflow-wrap: anywhere }
table.facts td:first-child { white-space: nowrap; color: #444 }
.box { border: 1.5pt solid #000; padding: 4mm; display: flex; gap: 6mm; align-items: center; margin-top: 5mm }
.box svg { width: 46mm; height: 46mm; flex: none }
table.key td { font: bold 15pt monospace; padding: 1.5mm 4mm 1.5mm 0; white-space: nowrap }
table.key small { font: 9pt sans-serif; color: #444; padding-right: 1mm }
p.small { font-size: 9.5pt; margin: 2mm 0 0 } ol { margin: 0; padding-left: 6mm }
code { font: 10pt monospace } .lines { margin-top: 10mm }
"""


def _html(facts: list[tuple[str, str]], key: str) -> str:
    """A page that needs nothing from anywhere: no script, no font, no image but the QR code in it."""
    import segno

    picture = io.BytesIO()
    segno.make_qr(key, error="q").save(
        picture, kind="svg", xmldecl=False, svgns=True, border=4, omitsize=True
    )
    rows = "".join(
        "<tr>" + "".join(f"<td><small>{number}</small>{group}</td>" for number, group in row) + "</tr>"
        for row in _rows(key)
    )
    known = "".join(f"<tr><td>{name}</td><td>{html.escape(value)}</td></tr>" for name, value in facts)
    steps = "".join(f"<li>{_with_code(step)}</li>" for step in _STEPS)
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>Recovery sheet</title><style>{_STYLE}</style></head><body>
<h1>Recovery sheet</h1>
<p class="small">Opens an encrypted archive when the passphrase is lost. Keep it in a safe.</p>
<table class="facts">{known}</table>
<div class="box">{picture.getvalue().decode("ascii")}<div><table class="key">{rows}</table>
<p class="small">Nine groups; case and spaces do not matter, 0 is zero and 1 is one. The picture holds the
same key, to be scanned by a machine that you trust.</p></div></div>
<h2>When everything else is lost</h2>
<ol>{steps}</ol>
<h2>With care</h2>
<p>{html.escape(_CARE)}</p>
<p class="lines">Kept by: ______________________________ &emsp; Tested on: ______________________________</p>
</body></html>"""


def _with_code(step: str) -> str:
    command, gap, rest = step.partition("    ")
    return f"<code>{html.escape(command)}</code> {html.escape(rest)}" if gap else html.escape(step)
