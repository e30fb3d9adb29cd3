"""The world as objects say it, and as it would be if others were applied: a snapshot without a cluster. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from actors.messages import NodeName
from actors.times import rfc3339
from coordinator.kube.interface import NODES, PODS, Object, ResourceType
from coordinator.plan.forecast import agents_of
from coordinator.plan.pods import read_pod
from coordinator.plan.reading import read_cache, read_local_node, read_namespace_cache, read_node, read_node_group
from coordinator.plan.snapshot import CACHES, LOCAL_NODES, NAMESPACE_CACHES, NODE_GROUPS, Snapshot

KINDS: Mapping[str, ResourceType] = {
    kind.kind: kind for kind in (CACHES, NAMESPACE_CACHES, LOCAL_NODES, NODE_GROUPS, NODES, PODS)
}
"""What a dump may hold; other kinds are passed over."""
APPLIED = frozenset({CACHES.kind, NAMESPACE_CACHES.kind, NODE_GROUPS.kind})
"""What may be applied."""
T = TypeVar("T")
Objects = Mapping[str, Sequence[Object]]
"""By kind; a kind that is missing is not known."""


class NotApplicable(ValueError):
    """Why a manifest cannot be applied, in a sentence."""


def by_kind(objects: Iterable[object]) -> dict[str, list[Object]]:
    """Of single objects and Lists of them. Raises NotApplicable for what is no object."""
    found: dict[str, list[Object]] = defaultdict(list)
    for each in objects:
        if each is None:
            continue
        if not isinstance(each, Mapping) or not isinstance(each.get("kind"), str):
            raise NotApplicable("not a Kubernetes object: it has no kind")
        items = each.get("items")
        if each["kind"].endswith("List") and isinstance(items, list):
            kind = each["kind"].removesuffix("List")
            for name, of_kind in by_kind({"kind": kind, **item} if kind else item for item in items).items():
                found[name] += of_kind
        else:
            found[each["kind"]].append(each)
    return dict(found)


def applied(objects: Objects, manifests: Iterable[object], now: float) -> dict[str, list[Object]]:
    """The objects as they would be: a spec that is there is replaced, and its status stays. Raises NotApplicable."""
    after = {kind: list(each) for kind, each in objects.items()}
    for kind, wanted in by_kind(manifests).items():
        if kind not in APPLIED:
            raise NotApplicable(f"{kind} cannot be planned: {', '.join(sorted(APPLIED))} can")
        for each in wanted:
            _apply(after.setdefault(kind, []), kind, each, now)
    return after


def _apply(existing: list[Object], kind: str, wanted: Object, now: float) -> None:
    name = _name(wanted, kind)
    for index, each in enumerate(existing):
        if _name(each, kind) == name:
            was, will = (_uri(one) for one in (each, wanted))
            if kind != NODE_GROUPS.kind and was != will:
                raise NotApplicable(f"{kind} {name[1]}: sourceModelUri is immutable, and is {was}")
            metadata = {**each["metadata"], "generation": (each["metadata"].get("generation") or 0) + 1}
            existing[index] = {**each, "metadata": metadata, "spec": wanted.get("spec")}
            return
    metadata = {"creationTimestamp": rfc3339(now), "generation": 1, **wanted["metadata"]}
    existing.append({**wanted, "metadata": metadata})


def _name(each: Object, kind: str) -> tuple[str | None, str]:
    metadata = each.get("metadata")
    name = metadata.get("name") if isinstance(metadata, Mapping) else None
    if not isinstance(metadata, Mapping) or not isinstance(name, str) or not name:
        raise NotApplicable(f"{kind} without metadata.name")
    namespace = metadata.get("namespace") or "default"
    return (str(namespace) if kind == NAMESPACE_CACHES.kind else None), name


def _uri(each: Object) -> Any:
    spec = each.get("spec")
    return spec.get("sourceModelUri") if isinstance(spec, Mapping) else None


def snapshot_of(before: Objects, after: Objects, now: float, evict_idle_s: float | None = None) -> Snapshot:
    """`after`, with agents that report what `before` says of them. Pods that are not known are open everywhere."""
    known = {cache.key: cache for cache in _caches(before)}
    local_nodes = {NodeName(each.ref.name): each for each in _read(after.get(LOCAL_NODES.kind), read_local_node)}
    pods = None if PODS.kind not in after else [pod for pod in _read(after[PODS.kind], read_pod) if pod is not None]
    return Snapshot(
        owner="plan",
        caches={cache.key: cache for cache in _caches(after)},
        groups={group.ref.name: group for group in _read(after.get(NODE_GROUPS.kind), read_node_group)},
        nodes={node.name: node for node in _read(after.get(NODES.kind), read_node)},
        local_nodes=local_nodes,
        agents=agents_of(local_nodes, known, now),
        evict_idle_s=evict_idle_s,
        pods=pods,
    )


def _caches(objects: Objects) -> Iterable[Any]:
    yield from _read(objects.get(CACHES.kind), read_cache)
    yield from _read(objects.get(NAMESPACE_CACHES.kind), read_namespace_cache)


def _read(raw: Sequence[Object] | None, reader: Callable[[Object], T]) -> list[T]:
    return [reader(each) for each in raw or () if isinstance(each.get("metadata"), Mapping)]
