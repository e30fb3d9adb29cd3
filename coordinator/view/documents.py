"""Rows, causes and savings as JSON documents. docs/json.md describes their fields; what is not known is absent."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from actors.times import rfc3339
from coordinator.view.causes import Cause
from coordinator.view.rows import CacheRow, CopyRow, totals
from coordinator.view.savings import Saving


def status_document(found: Iterable[CacheRow], notes: Iterable[str], at: str) -> dict[str, Any]:
    """The document of `localmodel status --json`."""
    each = list(found)
    whole = totals(each)
    share = whole.amplification
    return {
        "at": at,
        "caches": [_cache_json(row) for row in each],
        "totals": _known(
            caches=whole.caches,
            ready=whole.ready,
            copies=whole.copies,
            available=whole.available,
            bytesCached=whole.cached,
            bytesWanted=whole.wanted,
            rateBytesPerSecond=whole.rate,
            bytesFromOrigin=whole.origin,
            bytesFromPeers=whole.peers,
            bytesFromOtherZones=whole.other_zones,
            amplification=None if share is None else round(share, 4),
        ),
        "notes": list(notes),
    }


def _cache_json(row: CacheRow) -> dict[str, Any]:
    return _known(
        cache=row.key,
        ready=row.ready,
        reason=row.reason,
        message=row.message,
        deleting=row.deleting,
        source=row.uri,
        revision=row.revision,
        nodeGroups=list(row.groups),
        nodes=row.nodes,
        available=row.available,
        failed=row.failed,
        bytesTotal=row.size,
        bytesCached=row.cached,
        rateBytesPerSecond=row.rate,
        eta=row.eta,
        bytesFromOrigin=row.origin,
        bytesFromPeers=row.peers,
        bytesFromOtherZones=row.other_zones,
        startedAt=row.started,
        completedAt=row.completed,
        copies=[_copy_json(copy) for copy in row.copies],
        versions=[
            {"version": each.name, "state": each.state, "nodes": each.nodes, "beside": each.beside}
            for each in row.versions
        ],
    )


def _copy_json(row: CopyRow) -> dict[str, Any]:
    return _known(
        node=row.node,
        phase=row.phase,
        bytesDone=row.done,
        bytesTotal=row.total,
        rateBytesPerSecond=row.rate,
        eta=row.eta,
        slow=row.slow_beside is not None,
        bytesFromOrigin=row.origin,
        bytesFromPeers=row.peers,
        bytesFromOtherZones=row.other_zones,
        attempt=row.attempt,
        reason=row.reason,
        message=row.message,
        retryTime=None if row.retry_at is None else rfc3339(row.retry_at),
        revision=row.revision,
    )


def causes_document(key: str, ready: bool | None, causes: Iterable[Cause], at: str) -> dict[str, Any]:
    """The document of `localmodel status --why --json`."""
    return {
        "at": at,
        **_known(cache=key, ready=ready),
        "causes": [
            _known(depth=each.depth, text=each.text, reason=each.reason, next=each.next_step) for each in causes
        ],
    }


def savings_document(each: Iterable[Saving], whole: Saving, at: str) -> dict[str, Any]:
    """The document of `localmodel status --saved --json`."""
    return {"at": at, "caches": [_saving_json(one) for one in each], "totals": _saving_json(whole)}


def _saving_json(one: Saving) -> dict[str, Any]:
    share = one.amplification
    return _known(
        cache=one.key or None,
        copies=one.copies,
        bytesTotal=one.size,
        bytesFromOrigin=one.origin,
        bytesFromPeers=one.peers,
        bytesFromOtherZones=one.other_zones,
        amplification=None if share is None else round(share, 4),
        bytesSaved=one.saved,
        since=one.since,
    )


def _known(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}
