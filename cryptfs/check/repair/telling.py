"""The rollback witness of this host is told what a repair changed, so that no mount takes it for a rollback.

Told is what differs after the repair and did not before, what stands at the places that were repaired, and,
where a part of the journal was given up, what is older for it. What differed before, and was not repaired,
differs still: a repair does not make somebody else's exchange of files right.

On disk: all that the repair did is synced; then a session of the vault, as of a mount, begins, records are
committed in one durable transaction each few thousand, and the session ends. Cut before that, the next mount
refuses or reports what was repaired, until `cryptfs accept-restore`.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path

from cryptfs.check.context import Context
from cryptfs.check.finding import Kind
from cryptfs.check.host import Difference
from cryptfs.check.repair.run import Outcome
from cryptfs.errors import CryptfsError
from cryptfs.fs import FileSystem, FsOptions
from cryptfs.vault import Vault
from cryptfs.vault.diskio import syncfs
from cryptfs.vault.names import DIR_HEADER

_BATCH = 4096


def to_be_told(
    before: Mapping[bytes, Difference], after: Mapping[bytes, Difference], outcome: Outcome
) -> dict[bytes, Difference]:
    """Of the names that differ after a repair, by their keys, those that it is the reason of."""
    steps = [step.finding for step, problem in outcome.done if not problem]
    places = {finding.place.removesuffix(b"/" + DIR_HEADER) for finding in steps}
    journal = any(finding.kind is Kind.JOURNAL for finding in steps)
    return {
        key: found
        for key, found in after.items()
        if key not in before or found.place in places or (journal and found.kind is Kind.OLDER)
    }


def is_new_session(outcome: Outcome) -> bool:
    """Whether the vault's record of its last session was moved away."""
    return any(step.finding.kind is Kind.STATE and not problem for step, problem in outcome.done)


def tell(context: Context, place: Path, told: Mapping[bytes, Difference]) -> None:
    """Record durably what is there now. Nobody may have the vault, or the witness, open.

    Raises CryptfsError where the vault does not open or the witness cannot be written, OSError.
    """
    vault = Vault(context.path, context.vault_id, context.keyring, backup_group=context.backup_group)
    with _without_alarm():
        fs = FileSystem(vault, FsOptions(compare=False, index=False), place=place)
    with contextlib.closing(fs):
        store = fs.witness.store
        if store is None:
            raise CryptfsError(f"There is no rollback witness to be told: {fs.witness.why}.")
        syncfs(vault.tree_fd)
        items = iter((key, found.record) for key, found in told.items())
        while part := list(islice(items, _BATCH)):
            store.commit(part)


@contextlib.contextmanager
def _without_alarm() -> Iterator[None]:
    """What the witness would say of a session record that the repair moved away is no news."""
    logger = logging.getLogger("cryptfs.fs.witnessing")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
