"""`localmodel doctor`: is everything there that the model cache needs? One line each: ok, or what to do.

Ends with 0 if nothing is wrong (what cannot be told from here is not), with 1 if something is, or nothing answers.
"""

from __future__ import annotations

import argparse
import json
import os
import ssl
import urllib.request
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from actors.messages import NodeName
from actors.transport.authorities import as_go_does
from coordinator.cli.cluster import Unanswered, add_cluster_arguments, connect, look
from coordinator.cli.output import print_failure, print_json, printable, say, tell
from coordinator.kube.interface import LEASES, Kube, KubeError, NotFound, Object, ResourceType
from coordinator.view.checkups import Check, Evidence, State, checks

CRDS = ResourceType("apiextensions.k8s.io", "v1", "customresourcedefinitions", "CustomResourceDefinition")
RAY_CLUSTERS = ResourceType("ray.io", "v1", "rayclusters", "RayCluster", namespaced=True)
ACCESS = ResourceType("authorization.k8s.io", "v1", "selfsubjectaccessreviews", "SelfSubjectAccessReview")
NODE_LEASES = "kube-node-lease"
LEADER_LOCK = "kserve-local-model-manager-leader-lock"
RAY_TIMEOUT_S = 5.0
_WISHES = (
    ("list", "localmodelcaches", "serving.kserve.io"),
    ("list", "localmodelnamespacecaches", "serving.kserve.io"),
    ("list", "localmodelnodes", "serving.kserve.io"),
    ("list", "localmodelnodegroups", "serving.kserve.io"),
    ("list", "nodes", ""),
    ("patch", "localmodelcaches", "serving.kserve.io"),
)
_SIGNS = {State.OK: "ok", State.PROBLEM: "!!", State.UNKNOWN: "??"}


def add_doctor_arguments(parser: argparse.ArgumentParser) -> None:
    add_cluster_arguments(parser, namespaced=False)
    parser.add_argument(
        "--coordinator-namespace", metavar="NS", default="kserve", help="where its Lease is (default: kserve)"
    )
    parser.add_argument(
        "--ray-address", metavar="URL", help="of the Ray dashboard, such as http://head:8265, to ask Ray itself"
    )
    parser.add_argument("--json", action="store_true", help="the last line of standard output says what was found")
    parser.epilog = "ends with 0 if nothing is wrong, 1 if something is, 2 for a wrong command"


def doctor(args: argparse.Namespace) -> int:
    try:
        kube = connect(args)
        evidence = gather(args, kube)
    except (Unanswered, KubeError) as error:
        reason = error.reason if isinstance(error, Unanswered) else "Unreachable"
        if args.json:
            print_failure(reason, str(error), retryable=reason == "Unreachable")
        tell(f"!!  API server: {printable(str(error))}")
        return 1
    found = checks(evidence)
    healthy = all(check.state is not State.PROBLEM for check in found)
    if args.json:
        known = [{name: value for name, value in asdict(check).items() if value is not None} for check in found]
        print_json({"ok": healthy, "checks": [_renamed(each) for each in known]})
    else:
        for check in found:
            say(printable(line(check)))
    return 0 if healthy else 1


def line(check: Check) -> str:
    step = f": {check.next_step[:1].lower()}{check.next_step[1:]}" if check.next_step else ""
    return f"{_SIGNS[check.state]}  {check.name:<13} {check.text.rstrip('.')}{step.rstrip('.')}"


def gather(args: argparse.Namespace, kube: Kube) -> Evidence:
    """Everything that can be asked. Raises KubeError where the API server does not answer, and Unanswered."""
    from coordinator.api import crds

    server_version = kube.server_version()
    expected = {str(each["spec"]["names"]["plural"]): each for each in crds.load()}
    ray, failure = _ask_ray(args.ray_address)
    return Evidence(
        server=str(getattr(kube, "server", "")),
        version=server_version,
        view=look(kube, None),
        allowed={f"{verb} {plural}": _may(kube, verb, plural, group) for verb, plural, group in _WISHES},
        crds={plural: crd for plural, each in expected.items() if (crd := _crd(kube, each["metadata"]["name"]))},
        expected=expected,
        clusters=_listed(kube, RAY_CLUSTERS),
        leases={NodeName(each["metadata"]["name"]): each for each in _listed(kube, LEASES, NODE_LEASES) or ()},
        leader=_lease(kube, args.coordinator_namespace),
        own_version=_version("localmodel"),
        own_ray=_version("ray"),
        ray_address=args.ray_address,
        ray=ray,
        ray_failure=failure,
    )


def _may(kube: Kube, verb: str, plural: str, group: str) -> bool | None:
    body = {
        "apiVersion": ACCESS.api_version,
        "kind": ACCESS.kind,
        "spec": {"resourceAttributes": {"verb": verb, "resource": plural, "group": group}},
    }
    try:
        answer = kube.create(ACCESS, body)
    except KubeError:
        return None
    allowed = (answer.get("status") or {}).get("allowed")
    return allowed if isinstance(allowed, bool) else None


def _crd(kube: Kube, name: str) -> Object | None:
    """As the cluster has it; None where it does not. One that may not be read is taken for there."""
    try:
        return kube.get(CRDS, name)
    except NotFound:
        return None
    except KubeError:
        from coordinator.api import crds

        return next(each for each in crds.load() if each["metadata"]["name"] == name)


def _listed(kube: Kube, resource: ResourceType, namespace: str | None = None) -> list[Object] | None:
    try:
        return kube.list(resource, namespace=namespace)[0]
    except KubeError:
        return None


def _lease(kube: Kube, namespace: str) -> Object | None:
    with suppress(KubeError):
        return kube.get(LEASES, LEADER_LOCK, namespace=namespace)
    return None


def _ask_ray(address: str | None, environ: Mapping[str, str] = os.environ) -> tuple[str | None, str | None]:
    """What answers at the dashboard, or why nothing does; neither where no address is given."""
    if not address:
        return None, None
    url = address.rstrip("/") + "/api/version"
    if not url.startswith(("http://", "https://")):
        return None, "is not the http:// address of a dashboard"
    headers = {"Authorization": f"Bearer {environ['RAY_AUTH_TOKEN']}"} if environ.get("RAY_AUTH_TOKEN") else {}
    request = urllib.request.Request(url, headers=headers)
    context = as_go_does(ssl.create_default_context()) if request.type == "https" else None
    try:
        with urllib.request.urlopen(request, timeout=RAY_TIMEOUT_S, context=context) as answer:
            said: Any = json.loads(answer.read(1 << 16))
            return f"Ray {said['ray_version']}", None
    except (OSError, ValueError, KeyError, TypeError) as error:
        return None, f"no Ray dashboard answers: {error}"


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return ""


def _renamed(check: dict[str, Any]) -> dict[str, Any]:
    return {"next" if name == "next_step" else name: value for name, value in check.items()}
