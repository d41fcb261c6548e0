"""Logs of directory headers with damaged records: written anew with the good ones."""

from __future__ import annotations

import os

from cryptfs.check.copies import Copies, is_good
from cryptfs.check.finding import Finding
from cryptfs.check.repair.workshop import Step, Workshop
from cryptfs.vault.dirlog import RECORD_SIZE
from cryptfs.vault.diskio import replace_file
from cryptfs.vault.layout import DIRS


def repair(shop: Workshop, finding: Finding) -> Step | str:
    """On disk: the old log is kept, then the new one replaces it as a whole."""

    def do(shop: Workshop) -> None:
        context, name = shop.context, os.path.basename(finding.place)
        with shop.folder(DIRS) as folder:
            records = list(Copies.records_of(context.path, os.fsdecode(name)))
            good = [record for record in records if is_good(record, context.codec, context.keyring)]
            if len(good) == len(records):
                return
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=folder)
            try:
                size = os.fstat(fd).st_size
                shop.keeper.part(finding.place, "a log of headers is written anew", fd, 0, size)
            finally:
                os.close(fd)
            assert all(len(record) == RECORD_SIZE for record in good)
            replace_file(folder, os.fsdecode(name), b"".join(good), context.modes.file)
        context.forget_copies()

    return Step(finding, "write the log anew without the damaged records", do)
