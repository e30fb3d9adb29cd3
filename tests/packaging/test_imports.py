"""Tests, benchmarks and the product keep apart, and what decides can be tested where no client is installed.

`lint-imports` holds the packages of the product (pyproject.toml); tests and benchmarks are no packages, so they are
looked at here.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FORBIDDEN = {
    "tests": {"benchmarks"},
    "benchmarks": {"tests"},
    "actors": {"tests", "benchmarks", "coordinator"},
    "coordinator": {"tests", "benchmarks"},
}


def imported(source: str) -> Iterator[str]:
    """The packages at the top of everything that is imported, wherever in the file it stands."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (each.name.partition(".")[0] for each in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]


@pytest.mark.slow
@pytest.mark.parametrize("package", FORBIDDEN)
def test_no_module_imports_what_its_package_may_not(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    found = {
        f"{file.relative_to(ROOT)} imports {name}"
        for file in files
        for name in FORBIDDEN[package].intersection(imported(file.read_text()))
    }
    assert found == set()


IMPORTERS = {
    "aiohttp": {"coordinator/dev/apiserver/"},
    "awscrt": {"actors/digest.py"},
    "blake3": {"actors/digest.py"},
    "botocore": {"actors/sources/object_stores.py"},
    "cryptography": {"coordinator/control/certificates.py"},
    "fsspec": {"actors/sources/filesystems.py"},
    "gcsfs": {"actors/sources/listings.py"},
    "huggingface_hub": {"actors/sources/huggingface.py"},
    "kubernetes": {"coordinator/kube/"},
    "prometheus_client": {"coordinator/control/metrics.py"},
    "ray": {"coordinator/fleet/ray_fleet.py", "coordinator/dev/laptop/raynodes.py"},
    "rich": {"coordinator/cli/", "coordinator/dev/laptop/", "coordinator/view/"},
    "urllib3": {"coordinator/kube/http.py", "actors/transport/authorities.py"},  # the second: whom its TLS trusts
}
"""Each third-party client, and the only modules or packages that import it: a change of its API is a change there."""


@pytest.mark.slow
@pytest.mark.parametrize("client", IMPORTERS)
def test_a_client_is_imported_by_its_seam_alone(client: str) -> None:
    files = [path for package in ("actors", "coordinator") for path in sorted((ROOT / package).rglob("*.py"))]
    found = {str(file.relative_to(ROOT)) for file in files if client in imported(file.read_text())}
    assert found, "a client that nobody imports is no dependency"
    assert {each for each in found if not each.startswith(tuple(IMPORTERS[client]))} == set()


CLIENTS = ("kubernetes", "ray", "urllib3", "aiohttp", "s3fs", "huggingface_hub")
WITHOUT_CLIENTS = f"""
import importlib, importlib.abc, sys

class Refused(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {CLIENTS}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Refused())
for name in {CLIENTS}:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError:
        continue
    sys.exit(f"{{name}} can be imported after all")
import pytest
sys.exit(pytest.main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_planning_and_the_mesh_are_tested_where_no_client_is_installed() -> None:
    """All modules of those tests import, and the quick ones among them run: as without `kubernetes` and `ray`."""
    quick = "test_selectors or test_pods or test_membership"
    command = ["-q", "-p", "no:cacheprovider", "tests/deciding", "tests/peering", "-k", quick]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_CLIENTS, *command],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr
    (run,) = re.findall(r"^(\d+) passed", done.stdout, re.MULTILINE)
    assert int(run) > 20
