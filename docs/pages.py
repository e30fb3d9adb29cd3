"""A hook of mkdocs: pages that lie outside docs/ are part of the site, and every relative link leads where it did.

A link to a file of the repository that is no page becomes its text. One to nothing is a warning, which ends the build.
"""

from __future__ import annotations

import logging
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
BROUGHT = {
    "README.md": "index.md",
    "CHANGELOG.md": "repository/changelog.md",
    "CONTRIBUTING.md": "repository/contributing.md",
    "benchmarks/README.md": "repository/benchmarks.md",
    "k8s/README.md": "repository/k8s.md",
    "k8s/charts/localmodel/README.md": "repository/chart.md",
    "k8s/krew/README.md": "repository/krew.md",
}
"""By path in the repository, the path in the site."""
_PLACES = {place: path for path, place in BROUGHT.items()}
_FENCED = re.compile(r"^(```.*?^```)", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")
_log = logging.getLogger("mkdocs.hooks.pages")


def on_config(config: Any) -> Any:
    """Every decision is in the navigation, under its own heading."""
    (explanation,) = [group["Explanation"] for group in config["nav"] if "Explanation" in group]
    (entry,) = [each for each in explanation if "Decisions" in each]
    others = sorted(path.name for path in (ROOT / "docs/decisions").glob("*.md") if path.name != "README.md")
    entry["Decisions"] = [*entry["Decisions"], *(f"decisions/{name}" for name in others)]
    return config


def on_files(files: Files, config: Any) -> Files:
    for path, place in BROUGHT.items():
        files.append(File.generated(config, place, content=(ROOT / path).read_text()))
    return files


def on_page_markdown(markdown: str, page: Page, config: Any, files: Files) -> str:
    place = page.file.src_uri
    path = _PLACES.get(place, f"docs/{place}")
    pieces = _FENCED.split(markdown)
    pieces[::2] = [_LINK.sub(lambda found: _followed(found, path, place, files), piece) for piece in pieces[::2]]
    return "".join(pieces)


def _followed(link: re.Match[str], path: str, place: str, files: Files) -> str:
    image, text, target = link.groups()
    name, hash_, anchor = target.partition("#")
    anchor = re.sub(r"-(\d)$", r"_\1", anchor)  # the second of two headings that are alike, as mkdocs names it
    if ":" in name or not name:
        return f"{image}[{text}]({name}{hash_}{anchor})"
    wanted = posixpath.normpath(posixpath.join(posixpath.dirname(path), name))
    found = BROUGHT.get(wanted) or wanted.removeprefix("docs/")
    if files.get_file_from_path(found) is not None and (wanted in BROUGHT or wanted.startswith("docs/")):
        return f"{image}[{text}]({posixpath.relpath(found, posixpath.dirname(place) or '.')}{hash_}{anchor})"
    if not (ROOT / wanted).exists():
        _log.warning("%s links to %s, which is not there", path, target)
    return text
