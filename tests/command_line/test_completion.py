"""What `localmodel completion` prints: a shell reads it, and completes what the parsers have."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from coordinator import cli
from coordinator.cli import main
from coordinator.cli.completion import SHELLS


def the_script(shell: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["completion", shell]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("shell", SHELLS)
def test_every_command_and_its_flags_are_named(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    script = the_script(shell, capsys)

    for name in cli._COMMANDS:
        assert name in script
    for flag in ("why", "saved", "digest", "ray-address", "once"):
        assert (f"-l {flag}" if shell == "fish" else f"--{flag}") in script


@pytest.mark.parametrize("shell", SHELLS)
def test_the_shell_reads_it(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    script = the_script(shell, capsys)
    flag = "--no-execute" if shell == "fish" else "-n"
    subprocess.run([shell, flag], input=script, text=True, check=True)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("localmodel st", {"status"}),
        ("localmodel status --w", {"--why", "--watch"}),
        ("localmodel status -o j", {"json"}),
        ("localmodel completion f", {"fish"}),
        ("localmodel fill --dig", {"--digest"}),
        ("localmodel run --eviction l", {"lru"}),
        ("localmodel --v", {"--version"}),
    ],
)
def test_bash_completes(line: str, expected: set[str], capsys: pytest.CaptureFixture[str]) -> None:
    words = line.split(" ")
    quoted = " ".join(f"'{word}'" for word in words)
    said = """printf '%s\\n' "${COMPREPLY[@]}" """
    ask = f"\nCOMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}; _localmodel; {said}"
    done = subprocess.run(["bash", "-c", the_script("bash", capsys) + ask], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == expected


def test_an_unknown_shell_is_a_wrong_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["completion", "csh"])
    assert ended.value.code == 2
