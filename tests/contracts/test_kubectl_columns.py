"""What stock kubectl shows of our kinds, looked at as on screens of 80 and 200 columns."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit.views import GONE, a_mixed_world, served

KUBECTL = shutil.which("kubectl")
pytestmark = [pytest.mark.e2e, pytest.mark.skipif(KUBECTL is None, reason="kubectl is not installed")]


@pytest.fixture(scope="module")
def kubeconfig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with served(a_mixed_world(), tmp_path_factory.mktemp("home")) as (path, _):
        yield path


def kubectl(kubeconfig: Path, *words: str) -> list[str]:
    environment = {**os.environ, "KUBECONFIG": str(kubeconfig), "HOME": str(kubeconfig.parent)}
    done = subprocess.run([KUBECTL or "", *words], env=environment, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


@pytest.mark.parametrize("kinds", ["lmc", "lmnc", "lmng"])
def test_a_screen_of_80_columns_shows_what_is_wrong(kubeconfig: Path, kinds: str) -> None:
    lines = kubectl(kubeconfig, "get", kinds, "-A")

    assert max(map(len, lines)) <= 80
    assert len(lines) > 1


def test_a_line_of_a_node_is_its_name_and_65_columns(kubeconfig: Path) -> None:
    lines = kubectl(kubeconfig, "get", "lmn")

    assert max(map(len, lines)) <= len(GONE) + 65
    assert {line.split()[1] for line in lines[1:]} == {"True", "False"}


def test_the_reason_is_seen_without_asking_for_more(kubeconfig: Path) -> None:
    heading, *rows = kubectl(kubeconfig, "get", "lmc")

    assert heading.split() == ["NAME", "READY", "AVAILABLE", "PROGRESS", "ETA", "REASON", "AGE"]
    at = heading.index("REASON")
    assert [row[at:].split()[0] for row in rows] == ["InsufficientStorage", "NodeNotReady"]


@pytest.mark.parametrize("kinds", ["lmc", "lmng"])
def test_wide_fits_200_columns_and_names_a_commit_shortly(kubeconfig: Path, kinds: str) -> None:
    assert max(map(len, kubectl(kubeconfig, "get", kinds, "-o", "wide"))) <= 200


def test_a_description_has_sizes_for_people(kubeconfig: Path) -> None:
    described = "\n".join(kubectl(kubeconfig, "describe", "lmc", "llama-70b"))

    for said in ("15Gi", "origin 15Gi (1.00 times), peers 18Gi", "2.2Gi/s", "1m17s"):
        assert said in described


@pytest.mark.parametrize(
    "path",
    [
        "lmc.status.moved",
        "lmc.spec.storage.key",
        "lmn.status.models.bytesFromPeers",
        "lmng.spec.persistentVolumeSpec.local.path",
    ],
)
def test_explain_describes_a_field(kubeconfig: Path, path: str) -> None:
    said = "\n".join(kubectl(kubeconfig, "explain", path))

    assert "<empty>" not in said.split("DESCRIPTION:")[1]
