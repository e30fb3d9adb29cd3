"""The node tier alone: KServe's controller stays and decides, and the part of its node agents is taken. Pure.

    LocalModelNode.spec.localModels     what its node is to hold, as KServe's controller, or a person, has written it
    LocalModelNode.status.modelStatus   what has become of it, in KServe's words; nothing else is written

Each line is taken for a cache of the nodes that have it. Where the object that it came from is there, what that says
beside KServe's fields (revision, include, digest, …) counts, too. KServe's agent deletes every folder that no line
names. Here a copy goes when its node's list lacks it and no cache of its URI is left: a LocalModelNode that was deleted
by mistake comes back with one line at first, and must not empty the disk.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from actors.errors import Failure
from actors.manifest import StorageKey
from actors.messages import ModelReport, NodeName, Phase
from coordinator.api.resources import ModelStatus, NodeStatus, StatusKey
from coordinator.plan.access import asks_itself, with_contested
from coordinator.plan.snapshot import APART, Cache, LocalNode, Snapshot

_WORDS = {
    ModelStatus.PENDING: NodeStatus.PENDING,
    ModelStatus.DOWNLOADING: NodeStatus.DOWNLOADING,
    ModelStatus.DOWNLOADED: NodeStatus.DOWNLOADED,
    ModelStatus.ERROR: NodeStatus.ERROR,
}


class Order(NamedTuple):
    """One line of a node's list. `root` None: nothing says in which folder the model is to be."""

    key: StatusKey
    group: str
    root: str | None


Orders = tuple[Order, ...]


def followed(snapshot: Snapshot) -> Snapshot:
    """The same with a cache for every line of every node, in place of what the objects of caches want."""
    lines: dict[tuple[StatusKey, str], list[LocalNode]] = {}
    for local in sorted(snapshot.local_nodes.values(), key=lambda each: each.ref.name):
        for key, order in local.orders.items():
            lines.setdefault((key, order.source.uri), []).append(local)
    listed: dict[StatusKey, Cache] = {}
    for (key, uri), locals_ in lines.items():
        known = snapshot.caches.get(key)
        cache = _cache([local.orders[key] for local in locals_], known)
        if (known is not None and known.source.uri != uri) or key in listed:
            cache = replace(cache, key=_apart(cache))
        listed[cache.key] = cache
    snapshot = replace(snapshot, caches={**snapshot.caches, **listed}, follows=True)
    caches = dict(with_contested(snapshot))
    for key in listed:
        name = listed_as(key)
        caches[key] = replace(caches[key], status=_status(snapshot, caches[key], lines[name, caches[key].source.uri]))
    return replace(snapshot, caches=caches, services=None, volumes=None, claims=None)


def _cache(orders: Sequence[Cache], known: Cache | None) -> Cache:
    """`orders`: its lines, which have one name and one URI. `known`: the object of this name.

    What a refresh and a rollout remember stands in a cache's status, which is not ours here: there are none.
    """
    order = orders[0]
    groups = tuple(dict.fromkeys(group for each in orders for group in each.node_groups))
    if known is not None and known.source.uri == order.source.uri:
        order = replace(known, entry=order.entry, credentials=order.credentials, deleted_at=None)
        order = replace(order, refresh_s=None, refresh_request="", rollout=None)
    return replace(order, node_groups=groups, status={})


def _apart(cache: Cache) -> StatusKey:
    """Of a line with another URI than others of its name."""
    return StatusKey(f"{cache.key}{APART}{cache.storage_key}")


def listed_as(key: StatusKey) -> StatusKey:
    """The key under which nodes' lists and status have it."""
    return StatusKey(key.partition(APART)[0])


def _status(snapshot: Snapshot, cache: Cache, locals_: list[LocalNode]) -> Mapping[str, Any]:
    """The status that would be ours: words of nodes, and what the copies are that the cache has a right to.

    A line goes by its name, and a name may be another's by now. So for a cache that needs a proof (see `access`) only a
    copy of which the node's status says the same digest is one.
    """
    words: dict[str, str] = {}
    proof: Mapping[str, Any] = {}
    name, asks = listed_as(cache.key), asks_itself(cache)
    for local in locals_:
        word = (local.status.get("modelStatus") or {}).get(name)
        copy = _copy(snapshot, NodeName(local.ref.name), cache.storage_key)
        digest = _detail(local, name).get("digest") if asks else None
        shown = not asks or (digest is not None and (copy is None or copy.manifest_digest == digest))
        if word in _WORDS and (shown or word != ModelStatus.DOWNLOADED):
            words[local.ref.name] = _WORDS[ModelStatus(word)]
        if shown and not proof and (copy is not None or digest is not None):
            known = {"selection": cache.selection, "manifestDigest": digest}  # while the agent is silent
            if copy is not None:
                known = {"selection": copy.selection, "revision": copy.revision, "manifestDigest": copy.manifest_digest}
            proof = {field: value for field, value in known.items() if value is not None}
    return {"nodeStatus": words, **proof}


def _copy(snapshot: Snapshot, node: NodeName, key: StorageKey) -> ModelReport | None:
    found = snapshot.agent(node).models.get(key)
    return found if found is not None and found.phase is Phase.READY and found.earlier is None else None


def _detail(local: LocalNode, key: StatusKey) -> Mapping[str, Any]:
    details: Iterator[Mapping[str, Any]] = iter(local.status.get("models") or ())
    return next((each for each in details if each.get("name") == key), {})


def as_listed(status: Mapping[str, Any], local: LocalNode) -> Mapping[str, Any]:
    """The status of a LocalModelNode by the names of its lines.

    The digest of a copy stays while its agent is silent: it is the proof of those who have it.
    """
    words = {listed_as(key): word for key, word in status["modelStatus"].items()}
    models = []
    for each in status["models"]:
        name = listed_as(each["name"])
        digest = _detail(local, name).get("digest") if each["phase"] == "Ready" else None
        models.append({**({"digest": digest} if digest else {}), **each, "name": name})
    return {**status, "modelStatus": words, "models": models}


def orders_on(snapshot: Snapshot, node: NodeName, member_of: tuple[str, ...]) -> Orders:
    """The models that a node is to hold, and where. A line without a group is of its first, as in KServe."""
    local = snapshot.local_nodes.get(node)
    found = []
    for order in local.orders.values() if local is not None else ():
        cache = snapshot.caches.get(order.key)
        if cache is None or cache.source.uri != order.source.uri:
            cache = snapshot.caches.get(_apart(order))
        if cache is None:  # it is left out
            continue
        name = next(iter(order.node_groups or member_of), "")
        group = snapshot.groups.get(name)
        root = group.root if group is not None and cache.problem is None else None
        found.append(Order(cache.key, name, root))
    return tuple(sorted(found))


def refused(cache: Cache, group: str, root: str | None) -> Failure | None:
    """Why the line cannot be carried out, whatever the node says."""
    if cache.problem is not None:
        return Failure(cache.problem.reason, cache.problem.message, retryable=False)
    if root is not None:
        return None
    named = f"LocalModelNodeGroup {group} not found, or it has no usable path" if group else "no group selects the node"
    return Failure("NodeGroupNotFound", f"{named}, so nothing says in which folder the model is to be")


def unlisted(
    local: LocalNode | None, copies: Iterable[ModelReport], by_key: Mapping[StorageKey, Sequence[Cache]]
) -> list[ModelReport]:
    """The copies that go: the node's list is there and lacks them, and no cache of their URI is left.

    `by_key`: all caches, of which those with a uid are there as objects, too.
    """
    if local is None:
        return []
    listed = {order.storage_key for order in local.orders.values()}
    return [copy for copy in copies if copy.key not in listed and not any(map(_lives, by_key.get(copy.key, ())))]


def _lives(cache: Cache) -> bool:
    return bool(cache.ref.uid) and cache.deleted_at is None
