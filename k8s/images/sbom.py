"""What an image is made of, as CycloneDX 1.6 and SPDX 2.3: `sbom.py --name N --version V ROOT... FOLDER`, with a root
folder for each of its layers.

Reads what is installed, not what was asked for: the Debian packages in `var/lib/dpkg/status.d` and the Python
distributions in the virtual environment. Nothing but the standard library, because it runs in a build.
The same content gives the same bytes: the time is SOURCE_DATE_EPOCH, and identifiers are made from the content.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.parser import HeaderParser
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any
from urllib.parse import quote

SUPPLIERS = {"deb": "Organization: Debian", "pypi": "NOASSERTION"}


@dataclass(frozen=True, slots=True, order=True)
class Component:
    """One package: `kind` is `deb` or `pypi`; `licence` an SPDX expression, or "" where the package names none."""

    kind: str
    name: str
    version: str
    licence: str = ""
    architecture: str = ""
    source: str = ""

    @property
    def purl(self) -> str:
        if self.kind == "pypi":
            return f"pkg:pypi/{quote(self.name.lower().replace('_', '-'))}@{quote(self.version)}"
        upstream = f"&upstream={quote(self.source, safe='')}" if self.source else ""
        return f"pkg:deb/debian/{quote(self.name)}@{quote(self.version)}?arch={self.architecture}{upstream}"


def debian(status: str) -> Component:
    """The component of one paragraph of dpkg's status."""
    fields = HeaderParser().parsestr(status)
    return Component(
        "deb",
        str(fields["Package"]),
        str(fields["Version"]),
        architecture=str(fields["Architecture"]),
        source=str(fields.get("Source", "")).partition(" ")[0],
    )


def python(found: Distribution) -> Component:
    return Component("pypi", found.metadata["Name"], found.version, found.metadata.get("License-Expression", ""))


def components(*roots: Path) -> list[Component]:
    """Everything that is installed below `roots`, sorted."""
    packages = [debian(path.read_text()) for root in roots for path in root.glob("var/lib/dpkg/status.d/*")]
    sites = [str(path) for root in roots for path in root.glob("opt/localmodel/lib/python3*/site-packages")]
    return sorted([*packages, *map(python, distributions(path=sites))])


def cyclonedx(name: str, version: str, parts: Sequence[Component], at: datetime) -> dict[str, Any]:
    image = {"type": "container", "bom-ref": f"{name}@{version}", "name": name, "version": version}
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{identifier(name, version, parts)}",
        "version": 1,
        "metadata": {"timestamp": stamp(at), "component": image},
        "components": [
            {
                "type": "library",
                "bom-ref": part.purl,
                "name": part.name,
                "version": part.version,
                "purl": part.purl,
                **({"licenses": [{"expression": part.licence}]} if part.licence else {}),
            }
            for part in parts
        ],
        "dependencies": [{"ref": image["bom-ref"], "dependsOn": [part.purl for part in parts]}],
    }


def spdx(name: str, version: str, parts: Sequence[Component], at: datetime) -> dict[str, Any]:
    image = {
        "SPDXID": "SPDXRef-image",
        "name": name,
        "versionInfo": version,
        "downloadLocation": "NOASSERTION",
        "filesAnalyzed": False,
        "licenseConcluded": "NOASSERTION",
        "licenseDeclared": "Apache-2.0",
        "copyrightText": "NOASSERTION",
        "primaryPackagePurpose": "CONTAINER",
    }
    packages = [_spdx_package(part) for part in parts]
    return {
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": "SPDXRef-DOCUMENT",
        "name": f"{name}-{version}",
        "documentNamespace": f"https://github.com/localmodel/localmodel/sbom/{identifier(name, version, parts)}",
        "creationInfo": {"created": stamp(at), "creators": ["Tool: localmodel-sbom"]},
        "packages": [image, *packages],
        "relationships": [
            _related("SPDXRef-DOCUMENT", "DESCRIBES", "SPDXRef-image"),
            *(_related("SPDXRef-image", "CONTAINS", package["SPDXID"]) for package in packages),
        ],
    }


def _spdx_package(part: Component) -> dict[str, Any]:
    return {
        "SPDXID": f"SPDXRef-{hashlib.sha256(part.purl.encode()).hexdigest()[:16]}",
        "name": part.name,
        "versionInfo": part.version,
        "supplier": SUPPLIERS[part.kind],
        "downloadLocation": "NOASSERTION",
        "filesAnalyzed": False,
        "licenseConcluded": "NOASSERTION",
        "licenseDeclared": part.licence or "NOASSERTION",
        "copyrightText": "NOASSERTION",
        "externalRefs": [
            {"referenceCategory": "PACKAGE-MANAGER", "referenceType": "purl", "referenceLocator": part.purl}
        ],
    }


def _related(one: str, how: str, other: str) -> dict[str, str]:
    return {"spdxElementId": one, "relationshipType": how, "relatedSpdxElement": other}


def identifier(name: str, version: str, parts: Iterable[Component]) -> uuid.UUID:
    """The same for the same content."""
    return uuid.uuid5(uuid.NAMESPACE_URL, "\n".join([name, version, *(part.purl for part in parts)]))


def stamp(at: datetime) -> str:
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", required=True)
    parser.add_argument("--version", required=True)
    parser.add_argument("roots", type=Path, nargs="+", metavar="root")
    parser.add_argument("folder", type=Path)
    given = parser.parse_args()
    at = datetime.fromtimestamp(int(os.environ.get("SOURCE_DATE_EPOCH") or 0), UTC)
    parts = components(*given.roots)
    given.folder.mkdir(parents=True, exist_ok=True)
    for form, make in {"cdx": cyclonedx, "spdx": spdx}.items():
        text = json.dumps(make(given.name, given.version, parts, at), indent=1, sort_keys=True)
        (given.folder / f"{given.name}.{form}.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
