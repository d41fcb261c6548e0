"""Files and directories over a vault, without FUSE (docs/architecture.md)."""

from cryptfs.fs.filesystem import FileSystem
from cryptfs.fs.options import FsOptions

__all__ = ["FileSystem", "FsOptions"]
