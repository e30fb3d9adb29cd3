"""The benchmarks as a person starts them: the list, every --help, the quick one, and a machine that lacks a tool."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "benchmarks"


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`python -m …` in the repository. A traceback is no answer, whatever else it says."""
    done = subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


def starts() -> Iterator[str]:
    """Every module that parses a command line, by the name that `python -m benchmarks` gives it."""
    for path in sorted(FOLDER.rglob("*.py")):
        if "ArgumentParser(" in path.read_text() and '"__main__"' in path.read_text():
            yield ".".join(part for part in path.relative_to(FOLDER).with_suffix("").parts if part != "__main__")


def paragraphs(listed: str) -> dict[str, str]:
    return {text.split("\n", 1)[0]: text for text in listed.strip().split("\n\n") if "\n  " in text}


@pytest.mark.slow
def test_the_list_names_every_benchmark_with_what_it_measures_needs_and_how_long_it_takes() -> None:
    found = paragraphs(run("benchmarks").stdout)

    assert found.keys() >= {"quick", "fill", "fanout", "simulate", "control", "first_byte"}
    assert found.keys() == set(starts())
    for text in found.values():
        assert re.search(r"needs .+; takes \S", " ".join(text.split())), text


def test_everything_that_a_benchmark_names_has_a_line_that_installs_it() -> None:
    known = set(re.findall(r'^    "([^"]+)": ', (FOLDER / "needs.py").read_text(), re.MULTILINE))
    for path in FOLDER.rglob("*.py"):
        for said in re.findall(r"^(?:Needs|Better with): (.+)$", path.read_text(), re.MULTILINE):
            assert {each.strip() for each in said.split(",")} <= known, path


@pytest.mark.slow
@pytest.mark.parametrize("name", list(starts()))
def test_every_benchmark_says_how_it_is_used(name: str) -> None:
    done = run("benchmarks", name, "--help")

    assert done.returncode == 0, done.stderr
    assert re.search(r"^Takes: \S", done.stdout, re.MULTILINE), done.stdout


@pytest.mark.slow
def test_a_benchmark_that_there_is_not_is_answered_with_those_that_there_are() -> None:
    done = run("benchmarks", "quik")

    assert done.returncode == 2
    assert "'quik'" in done.stderr
    assert "quick" in done.stderr


QUICK = ("benchmarks", "quick", "--size", "4Mi", "--runs", "1", "--nodes", "4")


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("quick")
    done = run(*QUICK, "--html", str(folder / "page.html"), "--plot", str(folder / "plot.svg"))
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return folder, done.stdout, rows


@pytest.mark.e2e
def test_quick_prints_a_table_a_plot_and_a_line_of_json_for_each_row(
    quick: tuple[Path, str, list[dict[str, Any]]],
) -> None:
    _, said, rows = quick
    by = {row["who"]: row for row in rows}

    assert by.keys() == {
        "localmodel, the engine",
        "localmodel fill",
        "snapshot_download",
        "urllib",
        "localmodel, together",
        "each for itself",
    }
    for row in rows:
        assert row["seconds"] > 0
        assert row["cpus"] == os.cpu_count()
        assert re.fullmatch(r"\d+(\.\d)?[KMG]i", row["size"])
        assert " ".join(row["means"].split()) in " ".join(said.split())
    assert "█" in said
    assert not re.search(r"\d ?[KMG]i?B\b", said), "sizes are quantities, as everywhere"
    assert by["localmodel, together"]["origin"] == 1.0
    assert by["each for itself"]["origin"] == 4.0


@pytest.mark.e2e
def test_every_system_is_told_apart_by_what_it_verifies(quick: tuple[Path, str, list[dict[str, Any]]]) -> None:
    by = {row["who"]: row["verifies"] for row in quick[2]}

    assert by["localmodel fill"] == by["localmodel, the engine"] == "the hub's digests"
    assert by["snapshot_download"] == "size"
    assert by["urllib"] == "nothing"


@pytest.mark.e2e
def test_the_page_and_the_plot_need_nothing_else(quick: tuple[Path, str, list[dict[str, Any]]]) -> None:
    folder, _, rows = quick
    page, plot = (folder / "page.html").read_text(), (folder / "plot.svg").read_text()
    drawn = ElementTree.fromstring(plot)

    bars = [each for each in drawn.iter("{http://www.w3.org/2000/svg}rect") if each.get("x")]
    assert len(bars) == len(rows)
    assert "<svg" in page
    assert not re.search(r"""(src|href)=["']|@import|url\(""", page)
    for row in rows:
        assert row["means"].split(":")[0] in page.replace("&#x27;", "'")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "line"),
    [
        (("benchmarks.first_byte",), "kubectl is missing: see https://"),
        (("benchmarks.fill", "--scenario", "http"), "nginx is missing: apt-get install nginx-light"),
        (("benchmarks.fill", "--scenario", "slow-disk"), "nginx is missing: apt-get install nginx-light"),
    ],
)
def test_a_tool_that_is_missing_is_named_with_the_line_that_installs_it(
    tmp_path: Path, command: tuple[str, ...], line: str
) -> None:
    done = run(*command, PATH=str(tmp_path), PYTHONPATH=str(ROOT))

    assert done.returncode == 2, done.stdout
    assert line in done.stdout + done.stderr


@pytest.mark.slow
def test_a_plot_that_needs_matplotlib_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    without = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import importlib.util as u; f = u.find_spec\n"
    without += "u.find_spec = lambda name, *a: None if name == 'matplotlib' else f(name, *a)\n"
    without += "from benchmarks.quick import main\nmain(['--plot', 'x.png'])"
    done = subprocess.run([sys.executable, "-c", without], cwd=tmp_path, capture_output=True, text=True, check=False)

    assert done.returncode == 2
    assert "pip install matplotlib" in done.stderr
    assert not (tmp_path / "x.png").exists()


@pytest.mark.slow
def test_a_page_that_cannot_be_written_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    done = run(*QUICK, "--html", str(tmp_path / "missing" / "page.html"))

    assert done.returncode == 2
    assert f"there is no folder {tmp_path / 'missing'}" in done.stderr


def commands() -> Iterator[tuple[str, str, str]]:
    """Page, module and arguments of every benchmark command that a page shows."""
    for page in (ROOT / "README.md", FOLDER / "README.md", *sorted((ROOT / "docs").rglob("*.md"))):
        text = page.read_text().replace("python -m\nbenchmarks", "python -m benchmarks")
        for module, rest in re.findall(r"python -m (benchmarks(?:\.\w+)*)([^`\n|#]*)", text):
            yield str(page.relative_to(ROOT)), module, rest


def test_every_command_that_a_page_shows_has_its_module_and_its_flags() -> None:
    found = list(commands())
    assert len(found) > 15
    for page, module, rest in found:
        name = rest.split()[0] if module == "benchmarks" and re.match(r" [a-z]", rest) else ""
        parts = [*module.split("."), *name.split(".")] if name else module.split(".")
        file = ROOT.joinpath(*parts).with_suffix(".py")
        source = file if file.exists() else ROOT.joinpath(*parts) / "__main__.py"
        assert source.exists(), f"{page}: {module}{rest}"
        known = source.read_text() + (FOLDER / "report.py").read_text()
        for flag in re.findall(r"(?<= )\[?(--[a-z-]+)", rest.split(" --arguments")[0]):
            assert flag == "--help" or f'"{flag}"' in known, f"{page}: {module}{rest}"


@pytest.mark.slow
def test_the_case_that_the_readme_names_is_one() -> None:
    named = re.findall(r"benchmarks\.simulate '([^']+)'", (ROOT / "README.md").read_text())
    assert named
    for case in named:
        assert run("benchmarks.simulate", "--list", case).stdout.splitlines() == [case]
