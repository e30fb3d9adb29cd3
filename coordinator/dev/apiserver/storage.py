"""Objects in memory, a resourceVersion that only grows, and the recent history that watches and pages read.

One writer: everything here runs in the server's event loop. Objects are never changed in place; a write stores a new
one. With a journal file every write is a JSON line before it is answered, so a killed server starts where it stopped.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from coordinator.dev.apiserver.errors import Object, expired
from coordinator.dev.apiserver.kinds import Resource

Key = tuple[str, str]
"""Namespace ("" if there is none) and name."""


@dataclass(frozen=True, slots=True)
class Change:
    """One write. `before` None: created. `after` None: deleted; `last` is then the object as watchers see it."""

    version: int
    resource: Resource
    key: Key
    before: Object | None
    after: Object | None
    last: Object


class Storage:
    """`history` changes are kept for watches and pages; older resourceVersions are Gone."""

    def __init__(
        self, *, history: int = 10_000, journal: Path | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        self._objects: dict[Resource, dict[Key, Object]] = {}
        self._uids: set[str] = set()
        self._history: deque[Change] = deque(maxlen=history)
        # A server without a journal forgets everything, and must not hand out a version it used in an earlier life.
        self._version = int(clock() * 1_000_000)
        self._forgotten = self._version
        self._changed: asyncio.Event = asyncio.Event()
        self._journal: IO[str] | None = None
        if journal is not None:
            self._load(journal)
            self._uids = {value["metadata"]["uid"] for _, value in self.everything()}
            self._journal = _rewrite(journal, self._snapshot())

    @property
    def version(self) -> int:
        return self._version

    def get(self, resource: Resource, key: Key) -> Object | None:
        return self._objects.get(resource, {}).get(key)

    def all(self, resource: Resource, namespace: str = "") -> list[Object]:
        """Sorted by namespace and name."""
        found = self._objects.get(resource, {})
        return [found[key] for key in sorted(found) if not namespace or key[0] == namespace]

    def all_at(self, resource: Resource, namespace: str, version: int) -> list[Object]:
        """As `all` was at `version`. Raises StatusError 410 if that is no longer known."""
        self.check_known(version)
        found = dict(self._objects.get(resource, {}))
        for change in reversed(self._history):
            if change.version <= version:
                break
            if change.resource != resource:
                continue
            if change.before is None:
                found.pop(change.key, None)
            else:
                found[change.key] = change.before
        return [found[key] for key in sorted(found) if not namespace or key[0] == namespace]

    def lives(self, uid: str) -> bool:
        """Whether an object with this uid is stored, of whatever kind."""
        return uid in self._uids

    def everything(self) -> Iterator[tuple[Resource, Object]]:
        for resource, objects in list(self._objects.items()):
            for value in list(objects.values()):
                yield resource, value

    def put(self, resource: Resource, key: Key, value: Object) -> Object:
        """The object as stored: `value` with the new resourceVersion."""
        before = self.get(resource, key)
        version = self._version + 1
        stored = {**value, "metadata": {**value["metadata"], "resourceVersion": str(version)}}
        self._record(Change(version, resource, key, before, stored, stored))
        return stored

    def remove(self, resource: Resource, key: Key) -> Object:
        """The object as it last was, with the version of its removal."""
        before = self._objects[resource][key]
        version = self._version + 1
        last = {**before, "metadata": {**before["metadata"], "resourceVersion": str(version)}}
        self._record(Change(version, resource, key, before, None, last))
        return last

    def check_known(self, version: int) -> None:
        """Raises StatusError 410 if changes after `version` were forgotten."""
        if version < self._forgotten:
            raise expired(f"too old resource version: {version} ({self._forgotten})")

    def changes_since(self, version: int) -> list[Change]:
        """All changes after `version`, oldest first. Raises StatusError 410."""
        self.check_known(version)
        found: list[Change] = []
        for change in reversed(self._history):
            if change.version <= version:
                break
            found.append(change)
        found.reverse()
        return found

    async def changed(self, timeout_s: float) -> None:
        """Returns after the next write, `wake` or `timeout_s`."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._changed.wait(), timeout_s)

    def wake(self) -> None:
        """All that wait for a change look up."""
        self._changed.set()
        self._changed = asyncio.Event()

    def close(self) -> None:
        if self._journal is not None:
            self._journal.close()
            self._journal = None

    def _record(self, change: Change) -> None:
        if self._journal is not None:
            self._journal.write(json.dumps(_line(change.version, change.resource, change.key, change.after)) + "\n")
            self._journal.flush()
        self._remember(change)
        self.wake()

    def _remember(self, change: Change) -> None:
        if len(self._history) == self._history.maxlen:
            self._forgotten = self._history[0].version
        self._history.append(change)
        self._version = change.version
        objects = self._objects.setdefault(change.resource, {})
        if change.after is None:
            del objects[change.key]
            self._uids.discard(change.last["metadata"]["uid"])
        else:
            objects[change.key] = change.after
            self._uids.add(change.after["metadata"]["uid"])

    def _load(self, journal: Path) -> None:
        if not journal.exists():
            return
        for text in journal.read_text().split("\n")[:-1]:  # what follows the last newline was cut off by a kill
            line: dict[str, Any] = json.loads(text)
            self._version = self._forgotten = line["version"]
            if "resource" not in line:
                continue
            objects = self._objects.setdefault((line["resource"][0], line["resource"][1]), {})
            key = (line["key"][0], line["key"][1])
            if line["object"] is None:
                objects.pop(key, None)
            else:
                objects[key] = line["object"]

    def _snapshot(self) -> Iterator[Object]:
        for resource, objects in self._objects.items():
            for key, value in objects.items():
                yield _line(int(value["metadata"]["resourceVersion"]), resource, key, value)
        yield {"version": self._version}


def _line(version: int, resource: Resource, key: Key, value: Object | None) -> Object:
    return {"version": version, "resource": resource, "key": key, "object": value}


def _rewrite(journal: Path, lines: Iterator[Object]) -> IO[str]:
    """The journal, compacted by one rename, open for appending."""
    temporary = journal.with_name(journal.name + ".new")
    with temporary.open("w") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
    temporary.replace(journal)
    return journal.open("a")
