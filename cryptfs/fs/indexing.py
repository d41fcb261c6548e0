"""Whether a filesystem has a metadata index, and why not."""

from __future__ import annotations

import logging
from pathlib import Path

from cryptfs.fs.comparedknowledge import ComparedKnowledge
from cryptfs.fs.knowledge import Knowledge
from cryptfs.fs.metadata import IndexedKnowledge
from cryptfs.index.catalog import Catalog
from cryptfs.index.catalogview import CatalogView
from cryptfs.index.place import Unavailable
from cryptfs.vault.vault import Vault

log = logging.getLogger(__name__)


def open_knowledge(vault: Vault, place: Path | None, *, wanted: bool, why_not: str = "") -> Knowledge:
    """The index of a vault below this host's state directory; knows nothing where there can be none.

    `why_not` is why there is no `place`. What keeps an index from being used is a warning in the log and a
    word in `cryptfs status`, never an error: every file is served without it.
    """
    if not wanted:
        return Knowledge("switched off")
    if place is None:
        return Knowledge(why_not or "no state directory")
    if vault.read_only:
        try:
            return ComparedKnowledge(CatalogView.open(place, vault))
        except Unavailable as error:
            return Knowledge(f"mounted read-only: {error}")
    try:
        return IndexedKnowledge(Catalog.open(place, vault))
    except Unavailable as error:
        log.warning("without a metadata index: %s", error)
        return Knowledge(str(error))
