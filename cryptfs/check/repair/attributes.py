"""Extended attributes that are lost: the header stops promising them, and the object works again."""

from __future__ import annotations

from cryptfs.check.finding import Finding
from cryptfs.check.repair.headers import rewrite
from cryptfs.check.repair.workshop import Opened, Step, Unrepairable, Workshop
from cryptfs.vault.header import FLAG_XATTR, Header
from cryptfs.vault.layout import XATTR
from cryptfs.vault.names import DIR_HEADER


def repair(shop: Workshop, finding: Finding) -> Step | str:
    """On disk: first the header says that there are none, then the damaged file is moved away."""

    def do(shop: Workshop) -> None:
        with shop.directory_of(finding.place) as opened:
            if opened.lname in opened.look().directories or finding.place == b"tree":
                with shop.directory_at(finding.place) as inner:
                    _forget(shop, inner, DIR_HEADER)
            else:
                _forget(shop, opened, opened.lname)
        _move_away(shop, finding)

    return Step(finding, "note in the header that there are no attributes; keep what is left of them", do)


def _forget(shop: Workshop, opened: Opened, lname: bytes) -> None:
    def change(header: Header) -> bool:
        promised = bool(header.flags & FLAG_XATTR)
        header.flags &= ~FLAG_XATTR
        return promised

    rewrite(shop, opened, lname, change)


def _move_away(shop: Workshop, finding: Finding) -> None:
    if finding.object_id is None:
        raise Unrepairable("its object is not known")
    text = finding.object_id.hex()
    try:
        with shop.folder(f"{XATTR}/{text[:2]}") as folder:
            place = f"{XATTR}/{text[:2]}/{text}".encode()
            shop.keeper.move(place, "damaged attributes are moved away", folder, text.encode())
    except FileNotFoundError:
        pass
