"""The benchmarks that there are: found by looking, described by their own docstrings, none of them imported."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks import needs

FOLDER = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Benchmark:
    """`name` as in `python -m benchmarks NAME`. `takes` is on two free cores, with the defaults."""

    name: str
    measures: str
    needs: tuple[str, ...]
    better_with: tuple[str, ...]
    takes: str

    @property
    def missing(self) -> list[str]:
        return needs.lacks(self.needs)

    @property
    def left_out(self) -> list[str]:
        return needs.lacks(self.better_with)


def benchmarks() -> Iterator[Benchmark]:
    """Every module whose docstring says how long it takes, by name."""
    for path in sorted(FOLDER.rglob("*.py")):
        if path.parent == FOLDER and path.stem == "__main__":
            continue
        if "__main__" not in (text := path.read_text()):
            continue
        doc = ast.get_docstring(ast.parse(text)) or ""
        if takes := needs.field(doc, "Takes"):
            parts = path.relative_to(FOLDER).with_suffix("").parts
            name = ".".join(part for part in parts if part != "__main__")
            measures = " ".join(doc.split("\n\n", 1)[0].split())
            yield Benchmark(name, measures, needs.needed(doc), needs.needed(doc, "Better with"), takes)
