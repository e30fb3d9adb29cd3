"""The JSONPath of printer columns and selectable fields: `.a.b`, `['a.b']`, `[0]`, `[*]`, `[?(@.type=="Ready")]`."""

from __future__ import annotations

import functools
import re
from typing import Any

_STEP = re.compile(
    r"""\.(?P<name>[A-Za-z0-9_$-](?:[^.\[\]\\]|\\.)*)
      | \[(?:'(?P<single>[^']*)'|"(?P<double>[^"]*)")\]
      | \[(?P<index>-?\d+)\]
      | (?P<all>\[\*\]|\.\*)
      | \[\?\(@(?P<field>[^=!<>]*?)\s*(?P<operator>==|!=)\s*(?P<quote>["'])(?P<wanted>.*?)(?P=quote)\)\]""",
    re.VERBOSE,
)


def find(value: Any, path: str) -> list[Any]:
    """Everything `path` names in `value`; nothing for a path that leads nowhere or is not understood."""
    steps = _steps(path)
    found = [] if steps is None else [value]
    for step in steps or ():
        found = [each for item in found for each in _take(item, step)]
    return found


@functools.cache
def _steps(path: str) -> tuple[re.Match[str], ...] | None:
    """None for a path that is not understood."""
    path = path.strip().removeprefix("{").removesuffix("}").removeprefix("$")
    path = path if path.startswith((".", "[")) or not path else f".{path}"
    steps, position = [], 0
    while position < len(path):
        step = _STEP.match(path, position)
        if step is None:
            return None
        steps.append(step)
        position = step.end()
    return tuple(steps)


def _take(value: Any, step: re.Match[str]) -> list[Any]:
    name = step["name"] or step["single"] or step["double"]
    if name is not None:
        name = re.sub(r"\\(.)", r"\1", name)
        return [value[name]] if isinstance(value, dict) and name in value else []
    if step["index"] is not None:
        index = int(step["index"])
        return [value[index]] if isinstance(value, list) and -len(value) <= index < len(value) else []
    items = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
    if step["all"] is not None:
        return list(items)
    matches = [(each, find(each, step["field"])) for each in items]
    equal = step["operator"] == "=="
    return [each for each, found in matches if (bool(found) and str(found[0]) == step["wanted"]) is equal]
