"""`helm template` and `helm lint`, as far as the tests use them, by Helm's library for machines without `helm`.

    python tests/kit/helm.py template RELEASE CHART [--namespace N] [--values FILE] [--set NAME=VALUE,...]
    python tests/kit/helm.py lint --strict CHART

A program, because the library logs to standard error, and stays in the memory of a process for good.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import helm_python


def merged(one: Any, other: Any) -> Any:
    """`other` over `one`, as Helm lays values over each other."""
    if isinstance(one, dict) and isinstance(other, dict):
        return {**one, **{key: merged(one.get(key), each) for key, each in other.items()}}
    return other


def template(release: str, chart: str, namespace: str, files: list[Path], settings: list[str]) -> str:
    values: Any = {}
    for file in files:
        values = merged(values, helm_python.values_from_yaml(file.read_text()))
    for setting in settings:
        values = merged(values, helm_python.parse_set_string(setting))
    with helm_python.Config() as helm:
        rendered: str = helm.install(chart, release, values, namespace=namespace, dry_run="client")["manifest"]
    return rendered


def lint(chart: str) -> list[str]:
    """What is wrong with a chart, warnings among it."""
    found = helm_python.lint(chart, {}, strict=True)
    return [*found["errors"], *(each["error"] for each in found["messages"] if each["severity"] > 1)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    rendering = commands.add_parser("template")
    rendering.add_argument("release")
    rendering.add_argument("chart")
    rendering.add_argument("--namespace", default="default")
    rendering.add_argument("--values", type=Path, action="append", default=[])
    rendering.add_argument("--set", action="append", default=[])
    linting = commands.add_parser("lint")
    linting.add_argument("--strict", action="store_true", required=True)
    linting.add_argument("chart")
    given = parser.parse_args()
    if given.command == "lint":
        complaints = lint(given.chart)
        print("\n".join(complaints))
        return 1 if complaints else 0
    print(template(given.release, given.chart, given.namespace, given.values, given.set))
    return 0


if __name__ == "__main__":
    sys.exit(main())
