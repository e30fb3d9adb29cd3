"""How little a command imports before it does something: counted, since time depends on the machine."""

from __future__ import annotations

import os
import subprocess
import sys
from inspect import getclosurevars
from pathlib import Path

import pytest

from actors.fill.origin_reader import FillSettings
from coordinator import cli
from coordinator.cli.arguments import CONNECTIONS

FIRST_REQUEST = """
import os, sys
def hook(event, arguments):
    if event == "socket.connect":
        print(*sys.modules, flush=True)
        os._exit(0)
sys.addaudithook(hook)
from coordinator.cli import main
main(sys.argv[1:])
"""
AT_THE_END = """
import contextlib, io, sys
from coordinator.cli import main
with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
    main(sys.argv[1:])
print(*sys.modules)
"""
ENGINE = ("actors.fill", "actors.disk.ingest", "actors.messages", "actors.scrub", "concurrent.futures")
CLIENTS = ("kubernetes", "urllib3", "ray", "pydantic", "rich", "yaml", "fsspec", "huggingface_hub")


def modules(script: str, *words: str | Path) -> set[str]:
    """The modules that are imported when the script prints them, those of an idle interpreter left out."""
    env = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}
    idle, there = (
        subprocess.run([sys.executable, "-c", each, *words], env=env, capture_output=True, text=True, timeout=60)
        for each in ("import sys; print(*sys.modules)", script)
    )
    assert there.returncode == 0, there.stderr
    return set(there.stdout.split()) - set(idle.stdout.split())


def below(found: set[str], packages: tuple[str, ...]) -> set[str]:
    return {name for name in found for package in packages if name == package or name.startswith(f"{package}.")}


def test_a_fill_over_http_imports_what_the_first_request_takes_and_no_more(tmp_path: Path) -> None:
    found = modules(FIRST_REQUEST, "fill", "http://127.0.0.1:9/model.bin", tmp_path / "model")

    assert below(found, (*ENGINE, *CLIENTS, "uuid", "platform", "ctypes")) == set()
    assert len(found) <= 200, sorted(found)


@pytest.mark.parametrize(
    ("words", "most"),
    [
        (["--help"], 60),
        (["fill", "--help"], 110),
        (["fill", "hf://a/b", "d", "--connections=0"], 110),
        (["verify", "--help"], 130),
        (["completion", "--help"], 110),
    ],
)
def test_help_and_a_wrong_argument_wait_for_nothing_that_a_command_works_with(words: list[str], most: int) -> None:
    found = modules(AT_THE_END, *words)

    assert below(found, (*ENGINE, *CLIENTS, "http.client", "ssl")) == set()
    assert len(found) <= most, sorted(found)


def test_the_connections_that_help_names_are_those_of_the_engine() -> None:
    assert FillSettings().connections == CONNECTIONS


@pytest.mark.parametrize("name", cli._COMMANDS)
def test_every_command_of_the_table_is_there(name: str) -> None:
    places = getclosurevars(cli._COMMANDS[name][1]).nonlocals

    assert sorted(places) == ["arguments", "command"]
    assert all(callable(cli._load(place)) for place in places.values())
