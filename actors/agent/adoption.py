"""A folder that stands where a model belongs becomes the copy that is asked for, where it may: nothing is then fetched.

    a copy of another request that comes to the same files    is named anew
    a folder whose marker is damaged                          is adopted
    a folder without a marker, as KServe's agent leaves it    is adopted: what is right stays, the rest is fetched, and
                                                              what does not belong there is set aside
    either, where the source names no digest of some file     is filled anew; then what is there moves aside

An adopted copy does not count before every byte of it was read. It stays the folder that pods have mounted.
"""

from __future__ import annotations

import logging
from dataclasses import replace

from actors.agent.roots import Root
from actors.disk.marker import Marker
from actors.disk.store import Standing, path_occupied
from actors.errors import StoreError
from actors.fill.fill import verified_how
from actors.manifest import Resolved, StorageKey
from actors.messages import DesiredModel

_log = logging.getLogger(__name__)


def make_way(root: Root, key: StorageKey, resolved: Resolved | None, owner: str, now: float) -> None:
    """The model's place is ours, or empty, or its folder is adopted, or will be set aside.

    Raises StoreError (PathOccupied) for what is none of these: no folder, or the copy of another coordinator.
    """
    store = root.usable()
    standing = store.standing(key, owner)
    root.blame_unread()
    if standing is Standing.FOREIGN:
        raise path_occupied(store.model(key))
    if standing not in (Standing.DAMAGED, Standing.UNMARKED) or resolved is None:
        return
    manifest = resolved.manifest
    if manifest.digest is None:
        return
    if standing is Standing.UNMARKED and not store.clear(key, manifest):
        return
    root.adopt(key, Marker(owner, manifest, verified_how(manifest), finished_at=now))
    _log.info("adopting what is there", extra={"key": key, "root": root.name, "was": standing.name.lower()})


def recognise(root: Root, model: DesiredModel, resolved: Resolved, owner: str) -> None:
    """A copy of another request that comes to the same files is the copy of this one."""
    marker, store = root.present.get(model.key), root.store
    if store is None or marker is None or marker.owner != owner or marker.manifest.source == model.source:
        return
    if not marker.manifest.is_same_content(resolved.manifest):
        return
    manifest = replace(marker.manifest, source=model.source, revision=resolved.manifest.revision)
    named = replace(marker, manifest=manifest)
    try:
        store.rename(model.key, named)
    except StoreError as error:
        _log.warning("cannot name a copy anew", extra={"key": model.key, "error": str(error)})
        return
    root.rename(model.key, named)
    _log.info("a copy is what is asked for now", extra={"key": model.key, "revision": manifest.revision})
