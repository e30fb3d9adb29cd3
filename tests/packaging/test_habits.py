"""What CONTRIBUTING and the files of editors and hooks promise is what the Makefile and CI do."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
MAKEFILE = (ROOT / "Makefile").read_text()
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()
TARGETS = sorted(set(re.findall(r"^([a-z]+):.*##", MAKEFILE, re.MULTILINE)) - {"help"})


@pytest.mark.parametrize("target", TARGETS)
def test_every_target_is_described_for_contributors(target: str) -> None:
    assert f"| `make {target}` |" in CONTRIBUTING


def test_no_other_target_is() -> None:
    assert sorted(re.findall(r"^\| `make (\w+)` \|", CONTRIBUTING, re.MULTILINE)) == TARGETS


def test_every_folder_of_tests_is_described() -> None:
    there = {file.parent.relative_to(ROOT / "tests").parts[0] for file in (ROOT / "tests").glob("*/**/*.py")}
    named = set(re.findall(r"`(\w+)/`", CONTRIBUTING.partition("| `tests/` | What |")[2].partition("\n\n")[0]))
    assert named == {*there, "data"}


def test_every_path_that_recipes_name_is_there() -> None:
    named = set(re.findall(r"`((?:actors|coordinator|tests|k8s|docs|benchmarks)/[\w./]*)`", CONTRIBUTING))
    assert len(named) > 20
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []
    assert re.findall(r"`\w+\.py`", CONTRIBUTING) == [
        f"`{name}.py`" for name in ("peers", "disks", "origins", "cluster")
    ], "beside the module of the kill matrix before them; all others with their folder"


def test_hooks_run_what_lint_runs() -> None:
    """With the tools of `.venv`, whose versions are those of CI."""
    lint = MAKEFILE.partition("\nlint:")[2].partition("\n\n")[0].replace("$(BIN)", ".venv/bin")
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    commands = [hook["entry"].removesuffix(" --force-exclude") for repo in hooks for hook in repo["hooks"]]
    assert len(commands) == len(lint.strip().splitlines()) - 1  # the first line is the target's own
    for command in commands:
        assert command in lint, command


def test_the_container_has_what_ci_installs() -> None:
    (packages,) = re.findall(r"^packages=\((.*)\)$", (ROOT / ".ci/run").read_text(), re.MULTILINE)
    container = json.loads((ROOT / ".devcontainer/devcontainer.json").read_text())
    assert set(shlex.split(packages)) <= set(shlex.split(container["onCreateCommand"]))
