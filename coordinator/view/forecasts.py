"""A forecast as lines for people, and as the document of `localmodel plan --json`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from actors.sizes import format_bytes, say_bytes
from coordinator.kube.quantity import format_duration
from coordinator.plan.conditions import name_nodes
from coordinator.plan.forecast import Assumed, Forecast, Item, Verdict

_ORDER = (
    Verdict.NO_ROOM,
    Verdict.UNKNOWN,
    Verdict.MAKES_ROOM,
    Verdict.REFETCHED,
    Verdict.FETCHED,
    Verdict.ARRIVING,
    Verdict.KEPT,
)


def lines(found: Forecast, assumed: Assumed, every: bool = False) -> Iterator[str]:
    """Troubles first. Nodes to which the same happens for the same reason share a line, unless `every`."""
    for key, why in found.unplaced.items():
        yield f"{key} on no node: {why}"
    for verdict in _ORDER:
        alike: dict[tuple[str, ...], list[Item]] = {}
        for item in found.items:
            if item.verdict is verdict:
                alike.setdefault((*item.caches, item.why, item.node if every else ""), []).append(item)
        for items in alike.values():
            first = items[0]
            where = name_nodes(item.node for item in items)
            numbers = f"{say_bytes(first.needed_bytes, up=True)}, {say_bytes(min(i.free_bytes for i in items))} free"
            why = f": {first.why}" if first.why else f" ({numbers})"
            yield f"{', '.join(first.caches)} on {where}: {verdict}{why}"
    for each in found.evictions:
        yield f"evicted: {each.reason}"
    for gone in found.lost:
        yield f"removed: {', '.join(gone.caches) or gone.key} from {gone.node} ({gone.reason})"
    yield ""
    moving = found.moving
    origin, peers, zones = map(say_bytes, (moving.origin_bytes, moving.peer_bytes, moving.zone_bytes))
    yield f"bytes: {origin} from the origin, {peers} from other nodes, {zones} of it across zones"
    if found.moving.seconds:
        times = [found.ready_in(share) or 0.0 for share in (0.0, 0.5, 1.0)]
        begun, middle, last = map(format_duration, times)
        yield f"time: first node ready in {begun}, half of {len(found.moving.seconds)} in {middle}, the last in {last}"
    else:
        yield "time: nothing is fetched"
    yield f"assumed: {assumptions(found, assumed)}"
    counts = Counter(str(item.verdict) for item in found.items)
    said = ", ".join(f"{count} {verdict}" for verdict in _ORDER if (count := counts[str(verdict)]))
    yield f"{said or 'no copies'}; {len(found.evictions)} evicted, {len(found.lost)} removed; nothing was written"


def assumptions(found: Forecast, assumed: Assumed) -> str:
    measured = len(found.moving.links)
    links = (
        f"links as measured in earlier fills of {measured} nodes"
        if measured
        else f"links of {format_bytes(int(assumed.link_bytes_per_s))}/s, since none was measured"
    )
    return (
        f"{links}, {format_bytes(int(found.moving.origin_bytes_per_s))}/s from the origin,"
        f" {say_bytes(assumed.headroom_bytes)} kept free on each disk,"
        " disks as last written (to 1%), and sizes of spec.modelSize where none was measured"
    )


def document(found: Forecast, assumed: Assumed) -> dict[str, Any]:
    times = {name: found.ready_in(share) for name, share in (("first", 0.0), ("median", 0.5), ("last", 1.0))}
    return {
        "harmless": found.harmless,
        "copies": [
            {
                "node": item.node,
                "caches": list(item.caches),
                "root": item.root,
                "verdict": item.verdict.name,
                "neededBytes": item.needed_bytes,
                "freeBytes": item.free_bytes,
                **({"why": item.why} if item.why else {}),
            }
            for item in found.items
        ],
        "unplaced": [{"cache": key, "why": why} for key, why in found.unplaced.items()],
        "evicted": [
            {
                "node": each.node,
                "caches": list(each.caches),
                "bytes": each.size_bytes,
                "forCaches": list(each.for_caches),
            }
            for each in found.evictions
        ],
        "removed": [{"node": each.node, "caches": list(each.caches), "reason": each.reason} for each in found.lost],
        "bytesFromOrigin": found.moving.origin_bytes,
        "bytesFromPeers": found.moving.peer_bytes,
        "bytesFromOtherZones": found.moving.zone_bytes,
        "seconds": {name: round(value, 1) for name, value in times.items() if value is not None},
        "assumed": assumptions(found, assumed),
    }
