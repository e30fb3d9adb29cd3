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
    """How many such sentences each package has: `actors` and `benchmarks` as a whole, the coordinator's one by one."""
    found: Counter[str] = Counter()
    for file in (file for name in PRODUCT for file in (ROOT / name).rglob("*.py")):
        parts = file.relative_to(ROOT).parts
        package = "/".join(parts[:2]) if parts[0] == "coordinator" else parts[0]
        found[package] += sum(len(clauses(text)) for text in docstrings(file))
    return +found


LEFT: dict[str, int] = {}
"""How many such sentences these packages may still have. The numbers only become smaller; all others have none."""


@pytest.mark.slow
def test_no_package_has_more_sentences_that_open_with_a_clause_than_it_may() -> None:
    found = packages()
    beyond = {package: found[package] - LEFT.get(package, 0) for package in found}
    assert {package: count for package, count in beyond.items() if count > 0} == {}, (
        "say the thing first: `python -m tests.packaging.test_english` lists them all"
    )


if __name__ == "__main__":
    for path in (path for name in PRODUCT for path in sorted((ROOT / name).rglob("*.py"))):
        for sentence in (each for text in docstrings(path) for each in clauses(text)):
            print(f"{path.relative_to(ROOT)}: {sentence}")
