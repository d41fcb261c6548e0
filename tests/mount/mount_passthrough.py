"""Mount a plain directory through the mount layer, without any cryptography.

    python -m tests.mount.mount_passthrough DIRECTORY MOUNTPOINT ['{"foreground": true, …}']

The JSON argument has the fields of `MountOptions`, and `foreground` and `log`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

from cryptfs.errors import CryptfsError
from cryptfs.fs.types import Owner
from cryptfs.mount import daemon, logs, mountpoint
from cryptfs.mount.server import MountOptions, serve
from tests.mount.passthrough_fs import PassthroughFs


def main() -> None:
    directory, place = sys.argv[1:3]
    settings = json.loads(sys.argv[3]) if len(sys.argv) > 3 else {}
    foreground = settings.pop("foreground", False)
    log = settings.pop("log", None)
    die_at_start = settings.pop("die_at_start", False)
    if "owner" in settings:
        settings["owner"] = Owner(*settings["owner"])
    try:
        mountpoint.check_fuse(allow_other=settings.get("allow_other", False))
        options = MountOptions(
            vault=directory, mountpoint=mountpoint.prepare(Path(place), Path(directory)), **settings
        )

        def run(ready: Callable[[], None]) -> None:
            logs.configure(log, foreground=foreground, verbose=False)
            if die_at_start:
                raise RuntimeError("text that must not be shown")
            serve(PassthroughFs(directory, xattrs=options.xattrs), options, ready)

        daemon.in_foreground(run) if foreground else daemon.in_background(run)
    except CryptfsError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
