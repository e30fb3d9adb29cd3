"""The folders of models belong to the agent's user, also on a disk that others have used before.

    python -m actors.disk.ownership ROOT UID GID

KServe's node agent runs as 65532 and its download Jobs as 1000; the kubelet makes a missing subPath for root. An agent
must be able to put its marker into such a folder and to replace a file in it. Files stay whose they are: they are read,
and one that is wrong is replaced. This is all that ever runs as root, in an init container, with the capabilities
CHOWN and DAC_READ_SEARCH; links are not followed, and folders that hold no model are left alone.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from actors.disk.handles import Folder

MOST_FOLDERS = 100_000
"""Of all models together. Somebody who plants more keeps no node from starting."""
_KEY = re.compile(r"[0-9a-f]{16}")


def own(root: Path, uid: int, gid: int) -> int:
    """How many folders were given: the root, `models` in it, and those of models are `uid`'s now. Raises OSError."""
    with Folder.at(root) as folder:
        return sum(_own(folder, path, uid, gid) for path in ("", *_folders(folder)))


def _folders(root: Folder) -> Iterator[str]:
    status = root.status("models")
    if status is None:
        return
    yield "models"
    with root.enter("models") as models:
        for name in models.names():
            if not _KEY.fullmatch(name):
                continue
            try:
                opened = models.enter(name)
            except OSError:  # a link, or no folder
                continue
            yield f"models/{name}"
            with opened as model:
                for count, (path, _, within) in enumerate(model.walk(strict=False)):
                    if count > MOST_FOLDERS:
                        return
                    if within:
                        yield f"models/{name}/{path}"


def _own(root: Folder, path: str, uid: int, gid: int) -> bool:
    with root.within(path) as folder:
        status = os.fstat(folder.descriptor)
        if (status.st_uid, status.st_gid) == (uid, gid):
            return False
        os.fchown(folder.descriptor, uid, gid)
        return True


def main(arguments: list[str]) -> int:
    root, uid, gid = arguments
    count = own(Path(root), int(uid), int(gid))
    print(f"{root}: {count} folders belong to {uid}:{gid} now")  # noqa: T201  # its output
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
