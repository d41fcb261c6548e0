"""`cryptfs rotate`: a new epoch key for everything, while the vault is used or not."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cryptfs.cli.arguments import vault_argument
from cryptfs.cli.jobprogress import Report, emit
from cryptfs.cli.main import printable
from cryptfs.cli.rotating import Alone, Mounted, Worker
from cryptfs.cli.secrets import SecretSource, secret_options
from cryptfs.errors import CryptfsError, IntegrityError, Interrupted, NotMounted, UsageError

if TYPE_CHECKING:
    from cryptfs.vault.config import Unlocked

_POLL_SECONDS = 0.3
COMMANDS = {"rewrap": "cryptfs rotate", "reencrypt": "cryptfs rotate --reencrypt"}
"""What to type to begin each of them, or to go on."""


class JobFailed(CryptfsError):
    """The job ended with an error of its own, and its exit code."""

    def __init__(self, snapshot: dict[str, Any]) -> None:
        super().__init__(snapshot["message"] or "The rotation ended without a result: see the mount's log.")
        self.exit_code = snapshot.get("exit_code") or 1


@click.command()
@vault_argument
@click.option(
    "--limit", type=click.FloatRange(min=0, min_open=True), metavar="FILES", help="So many files a second."
)
@click.option(
    "--reencrypt",
    "kind",
    flag_value="reencrypt",
    default="rewrap",
    help="New keys and names for every object, and all content written anew.",
)
@click.option(
    "--despite-damage",
    is_flag=True,
    help="Destroy the old keys though damaged objects were found: they cannot be restored singly then.",
)
@click.option("--status", "action", flag_value="status", help="Show how the rotation on a mount does.")
@click.option("--stop", "action", flag_value="stop", help="Stop it. Everything stays readable.")
@click.option("--pause", "action", flag_value="pause", help="Have it wait.")
@click.option("--resume", "action", flag_value="resume", help="Have it go on after --pause.")
@click.option("--json", "as_json", is_flag=True, help="For programs: one JSON object a line.")
@secret_options
def command(
    vault: Path,
    limit: float | None,
    kind: str,
    despite_damage: bool,
    action: str | None,
    as_json: bool,
    source: SecretSource,
) -> None:
    """Give VAULT a new epoch key, rewrap every header under it, and destroy the old one.

    No content is rewritten, unless --reencrypt is given. The vault may be mounted and in use: the mount does
    the work and gives way to requests; otherwise this command does it. What is created from now on is under
    the new key. If it is stopped, by Ctrl-C, --stop, a power failure or otherwise, every file stays
    readable, and the same command goes on where it was.

    At the end everything is read a second time, and only if nothing needs the old key is it removed from
    cryptfs.json, and the volume key replaced.

    With --reencrypt every file and directory gets a new key of its own and a new ciphertext name, and all
    content is written anew, one file after the other, each read back before it takes the place of the old
    one. It needs room for the largest file and 64 MiB more, and the time to read everything twice and to
    write it once. Whoever kept object keys of before reads nothing of what the vault holds then.

    What this does not revoke: copies of the vault from before (a backup) open with the cryptfs.json of that
    time and its secrets, as before, with --reencrypt, too. Without --reencrypt, whoever took object keys
    out of such a copy can read what these files hold today, because the object keys stay: only content
    written anew is closed to them. And a single file of a backup older than the rotation cannot be put
    back into the vault: restore that backup as a vault of its own and copy the file out of it. What
    somebody has read, or the plaintext of it, no key takes back.

    See docs/rotation.md.
    """
    if action is not None:
        _control(vault, action, as_json=as_json)
        return
    from cryptfs.vault import config

    loaded = config.load(vault)
    mount = Mounted.find(vault)
    unlocked = source.unlock(loaded)
    worker: Worker = mount if mount is not None else Alone(vault, unlocked)
    try:
        unlocked = worker.begin(kind, unlocked)
        result = _work(worker, kind, limit or 0.0, despite_damage=despite_damage, as_json=as_json)
        _finish(worker, kind, unlocked, result, despite_damage=despite_damage, as_json=as_json)
    finally:
        worker.close()


def _work(worker: Worker, kind: str, limit: float, *, despite_damage: bool, as_json: bool) -> dict[str, Any]:
    """Start the job and watch it to its end; its result."""
    with Report(as_json=as_json, unit="MiB" if kind == "reencrypt" else "files") as report:
        snapshot = worker.start(kind, limit, despite_damage=despite_damage)
        try:
            while snapshot["state"] in ("running", "paused"):
                report.show(snapshot)
                worker.wait(1.0 if as_json else _POLL_SECONDS)
                snapshot = worker.poll()
        except KeyboardInterrupt:
            snapshot = worker.stop()
        report.show(snapshot)
    if snapshot["state"] == "stopped":
        raise Interrupted(f"Stopped: every file is readable as before, and `{COMMANDS[kind]}` goes on here.")
    if snapshot["state"] != "done":
        raise JobFailed(snapshot)
    found = snapshot["result"]
    assert isinstance(found, dict)
    return found


def _finish(
    worker: Worker,
    kind: str,
    unlocked: Unlocked,
    result: dict[str, Any],
    *,
    despite_damage: bool,
    as_json: bool,
) -> None:
    from cryptfs.vault import rotation

    if result["needs"]:
        raise CryptfsError(
            f"{result['needs']} objects still need an older epoch key ({_some(result)}): it was kept; "
            f"run `{COMMANDS[kind]}` again."
        )
    if result["damaged"] and not despite_damage:
        raise IntegrityError(
            f"{result['damaged']} objects are damaged ({_some(result)}). All others were done, but the "
            "old keys were kept, because copies of these objects in backups need them: restore or "
            f"delete them and run `{COMMANDS[kind]}` again, or go on with --despite-damage."
        )
    old = [epoch.number for epoch in unlocked.keyring][:-1]
    changed = rotation.destroy_old(unlocked)
    worker.learn(changed)
    current = changed.keyring.current.number
    if as_json:
        emit({"event": "finished", "epoch": current, "destroyed": old, **result})
        return
    numbers = " and ".join(map(str, old))
    renewed = "All content, names and keys are new.\n" if kind == "reencrypt" else ""
    click.echo(
        f"{renewed}All {result['objects']} headers are under epoch {current}; the key of epoch {numbers} is "
        "gone.\nCopies of the vault from before still open with the cryptfs.json of their time."
    )


def _some(result: dict[str, Any]) -> str:
    named = ", ".join(printable(name) for name in result["named"][:3])
    return named + (", …" if len(result["named"]) > 3 else "")


def _control(vault: Path, action: str, *, as_json: bool) -> None:
    mount = Mounted.find(vault)
    if mount is None:
        raise NotMounted(f"{vault} is not mounted by this user: no rotation of it is under way.")
    snapshot = mount.control("" if action == "status" else action)
    if snapshot["state"] == "none":
        if action != "status":
            raise UsageError("No rotation is under way on this mount.")
        if as_json:
            emit(snapshot)
        elif len(snapshot["epochs"]) > 1:
            kind = "rewrap" if snapshot.get("reencryption", "none") == "none" else "reencrypt"
            click.echo(f"No rotation runs, but one was begun: `{COMMANDS[kind]}` goes on with it.")
        else:
            click.echo("No rotation is under way.")
        return
    if as_json:
        emit(snapshot)
        return
    done = f"{snapshot['done']} of {snapshot['total']} objects"
    if by_size := bool(snapshot["bytes_total"]):
        done += f", {snapshot['bytes_done'] >> 20} of {snapshot['bytes_total'] >> 20} MiB"
    left = snapshot["seconds_left"]
    if snapshot["state"] == "running" and left is not None:
        rate = f"{snapshot['rate'] / (1 << 20):.1f} MiB" if by_size else f"{snapshot['rate']:.0f}"
        done += f", {rate} a second, about {left} s left in this phase"
    message = f" ({snapshot['message']})" if snapshot["message"] else ""
    click.echo(f"{snapshot['job']}: {snapshot['state']}, {snapshot['phase']}: {done}{message}")
