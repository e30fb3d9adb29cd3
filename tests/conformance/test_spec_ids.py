"""Every spec of KServe's controllers, node agent and webhooks has a test of ours that is named by its id.

At most five of the fifty are not met to the letter, and docs/compatibility.md says of each what is different and why.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

COUNTS = {"C": 5, "N": 6, "P": 7, "L": 2, "A": 12, "F": 3, "W": 7, "X": 8}
SPECS = [f"{letter}{number}" for letter, count in COUNTS.items() for number in range(1, count + 1)]
MOST = 5
HERE = Path(__file__).parent
TEXT = (HERE.parents[1] / "docs" / "compatibility.md").read_text()


@cache
def named() -> dict[str, list[str]]:
    """The tests that name each id."""
    found: dict[str, list[str]] = {}
    for spec, test in _named_by_tests():
        found.setdefault(spec, []).append(test)
    return found


def _named_by_tests() -> Iterator[tuple[str, str]]:
    """Ids in the names of test functions, and in the `ids` of their parameters, each with the test."""
    for path in sorted(HERE.glob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.FunctionDef) or not node.name.startswith("test_"):
                continue
            words = node.name.split("_")
            for decorator in node.decorator_list:
                ids = (each.value for each in getattr(decorator, "keywords", ()) if each.arg == "ids")
                words += [
                    str(each.value) for listed in ids for each in ast.walk(listed) if isinstance(each, ast.Constant)
                ]
            yield from ((word.upper(), f"{path.name}::{node.name}") for word in words)


def deviations() -> dict[str, tuple[str, str]]:
    """The table of specs that are not met to the letter: what is done, and why."""
    table = TEXT.partition("## KServe's own specs")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| ([A-Z]\d+) \| (.+) \| (.+) \|$", table, re.MULTILINE)
    return {spec: (what, why) for spec, what, why in rows}


@pytest.mark.parametrize("spec", SPECS)
def test_a_spec_has_a_test(spec: str) -> None:
    assert named().get(spec)


def test_there_are_fifty_and_at_most_five_are_not_met_to_the_letter() -> None:
    assert len(SPECS) == 50
    found = deviations()
    assert 0 < len(found) <= MOST
    assert found.keys() <= set(SPECS)
    assert all(what and why for what, why in found.values())
