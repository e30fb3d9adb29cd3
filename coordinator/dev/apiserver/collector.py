"""What controllers do about objects: definitions that are new, dependents of owners that are gone, namespaces going.

Run after every write that could matter, until nothing is left to do. An ownerReference is held by uid.
"""

from __future__ import annotations

from coordinator.dev.apiserver import special
from coordinator.dev.apiserver.admission import Asker, Attempt
from coordinator.dev.apiserver.builtins import CRDS, NAMESPACES
from coordinator.dev.apiserver.errors import Object, StatusError
from coordinator.dev.apiserver.kinds import Kind, Resource
from coordinator.dev.apiserver.patches import MERGE
from coordinator.dev.apiserver.registry import FOREGROUND, ORPHAN, DeleteOptions, Options, Registry
from coordinator.dev.apiserver.storage import Change, Storage


def due(storage: Storage, since: int) -> bool:
    """Whether a change after version `since` could be work for `collect`."""
    try:
        return any(_matters(storage, change) for change in storage.changes_since(since))
    except StatusError:  # more than the history holds
        return True


def _matters(storage: Storage, change: Change) -> bool:
    if change.after is None or change.after["metadata"].get("deletionTimestamp") or change.resource == CRDS.resource:
        return True
    return not all(storage.lives(owner["uid"]) for owner in change.after["metadata"].get("ownerReferences", ()))


def collect(registry: Registry, webhooks: Asker | None = None) -> None:
    """Nothing is left that should not be, but for what a webhook has to be asked about first (`registry.held_up`)."""
    registry.webhooks = webhooks
    while True:
        registry.held_up = []
        if not _pass(registry):
            return


def _pass(registry: Registry) -> bool:
    """One look at everything; True if anything changed."""
    before = registry.storage.version
    everything = list(registry.storage.everything())
    alive = {value["metadata"]["uid"]: value for _, value in everything}
    dependents: dict[str, list[tuple[Resource, Object]]] = {}
    for resource, value in everything:
        for owner in value["metadata"].get("ownerReferences", ()):
            dependents.setdefault(owner["uid"], []).append((resource, value))
    for resource, seen in everything:
        kind = registry.catalogue.any_version(resource)
        now = registry.storage.get(resource, (seen["metadata"].get("namespace", ""), seen["metadata"]["name"]))
        if kind is None or now is None:
            continue
        if kind is CRDS:
            registry.establish(now)
        meta = now["metadata"]
        owners = [owner["uid"] for owner in meta.get("ownerReferences", ())]
        if owners and not meta.get("deletionTimestamp"):
            present = [alive[uid] for uid in owners if uid in alive]
            if all(_waits_for_dependents(owner) for owner in present):
                _delete(registry, kind, now, "Foreground" if present else "Background")
        if meta.get("deletionTimestamp"):
            _finish(registry, kind, now, dependents.get(meta["uid"], []))
    return registry.storage.version != before


def _finish(registry: Registry, kind: Kind, value: Object, dependents: list[tuple[Resource, Object]]) -> None:
    """The next step for one object that is being deleted."""
    finalizers = value["metadata"].get("finalizers", ())
    if ORPHAN in finalizers:
        for resource, dependent in dependents:
            _disown(registry, registry.catalogue.any_version(resource), dependent, value["metadata"]["uid"])
        registry.release(kind, value, ORPHAN)
    elif FOREGROUND in finalizers:
        if not dependents:
            registry.release(kind, value, FOREGROUND)
    elif kind is NAMESPACES and special.held(kind, value):
        name = value["metadata"]["name"]
        inside = [
            (res, each) for res, each in registry.storage.everything() if each["metadata"].get("namespace") == name
        ]
        _empty(registry, kind, value, inside, "kubernetes")
    elif kind is CRDS and special.CRD_FINALIZER in finalizers:
        resource = (value["spec"]["group"], value["spec"]["names"]["plural"])
        inside = [(resource, each) for each in registry.storage.all(resource)]
        _empty(registry, kind, value, inside, special.CRD_FINALIZER)


def _empty(
    registry: Registry, kind: Kind, value: Object, inside: list[tuple[Resource, Object]], finalizer: str
) -> None:
    """Deletes what is inside; once there is nothing, lets the object go."""
    if not inside:
        registry.release(kind, value, finalizer)
    for resource, each in inside:
        inner = registry.catalogue.any_version(resource)
        if inner is not None and not each["metadata"].get("deletionTimestamp"):
            _delete(registry, inner, each, "Background")


def _waits_for_dependents(owner: Object) -> bool:
    meta = owner["metadata"]
    return bool(meta.get("deletionTimestamp")) and FOREGROUND in meta.get("finalizers", ())


def _delete(registry: Registry, kind: Kind, value: Object, propagation: str) -> None:
    meta = value["metadata"]
    attempt = Attempt(False, "DELETE", kind, "", None, value, False)
    asked = registry.webhooks.asked_of(attempt) if registry.webhooks is not None else ()
    if asked and meta["uid"] not in registry.cleared:
        registry.held_up.append(attempt)
    elif registry.storage.get(kind.resource, (meta.get("namespace", ""), meta["name"])) is not None:
        registry.delete(kind, meta.get("namespace", ""), meta["name"], DeleteOptions(propagation, uid=meta["uid"]))


def _disown(registry: Registry, kind: Kind | None, dependent: Object, uid: str) -> None:
    meta = dependent["metadata"]
    if kind is None or registry.storage.get(kind.resource, (meta.get("namespace", ""), meta["name"])) is None:
        return
    references = [owner for owner in meta["ownerReferences"] if owner["uid"] != uid]
    patch = {"metadata": {"ownerReferences": references or None}}
    registry.patch(kind, meta.get("namespace", ""), meta["name"], MERGE, patch, Options())
