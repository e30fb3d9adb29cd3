"""A disk that KServe used: its folders become the agent's, its files stay as they are, and no link leads elsewhere."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from actors.disk.ownership import own

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives folders away")

KEY, OTHER = "0123456789abcdef", "fedcba9876543210"
KSERVE, JOBS, AGENT = 65532, 1000, 4242


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """As KServe's agent, its Jobs, the kubelet and somebody else left it."""
    root = tmp_path / "models-disk"
    for path, owner in {
        f"models/{KEY}/original": JOBS,
        f"models/{OTHER}/sub": 0,
        "models/lost+found": 0,
        "somebody/elses": 1234,
    }.items():
        (root / path).mkdir(parents=True)
        for folder in (root / path, (root / path).parent):
            os.chown(folder, owner, owner)
    os.chown(root / "models", KSERVE, KSERVE)
    (root / f"models/{KEY}/config.json").write_text("{}")
    (tmp_path / "precious").mkdir()
    (root / "models/aaaaaaaaaaaaaaaa").symlink_to(tmp_path / "precious")
    (root / f"models/{KEY}/linked").symlink_to(tmp_path / "precious")
    (root / f"models/{OTHER}").chmod(0o700)
    return root


def owners(root: Path) -> dict[str, int]:
    return {str(path.relative_to(root)): path.lstat().st_uid for path in root.rglob("*")}


def test_folders_of_models_become_the_agents_and_nothing_else_does(root: Path, tmp_path: Path) -> None:
    before = owners(root)
    ours = {"models", f"models/{KEY}", f"models/{KEY}/original", f"models/{OTHER}", f"models/{OTHER}/sub"}
    assert own(root, AGENT, AGENT) == 1 + len(ours)
    assert owners(root) == before | dict.fromkeys(ours, AGENT)
    assert (root.stat().st_uid, (tmp_path / "precious").stat().st_uid) == (AGENT, 0)
    assert own(root, AGENT, AGENT) == 0, "safe to repeat"


def test_a_new_disk_is_the_agents(tmp_path: Path) -> None:
    assert own(tmp_path, AGENT, AGENT) == 1


def test_it_runs_with_the_capabilities_of_the_init_container_alone(root: Path) -> None:
    capabilities = "+chown,+dac_read_search"
    only = ["setpriv", f"--bounding-set=-all,{capabilities}", f"--inh-caps=-all,{capabilities}"]
    command = [*only, sys.executable, "-m", "actors.disk.ownership", str(root), str(AGENT), str(AGENT)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, f"{root}: 6 folders belong to {AGENT}:{AGENT} now\n"), done.stderr
