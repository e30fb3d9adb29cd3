"""What `make run` does before there is anything to run: which Python, and a .venv that is made once and made whole.

A stand-in takes the place of python3, so that nothing is installed. It says what it was asked for in `asked`.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from coordinator.dev.trial.waiting import eventually

ROOT = Path(__file__).parents[2]
MAKE = shutil.which("make")
pytestmark = pytest.mark.skipif(MAKE is None, reason="make is not installed")

PYTHON = """#!/bin/sh
echo "$(basename "$0") $*" >> "$ASKED"
case "$*" in
  --version) echo "Python $FAKE_VERSION";;
  *version_info*) [ "$FAKE_VERSION" != 3.9.2 ];;
  *"import venv"*) [ -z "$FAKE_NO_VENV" ];;
  "-m venv"*) for last; do :; done; rm -rf "$last"; mkdir -p "$last/bin"; cp "$0" "$last/bin/python"
              printf '#!/bin/sh\\necho "localmodel $*"\\n' > "$last/bin/localmodel"; chmod +x "$last/bin/localmodel";;
  "-m pip --version") [ -z "$FAKE_NO_PIP" ];;
  "-m pip "*) echo "Collecting things"; [ -z "$FAKE_SLOW" ] || sleep "$FAKE_SLOW"; [ -z "$FAKE_OFFLINE" ];;
esac
"""


class Checkout:
    """A folder with the Makefile in it, and a `python3` on its own PATH."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "a checkout"
        self.folder.mkdir()
        for name in ("Makefile", "pyproject.toml", "constraints.txt"):
            shutil.copy(ROOT / name, self.folder)
        self.bin = folder / "bin"
        self.bin.mkdir()
        tools = (
            "sh",
            "basename",
            "rm",
            "mkdir",
            "cp",
            "chmod",
            "touch",
            "test",
            "find",
            "flock",
            "sleep",
            "cat",
            "env",
        )
        for tool in tools:
            if found := shutil.which(tool):
                (self.bin / tool).symlink_to(found)
        self.asked_file = folder / "asked"
        self.asked_file.touch()
        self.add_python("python3")

    def add_python(self, name: str) -> None:
        (self.bin / name).write_text(PYTHON)
        (self.bin / name).chmod(0o755)

    def start(self, *arguments: str, **fake: str) -> subprocess.Popen[str]:
        environment = {"PATH": str(self.bin), "ASKED": str(self.asked_file), "FAKE_VERSION": "3.12.1"} | {
            f"FAKE_{name}": value for name, value in fake.items()
        }
        assert MAKE is not None
        return subprocess.Popen(
            [MAKE, *arguments],
            cwd=self.folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def make(self, *arguments: str, **fake: str) -> tuple[int, str, str]:
        process = self.start(*arguments, **fake)
        out, err = process.communicate(timeout=30)
        return process.returncode, out, err

    @property
    def asked(self) -> list[str]:
        return self.asked_file.read_text().splitlines()

    def times(self, what: str) -> int:
        return sum(what in line for line in self.asked)


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


@pytest.mark.slow
def test_the_first_run_installs_aloud_and_only_the_command_speaks_on_standard_output(checkout: Checkout) -> None:
    code, out, err = checkout.make("run", "ARGS=--once --json")
    assert (code, out) == (0, "localmodel dev --once --json\n"), err
    assert "setting up .venv with Python 3.12.1: some minutes the first time" in err
    assert "Collecting things" in err, "pip says how far it is"
    assert checkout.make("run")[1:] == ("localmodel dev\n", "")
    assert (checkout.times("-m venv"), checkout.times("pip --disable-pip-version-check")) == (1, 1)


def test_a_python_that_is_too_old_is_named_with_the_one_that_is_needed(checkout: Checkout) -> None:
    code, _, err = checkout.make("run", VERSION="3.9.2")
    assert code == 2
    assert f"{checkout.bin}/python3 is Python 3.9.2, which is too old: Python 3.11 or newer is needed" in err
    assert not (checkout.folder / ".venv").exists()
    checkout.add_python("python3.12")
    assert "try: make PYTHON=python3.12" in checkout.make("run", VERSION="3.9.2")[2]


def test_a_python_that_is_not_there_is_named_with_what_to_install(checkout: Checkout) -> None:
    (checkout.bin / "python3").unlink()
    code, _, err = checkout.make("run")
    assert (code, "python3 is not there: apt install python3 python3-venv" in err) == (2, True), err


def test_a_python_without_venv_says_what_to_install(checkout: Checkout) -> None:
    code, _, err = checkout.make("run", NO_VENV="1")
    assert (code, "cannot make virtual environments: apt install python3-venv" in err) == (2, True), err
    assert not (checkout.folder / ".venv").exists()


def test_a_venv_without_pip_is_made_anew(checkout: Checkout) -> None:
    (checkout.folder / ".venv" / "bin").mkdir(parents=True)
    shutil.copy(checkout.bin / "python3", checkout.folder / ".venv" / "bin" / "python")
    assert checkout.make("run", NO_PIP="1")[0] == 0
    assert checkout.times("-m venv --clear .venv") == 1


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_what_an_interrupted_install_left_is_thrown_away(checkout: Checkout, number: signal.Signals) -> None:
    process = checkout.start("run", SLOW="20")
    eventually(lambda: checkout.times("pip --disable-pip-version-check") == 1, timeout_s=20)
    os.killpg(process.pid, number)
    process.communicate(timeout=20)
    assert process.returncode != 0
    assert checkout.make("run")[:2] == (0, "localmodel dev\n")
    assert checkout.times("-m venv --clear .venv") == 2
    assert not (checkout.folder / ".venv" / "unfinished").exists()


def test_an_install_that_fails_is_tried_again(checkout: Checkout) -> None:
    assert checkout.make("run", OFFLINE="1")[0] != 0
    assert checkout.make("run")[:2] == (0, "localmodel dev\n")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("flock") is None, reason="flock is not installed")
def test_two_at_once_install_once(checkout: Checkout) -> None:
    both = [checkout.start("run", SLOW="2") for _ in range(2)]
    said = [process.communicate(timeout=30) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert [out for out, _ in said] == ["localmodel dev\n"] * 2
    assert checkout.times("pip --disable-pip-version-check") == 1
    assert sum("waiting for another make" in err for _, err in said) == 1


@pytest.mark.parametrize(("cores", "workers"), [(1, 2), (2, 3), (3, 4), (64, 4)])
def test_a_worker_more_than_there_are_cores_runs_tests_and_four_at_most(
    checkout: Checkout, cores: int, workers: int
) -> None:
    (checkout.bin / "nproc").write_text(f"#!/bin/sh\necho {cores}\n")
    (checkout.bin / "nproc").chmod(0o755)
    code, out, err = checkout.make("-n", "test")
    assert (code, f"pytest -n {workers} --dist loadfile" in out) == (0, True), err
