"""A folder of a node as a pod sees it: mounted as a kubelet does, read-only, in a mount namespace of its own."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

_POD = """
mount -t tmpfs pod "$2"
mkdir -p "$2/mnt/models"
mount --bind "$1" "$2/mnt/models"
mount -o remount,bind,ro "$2/mnt/models"
if touch "$2/mnt/models/written" 2>/dev/null; then echo "the mount can be written to" >&2; exit 3; fi
cd "$2/mnt/models"
find . -path ./.localmodel -prune -o -type f -print0 | xargs -0 sha256sum
"""


def inside_a_pod(node_root: Path, path: str) -> dict[str, str]:
    """The SHA-256 of every file in the pod's mount, by its path. `path`: of the folder, as the node has it.

    Our own notes in the folder are left out. The mounts go with the process.
    """
    pod = node_root.parent / "pod"
    pod.mkdir(exist_ok=True)
    folder = f"{node_root}{path}"
    command = ["unshare", "--mount", "sh", "-ec", _POD, "pod", folder, str(pod)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    lines = (line.split("  ./", 1) for line in done.stdout.splitlines())
    return {name: digest for digest, name in lines}


def digests(folder: Path) -> dict[str, str]:
    """The same of the files that a model is made of."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
