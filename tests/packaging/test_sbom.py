"""Bills of materials: what stands in them for what is installed."""

from __future__ import annotations

import importlib.util
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.kit.manifests import K8S

AT = datetime(2026, 11, 27, 12, 0, 0, tzinfo=UTC)


def load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"images_{name}", K8S / "images" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


sbom, requirements = load("sbom"), load("requirements")
STATUS = "Package: libc6\nStatus: install ok installed\nArchitecture: amd64\nSource: glibc\nVersion: 2.41-12+deb13u5\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Of an image with one Debian package and one Python distribution."""
    state = tmp_path / "var/lib/dpkg/status.d"
    state.mkdir(parents=True)
    (state / "libc6").write_text(STATUS)
    about = tmp_path / "opt/localmodel/lib/python3.13/site-packages/Typing_Ext-4.16.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text(
        "Metadata-Version: 2.4\nName: Typing_Ext\nVersion: 4.16.0\nLicense-Expression: PSF-2.0\n\nText.\n"
    )
    return tmp_path


def test_components_are_what_is_installed_with_names_that_scanners_know(root: Path) -> None:
    libc, typing = sbom.components(root)
    assert libc.purl == "pkg:deb/debian/libc6@2.41-12%2Bdeb13u5?arch=amd64&upstream=glibc"
    assert (typing.purl, typing.licence) == ("pkg:pypi/typing-ext@4.16.0", "PSF-2.0")


def test_both_forms_name_every_component_and_say_whose_they_are(root: Path) -> None:
    parts = sbom.components(root)
    cyclonedx, spdx = sbom.cyclonedx("image", "1", parts, AT), sbom.spdx("image", "1", parts, AT)
    assert [each["purl"] for each in cyclonedx["components"]] == [part.purl for part in parts]
    assert cyclonedx["dependencies"][0]["dependsOn"] == [part.purl for part in parts]
    assert cyclonedx["metadata"]["timestamp"] == spdx["creationInfo"]["created"] == "2026-11-27T12:00:00Z"
    names = [package["name"] for package in spdx["packages"]]
    assert names == ["image", "libc6", "Typing_Ext"]
    identifiers = [package["SPDXID"] for package in spdx["packages"]]
    assert len(set(identifiers)) == len(identifiers)
    related = {each["relatedSpdxElement"] for each in spdx["relationships"]}
    assert related == set(identifiers)


def test_the_same_content_gives_the_same_bytes_and_another_another_identifier(root: Path) -> None:
    parts = sbom.components(root)
    assert sbom.cyclonedx("image", "1", parts, AT) == sbom.cyclonedx("image", "1", parts, AT)
    assert sbom.identifier("image", "1", parts) != sbom.identifier("image", "1", parts[:1])


def test_requirements_are_those_of_the_project_and_of_the_extras_that_are_named() -> None:
    project = {"dependencies": ["ray>=2"], "optional-dependencies": {"gcs": ["gcsfs"], "dev": ["aiohttp"]}}
    assert requirements.requirements(project, ["gcs"]) == ["ray>=2", "gcsfs"]
    with pytest.raises(KeyError):
        requirements.requirements(project, ["azure"])
