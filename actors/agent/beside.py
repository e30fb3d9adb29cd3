"""The versions that lie beside the copies of one root: those that were replaced, and those that are to replace one."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping

from actors.agent.diff import satisfies
from actors.disk.marker import Marker
from actors.disk.store import Store
from actors.disk.versions import Version, fitting, surplus
from actors.errors import StoreError
from actors.manifest import Resolved, StorageKey
from actors.messages import DesiredModel

_log = logging.getLogger(__name__)

Wanted = Mapping[StorageKey, tuple[DesiredModel, Resolved | None]]


class Beside:
    """`present` are the copies in place, which others change. Without a store there is nothing."""

    def __init__(self, store: Store | None, present: Mapping[StorageKey, Marker]) -> None:
        """Knows nothing before `look`."""
        self.versions: list[Version] = []
        """The latest first."""
        self._store = store
        self._present = present
        self._wanted: Wanted | None = None

    def look(self) -> None:
        """Known is what lies there now, without what is not worth its room."""
        try:
            self.versions = self._store.versions() if self._store is not None else []
        except StoreError as error:
            _log.warning("cannot look for versions", extra={"error": str(error)})
        self._drop_surplus()

    def expect(self, wanted: Wanted) -> None:
        """These models are asked for from now on: what else lies beside them may go. Before that, nothing does."""
        self._wanted = wanted
        if self.versions:
            self._drop_surplus()

    def find(self, model: DesiredModel, resolved: Resolved | None) -> Version | None:
        """The version that is asked for."""
        return fitting(self.versions, model.key, lambda marker: _is_wanted(marker, model, resolved))

    def dispensable(self) -> list[Version]:
        """Those that nobody asks for now."""
        return [each for each in self.versions if not self._is_awaited(each)]

    def drop(self, versions: Iterable[Version]) -> None:
        """These go as soon as no pod can have them open; a disk that refuses keeps them for now."""
        gone = []
        for each in versions:
            try:
                if self._store is not None:
                    self._store.drop_version(each)
                gone.append(each)
            except StoreError as error:
                _log.warning("cannot drop a version", extra={"version": each.name, "error": str(error)})
        self.versions = [each for each in self.versions if each not in gone]

    def _drop_surplus(self) -> None:
        if self._wanted is not None:
            keep = {key: model.keep for key, (model, _) in self._wanted.items()}
            self.drop(surplus(self.versions, self._present, keep, self._is_awaited))

    def _is_awaited(self, version: Version) -> bool:
        """Whether it is what is asked for, and not in place yet."""
        model, resolved = (self._wanted or {}).get(version.key, (None, None))
        current = self._present.get(version.key)
        if model is None or model.kept or (current is not None and satisfies(current, model)):
            return False
        return _is_wanted(version.marker, model, resolved)


def _is_wanted(marker: Marker, model: DesiredModel, resolved: Resolved | None) -> bool:
    if resolved is None:
        return satisfies(marker, model)
    same = marker.manifest.is_same_content(resolved.manifest)
    return same and model.expected_digest in (None, marker.manifest.digest)
