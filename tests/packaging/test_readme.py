"""Every command of the README and of the tutorial is run, in order, on a laptop cluster, and says what the page says.

A `console` block holds commands (`$ …`, continued by `> …`) and what they print. Numbers, ages and identities differ
from run to run and are not compared; a line of `…` stands for any number of lines.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from coordinator.dev.laptop.cluster import SAMPLE_URI, LaptopCluster, LaptopOptions
from coordinator.dev.origin.sample import write_sample
from tests.kit.laptop import KUBECTL, Laptop

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
MODEL = "sentence-transformers/all-MiniLM-L6-v2"
MIB = 1024**2


@dataclass(frozen=True, slots=True)
class Example:
    command: str
    output: tuple[str, ...]


def examples(text: str) -> Iterator[Example]:
    """The commands of all `console` blocks, in order."""
    for block in re.findall(r"^```console\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        command: list[str] = []
        output: list[str] = []
        for line in block.splitlines():
            if line.startswith("$ "):
                if command:
                    yield Example("\n".join(command), tuple(output))
                command, output = [line[2:]], []
            elif line.startswith("> ") and not output:
                command.append(line[2:])
            else:
                output.append(line)
        yield Example("\n".join(command), tuple(output))


def masked(line: str) -> str:
    """`line` without what differs from run to run: identities, numbers with their units, and the width of columns."""
    line = re.sub(r"\d{4}-\d\d-\d\dT[\d:]+Z", "<time>", line)
    line = re.sub(r"sha256:[0-9a-f]+|\b[0-9a-f]{16,}\b", "<id>", line)
    line = re.sub(r"(?<![\w-])\d[\d.]*([a-zA-Z]{1,3})?(\d+s)?\b%?", "#", line)
    return re.sub(r"\s+", " ", line).strip()


@pytest.fixture(scope="module")
def laptop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Laptop]:
    folder = tmp_path_factory.mktemp("readme")
    write_sample(folder / "minilm", 4 * MIB)
    options = LaptopOptions(nodes=3, sample_bytes=8 * MIB, repos={MODEL: folder / "minilm"})
    with LaptopCluster(folder / "laptop", options) as cluster:
        found = Laptop(cluster)
        found.apply("sample", SAMPLE_URI)
        found.until_ready("sample")
        yield found


@pytest.mark.e2e
@pytest.mark.skipif(KUBECTL is None, reason="kubectl is not installed")
@pytest.mark.parametrize("page", ["README.md", "docs/tutorial.md"])
def test_every_command_does_what_the_page_says(page: str, laptop: Laptop, tmp_path: Path) -> None:
    environment = dict(os.environ) | {
        "KUBECONFIG": str(laptop.cluster.kubeconfig),
        "HF_ENDPOINT": laptop.cluster.origin_url,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    found = list(examples((ROOT / page).read_text()))
    assert len(found) > 8
    for example in found:
        command = example.command.replace("/tmp/", f"{tmp_path}/")
        done = subprocess.run(
            ["bash", "-c", command],
            env=environment,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=90,
            check=False,
        )
        said = [masked(line.replace(f"{tmp_path}/", "/tmp/")) for line in done.stdout.splitlines()]
        for line in example.output:
            assert line == "…" or masked(line) in said, f"$ {command}\n{done.stdout}"
        if "…" not in example.output:
            assert len([line for line in said if line]) == len([line for line in example.output if line]), done.stdout


def test_the_two_commands_are_targets_of_the_makefile() -> None:
    makefile = (ROOT / "Makefile").read_text()
    commands = re.findall(r"^make (\w+)", README, re.MULTILINE)
    assert {"run", "test"} <= set(commands)
    for target in commands:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


@pytest.mark.slow
def test_every_file_the_readme_links_to_is_there() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target
