"""Which caches nobody uses, and since when.

    in use   a pod mounts it on whatever node: KServe places the next replica of a service by the group's volume, not by
             where copies are, so it may come to any of the group's nodes
             an InferenceService or LLMInferenceService is listed in its status, also one that is scaled to zero
    unused   since `status.unusedSince`, which is written once when nobody is seen to use it, and removed when somebody
             is; unknown counts as in use

So the last use survives whatever restarts. A pod that came and went while no coordinator was watching was not seen.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from math import ceil
from pathlib import PurePosixPath

from actors.manifest import StorageKey, second_key
from actors.messages import NodeName
from coordinator.api.resources import StatusKey
from coordinator.plan.orphans import key_of
from coordinator.plan.pods import Pod
from coordinator.plan.snapshot import Cache, Snapshot


@dataclass(frozen=True, slots=True)
class Usage:
    """`since`: epoch seconds, for the caches that nobody uses. `known`: pods were looked at for it.

    `folders` are mounted as a whole on a node (None: on any), so all that is in them is in use there; `broad` are those
    that reach what is further down too. `/` is not among these, nor is what a DaemonSet mounts: monitoring, drivers of
    volumes and the like look at the disk and not at models.
    """

    since: Mapping[StatusKey, float] = field(default_factory=dict)
    known: bool = False
    folders: frozenset[tuple[NodeName | None, str]] = frozenset()
    broad: frozenset[tuple[NodeName | None, str]] = frozenset()

    def covers(self, node: NodeName, root: str) -> bool:
        """Whether some pod on this node mounts all of the root's models at once."""
        paths = (root, f"{root.rstrip('/')}/models")
        if any((name, path) in self.folders for name in (node, None) for path in paths):
            return True
        above = [str(parent) for parent in PurePosixPath(root).parents] if self.broad else []
        return any((name, path) in self.broad for name in (node, None) for path in above)


def usage(snapshot: Snapshot, now: float) -> Usage:
    """Nobody watches: nothing is known. Pods cannot be watched at the moment: what is written still holds."""
    if snapshot.evict_idle_s is None:
        return Usage()
    caches = snapshot.caches.values()
    if snapshot.pods is None:
        return Usage({cache.key: cache.unused_since for cache in caches if cache.unused_since is not None})
    found = used(snapshot.caches, snapshot.groups, snapshot.pods)
    mounted = whole_folders(snapshot.pods)
    unused = (cache for cache in caches if cache.key not in found and not cache.served)
    first = float(ceil(now))  # as it will be written, in whole seconds, and not too early
    since = {cache.key: first if cache.unused_since is None else cache.unused_since for cache in unused}
    return replace(mounted, since=since, known=True)


def whole_folders(pods: Iterable[Pod]) -> Usage:
    """What these pods mount as a whole, and nothing else."""
    pods = list(pods)
    users = [pod for pod in pods if not pod.daemon]
    return Usage(
        folders=frozenset((pod.node, folder) for pod in pods for folder in pod.folders),
        broad=frozenset((pod.node, folder) for pod in users for folder in pod.folders if folder != "/"),
    )


def users_on(snapshot: Snapshot, node: NodeName) -> dict[StorageKey, list[Pod]] | None:
    """What pods on this node may have open, by the last look at them. None: nobody has looked, or could.

    A pod that mounts the whole folder may have everything open that the node's agent reports.
    """
    look = snapshot.looks.get(node)
    if look is None or look.failure is not None:
        return None
    view = snapshot.agents.get(node)
    report = view.report if view is not None else None
    everything = {model.key for model in report.models} | report.aside if report is not None else frozenset()
    roots = [root.path for root in report.roots] if report is not None else []
    users: dict[StorageKey, list[Pod]] = {}
    local = snapshot.local_nodes.get(node)
    listed = local.listed if local is not None else {}
    for pod in {*look.pods, *(pod for pod in snapshot.pods or () if pod.node == node)}:
        caches = [snapshot.caches[key] for key in used(snapshot.caches, snapshot.groups, [pod])]
        keys = {key for cache in caches for key in _folders(cache)}
        keys |= {key for key in everything if key in pod.words}
        keys |= {key_of(entry) for name, entry in listed.items() if _came_for(pod, name, entry)}
        if pod.folders and any(whole_folders([pod]).covers(node, root) for root in roots):
            keys |= everything
        for key in keys:
            users.setdefault(key, []).append(pod)
    return users


def _came_for(pod: Pod, name: StatusKey, entry: Mapping[str, object]) -> bool:
    """Whether the pod uses by name what a line of its node is about, also where the cache or its group is gone."""
    if pod.labelled == name:
        return True
    claim = f"{entry.get('modelName')}-{entry.get('nodeGroup')}"
    return claim in pod.claims and entry.get("namespace") in (None, "", pod.namespace)


def oldest_users(snapshot: Snapshot, node: NodeName) -> dict[StorageKey, float] | None:
    """What pods on this node may have open, with the oldest such pod's creation by the clock of the node's agent.

    None: nobody has just looked.
    """
    users = users_on(snapshot, node) if node in snapshot.looked_at else None
    if users is None:
        return None
    view = snapshot.agents.get(node)
    oldest = {key: min(pod.created for pod in pods) for key, pods in users.items()}
    return oldest if view is None else {key: view.by_its_clock(at) for key, at in oldest.items()}


def used(caches: Mapping[StatusKey, Cache], groups: Iterable[str], pods: Iterable[Pod]) -> set[StatusKey]:
    """What these pods use by name. `groups` are all node groups: a claim outlives its group's place in a spec."""
    groups, found = frozenset(groups), set[StatusKey]()
    by_folder: dict[str, list[StatusKey]] = {}
    for cache in caches.values():
        for folder in _folders(cache):
            by_folder.setdefault(folder, []).append(cache.key)
    for pod in pods:
        if pod.labelled is not None and pod.labelled in caches:
            found.add(pod.labelled)
        for claim in pod.claims:
            found.update(_claimed(caches, groups, pod.namespace, claim))
        for word in pod.words & by_folder.keys():
            found.update(by_folder[word])
    return found


def _folders(cache: Cache) -> list[StorageKey]:
    """By which names a pod may have mounted it: see `actors.disk.second_names`."""
    second = second_key(cache.source.uri)
    return [cache.storage_key, *([second] if second is not None else [])]


def _claimed(
    caches: Mapping[StatusKey, Cache], groups: frozenset[str], namespace: str, claim: str
) -> Iterator[StatusKey]:
    """Every cache whose claim this may be: names may contain dashes, so there can be several."""
    for position, letter in enumerate(claim):
        if letter != "-":
            continue
        name, group = claim[:position], claim[position + 1 :]
        for key in (StatusKey(name), StatusKey(f"{namespace}/{name}")):
            cache = caches.get(key)
            if cache is not None and (group in groups or group in cache.node_groups):
                yield key
