"""The status of a cache as it is written: a table of its fields, each a function of what is known.

An earlier value stands where it is still about the same content and nobody has said anything newer: a restarted
coordinator, a silent agent and a source that is down take nothing back. Conditions are in `verdicts`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from actors.messages import NodeName
from actors.sizes import format_bytes, say_bytes
from actors.times import rfc3339
from actors.transferred import BY_NODE, CAMEL, Transferred
from coordinator.kube.quantity import format_duration, format_percent
from coordinator.plan.access import Access, asks_itself
from coordinator.plan.tally import Tally
from coordinator.plan.versions import short_revision as short_revision


@dataclass(frozen=True, slots=True)
class Standing:
    """What all fields go by. `moved` is the sum over nodes. `kept`: what was written is about what is still there.

    `answered`: it is known what the present spec comes to. `size_bytes` is of one copy; None where nobody knows it.
    """

    tally: Tally
    moved: Transferred
    kept: bool
    answered: bool
    size_bytes: int | None

    @classmethod
    def of(cls, tally: Tally) -> Standing:
        cache, source, written = tally.cache, tally.source, tally.cache.status
        same = written.get("selection") == cache.selection  # what was written answers the present spec
        kept = same or tally.earlier > 0
        measured = tally.available > tally.unmeasured and not tally.earlier
        answered = same or measured or source.resolved is not None or source.total_bytes is not None
        if asks_itself(cache):
            kept = kept and Access.of(cache, source).proof is not None
            answered = source.answered or (same and kept)
        if any(failure.reason == "SourceConflict" for _, failure, _ in tally.troubles):
            answered = same and kept
        size = tally.size_bytes or ((written.get("bytes") if kept else None) or {}).get("total")
        return cls(tally, tally.moved, kept, answered, size)

    def written(self, name: str) -> Any:
        """What stands in the status and still holds; None: nothing does."""
        return self.tally.cache.status.get(name) if self.kept else None

    @property
    def bytes_cached(self) -> int:
        return self.tally.bytes_cached + self.tally.unmeasured * (self.size_bytes or 0)

    @property
    def complete(self) -> bool:
        return self.tally.total > 0 and self.tally.available == self.tally.total


def cache_numbers(tally: Tally) -> dict[str, Any]:
    """The status of a cache except its conditions. A value of None means that the field is absent."""
    standing = Standing.of(tally)
    identity = _identity(standing)
    named = {"shortRevision": short_revision(identity["revision"])}
    return {name: value(standing) for name, value in _FIELDS.items()} | identity | named


def _moved(it: Standing) -> str | None:
    """`origin 15.3Gi (1.00 times), peers 45.9Gi`; None if nothing was read."""
    moved, size = it.moved, it.size_bytes
    if size is None or not moved.bytes_from_origin + moved.bytes_from_peers:
        return None
    times = f" ({moved.bytes_from_origin / size:.2f} times)" if size else ""
    text = f"origin {say_bytes(moved.bytes_from_origin)}{times}, peers {say_bytes(moved.bytes_from_peers)}"
    zones = moved.bytes_from_other_zones
    return f"{text}, {say_bytes(zones)} of it from other zones" if zones else text


def _copies(it: Standing) -> dict[str, int]:
    """As in KServe, a number that is absent is 0."""
    copies = {"available": it.tally.available, "failed": it.tally.failed, "total": it.tally.total}
    return {name: count for name, count in copies.items() if count}


def _bytes(it: Standing) -> dict[str, Any] | None:
    if it.size_bytes is None:
        return None
    moved: dict[str, Any] = {
        "total": it.size_bytes,
        "cached": it.bytes_cached,
        **{_in_bytes(name): amount for name, amount in it.moved.amounts.items()},
    }
    if it.size_bytes:
        moved["amplification"] = f"{it.moved.bytes_from_origin / it.size_bytes:.2f}"
    return moved


def _in_bytes(name: str) -> str:
    """`bytesFromOrigin` is `bytes.fromOrigin`."""
    short = name.removeprefix("bytes")
    return short[:1].lower() + short[1:]


def _wrong(name: str) -> Callable[[Standing], Any]:
    return lambda it: _at_least(it.moved.by_node[name], it.written(name))


def _progress(it: Standing) -> str | None:
    if it.size_bytes is None or not it.tally.total:
        return None
    return format_percent(it.bytes_cached, it.size_bytes * it.tally.total)


def _started_at(it: Standing) -> str | None:
    """The first of all that is known: agents forget it."""
    started, was = it.tally.started_at, it.written("startedAt")
    known = [rfc3339(started)] if started is not None else []
    return min([*known, was] if isinstance(was, str) else known, default=None)


def _completed_at(it: Standing) -> str | None:
    if not it.complete:
        return None
    finished = rfc3339(it.tally.finished_at) if it.tally.finished_at is not None else None
    if it.tally.unmeasured == 0:
        return finished or None
    return it.written("completedAt") or finished


def _eta(it: Standing) -> str | None:
    return format_duration(it.tally.seconds_left) if it.tally.seconds_left is not None else None


_FIELDS: Mapping[str, Callable[[Standing], Any]] = {
    "nodeStatus": lambda it: it.tally.node_status,
    "copies": _copies,
    "observedGeneration": lambda it: it.tally.cache.generation,
    "bytes": _bytes,
    "moved": _moved,
    "rateBytesPerSecond": lambda it: int(it.tally.rate) or None,
    "rate": lambda it: f"{format_bytes(int(it.tally.rate))}/s" if int(it.tally.rate) else None,
    "eta": _eta,
    "progress": _progress,
    "available": lambda it: f"{it.tally.available}/{it.tally.total}",
    "size": lambda it: format_bytes(it.size_bytes) if it.size_bytes is not None else None,
    "startedAt": _started_at,
    "completedAt": _completed_at,
    "credentialsOnNodes": lambda it: it.tally.source.carries_options or None,
    **{CAMEL[name]: _wrong(CAMEL[name]) for name in BY_NODE},
}


def _identity(it: Standing) -> dict[str, str | None]:
    """Which content the rest of the status is about: that of earlier copies until no node holds one any more."""
    tally, cache, source = it.tally, it.tally.cache, it.tally.source
    before = {name: it.written(name) for name in ("selection", "revision", "manifestDigest", "resolvedAs")}
    if it.kept and (tally.earlier or not it.answered):
        return before
    asks = it.answered and asks_itself(cache)
    return {
        "selection": cache.selection if it.answered else None,
        "revision": source.revision or tally.revision or before["revision"],
        "manifestDigest": tally.manifest_digest or source.manifest_digest or before["manifestDigest"],
        "resolvedAs": (cache.credentials.name if source.answered else before["resolvedAs"]) if asks else None,
    }


def _at_least(counts: Mapping[NodeName, int], written: Mapping[str, int] | None) -> dict[str, int] | None:
    """No count falls below what was written: agents that have not been heard yet are missing from `counts`."""
    known = written or {}
    return {**known, **{name: max(count, known.get(name, 0)) for name, count in counts.items()}} or None
