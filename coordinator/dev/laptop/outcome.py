"""How the caches of a laptop run stand: when waiting ends and why, the table, what was saved, and the JSON summary.

Pure: objects as read from the API server go in, values and rich tables come out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.table import Table
from rich.text import Text

from actors.sizes import format_bytes
from coordinator.api.resources import LocalModelCache, LocalModelNode, ModelStatus, NodeModelDetail, NodeStatus
from coordinator.dev.laptop.flags import repo_of

PHASE_STYLE = {"Ready": "green", "Failed": "red", "Downloading": "cyan", "Verifying": "cyan"}
_UNDER_WAY = frozenset({NodeStatus.PENDING, NodeStatus.DOWNLOADING, NodeStatus.EMPTY})
_HOPELESS = frozenset({"InsufficientStorage"})
"""Reasons to wait for that nothing on a laptop takes away."""
_WIDE, _MEDIUM = 100, 60


@dataclass(frozen=True, slots=True)
class Ending:
    """Why there is nothing more to wait for. `reason` is CamelCase and `Ready` if all went well."""

    reason: str
    message: str

    @property
    def ready(self) -> bool:
        return self.reason == "Ready"


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended. `caches` are those that were still there; `seconds` from apply to the end of waiting."""

    ending: Ending
    caches: tuple[LocalModelCache, ...] = ()
    nodes: tuple[LocalModelNode, ...] = ()
    seconds: float | None = None
    served: Mapping[str, Any] = field(default_factory=dict)

    def summary(self, kubeconfig: str | None) -> dict[str, Any]:
        """The JSON object of `--json`. `served` is what the origin counted, by repository."""
        document: dict[str, Any] = {
            "ready": self.ending.ready,
            "reason": self.ending.reason,
            "message": self.ending.message,
            "seconds": None if self.seconds is None else round(self.seconds, 2),
            "kubeconfig": kubeconfig,
            "caches": [_cache_summary(cache, self.nodes, self.served) for cache in self.caches],
        }
        return document if self.ending.ready else {**document, "error": self.ending.message}


def ready_condition(cache: LocalModelCache) -> tuple[bool, str, str]:
    """(ready, reason, message) of the Ready condition."""
    for condition in cache.status.conditions:
        if condition.type == "Ready":
            return condition.status == "True", condition.reason, condition.message
    return False, "", ""


def has_failed(cache: LocalModelCache, nodes: Iterable[LocalModelNode] = ()) -> bool:
    """Whether every node has either finished or failed, and at least one failed.

    A node that waits for room has failed too: on a laptop nobody makes any.
    """
    states = dict(cache.status.node_status)
    for name, detail in details(cache, nodes):
        if detail.reason in _HOPELESS and states.get(name) in _UNDER_WAY:
            states[name] = NodeStatus.ERROR
    return NodeStatus.ERROR in states.values() and not _UNDER_WAY & set(states.values())


def details(cache: LocalModelCache, nodes: Iterable[LocalModelNode]) -> list[tuple[str, NodeModelDetail]]:
    """What each node says of this cache, by node name."""
    key = cache.status_key
    return [(node.metadata.name, each) for node in nodes for each in node.status.models if each.name == key]


def is_told(cache: LocalModelCache, nodes: Iterable[LocalModelNode]) -> bool:
    """Whether it is Ready, and every node's own status says so too: the two are written one after the other."""
    key = cache.status_key
    told = {node.metadata.name for node in nodes if node.status.model_status.get(key) == ModelStatus.DOWNLOADED}
    return ready_condition(cache)[0] and told >= set(cache.status.node_status)


def ending(names: Iterable[str], caches: Sequence[LocalModelCache], nodes: Sequence[LocalModelNode]) -> Ending | None:
    """None while anything may still happen. A cache of `names` that is not among `caches` was deleted."""
    if any(not is_told(cache, nodes) and not has_failed(cache, nodes) for cache in caches):
        return None
    left = {cache.metadata.name for cache in caches}
    if deleted := [name for name in names if name not in left]:
        return Ending("Deleted", f"LocalModelCache {', '.join(deleted)} was deleted before this run ended")
    for cache in caches:
        if not is_told(cache, nodes):
            return _failure(cache, nodes)
    return Ending("Ready", f"{len(caches)} of {len(caches)} caches are Ready")


def unfinished(caches: Sequence[LocalModelCache], nodes: Sequence[LocalModelNode], timeout_s: float) -> Ending:
    """The ending of a run whose time ran out: how far each cache was."""
    open_caches = [cache for cache in caches if not is_told(cache, nodes)]
    said = []
    for cache in open_caches:
        _, reason, message = ready_condition(cache)
        far = f" at {cache.status.progress}" if cache.status.progress else ""
        said.append(f"{cache.metadata.name}{far}" + (f" ({reason}: {message})" if reason else ""))
    return Ending("Timeout", f"not Ready within {timeout_s:g} s: {'; '.join(said) or 'no cache was seen'}")


def _failure(cache: LocalModelCache, nodes: Sequence[LocalModelNode]) -> Ending:
    _, reason, message = ready_condition(cache)
    for name, detail in details(cache, nodes):
        if detail.reason in _HOPELESS and reason != detail.reason:
            return Ending(detail.reason or "", f"{name}: {detail.message}")
    return Ending(reason or "NotReady", message or f"{cache.metadata.name} is not Ready")


def progress(caches: Sequence[LocalModelCache]) -> str:
    """How far they are, in a line: `sample: 73%, 1/3 nodes, 4s left`."""
    said = []
    for cache in caches:
        status = cache.status
        parts = [status.progress, status.available and f"{status.available} nodes", status.eta and f"{status.eta} left"]
        if any(parts):
            said.append(f"{cache.metadata.name}: {', '.join(part for part in parts if part)}")
    return "; ".join(said)


def table(caches: Sequence[LocalModelCache], nodes: Sequence[LocalModelNode], columns: int = 120) -> Table:
    """Node, phase, bytes, rate, ETA: one row per node and model. What `columns` have no room for is left out."""
    grid = Table(box=None, pad_edge=False, header_style="bold")
    with_model = columns >= _MEDIUM or len(caches) > 1
    headings = ["NODE", *(["MODEL"] if with_model else []), "PHASE"]
    for heading in headings:
        grid.add_column(heading, no_wrap=True, overflow="ellipsis")
    for heading in ["BYTES", *(["RATE", "ETA"] if columns >= _MEDIUM else [])]:
        grid.add_column(heading, justify="right", no_wrap=True, overflow="ellipsis")
    if columns >= _WIDE:
        grid.add_column("REASON", overflow="fold")
    rows = []
    for node in sorted(nodes, key=lambda each: each.metadata.name):
        for model in node.status.models:
            reason = f"{model.reason}: {model.message}" if model.reason else ""
            rows.append((node.metadata.name, model.name, model, reason))
    for node_name, model_name, model, reason in rows:
        done, total = model.bytes_done or 0, model.bytes_total or 0
        grid.add_row(
            node_name,
            *([model_name] if with_model else []),
            Text(model.phase, PHASE_STYLE.get(model.phase, "default")),
            f"{format_bytes(done)} / {format_bytes(total)}" if total else "-",
            *(
                [
                    f"{format_bytes(model.rate_bytes_per_second)}/s" if model.rate_bytes_per_second else "-",
                    model.eta or "-",
                ]
                if columns >= _MEDIUM
                else []
            ),
            *([Text(reason)] if columns >= _WIDE else []),
        )
    for cache in caches:
        _, reason, message = ready_condition(cache)
        if not cache.status.node_status and reason and with_model:
            blank = ["-"] * (len(grid.columns) - (3 if columns >= _WIDE else 2))
            grid.add_row(
                "-", cache.metadata.name, *blank, *([Text(f"{reason}: {message}")] if columns >= _WIDE else [])
            )
    return grid


def saved(caches: Iterable[LocalModelCache], served: Mapping[str, Any]) -> str | None:
    """`origin read 1.00 times, 512Mi of 768Mi came from peers`; None if nothing is known to have been read."""
    total = from_origin = from_peers = 0
    for cache in caches:
        amounts = cache.status.bytes
        if amounts is None or not amounts.total:
            continue
        by_origin = served.get(repo_of(cache.spec.source_model_uri), {}).get("bytes")
        total += amounts.total
        from_origin += (amounts.from_origin or 0) if by_origin is None else by_origin
        from_peers += amounts.from_peers or 0
    if not from_origin + from_peers:
        return None
    part, whole = format_bytes(from_peers), format_bytes(from_origin + from_peers)
    return f"origin read {from_origin / total:.2f} times, {part} of {whole} came from peers"


def _cache_summary(
    cache: LocalModelCache, nodes: Iterable[LocalModelNode], served: Mapping[str, Any]
) -> dict[str, Any]:
    ready, reason, message = ready_condition(cache)
    amounts = cache.status.bytes
    total = amounts.total if amounts else None
    by_origin = served.get(repo_of(cache.spec.source_model_uri), {}).get("bytes")
    return {
        "name": cache.metadata.name,
        "ready": ready,
        "reason": reason,
        "message": message,
        "nodes": cache.status.copies.available if cache.status.copies else 0,
        "bytesTotal": total,
        "bytesFromOrigin": amounts.from_origin if amounts else None,
        "bytesFromPeers": amounts.from_peers if amounts else None,
        "bytesFromOtherZones": amounts.from_other_zones if amounts else None,
        "perNode": {
            name: {
                "bytesFromOrigin": model.bytes_from_origin,
                "bytesFromPeers": model.bytes_from_peers,
                "bytesFromOtherZones": model.bytes_from_other_zones,
            }
            for name, model in details(cache, nodes)
        },
        "originServedBytes": by_origin,
        "amplification": round(by_origin / total, 4) if by_origin is not None and total else None,
        "manifestDigest": cache.status.manifest_digest,
    }
