"""`make release`: what is in the folder, and that its checksums hold."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.kit.manifests import HELM, K8S, KUBECTL


@pytest.mark.e2e
def test_a_release_has_what_could_be_made_with_checksums_and_names_what_could_not(tmp_path: Path) -> None:
    if subprocess.run([sys.executable, "-m", "pip", "--version"], capture_output=True, check=False).returncode:
        pytest.skip("this interpreter has no pip")
    out = tmp_path / "dist"
    environment = {**os.environ, "OUT": str(out), "IMAGES": "0", "PYTHON": sys.executable}
    done = subprocess.run(
        [str(K8S / "release")], env=environment, capture_output=True, text=True, timeout=170, check=False
    )
    assert done.returncode == 0, done.stderr
    names = {path.name for path in out.iterdir()}
    assert {"crds.yaml", "SHA256SUMS"} < names
    (wheel,) = out.glob("localmodel-*-py3-none-any.whl")
    assert {"actors/__init__.py", "coordinator/cli/run.py"} <= set(zipfile.ZipFile(wheel).namelist())
    assert ("install.yaml" in names) == (shutil.which("kubectl") is not None) or KUBECTL is None
    assert len(list(out.glob("localmodel*.tgz"))) == (2 if shutil.which("helm") else 0), HELM
    assert "not made: images (IMAGES=0)" in done.stderr
    assert ("not made: charts" in done.stderr) == (shutil.which("helm") is None)
    lines = (line.split("  ", 1) for line in (out / "SHA256SUMS").read_text().splitlines())
    sums = {name: digest for digest, name in lines}
    assert sums.keys() == names - {"SHA256SUMS"}
    for name, digest in sums.items():
        assert hashlib.sha256((out / name).read_bytes()).hexdigest() == digest
