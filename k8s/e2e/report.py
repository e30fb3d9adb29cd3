"""What came of every step, as a table for people and as JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

PASSED, FAILED, CANNOT = "passed", "failed", "cannot run here"


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of one step. `said`: what was seen, what went wrong, or what it lacks."""

    step: str
    result: str
    seconds: float
    said: str = ""


def table(outcomes: Sequence[Outcome]) -> str:
    """A line for each step, in Markdown."""
    lines = ["| Step | Result | Seconds | |", "|---|---|---|---|"]
    for each in outcomes:
        said = each.said.replace("|", "\\|").replace("\n", " ")
        lines.append(f"| {each.step} | {each.result} | {each.seconds:.1f} | {said} |")
    return "\n".join(lines)


def document(outcomes: Sequence[Outcome], versions: Mapping[str, str]) -> str:
    return json.dumps({"versions": dict(versions), "steps": [asdict(each) for each in outcomes]}, indent=2)


def exit_code(outcomes: Sequence[Outcome]) -> int:
    """0 where nothing failed and something passed."""
    results = {each.result for each in outcomes}
    return 0 if FAILED not in results and PASSED in results else 1
