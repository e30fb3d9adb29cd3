"""What stands in a status, read back: each field is as we write it, or is not there. Anybody may have written it.

Numbers are whole and fit into 64 bits, times can be parsed, lists hold objects with a name. What is junk within a
mapping keeps its key with an empty value, so that the next merge patch mends or removes it; other junk is left out, and
written anew.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from actors.times import seconds_of
from coordinator.kube.quantity import LARGEST

_Reader = Callable[[object], Any]
"""The value as it may be relied on; None: junk."""


def read_fields(status: object, fields: Mapping[str, _Reader]) -> dict[str, Any]:
    """The known fields of `status` that are not junk."""
    if not isinstance(status, Mapping):
        return {}
    read = ((name, fields[name](value)) for name, value in status.items() if name in fields)
    return {name: value for name, value in read if value is not None}


def text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= LARGEST else None


def flag(value: object) -> bool | None:
    return value if isinstance(value, bool) else None


def time(value: object) -> str | None:
    return value if isinstance(value, str) and seconds_of(value) is not None else None


def words(value: object) -> dict[str, str] | None:
    return {name: text(word) or "" for name, word in value.items()} if isinstance(value, Mapping) else None


def texts(value: object) -> list[str] | None:
    return value if isinstance(value, list) and all(isinstance(each, str) for each in value) else None


def counts(value: object) -> dict[str, int] | None:
    return {name: count(number) or 0 for name, number in value.items()} if isinstance(value, Mapping) else None


def fields_of(**fields: _Reader) -> _Reader:
    """Reads an object of these fields; others keep their name, and are empty."""

    def read(value: object) -> dict[str, Any] | None:
        if not isinstance(value, Mapping):
            return None
        return {name: fields[name](item) if name in fields else None for name, item in value.items()}

    return read


def items_of(key: str, **fields: _Reader) -> _Reader:
    """Reads a list of objects with these fields, of which `key` is text and tells them apart. Others are left out."""
    readers = {key: text, **fields}

    def read(value: object) -> list[dict[str, Any]] | None:
        if not isinstance(value, list):
            return None
        items = [read_fields(item, readers) for item in value]
        known = {item[key]: item for item in items if key in item}
        return list(known.values())

    return read


def listed(*fields: str) -> _Reader:
    """Reads a list of objects of these texts, whatever else is in them."""

    def read(value: object) -> list[dict[str, Any]] | None:
        if not isinstance(value, list):
            return None
        return [read_fields(item, dict.fromkeys(fields, text)) for item in value]

    return read


CONDITIONS = items_of("type", status=text, reason=text, message=text, lastTransitionTime=time, observedGeneration=count)

CACHE_STATUS: Mapping[str, _Reader] = {
    "nodeStatus": words,
    "copies": counts,
    "conditions": CONDITIONS,
    "bytes": fields_of(
        total=count, cached=count, fromOrigin=count, fromPeers=count, fromOtherZones=count, amplification=text
    ),
    **dict.fromkeys(("wrongPeers", "wrongReaders"), counts),
    **dict.fromkeys(("inferenceServices", "llmInferenceServices"), listed("namespace", "name")),
    "claims": listed("namespace", "name", "nodeGroup", "subPath", "phase", "message"),
    **dict.fromkeys(("observedGeneration", "rateBytesPerSecond"), count),
    "credentialsOnNodes": flag,
    **dict.fromkeys(
        (
            *("selection", "revision", "shortRevision", "manifestDigest", "resolvedAs", "path"),
            *("eta", "progress", "available", "size", "rate", "moved"),
        ),
        text,
    ),
    **dict.fromkeys(("startedAt", "completedAt", "unusedSince"), time),
}

_NAMES_OF_COUNTS = ("bytesTotal", "bytesDone", "bytesFromOrigin", "bytesFromPeers", "bytesFromOtherZones")

NODE_STATUS: Mapping[str, _Reader] = {
    "modelStatus": words,
    "summary": fields_of(ready=text, models=text, size=text, free=text, rate=text),
    "models": items_of(
        "name",
        **dict.fromkeys((*_NAMES_OF_COUNTS, "rateBytesPerSecond", "attempt"), count),
        **dict.fromkeys(("phase", "progress", "eta", "reason", "message", "digest", "revision", "repaired"), text),
        **dict.fromkeys(
            ("retryTime", "startedAt", "finishedAt", "verifiedAt", "repairedAt", "orphanedSince", "removalTime"), time
        ),
        **dict.fromkeys(("verified", "wrongPeers", "wrongReaders"), counts),
    ),
    "roots": items_of(
        "path", free=count, used=count, reserved=count, aside=count, junk=texts, reason=text, message=text
    ),
    "agent": fields_of(ready=flag, incarnation=text, version=text, silentSince=time, reason=text, message=text),
}
