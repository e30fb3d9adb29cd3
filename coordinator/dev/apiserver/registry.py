"""What the verbs do to objects: every rule between a decoded request and the storage.

    get   create   update   patch   apply   delete   release

All are synchronous and run in the one event loop, so that each is a transaction: read, decide, write.
"""

from __future__ import annotations

import json
import random
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from coordinator.dev.apiserver import errors, fields, metadata, patches, special
from coordinator.dev.apiserver.admission import Admission, Asker, Attempt
from coordinator.dev.apiserver.builtins import CRDS, NAMESPACES
from coordinator.dev.apiserver.decoding import Options as Options
from coordinator.dev.apiserver.decoding import complete, decode
from coordinator.dev.apiserver.errors import Object
from coordinator.dev.apiserver.kinds import Catalogue, Kind
from coordinator.dev.apiserver.storage import Storage
from coordinator.dev.apiserver.validation import check_preconditions, refuse_invalid

FOREGROUND, ORPHAN = "foregroundDeletion", "orphan"


@dataclass(frozen=True, slots=True)
class DeleteOptions:
    """`grace_s` None: what the object asks for, which only a pod does."""

    propagation: str = "Background"
    uid: str | None = None
    resource_version: str | None = None
    dry_run: bool = False
    grace_s: int | None = None
    admission: Admission | None = None


class Registry:
    """The objects of one API server."""

    def __init__(
        self, storage: Storage, catalogue: Catalogue, *, now: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self.storage = storage
        self.catalogue = catalogue
        self._now = now
        self.webhooks: Asker | None = None
        self.held_up: list[Attempt] = []
        """Deletions by controllers that a webhook has to be asked about."""
        self.cleared: set[str] = set()
        """Of these the uids of those that were allowed."""
        for crd in storage.all(CRDS.resource):
            catalogue.serve(crd)
        for name in special.NAMESPACES_AT_START:
            if storage.get(NAMESPACES.resource, ("", name)) is None:
                body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
                self.create(NAMESPACES, "", body, Options(field_manager="kube-apiserver"))

    def get(self, kind: Kind, namespace: str, name: str) -> Object:
        """Raises StatusError 404."""
        found = self.storage.get(kind.resource, (namespace, name))
        if found is None:
            raise errors.not_found(kind.group, kind.plural, name)
        return as_version(kind, found)

    def create(self, kind: Kind, namespace: str, body: Any, options: Options) -> Object:
        value = decode(kind, namespace, body, options)
        if value["metadata"].get("resourceVersion"):
            raise errors.internal("resourceVersion should not be set on objects to be created")
        writer = fields.Writer(options.field_manager, "Update", kind.api_version)
        value["metadata"].pop("managedFields", None)
        return self._create(kind, namespace, value, options, writer)

    def update(
        self, kind: Kind, namespace: str, name: str, body: Any, options: Options, subresource: str = ""
    ) -> Object:
        old = self.get(kind, namespace, name)
        value = decode(kind, namespace, body, options, name)
        if not value["metadata"].get("resourceVersion") and special.conditional(kind):
            must = errors.invalid_value("metadata.resourceVersion", 0, "must be specified for an update")
            raise errors.invalid(kind.group, kind.kind if kind.custom else kind.plural, name, [must])
        writer = fields.Writer(options.field_manager, "Update", kind.api_version, subresource)
        return self._replace(kind, old, value, options, subresource, writer)

    def patch(
        self,
        kind: Kind,
        namespace: str,
        name: str,
        content_type: str,
        patch: Any,
        options: Options,
        subresource: str = "",
    ) -> Object:
        """By a JSON, merge or strategic patch."""
        old = self.get(kind, namespace, name)
        changed = patches.patched(content_type, old, patch, kind.merging)
        value = decode(kind, namespace, changed, options, name, patched=True)
        if (uid := value["metadata"].get("uid")) and uid != old["metadata"]["uid"]:
            cause = errors.invalid_value("metadata.uid", uid, "field is immutable")
            raise errors.invalid(kind.group, kind.kind, name, [cause])
        writer = fields.Writer(options.field_manager, "Update", kind.api_version, subresource)
        return self._replace(kind, old, value, options, subresource, writer)

    def apply(
        self, kind: Kind, namespace: str, name: str, body: Any, options: Options, subresource: str = ""
    ) -> tuple[Object, bool]:
        """Server-side apply. Also whether the object was created."""
        writer = fields.Writer(options.field_manager, "Apply", kind.api_version, subresource)
        old = self.storage.get(kind.resource, (namespace, name))
        if old is None and subresource:
            raise errors.not_found(kind.group, kind.plural, name)
        if not isinstance(body, dict) or not body.get("apiVersion") or not body.get("kind"):
            found = body if isinstance(body, dict) else {}
            raise errors.bad_request(
                f"invalid object type: {found.get('apiVersion', '/')}, Kind={found.get('kind', '')}"
            )
        intent = decode(kind, namespace, body, options, name, partial=True)
        if intent["metadata"].get("managedFields"):
            raise errors.bad_request("metadata.managedFields must be nil")
        intent = _only(intent, subresource) if kind.status else intent
        live = as_version(kind, old) if old is not None else _shell(intent)
        version = intent["metadata"].pop("resourceVersion", None)
        merged = fields.applied(
            live,
            intent,
            kind.merging,
            writer,
            self._timestamp(),
            force=options.force,
            last_applied=_last_applied(live) if options.field_manager == "kubectl" else None,
        )
        value = complete(kind, merged)
        if old is None:
            return self._create(kind, namespace, value, options, None), True
        if version:
            value["metadata"]["resourceVersion"] = version
        return self._replace(kind, live, value, options, subresource, None), False

    def delete(self, kind: Kind, namespace: str, name: str, options: DeleteOptions) -> tuple[Object, bool]:
        """Marked, or if nothing holds it gone. Also whether it is gone."""
        old = self.get(kind, namespace, name)
        check_preconditions(kind, old, options.uid, options.resource_version)
        special.refuse_delete(kind, name)
        for mutating in (True, False):
            _admitted(options.admission, Attempt(mutating, "DELETE", kind, "", None, old, options.dry_run))
        meta = dict(old["metadata"])
        extra = {"Foreground": FOREGROUND, "Orphan": ORPHAN}.get(options.propagation)
        finalizers = [*meta.get("finalizers", ())]
        if extra is not None and extra not in finalizers and not meta.get("deletionTimestamp"):
            finalizers.append(extra)
        grace_s = special.grace_s(kind, old, options.grace_s)
        if not finalizers and not grace_s and not special.held(kind, old):
            return (old if options.dry_run else self._remove(kind, namespace, name)), True
        if meta.get("deletionTimestamp") and grace_s >= meta.get("deletionGracePeriodSeconds", 0):
            return old, False
        if special.counts_deletion(kind):
            meta["deletionGracePeriodSeconds"] = grace_s
            if "generation" in meta and not meta.get("deletionTimestamp"):
                meta["generation"] += 1
        ends = self._now() + timedelta(seconds=grace_s)
        meta |= {"deletionTimestamp": ends.strftime(_TIME), "finalizers": finalizers}
        value = special.terminating(kind, {**old, "metadata": metadata.tidy(meta)})
        return (value if options.dry_run else self._put(kind, namespace, name, value)), False

    def release(self, kind: Kind, value: Object, finalizer: str) -> None:
        """Takes one finalizer off, for the collector; the object goes when it was the last."""
        left = [each for each in value["metadata"].get("finalizers", ()) if each != finalizer]
        meta = {**value["metadata"], "finalizers": left}
        writer = fields.Writer("kube-controller-manager", "Update", kind.api_version)
        left_over = {**special.released(kind, value), "metadata": meta}
        self._replace(kind, value, left_over, Options(), "finalize", writer)

    def establish(self, crd: Object) -> None:
        """The definition's names are accepted and its kind is served, as its status says from now on."""
        established = special.establishing(crd, self._timestamp())
        if established is not None:
            self._put(CRDS, "", crd["metadata"]["name"], established)

    # The steps

    def _create(
        self, kind: Kind, namespace: str, value: Object, options: Options, writer: fields.Writer | None
    ) -> Object:
        admission = options.admission
        if kind.namespaced:
            self._require_namespace(kind, namespace, value["metadata"].get("name", ""))
        if admission is not None:
            value = self._mutated(kind, Attempt(True, "CREATE", kind, "", value, None, options.dry_run), admission)
        meta = metadata.tidy({key: item for key, item in value["metadata"].items() if key not in metadata.SERVER_OWNED})
        if not meta.get("name") and meta.get("generateName"):
            suffix = admission.suffix if admission else "".join(random.choices("bcdfghjklmnpqrstvwxz2456789", k=5))
            meta["name"] = meta["generateName"][: 253 - len(suffix)] + suffix
        meta |= {"uid": admission.uid if admission else str(uuid.uuid4()), "creationTimestamp": self._timestamp()}
        value = special.initialised(kind, {**value, "metadata": meta}, self._timestamp())
        meta = value["metadata"]
        name = meta.get("name", "")
        refuse_invalid(kind, value, None)
        _admitted(admission, Attempt(False, "CREATE", kind, "", value, None, options.dry_run))
        if self.storage.get(kind.resource, (namespace, name)) is not None:
            raise errors.already_exists(kind.group, kind.plural, name)
        if writer is not None:
            meta["managedFields"] = fields.updated(None, value, kind.merging, writer, self._timestamp())
        return value if options.dry_run else self._put(kind, namespace, name, value)

    def _replace(
        self, kind: Kind, old: Object, value: Object, options: Options, subresource: str, writer: fields.Writer | None
    ) -> Object:
        """`value` in the place of `old`, as far as the request may change it. `writer` None: managedFields are done."""
        if options.admission is not None:
            attempt = Attempt(True, "UPDATE", kind, subresource, value, old, options.dry_run)
            value = self._mutated(kind, attempt, options.admission)
        sent, meta = value["metadata"], old["metadata"]
        check_preconditions(kind, old, sent.get("uid"), sent.get("resourceVersion"))
        name, namespace = meta["name"], meta.get("namespace", "")
        owners = sent.get("managedFields", meta.get("managedFields"))
        if subresource == "status":
            value = {key: item for key, item in old.items() if key != "status"} | {
                key: item for key, item in value.items() if key == "status"
            }
            sent = meta
        elif kind.status:
            value = {key: item for key, item in value.items() if key != "status"}
            value |= {key: item for key, item in old.items() if key == "status"}
        new_meta = metadata.tidy({**metadata.keep_server_owned(meta, sent), "managedFields": owners})
        new_meta["resourceVersion"] = meta["resourceVersion"]
        value = special.normalised(kind, {**value, "metadata": new_meta})
        if subresource != "finalize":
            value = special.kept(kind, old, value)
        new_meta = value["metadata"]
        if "generation" in meta and _spec(kind, old) != _spec(kind, value):
            new_meta["generation"] = meta["generation"] + 1
        refuse_invalid(kind, value, old, subresource)
        _admitted(options.admission, Attempt(False, "UPDATE", kind, subresource, value, old, options.dry_run))
        if writer is not None:
            new_meta["managedFields"] = fields.updated(old, value, kind.merging, writer, self._timestamp())
            value["metadata"] = new_meta = metadata.tidy(new_meta)
        if options.dry_run or _same(old, value):
            return value if options.dry_run else old
        waits = bool(new_meta.get("deletionGracePeriodSeconds")) or special.held(kind, value)
        if meta.get("deletionTimestamp") and not new_meta.get("finalizers") and not waits:
            self._put(kind, namespace, name, value)
            return self._remove(kind, namespace, name)
        return self._put(kind, namespace, name, value)

    def _mutated(self, kind: Kind, attempt: Attempt, admission: Admission) -> Object:
        """As mutating webhooks leave it: pruned again, and with defaults."""
        value = _admitted(admission, attempt)
        if value is None or value is attempt.new:
            return attempt.object
        namespace, ignored = attempt.object["metadata"].get("namespace", ""), Options(field_validation="Ignore")
        return decode(kind, namespace, value, ignored, value["metadata"].get("name", ""))

    def _require_namespace(self, kind: Kind, namespace: str, name: str) -> None:
        found = self.storage.get(NAMESPACES.resource, ("", namespace))
        if found is None:
            raise errors.not_found("", "namespaces", namespace)
        if found["metadata"].get("deletionTimestamp"):
            why = f"unable to create new content in namespace {namespace} because it is being terminated"
            raise errors.forbidden(kind.group, kind.plural, name, why)

    def _put(self, kind: Kind, namespace: str, name: str, value: Object) -> Object:
        stored = self.storage.put(kind.resource, (namespace, name), value)
        if kind is CRDS:
            self.catalogue.serve(stored)
        return stored

    def _remove(self, kind: Kind, namespace: str, name: str) -> Object:
        last = self.storage.remove(kind.resource, (namespace, name))
        if kind is CRDS:
            self.catalogue.withdraw(last)
        return as_version(kind, last)

    def _timestamp(self) -> str:
        return self._now().strftime(_TIME)


def _admitted(admission: Admission | None, attempt: Attempt) -> Object | None:
    """What may go on. Raises StatusError for a refusal, and Pending while webhooks have to be asked."""
    return attempt.new if admission is None else admission(attempt)


_TIME = "%Y-%m-%dT%H:%M:%SZ"


def as_version(kind: Kind, value: Object) -> Object:
    """The stored object as this version of its kind: custom kinds convert by changing the name of the version."""
    return value if value["apiVersion"] == kind.api_version else {**value, "apiVersion": kind.api_version}


def _shell(intent: Object) -> Object:
    meta = {key: intent["metadata"][key] for key in ("name", "namespace") if key in intent["metadata"]}
    return {"apiVersion": intent["apiVersion"], "kind": intent["kind"], "metadata": meta}


def _last_applied(live: Object) -> Object | None:
    """What client-side apply noted down; None if that is not to be read."""
    text = live["metadata"].get("annotations", {}).get("kubectl.kubernetes.io/last-applied-configuration")
    try:
        noted = json.loads(text) if text else None
    except ValueError:
        return None
    return noted if isinstance(noted, dict) else None


def _only(intent: Object, subresource: str) -> Object:
    """The part that this endpoint may change."""
    if subresource == "status":
        return _shell(intent) | {key: item for key, item in intent.items() if key == "status"}
    return {key: item for key, item in intent.items() if key != "status"}


def _spec(kind: Kind, value: Object) -> Object:
    """What `metadata.generation` counts changes of."""
    return {key: item for key, item in value.items() if key != "metadata" and not (kind.status and key == "status")}


def _same(old: Object, new: Object) -> bool:
    return _without_times(old) == _without_times(new)


def _without_times(value: Object) -> Object:
    meta = value["metadata"]
    entries = [{key: item for key, item in entry.items() if key != "time"} for entry in meta.get("managedFields", ())]
    return {**value, "metadata": {**meta, "managedFields": entries}}
