"""The rules about `metadata` that hold for every kind: names, labels, and what a client may not change."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from coordinator.dev.apiserver.errors import Cause, Object, forbidden_value, invalid_value, required

_LABEL = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_SUBDOMAIN = re.compile(rf"^{_LABEL}(\.{_LABEL})*$")
_DNS_LABEL = re.compile(rf"^{_LABEL}$")
_QUALIFIED = re.compile(r"^([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]$")

_SUBDOMAIN_RULE = (
    "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and "
    "end with an alphanumeric character (e.g. 'example.com', regex used for validation is "
    r"'[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
)
_DNS_LABEL_RULE = (
    "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with "
    "an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is "
    "'[a-z0-9]([-a-z0-9]*[a-z0-9])?')"
)
_LABEL_VALUE_RULE = (
    "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and "
    "end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is "
    "'(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')"
)
_LABEL_KEY_RULE = (
    "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric "
    "character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is "
    "'([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')"
)

STANDARD_FINALIZERS = ("foregroundDeletion", "orphan")
SERVER_OWNED = ("uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds", "generation", "selfLink")
"""What a client's value never replaces."""


def name_causes(name: str, *, label: bool = False) -> Iterator[Cause]:
    """The faults of a name, which is an RFC 1123 subdomain of at most 253, or a label of at most 63 characters."""
    pattern, rule, longest = (_DNS_LABEL, _DNS_LABEL_RULE, 63) if label else (_SUBDOMAIN, _SUBDOMAIN_RULE, 253)
    if len(name) > longest:
        yield invalid_value(
            "metadata.name", name, f"must be no more than {longest} {'bytes' if label else 'characters'}"
        )
    if label and "." in name and pattern.match(name.replace(".", "-")):
        yield invalid_value("metadata.name", name, "must not contain dots")
    elif not pattern.match(name):
        yield invalid_value("metadata.name", name, rule)


def metadata_causes(meta: Mapping[str, Any], *, label_name: bool = False) -> Iterator[Cause]:
    if not meta.get("name"):
        yield required("metadata.name", "name or generateName is required")
    else:
        yield from name_causes(meta["name"], label=label_name)
    for key, value in (meta.get("labels") or {}).items():
        yield from _key_causes("metadata.labels", key)
        if len(value) > 63:
            yield invalid_value("metadata.labels", value, "must be no more than 63 bytes")
        elif value and not _QUALIFIED.match(value):
            yield invalid_value("metadata.labels", value, _LABEL_VALUE_RULE)
    for key in meta.get("annotations") or ():
        yield from _key_causes("metadata.annotations", key.lower())
    for owner in meta.get("ownerReferences") or ():
        for field in ("apiVersion", "kind", "name", "uid"):
            if not owner[field]:
                yield invalid_value(f"metadata.ownerReferences.{field}", "", "must not be empty")
    for finalizer in meta.get("finalizers") or ():
        if not _QUALIFIED.match(str(finalizer).rpartition("/")[2]):
            yield invalid_value("metadata.finalizers", finalizer, _LABEL_KEY_RULE)


def warnings(meta: Mapping[str, Any]) -> Iterator[str]:
    """Warnings of things that are allowed and unwise."""
    for finalizer in meta.get("finalizers") or ():
        if "/" not in finalizer and finalizer not in STANDARD_FINALIZERS:
            yield (
                f'metadata.finalizers: "{finalizer}": prefer a domain-qualified finalizer name to avoid accidental '
                "conflicts with other finalizer writers"
            )


def update_causes(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[Cause]:
    """What may not change, beyond what the server puts back by itself."""
    if old.get("deletionTimestamp"):
        added = sorted(set(new.get("finalizers") or ()) - set(old.get("finalizers") or ()))
        if added:
            listed = "[]string{" + ", ".join(f'"{each}"' for each in added) + "}"
            why = f"no new finalizers can be added if the object is being deleted, found new finalizers {listed}"
            yield forbidden_value("metadata.finalizers", why)


def tidy(meta: Mapping[str, Any]) -> Object:
    """Without what is null or empty, as a server that decodes into a struct stores it."""
    optional = ("labels", "annotations", "finalizers", "ownerReferences", "managedFields", "generateName", "namespace")
    return {key: value for key, value in meta.items() if value is not None and not (key in optional and not value)}


def keep_server_owned(old: Mapping[str, Any], new: Mapping[str, Any]) -> Object:
    """`new` with the server's fields as they are in `old`."""
    kept = {key: value for key, value in new.items() if key not in SERVER_OWNED}
    return kept | {key: old[key] for key in SERVER_OWNED if key in old}


def _key_causes(path: str, key: str) -> Iterator[Cause]:
    prefix, slash, name = key.rpartition("/")
    if not _QUALIFIED.match(name) or len(name) > 63:
        yield invalid_value(path, key, _LABEL_KEY_RULE)
    elif slash and not _SUBDOMAIN.match(prefix):
        yield invalid_value(path, key, f"prefix part {_SUBDOMAIN_RULE}")
