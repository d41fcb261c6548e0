"""What a filesystem is made of, for work beside the requests."""

from __future__ import annotations

import threading
from typing import NamedTuple

from cryptfs.fs.commit import Committer
from cryptfs.fs.directory import DirectoryCache
from cryptfs.fs.knowledge import Knowledge
from cryptfs.fs.nodes import NodeTable
from cryptfs.fs.objects import Objects
from cryptfs.fs.respelling import Respeller
from cryptfs.fs.witnessing import Witness
from cryptfs.vault.vault import Vault


class Parts(NamedTuple):
    """The parts of one open vault."""

    vault: Vault
    lock: threading.RLock
    nodes: NodeTable
    directories: DirectoryCache
    objects: Objects
    committer: Committer
    knowledge: Knowledge
    witness: Witness
    respeller: Respeller
