"""What `localmodel doctor` looks at, one line each: it is well, or what to do; or nobody can tell from here. Pure.

`Evidence` is what the shell has gathered; a check that lacks its evidence is UNKNOWN, which is no failure.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from actors.messages import NodeName
from actors.sizes import format_bytes
from actors.times import seconds_of
from coordinator.kube.interface import Object
from coordinator.kube.quantity import format_duration
from coordinator.plan.conditions import name_nodes
from coordinator.view.cluster import ClusterView
from coordinator.view.next_steps import NEXT_STEPS

NODE_LABEL = "kserve/localmodel"
SKEW_S = 5.0
"""Clocks that differ by more are said: links of origins live for minutes, and orders to agents for seconds."""
LEASE_OLD_S = 60.0
"""A node, or a coordinator, that has not renewed its Lease for longer does not work."""
TIGHT = 0.05
"""A disk with less than this share free has no room for a model worth caching."""


class State(StrEnum):
    OK = "ok"
    PROBLEM = "problem"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Check:
    name: str
    state: State
    text: str
    next_step: str | None = None


@dataclass(frozen=True, slots=True)
class Evidence:
    """`allowed` has, by what a person wants to do, whether RBAC lets them; None: it does not say.

    `crds` are those of the cluster by plural, `expected` those of this version. `clusters` are RayClusters; None: the
    cluster does not know them. `leases` are those of nodes by node name, `leader` that of the coordinator. `ray`: the
    version that answers at `ray_address`, or why none does.
    """

    server: str
    version: str
    view: ClusterView
    allowed: Mapping[str, bool | None] = field(default_factory=dict)
    crds: Mapping[str, Object] = field(default_factory=dict)
    expected: Mapping[str, Object] = field(default_factory=dict)
    clusters: Sequence[Object] | None = None
    leases: Mapping[NodeName, Object] = field(default_factory=dict)
    leader: Object | None = None
    own_version: str = ""
    own_ray: str = ""
    ray_address: str | None = None
    ray: str | None = None
    ray_failure: str | None = None


def checks(evidence: Evidence) -> list[Check]:
    """In the order in which one thing needs the other."""
    return [each for check in _CHECKS for each in check(evidence)]


def _api(evidence: Evidence) -> Iterator[Check]:
    yield Check("API server", State.OK, f"{evidence.version} at {evidence.server}")


def _rbac(evidence: Evidence) -> Iterator[Check]:
    refused = [what for what, may in evidence.allowed.items() if may is False]
    if refused:
        step = "ask for a ClusterRole with these verbs"
        yield Check("your rights", State.PROBLEM, f"you may not {', '.join(refused)}", step)
    elif not evidence.allowed or None in evidence.allowed.values():
        yield Check("your rights", State.UNKNOWN, "the API server does not say what you may")
    else:
        yield Check("your rights", State.OK, f"you may {', '.join(evidence.allowed)}")


def _definitions(evidence: Evidence) -> Iterator[Check]:
    apply = "`kubectl apply -k k8s/crds`, or the chart of this version"
    missing = sorted(evidence.expected.keys() - evidence.crds.keys())
    if missing:
        yield Check("definitions", State.PROBLEM, f"the cluster does not know {', '.join(missing)}", apply)
        return
    other = {
        name: crd for name, crd in evidence.crds.items() if _fields(crd) != _fields(evidence.expected.get(name, crd))
    }
    theirs = sorted(name for name, crd in other.items() if not _is_ours(crd))
    if theirs:
        text = f"{', '.join(theirs)}: KServe's own, which drop progress, conditions and reasons"
        yield Check("definitions", State.PROBLEM, text, apply)
    elif other:
        text = f"{', '.join(sorted(other))}: of another version of localmodel"
        yield Check("definitions", State.PROBLEM, text, apply)
    else:
        yield Check("definitions", State.OK, f"{len(evidence.crds)}, of this version of localmodel")


def _coordinator(evidence: Evidence) -> Iterator[Check]:
    step = "`kubectl get pods -A -l app.kubernetes.io/name=localmodel`, and the log of the coordinator"
    view = evidence.view
    spec = evidence.leader.get("spec") if evidence.leader is not None else None
    renewed = seconds_of(spec.get("renewTime")) if isinstance(spec, Mapping) else None
    unseen = sorted(
        key for key, cache in view.caches.items() if (cache.status.get("observedGeneration") or 0) < cache.generation
    )
    if renewed is not None and view.at - renewed > LEASE_OLD_S:
        old = format_duration(view.at - renewed)
        yield Check("coordinator", State.PROBLEM, f"it has not renewed its Lease for {old}", step)
    elif unseen:
        yield Check("coordinator", State.PROBLEM, f"it has not looked at {name_nodes(unseen)} yet", step)
    elif renewed is not None:
        yield Check("coordinator", State.OK, "it holds its Lease")
    elif view.caches:
        count = len(view.caches)
        caches = f"all {count} caches" if count > 1 else "1 cache"
        yield Check("coordinator", State.OK, f"it has looked at {caches}")
    else:
        yield Check("coordinator", State.UNKNOWN, "there are no caches that would show it at work")


def _kuberay(evidence: Evidence) -> Iterator[Check]:
    if evidence.clusters is None:
        yield Check("KubeRay", State.UNKNOWN, "the cluster does not know RayClusters: Ray runs otherwise, or not")
        return
    if not evidence.clusters:
        yield Check("KubeRay", State.PROBLEM, "there is no RayCluster", "`kubectl apply -k k8s/base`")
    for each in evidence.clusters:
        metadata, spec, status = (each.get(name) or {} for name in ("metadata", "spec", "status"))
        name, state = metadata.get("name"), str(status.get("state") or "not reported yet")
        version = spec.get("rayVersion")
        if state != "ready":
            why = f": {status['reason']}" if status.get("reason") else ""
            step = f"`kubectl -n {metadata.get('namespace')} describe raycluster {name}`"
            yield Check("KubeRay", State.PROBLEM, f"RayCluster {name} is {state}{why}", step)
        elif version and evidence.own_ray and version != evidence.own_ray:
            text = f"RayCluster {name} has Ray {version}, and this installation has {evidence.own_ray}"
            yield Check("KubeRay", State.PROBLEM, text, "use one version of Ray everywhere")
        else:
            yield Check("KubeRay", State.OK, f"RayCluster {name} is ready, Ray {version or 'of its image'}")


def _ray(evidence: Evidence) -> Iterator[Check]:
    if evidence.ray_failure is not None:
        step = "look at the head, and at --ray-address"
        yield Check("Ray", State.PROBLEM, f"{evidence.ray_address}: {evidence.ray_failure}", step)
        return
    if evidence.ray is not None:
        yield Check("Ray", State.OK, f"{evidence.ray} answers at {evidence.ray_address}")
        return
    reasons = Counter(
        (local.status.get("agent") or {}).get("reason")
        for local in evidence.view.local_nodes.values()
        if (local.status.get("agent") or {}).get("ready") is False
    )
    reporting = len(evidence.view.local_nodes) - sum(reasons.values())
    if reasons.get("RayUnavailable"):
        step = NEXT_STEPS["RayUnavailable"]
        yield Check("Ray", State.PROBLEM, "the coordinator does not reach the Ray head", step)
    elif reporting:
        yield Check("Ray", State.OK, f"{reporting} node agents report through it")
    else:
        yield Check("Ray", State.UNKNOWN, "no node agent reports; --ray-address asks the head itself")


def _agents(evidence: Evidence) -> Iterator[Check]:
    local_nodes = evidence.view.local_nodes
    silent: dict[str, list[str]] = {}
    versions: Counter[str] = Counter()
    for name, local in local_nodes.items():
        agent = local.status.get("agent") or {}
        versions[agent.get("version") or ""] += 1
        if agent.get("ready") is not True:
            silent.setdefault(agent.get("reason") or "no report yet", []).append(name)
    if not local_nodes:
        yield Check("node agents", State.UNKNOWN, "no node is to hold a model yet")
    for reason, names in sorted(silent.items()):
        text = f"{name_nodes(names)} {'does' if len(names) == 1 else 'do'} not report ({reason})"
        yield Check("node agents", State.PROBLEM, text, NEXT_STEPS.get(reason))
    if local_nodes and not silent:
        yield Check("node agents", State.OK, f"all {len(local_nodes)} report")
    others = sorted(version for version in versions if version not in ("", evidence.own_version))
    if others and evidence.own_version:
        text = f"they have {', '.join(others)}, and this installation has {evidence.own_version}"
        yield Check("versions", State.PROBLEM, text, "roll out one version")


def _labels(evidence: Evidence) -> Iterator[Check]:
    view = evidence.view
    if view.nodes is None:
        yield Check("labels", State.UNKNOWN, "you may not list nodes")
        return
    if not view.groups:
        yield Check("labels", State.PROBLEM, "there is no LocalModelNodeGroup", "create one: k8s/samples")
        return
    chosen: set[NodeName] = set()
    for name, group in sorted(view.groups.items()):
        if group.problem is not None:
            step = NEXT_STEPS.get(group.problem.reason)
            yield Check("labels", State.PROBLEM, group.problem.message, step)
            continue
        selector = group.selector
        members = {each.name for each in view.nodes.values() if selector and selector.matches(each.name, each.labels)}
        chosen |= members
        if members:
            yield Check("labels", State.OK, f"group {name} selects {len(members)} of {len(view.nodes)} nodes")
        else:
            text = f"group {name} selects none of {len(view.nodes)} nodes"
            step = f"label nodes, or correct the nodeAffinity of LocalModelNodeGroup {name}"
            yield Check("labels", State.PROBLEM, text, step)
    lost = sorted(name for name, node in view.nodes.items() if NODE_LABEL in node.labels and name not in chosen)
    if lost:
        text = f"{name_nodes(lost)} {'has' if len(lost) == 1 else 'have'} the label {NODE_LABEL} and no group"
        yield Check("labels", State.PROBLEM, text, "take the label away, or let a group select it")


def _paths(evidence: Evidence) -> Iterator[Check]:
    roots = list(_roots(evidence.view))
    bad = [(name, root) for name, root in roots if root.get("reason")]
    for reason in sorted({root["reason"] for _, root in bad}):
        alike = [(name, root) for name, root in bad if root["reason"] == reason]
        message = alike[0][1].get("message") or f"{alike[0][1]['path']} cannot be used"
        text = f"{name_nodes(name for name, _ in alike)}: {message} ({reason})"
        yield Check("paths", State.PROBLEM, text, NEXT_STEPS.get(reason))
    if roots and not bad:
        paths = sorted({root["path"] for _, root in roots})
        yield Check("paths", State.OK, f"{', '.join(paths)}, as the groups name them")
    elif not roots:
        yield Check("paths", State.UNKNOWN, "no node agent has reported its disks")


def _space(evidence: Evidence) -> Iterator[Check]:
    roots = [(name, root) for name, root in _roots(evidence.view) if "free" in root and not root.get("reason")]
    tight = sorted(
        (
            (root["free"], name, root)
            for name, root in roots
            if root["free"] < TIGHT * (root["free"] + (root.get("used") or 0))
        ),
        key=lambda each: each[:2],
    )
    if tight:
        free, name, root = tight[0]
        used = format_bytes(root.get("used") or 0)
        text = f"{name} has {format_bytes(free)} free on {root['path']}, beside {used} of models"
        if len(tight) > 1:
            text += f"; as little on {name_nodes(other for _, other, _ in tight[1:])}"
        yield Check("free space", State.PROBLEM, text, NEXT_STEPS["InsufficientStorage"])
    if roots and not tight:
        least = min(roots, key=lambda each: each[1]["free"])
        text = f"at least {format_bytes(least[1]['free'])} on every node ({least[0]} has the least)"
        yield Check("free space", State.OK, text)
    elif not roots:
        yield Check("free space", State.UNKNOWN, "no node agent has reported its disks")


def _clocks(evidence: Evidence) -> Iterator[Check]:
    """By the Leases that kubelets renew every ten seconds, and the times that agents write: one from the future tells
    of a clock that is fast, an old Lease of a node that is Ready of one that is slow."""
    ahead, behind = _ahead(evidence), _behind(evidence)
    step = "synchronise the clocks (chrony, ntp) of these nodes, or of this machine"
    for off, where in ((ahead, "ahead of"), (behind, "behind")):
        if off:
            worst = format_duration(max(off.values()))
            yield Check("clocks", State.PROBLEM, f"{name_nodes(off)}: {where} this machine by up to {worst}", step)
    if ahead or behind:
        return
    if evidence.leases:
        yield Check("clocks", State.OK, f"none of {len(evidence.leases)} nodes is ahead by more than {SKEW_S:g} s")
    else:
        yield Check("clocks", State.UNKNOWN, "there are no Leases of nodes to compare with")


def _ahead(evidence: Evidence) -> dict[NodeName, float]:
    """By how many seconds, by node."""
    view = evidence.view
    latest = {name: [_renewed(lease)] for name, lease in evidence.leases.items()}
    for name, local in view.local_nodes.items():
        for detail in local.status.get("models") or ():
            written = (seconds_of(detail.get(field)) for field in ("startedAt", "finishedAt", "verifiedAt"))
            latest.setdefault(name, []).extend(written)
    found = {name: max((at for at in times if at is not None), default=view.at) for name, times in latest.items()}
    return {name: at - view.at for name, at in found.items() if at - view.at > SKEW_S}


def _behind(evidence: Evidence) -> dict[NodeName, float]:
    """A node whose Lease is not renewed is soon not Ready: what the control plane saw is newer than what it reads."""
    view = evidence.view
    ready = set(view.nodes or ()) - set(view.not_ready)
    renewed = {name: _renewed(lease) for name, lease in evidence.leases.items() if name in ready}
    return {name: view.at - at for name, at in renewed.items() if at is not None and view.at - at > LEASE_OLD_S}


def _renewed(lease: Object) -> float | None:
    return seconds_of((lease.get("spec") or {}).get("renewTime"))


def _peers(evidence: Evidence) -> Iterator[Check]:
    """By what they have given each other: a node that had a choice and took nothing reaches nobody, it seems."""
    took: set[NodeName] = set()
    alone: set[NodeName] = set()
    for key in evidence.view.caches:
        details = evidence.view.details(key)
        if not any(detail.get("bytesFromPeers") for detail in details.values()):
            continue
        for name, detail in details.items():
            if detail.get("bytesFromPeers"):
                took.add(name)
            elif detail.get("bytesFromOrigin"):
                alone.add(name)
    lonely = sorted(alone - took)
    if lonely:
        text = f"{name_nodes(lonely)} read all from the origin, while other nodes gave each other what they had"
        step = "is LOCALMODEL_PEER_PORT open between the Ray workers? Look at NetworkPolicies and firewalls"
        yield Check("peer ports", State.PROBLEM, text, step)
    elif took:
        yield Check("peer ports", State.OK, f"{len(took)} nodes took bytes from others")
    else:
        yield Check("peer ports", State.UNKNOWN, "no node has taken bytes from another yet")


def _roots(view: ClusterView) -> Iterator[tuple[NodeName, Mapping[str, Any]]]:
    for name, local in sorted(view.local_nodes.items()):
        for root in local.status.get("roots") or ():
            yield name, root


def _is_ours(crd: Object) -> bool:
    """Whether some version of localmodel made it: by its annotation, or by fields that KServe's do not have."""
    annotations = (crd.get("metadata") or {}).get("annotations") or {}
    status = (_schema(crd).get("properties") or {}).get("status") or {}
    return "localmodel/generated-from" in annotations or bool(
        {"conditions", "agent"} & set(status.get("properties") or {})
    )


def _schema(crd: Object) -> Mapping[str, Any]:
    versions = (crd.get("spec") or {}).get("versions") or [{}]
    found: Mapping[str, Any] = (versions[0].get("schema") or {}).get("openAPIV3Schema") or {}
    return found


def _fields(crd: Object) -> set[str]:
    """Paths of all fields of spec and status, but for those of Kubernetes' own types."""

    def below(schema: Mapping[str, Any], path: str) -> Iterator[str]:
        for name, child in (schema.get("properties") or {}).items():
            yield f"{path}.{name}"
            if not name.startswith("persistentVolume"):
                yield from below(child, f"{path}.{name}")
        if isinstance(schema.get("items"), Mapping):
            yield from below(schema["items"], path)

    return set(below(_schema(crd), ""))


_CHECKS: tuple[Callable[[Evidence], Iterator[Check]], ...] = (
    _api,
    _rbac,
    _definitions,
    _kuberay,
    _ray,
    _coordinator,
    _agents,
    _labels,
    _paths,
    _space,
    _clocks,
    _peers,
)
