"""What `kubectl get` prints: objects as a meta.k8s.io/v1 Table, by additionalPrinterColumns."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any

from coordinator.dev.apiserver import jsonpath
from coordinator.dev.apiserver.errors import Object
from coordinator.dev.apiserver.kinds import Column, Kind


def table(kind: Kind, objects: Iterable[Object], meta: Object, now: datetime, include: str = "Metadata") -> Object:
    """`include` (Metadata, Object, None) says how much of each object comes with its row."""
    columns = [Column("Name", "", format="name", description="Name must be unique within a namespace."), *kind.columns]
    return {
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": meta,
        "columnDefinitions": [
            {
                "name": c.name,
                "type": _shown_type(c),
                "format": c.format,
                "description": c.description,
                "priority": c.priority,
            }
            for c in columns
        ],
        "rows": [_row(kind, value, now, include) for value in objects],
    }


def partial(value: Object) -> Object:
    return {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": value["metadata"]}


def _shown_type(column: Column) -> str:
    return "string" if column.type == "date" and column.json_path in _COMPUTED else column.type


def _row(kind: Kind, value: Object, now: datetime, include: str) -> Object:
    cells = [value["metadata"]["name"], *(_cell(value, column, now) for column in kind.columns)]
    row: Object = {"cells": cells}
    if include == "Metadata":
        row["object"] = partial(value)
    elif include == "Object":
        row["object"] = value
    return row


def _cell(value: Object, column: Column, now: datetime) -> Any:
    if column.json_path in _COMPUTED:
        found = [_COMPUTED[column.json_path](value)]
    else:
        found = jsonpath.find(value, column.json_path)
    if not found or found[0] is None:
        return None
    first = found[0]
    if column.type == "date":
        return age(first, now)
    if column.type in ("integer", "number", "boolean"):
        return first if isinstance(first, int | float) else None
    if len(found) == 1 and isinstance(first, str):
        return first
    if len(found) == 1 and isinstance(first, list):
        return ",".join(map(str, first)) if all(isinstance(item, str) for item in first) else str(first)
    return ",".join(_text(item) for item in found)


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def age(timestamp: object, now: datetime) -> str:
    """Time passed since an RFC 3339 time, as kubectl shows it: 42s, 3m20s, 7h5m, 12d."""
    try:
        since = datetime.fromisoformat(str(timestamp))
    except ValueError:
        return "<invalid>"
    return human_duration((now - (since if since.tzinfo else since.replace(tzinfo=UTC))).total_seconds())


def human_duration(seconds_passed: float) -> str:
    """The two largest units while they are small, then one."""
    seconds = int(seconds_passed)
    if seconds < -1:
        return "<invalid>"
    seconds = max(seconds, 0)
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86400
    if seconds < 120:
        return f"{seconds}s"
    if minutes < 10:
        return _two(minutes, "m", seconds % 60, "s")
    if minutes < 180:
        return f"{minutes}m"
    if hours < 8:
        return _two(hours, "h", minutes % 60, "m")
    if hours < 48:
        return f"{hours}h"
    if days < 8:
        return _two(days, "d", hours % 24, "h")
    if days < 2 * 365:
        return f"{days}d"
    if days < 8 * 365:
        return _two(days // 365, "y", days % 365, "d")
    return f"{days // 365}y"


def _two(first: int, unit: str, second: int, smaller: str) -> str:
    return f"{first}{unit}{second}{smaller}" if second else f"{first}{unit}"


def _node_status(node: Object) -> str:
    ready = [c["status"] for c in node.get("status", {}).get("conditions", ()) if c.get("type") == "Ready"]
    word = {"True": "Ready"}.get(ready[0], "NotReady") if ready else "Unknown"
    return word + (",SchedulingDisabled" if node.get("spec", {}).get("unschedulable") else "")


def _node_roles(node: Object) -> str:
    prefix = "node-role.kubernetes.io/"
    roles = [label.removeprefix(prefix) for label in node["metadata"].get("labels", {}) if label.startswith(prefix)]
    return ",".join(sorted(filter(None, roles))) or "<none>"


def _event_object(event: Object) -> str:
    about = event.get("involvedObject", {})
    return f"{about.get('kind', '').lower()}/{about.get('name', '')}"


def _event_last_seen(event: Object) -> object:
    return event.get("lastTimestamp") or event.get("eventTime") or event["metadata"].get("creationTimestamp")


def _data_count(value: Object) -> str:
    return str(len(value.get("data") or {}) + len(value.get("binaryData") or {}))


def _webhook_count(value: Object) -> int:
    return len(value.get("webhooks") or ())


_COMPUTED: dict[str, Callable[[Object], object]] = {
    "node-status": _node_status,
    "node-roles": _node_roles,
    "event-object": _event_object,
    "event-last-seen": _event_last_seen,
    "data-count": _data_count,
    "webhook-count": _webhook_count,
}
"""Columns of built-in kinds that no JSONPath says."""
