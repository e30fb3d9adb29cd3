"""Copies that made room for others are remembered, so that they do not come straight back.

    <root>/.localmodel/evicted/<key>.json       written before the copy goes, removed when it is back or may be

A model with an entry waits until it fits beside what it made room for, and nobody makes room for it. The entry goes
with the reason for it: when the model is committed again, is no longer wanted, or may no longer be evicted because a
pod uses it or somebody pinned it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from actors.disk.documents import parsed
from actors.disk.notes import Notes
from actors.errors import Evicted, LocalModelError
from actors.manifest import StorageKey
from actors.numbers import count, moment
from actors.sizes import say_bytes
from actors.times import rfc3339

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Entry:
    """When a copy of `size_bytes` went (epoch seconds), and for which model, which needs `for_bytes`."""

    at: float
    size_bytes: int
    for_key: StorageKey
    for_uri: str
    for_bytes: int

    def error(self) -> Evicted:
        """The words stay the same for as long as the entry does: every new message is a write to the cluster."""
        at = rfc3339(self.at)
        return Evicted(
            f"its {say_bytes(self.size_bytes)}, which no pod used, made room at {at} for {self.for_uri}, which needs"
            f" {say_bytes(self.for_bytes, up=True)}; it comes back when it fits beside it or a pod uses it;"
            " spec.pinned keeps it"
        )


class Ledger:
    """The entries of one root. The agent's lock guards it. A disk that refuses to remember is no reason to fail."""

    def __init__(self, notes: Notes | None = None) -> None:
        """Finds what an earlier agent has written, as far as it can be read. Without notes there is no root."""
        self._notes = notes
        self._entries = dict(_read(notes)) if notes is not None else {}

    @property
    def known(self) -> frozenset[StorageKey]:
        """The models that have an entry."""
        return frozenset(self._entries)

    def get(self, key: StorageKey) -> Entry | None:
        return self._entries.get(key)

    def add(self, key: StorageKey, entry: Entry) -> None:
        self._entries[key] = entry
        if self._notes is None:
            return
        try:
            self._notes.write(key, json.dumps(asdict(entry)).encode())
        except LocalModelError as error:  # full to the last byte: room is about to be made
            _log.warning("an eviction is remembered only until the agent ends", extra={"key": key, "error": str(error)})

    def forget(self, key: StorageKey) -> None:
        if self._entries.pop(key, None) is None or self._notes is None:
            return
        try:
            self._notes.forget(key)
        except LocalModelError as error:
            _log.warning("cannot forget an eviction", extra={"key": key, "error": str(error)})


def _read(notes: Notes) -> Mapping[StorageKey, Entry]:
    found = {}
    for key in notes.keys():  # noqa: SIM118  # no mapping
        content = notes.read(key)
        if content is None:
            continue
        try:
            found[key] = _parse(content)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            notes.reject(key, f"is no note of an eviction: {type(error).__name__}: {str(error)[:100]}")
    return found


def _parse(content: bytes) -> Entry:
    data = parsed(content)
    at, size, needed = moment(data["at"]), count(data["size_bytes"]), count(data["for_bytes"])
    if at is None or not isinstance(data["for_uri"], str) or not isinstance(data["for_key"], str):
        raise ValueError("a field has another type")
    return Entry(at, size, StorageKey(data["for_key"]), data["for_uri"], needed)
