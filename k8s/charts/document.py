"""README.md of every chart, from its Chart.yaml, its values.yaml and the comments there: `--write`, or `--check`.

A comment that begins with `# --` describes the value below it.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

CHARTS = Path(__file__).parent
INSTALL = {
    "localmodel": """\
helm install localmodel oci://ghcr.io/localmodel/charts/localmodel \\
  --namespace localmodel --create-namespace""",
    "localmodel-crds": """\
helm upgrade --install localmodel-crds oci://ghcr.io/localmodel/charts/localmodel-crds \\
  --namespace localmodel --create-namespace""",
}
MORE = {
    "localmodel": """\
The kinds come with the chart [localmodel-crds](../localmodel-crds), which has to be installed first, and the KubeRay
operator 1.6 or later has to run. The namespace should be for this alone: label it
`pod-security.kubernetes.io/enforce=privileged`, because the agents mount a folder of their node.
[docs/install.md](../../../docs/install.md) goes through it step by step. What the values say is rendered as the
kustomizations in [k8s/](../..) render it: a test compares them.
""",
    "localmodel-crds": """\
A chart of its own, because Helm installs what is in `crds/` of a chart and never upgrades it. Uninstalling this chart
keeps the kinds, and with them every cache, unless `keep` is false.
""",
}


def rows(text: str) -> Iterator[tuple[str, str, str]]:
    """(path, default as JSON, description) of every value that is a leaf or is described."""
    values: Any = yaml.safe_load(text)
    above: list[str] = []
    said: list[str] = []
    whole: list[str] | None = None
    for line in text.splitlines():
        if match := re.match(r"\s*# -- (.*)", line):
            said = [match[1]]
        elif said and (match := re.match(r"\s*# (.*)", line)):
            said.append(match[1])
        elif match := re.match(r"( *)([A-Za-z][\w.\-/]*):(.*)", line):
            depth = len(match[1]) // 2
            above[depth:] = [match[2]]
            if whole is not None and above[: len(whole)] == whole:
                continue  # described with what it is in
            value = values
            try:
                for key in above:
                    value = value[key]
            except (KeyError, TypeError):
                continue  # inside of a value that is described as a whole
            if said or not isinstance(value, dict) or not value:
                whole = list(above) if isinstance(value, dict) and value else None
                yield ".".join(above), json.dumps(value), " ".join(said)
            said = []


def readme(chart: Path) -> str:
    about = yaml.safe_load((chart / "Chart.yaml").read_text())
    name = about["name"]
    lines = [
        f"# {name}",
        "",
        "<!-- Made by k8s/charts/document.py from Chart.yaml and values.yaml; `make generate`. -->",
        "",
        f"{about['description']}.",
        "",
        "```bash",
        INSTALL[name],
        "```",
        "",
        MORE[name],
        "| Value | Default | Meaning |",
        "|---|---|---|",
    ]
    for path, default, said in rows((chart / "values.yaml").read_text()):
        lines.append(f"| `{path}` | `{default}` | {said.replace('|', chr(92) + '|')} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    mode = parser.add_mutually_exclusive_group(required=True)
    mode.add_argument("--write", action="store_true")
    mode.add_argument("--check", action="store_true")
    given = parser.parse_args()
    stale = []
    for chart in sorted(path.parent for path in CHARTS.glob("*/Chart.yaml")):
        file, text = chart / "README.md", readme(chart)
        if given.write:
            file.write_text(text)
        elif not file.exists() or file.read_text() != text:
            stale.append(str(file))
    if stale:
        sys.stderr.write(f"not as values.yaml says: {', '.join(stale)}; run make generate\n")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
