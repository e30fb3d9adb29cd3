"""What a project needs, with some of its extras, one a line: `requirements.py pyproject.toml EXTRA...`.

So that an image installs them in a layer of their own, before the project's code is there.
"""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def requirements(project: Mapping[str, Any], extras: Iterable[str]) -> list[str]:
    """The dependencies of `[project]`, then those of each extra. Raises KeyError for an extra that it does not have."""
    optional = project.get("optional-dependencies", {})
    return [*project["dependencies"], *(each for extra in extras for each in optional[extra])]


if __name__ == "__main__":
    path, *chosen = sys.argv[1:]
    sys.stdout.write("\n".join(requirements(tomllib.loads(Path(path).read_text())["project"], chosen)) + "\n")
