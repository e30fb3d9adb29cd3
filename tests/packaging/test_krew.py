"""`kubectl localmodel`: the script of the package, and the archive and manifest for krew."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
KUBECTL = shutil.which("kubectl")


def build(folder: Path) -> tuple[bytes, dict[str, object]]:
    command = [sys.executable, str(ROOT / "k8s/krew/build.py"), "--uri", "https://host/x.tar.gz", str(folder)]
    subprocess.run(command, check=True)
    return (folder / "kubectl-localmodel.tar.gz").read_bytes(), yaml.safe_load((folder / "localmodel.yaml").read_text())


def test_the_manifest_names_the_archive_by_its_digest(tmp_path: Path) -> None:
    content, manifest = build(tmp_path / "one")
    spec = manifest["spec"]
    assert isinstance(spec, dict)
    (platform,) = spec["platforms"]
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]

    assert (manifest["apiVersion"], manifest["kind"]) == ("krew.googlecontainertools.github.com/v1alpha2", "Plugin")
    assert spec["version"] == f"v{version}"
    assert len(spec["shortDescription"]) <= 50
    assert (platform["uri"], platform["sha256"]) == ("https://host/x.tar.gz", hashlib.sha256(content).hexdigest())
    assert build(tmp_path / "two")[0] == content


def test_the_archive_holds_what_the_manifest_installs(tmp_path: Path) -> None:
    content, manifest = build(tmp_path)
    spec = manifest["spec"]
    assert isinstance(spec, dict)
    (platform,) = spec["platforms"]
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        modes = {member.name: member.mode for member in tar}
    assert modes.keys() == {file["from"] for file in platform["files"]}
    assert modes[platform["bin"]] == 0o755


def test_the_script_says_what_is_missing(tmp_path: Path) -> None:
    script = ROOT / "k8s/krew/kubectl-localmodel"
    done = subprocess.run(
        [script, "status"], env={"PATH": f"/usr/bin:/bin:{tmp_path}"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 127
    assert "pip install localmodel" in done.stderr


@pytest.mark.skipif(KUBECTL is None, reason="kubectl is not installed")
def test_kubectl_finds_the_plugin_and_hands_it_what_follows(tmp_path: Path) -> None:
    shutil.copy(ROOT / "k8s/krew/kubectl-localmodel", tmp_path)
    (tmp_path / "localmodel").write_text('#!/bin/sh\necho "$@"\n')
    (tmp_path / "localmodel").chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "HOME": str(tmp_path)}
    command = [KUBECTL or "", "localmodel", "status", "--why", "llama"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "status --why llama\n"


def test_the_package_has_both_commands() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert {"localmodel", "kubectl-localmodel"} <= scripts.keys()
    assert scripts["localmodel"] == scripts["kubectl-localmodel"] == "coordinator.cli:main"
