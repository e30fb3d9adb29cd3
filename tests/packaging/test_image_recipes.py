"""What builds the images, without building: what the recipe names, and how its builder is called."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.kit.containers import TAG, surroundings
from tests.kit.manifests import K8S

RECIPE = (K8S / "images" / "Containerfile").read_text()
BUILDER = """#!/bin/sh
echo "$*" >> "$ASKED"
case "$*" in
  "inspect "*|"pull "*) [ -z "$FAKE_OFFLINE" ];;
  "from "*) echo container;;
esac
"""


def test_the_images_for_people_at_work_have_tools_and_those_for_clusters_install_nothing() -> None:
    stages = {part.partition("\n")[0].partition(" AS ")[2]: part for part in RECIPE.split("\nFROM ")[1:]}
    for tool in ("build-essential", "gdb", "strace", "py-spy", "debugpy"):
        assert tool in stages["workshop"]
    for target in ("coordinator-dev", "ray-node-dev"):
        assert stages[target].startswith("workshop ")
        assert "USER" not in stages[target]
    for target in ("coordinator", "ray-node"):
        assert stages[target].startswith("base ")
        assert "RUN" not in stages["base"] + stages[target]
    assert stages["base"].startswith("scratch ")
    assert "USER 65532:65532" in stages["base"]


def test_every_stage_is_one_that_debian_12s_buildah_can_build() -> None:
    for beyond in ("<<", "--link", "--mount", "# syntax="):
        assert beyond not in RECIPE.replace("# No heredocs, no `COPY --link`", "")


def built(folder: Path, *targets: str, **variables: str) -> tuple[int, list[str], str]:
    """What `k8s/images/build` ends with, asks of a builder that only takes notes, and says.

    In a checkout of its own, because two builds of one take turns.
    """
    shutil.copytree(K8S / "images", folder / "k8s" / "images", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(K8S.parent / "pyproject.toml", folder)
    for name in ("buildah", "mmdebstrap"):
        (folder / name).write_text(BUILDER)
        (folder / name).chmod(0o755)
    asked = folder / "asked"
    path = f"{folder}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [str(folder / "k8s" / "images" / "build"), *targets],
        env={**os.environ, "PATH": path, "ASKED": str(asked), "BUILDER": "buildah", "PIP_CERT": "", **variables},
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.returncode, asked.read_text().splitlines() if asked.exists() else [], done.stderr


def test_images_are_tagged_with_the_version_or_as_is_asked(tmp_path: Path) -> None:
    code, asked, said = built(tmp_path, "coordinator", "ray-node-dev", PREFIX="registry.example/ml/", TAG="7")
    assert code == 0, said
    first, second = (line for line in asked if line.startswith("bud "))
    assert "--target coordinator --tag registry.example/ml/localmodel:7 ." in first
    assert "--target ray-node-dev --tag registry.example/ml/localmodel-ray-dev:7 ." in second


def test_each_architecture_is_built_on_a_debian_of_its_own_and_all_are_in_one_list(tmp_path: Path) -> None:
    code, asked, said = built(
        tmp_path, "coordinator", PLATFORMS="linux/amd64,linux/arm64/v8", TAG="7", FAKE_OFFLINE="1"
    )
    assert code == 0, said
    first, second = (line for line in asked if line.startswith("bud "))
    for line, platform, architecture in ((first, "linux/amd64", "amd64"), (second, "linux/arm64/v8", "arm64")):
        assert f"DEBIAN=localhost/localmodel-debian:{architecture} --platform {platform} " in line
        assert line.endswith(f"--tag localhost/localmodel:7-{architecture} .")
        assert any(f"--architectures={architecture} trixie" in each for each in asked), "no registry is reached"
        assert any(each.startswith("config ") and f"--arch {architecture} " in each for each in asked)
    listed = "localhost/localmodel:7-amd64 localhost/localmodel:7-arm64"
    assert asked[-1] == f"manifest create localhost/localmodel:7 {listed}"
    assert not [each for each in asked if each.startswith("rmi localhost/localmodel:7")], "an image of a list"


def test_ci_builds_beside_the_tests_what_they_look_for() -> None:
    assert f"  TAG={TAG} SOURCE_DATE_EPOCH=0 timeout " in (K8S.parent / ".ci/run").read_text()


def test_a_target_that_there_is_not_is_named_beside_those_that_there_are(tmp_path: Path) -> None:
    code, _, said = built(tmp_path, "manager")
    assert code == 1
    assert "manager is not one of:" in said
    assert "ray-node-dev" in said


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("Get:1 ...\nE: Failed to fetch http://deb.debian.org/x  Temporary failure resolving", "E: Failed to fetch"),
        ("WARNING: Retrying (Retry(total=4)) after connection broken by 'NewConnectionError'", "WARNING: Retrying"),
        ("ReadTimeoutError: HTTPSConnectionPool(host='files.pythonhosted.org'): Read timed out.", "ReadTimeoutError"),
        ("images: debian cannot be pulled, and mmdebstrap could not make one", "images: debian"),
        ("copying layers: write /var/lib/containers/x: no space left on device", "copying layers"),
        ("libraries that are not in the image:\n/usr/bin/python3: libx.so => not found", None),
        ("  Downloading async_timeout-5.0.1-py3-none-any.whl (502 kB)\nERROR: No matching distribution found", None),
        ('error building at STEP "RUN python3 k8s/images/rootfs.py": exit status 1', None),
    ],
)
def test_a_build_that_a_mirror_or_a_disk_ended_is_told_from_one_that_we_broke(said: str, expected: str | None) -> None:
    found = surroundings(said)
    assert (found and found.startswith(expected or "?")) if expected else found is None
