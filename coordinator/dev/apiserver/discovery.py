"""Which groups, versions and resources there are: legacy documents, and the aggregated ones kubectl asks for first."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from coordinator.dev.apiserver.errors import Object
from coordinator.dev.apiserver.kinds import VERBS, Kind

VERSION: Object = {
    "major": "1",
    "minor": "36",
    "gitVersion": "v1.36.0+localmodel-dev",
    "gitCommit": "",
    "gitTreeState": "clean",
    "buildDate": "1970-01-01T00:00:00Z",
    "goVersion": "",
    "compiler": "python",
    "platform": "localmodel/dev",
}


def core_versions() -> Object:
    return {"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []}


def group_list(kinds: Sequence[Kind]) -> Object:
    groups = sorted({kind.group for kind in kinds if kind.group})
    return {"kind": "APIGroupList", "apiVersion": "v1", "groups": [_group(name, kinds) for name in groups]}


def group(name: str, kinds: Sequence[Kind]) -> Object:
    return {"kind": "APIGroup", "apiVersion": "v1", **_group(name, kinds)}


def resource_list(group_version: str, kinds: Sequence[Kind]) -> Object:
    resources: list[Object] = []
    for kind in (kind for kind in kinds if kind.api_version == group_version):
        entry: Object = {
            "name": kind.plural,
            "singularName": kind.singular,
            "namespaced": kind.namespaced,
            "kind": kind.kind,
            "verbs": list(VERBS),
        }
        entry |= {"shortNames": list(kind.short_names)} if kind.short_names else {}
        entry |= {"categories": list(kind.categories)} if kind.categories else {}
        resources.append(entry)
        if kind.status:
            verbs = ["get", "patch", "update"]
            status = {"name": f"{kind.plural}/status", "singularName": "", "namespaced": kind.namespaced}
            resources.append({**status, "kind": kind.kind, "verbs": verbs})
    return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": resources}


def aggregated(kinds: Sequence[Kind], core: bool, version: str) -> Object:
    """APIGroupDiscoveryList for /api (`core`) or /apis. `version` is v2 or v2beta1."""
    chosen = sorted((kind for kind in kinds if (kind.group == "") is core), key=lambda kind: kind.group)
    return {
        "kind": "APIGroupDiscoveryList",
        "apiVersion": f"apidiscovery.k8s.io/{version}",
        "metadata": {},
        "items": [
            {
                "metadata": {"name": name, "creationTimestamp": None},
                "versions": [_aggregated_version(each, list(members)) for each in _versions(list(members))],
            }
            for name, members in ((name, list(found)) for name, found in groupby(chosen, key=lambda kind: kind.group))
        ],
    }


def _aggregated_version(version: str, kinds: list[Kind]) -> Object:
    resources = []
    for kind in (kind for kind in kinds if kind.version == version):
        response = {"group": kind.group, "version": kind.version, "kind": kind.kind}
        entry: Object = {
            "resource": kind.plural,
            "responseKind": response,
            "scope": "Namespaced" if kind.namespaced else "Cluster",
            "singularResource": kind.singular,
            "verbs": list(VERBS),
            "shortNames": list(kind.short_names),
            "categories": list(kind.categories),
        }
        if kind.status:
            entry["subresources"] = [
                {"subresource": "status", "responseKind": response, "verbs": ["get", "patch", "update"]}
            ]
        resources.append(entry)
    return {"version": version, "freshness": "Current", "resources": resources}


def _group(name: str, kinds: Sequence[Kind]) -> Object:
    versions = [
        {"groupVersion": f"{name}/{version}", "version": version}
        for version in _versions([kind for kind in kinds if kind.group == name])
    ]
    return {"name": name, "versions": versions, "preferredVersion": versions[0]}


def _versions(kinds: Sequence[Kind]) -> list[str]:
    return list(dict.fromkeys(kind.version for kind in kinds))
