"""Docstrings of the product say their subject first: a thing, not a clause about who or what it may be."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PRODUCT = ("actors", "coordinator", "benchmarks")
CLAUSE = re.compile(r"(?:Who(?:ever)?|Whatever|What (?:is|are|was|were))\s")
SENTENCE = re.compile(r"(?:^|(?<=[.!?:])\s+|\n\s*\n\s*)([A-Z`\"][^.!?]*(?:[.!?]|$))")


def clauses(text: str) -> list[str]:
    """The sentences of a docstring that open with such a clause; questions may."""
    sentences = [" ".join(found.split()) for found in SENTENCE.findall(text)]
    return [each for each in sentences if CLAUSE.match(each) and not each.endswith("?")]


def docstrings(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield ast.get_docstring(node) or ""


def packages() -> Counter[str]:
    """How many such sentences each package has; a module at the root of its parent counts as one."""
    found: Counter[str] = Counter()
    for file in (file for name in PRODUCT for file in (ROOT / name).rglob("*.py")):
        count = sum(len(clauses(text)) for text in docstrings(file))
        found[str(Path(*file.relative_to(ROOT).parts[:2]))] += count
    return +found


LEFT = {
    "actors/agent": 14,
    "actors/digest.py": 1,
    "actors/disk": 19,
    "actors/fill": 10,
    "actors/manifest.py": 3,
    "actors/mesh": 9,
    "actors/peers": 5,
    "actors/scrub": 6,
    "actors/service.py": 1,
    "actors/sizes.py": 1,
    "actors/sources": 9,
    "actors/transport": 6,
    "coordinator/cli": 3,
    "coordinator/control": 11,
    "coordinator/fleet": 2,
    "coordinator/plan": 41,
    "coordinator/view": 1,
}
"""Sentences that are still to be turned round, by package. The numbers only become smaller; others have none."""


def test_no_package_has_more_sentences_that_open_with_a_clause_than_it_had() -> None:
    assert packages() <= Counter(LEFT), "say the thing first: `python -m tests.packaging.test_english` lists them all"


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("Who has nothing left to read takes chunks.", 1),
        ("True when all are there. Whoever waits looks up.", 1),
        ("What is nothing is none.", 1),
        ("What a node is told.", 0),
        ("Who reads which chunk?", 0),
        ("A node that has nothing left to read takes chunks.", 0),
    ],
)
def test_a_clause_as_a_subject_is_seen(text: str, count: int) -> None:
    assert len(clauses(text)) == count


if __name__ == "__main__":
    for path in (path for name in PRODUCT for path in sorted((ROOT / name).rglob("*.py"))):
        for sentence in (each for text in docstrings(path) for each in clauses(text)):
            print(f"{path.relative_to(ROOT)}: {sentence}")
