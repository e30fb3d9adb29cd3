"""Our way: a LocalModelCache is applied, and the clock stops when its condition says Ready."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from coordinator.api.resources import GROUP, VERSION, LocalModelCache
from coordinator.kube.interface import Kube, NotFound, Object
from coordinator.plan.snapshot import CACHES, NAMESPACE_CACHES

POLL_S = 0.2
GONE_S = 300.0


class Unmeasured(Exception):
    """There is no figure. The message says why, and what to do."""


@dataclass(frozen=True, slots=True)
class Fill:
    """Seconds are from the moment the object was sent. `nodes`: when each was seen to be done. `bytes`: of one copy."""

    seconds: float
    nodes: Mapping[str, float]
    bytes: int
    from_origin: int
    from_peers: int

    @property
    def amplification(self) -> float:
        return self.from_origin / max(self.bytes, 1)


def manifest(name: str, uri: str, groups: list[str], size: str, **spec: Any) -> Object:
    return {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": LocalModelCache.KIND,
        "metadata": {"name": name},
        "spec": {"sourceModelUri": uri, "modelSize": size, "nodeGroups": groups, **spec},
    }


def refuse_warm(kube: Kube, uri: str) -> None:
    """No cache has this URI, so that no node has been told of the model. Raises Unmeasured."""
    for kind in (CACHES, NAMESPACE_CACHES):
        try:
            found, _ = kube.list(kind)
        except NotFound as error:
            raise Unmeasured("the cluster does not know LocalModelCache: kubectl apply -k k8s/base") from error
        for each in found:
            if each.get("spec", {}).get("sourceModelUri") == uri:
                name = each["metadata"]["name"]
                raise Unmeasured(f"cache {name} has {uri} already: its nodes are not cold; delete it, or name another")


def fill(kube: Kube, cache: Object, timeout_s: float, say: Callable[[str], None]) -> Fill:
    """Creates the cache and returns when it is Ready. Raises Unmeasured, with the condition's words, if it is late."""
    name = cache["metadata"]["name"]
    seen: dict[str, float] = {}
    said = ""
    began = time.monotonic()
    kube.create(CACHES, cache)
    while True:
        status: Mapping[str, Any] = kube.get(CACHES, name).get("status") or {}
        now = time.monotonic() - began
        for node, state in (status.get("nodeStatus") or {}).items():
            if state == "NodeDownloaded":
                seen.setdefault(node, now)
        ready: Mapping[str, Any] = next(
            (each for each in status.get("conditions") or () if each["type"] == "Ready"), {}
        )
        if ready.get("status") == "True":
            break
        if now > timeout_s:
            reason, message = ready.get("reason", "no condition"), ready.get("message", "is the coordinator running?")
            raise Unmeasured(f"{name} was not Ready within {timeout_s:g} s: {reason}: {message}")
        news = f"{status.get('available', '0/?')} nodes, {status.get('progress', '0%')}, {ready.get('reason', '')}"
        if news != said:
            say(f"{now:6.1f}s  {news}")
            said = news
        time.sleep(POLL_S)
    moved = status.get("bytes") or {}
    if "total" not in moved:
        raise Unmeasured("status has no `bytes`: the definitions are KServe's; kubectl apply --server-side -f k8s/crds")
    return Fill(now, seen, moved["total"], moved.get("fromOrigin") or 0, moved.get("fromPeers") or 0)


def remove(kube: Kube, name: str) -> None:
    """The cache is gone, and its copies with it: the next run starts cold. Raises Unmeasured if it stays."""
    try:
        kube.delete(CACHES, name)
    except NotFound:
        return
    deadline = time.monotonic() + GONE_S
    while time.monotonic() < deadline:
        try:
            kube.get(CACHES, name)
        except NotFound:
            return
        time.sleep(POLL_S)
    raise Unmeasured(f"cache {name} is still being deleted after {GONE_S:g} s: localmodel status --why {name}")
