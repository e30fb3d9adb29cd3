"""KServe's ClusterStorageContainers for download Jobs, as far as something without Jobs can heed them. Pure.

    applies       disabled, workloadType localModelDownloadJob, supportedUriFormats (prefix, else regex)
                  container.env: what a source is asked with, for every cache whose URI matches
                  STORAGE_ALLOW_PATTERNS, STORAGE_IGNORE_PATTERNS among it: `include` and `exclude` of caches that have
                  none of their own
    is reported   image, command, resources and the rest of the container: there is no such container

The first that matches, by name, counts, as in KServe. A value in `env` is the operator's word, like the coordinator's
own environment: for a namespaced cache it says where to ask, and not who asks.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from coordinator.api.resources import GROUP, VERSION, StatusKey
from coordinator.kube.interface import Object, ResourceType
from coordinator.kube.parts import list_of, mapping_of
from coordinator.plan.snapshot import Cache, EnvEntry, Snapshot

STORAGE_CONTAINERS = ResourceType(GROUP, VERSION, "clusterstoragecontainers", "ClusterStorageContainer")
DOWNLOAD_JOB = "localModelDownloadJob"
ALLOW, IGNORE = "STORAGE_ALLOW_PATTERNS", "STORAGE_IGNORE_PATTERNS"


@dataclass(frozen=True, slots=True)
class StorageContainer:
    """One that is enabled and for downloads. `unheeded` are the fields of it that change nothing here."""

    name: str
    prefixes: tuple[str, ...]
    expressions: tuple[re.Pattern[str], ...]
    env: tuple[EnvEntry, ...]
    allow: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    unheeded: tuple[str, ...] = ()

    def matches(self, uri: str) -> bool:
        return uri.startswith(self.prefixes) or any(each.search(uri) for each in self.expressions)


def read_storage_container(raw: Object) -> StorageContainer | None:
    """None for one that is disabled, or for another workload. Raises ValueError for a regex that cannot be used."""
    spec, name = mapping_of(raw.get("spec")), mapping_of(raw.get("metadata")).get("name")
    if not isinstance(name, str) or not name:
        raise ValueError("the object has no metadata.name")
    if raw.get("disabled") is True or spec.get("workloadType") != DOWNLOAD_JOB:
        return None
    container = mapping_of(spec.get("container"))
    formats = [mapping_of(each) for each in list_of(spec.get("supportedUriFormats"))]
    try:
        expressions = tuple(
            re.compile(each["regex"]) for each in formats if not each.get("prefix") and each.get("regex")
        )
    except (re.error, TypeError) as error:
        raise ValueError(f"spec.supportedUriFormats: a regex cannot be used: {error}") from error
    entries, unheeded = [], [f"container.{field}" for field in container if field not in ("name", "env")]
    for each in map(mapping_of, list_of(container.get("env"))):
        entry = _entry(each)
        if entry is None:
            unheeded.append(f"container.env {each.get('name')}")
        else:
            entries.append(entry)
    patterns = {each.name: _patterns(each.value) for each in entries if each.name in (ALLOW, IGNORE)}
    return StorageContainer(
        name=name,
        prefixes=tuple(each["prefix"] for each in formats if isinstance(each.get("prefix"), str) and each["prefix"]),
        expressions=expressions,
        env=tuple(each for each in entries if each.name not in (ALLOW, IGNORE)),
        allow=patterns.get(ALLOW, ()),
        ignore=patterns.get(IGNORE, ()),
        unheeded=tuple(unheeded),
    )


def with_containers(snapshot: Snapshot, containers: Iterable[StorageContainer]) -> Snapshot:
    """The same, of which every cache is asked for as the first container that matches its URI says."""
    ordered = sorted(containers, key=lambda each: each.name)
    if not ordered:
        return snapshot
    changed: dict[StatusKey, Cache] = {}
    for key, cache in snapshot.caches.items():
        found = next((each for each in ordered if each.matches(cache.source.uri)), None)
        if found is not None:
            changed[key] = _asked_as(cache, found)
    return replace(snapshot, caches={**snapshot.caches, **changed})


def _asked_as(cache: Cache, container: StorageContainer) -> Cache:
    source = cache.source
    if not source.include and not source.exclude:
        source = replace(source, include=container.allow, exclude=container.ignore)
    credentials = replace(cache.credentials, container=container.env)
    return replace(cache, source=source, selection=source.selection, credentials=credentials)


def _entry(raw: Mapping[str, Any]) -> EnvEntry | None:
    """A name with its value, or with where a Secret of the job namespace has it; None for any other source of one."""
    name, value = raw.get("name"), raw.get("value")
    reference = mapping_of(mapping_of(raw.get("valueFrom")).get("secretKeyRef"))
    if not isinstance(name, str):
        return None
    if isinstance(reference.get("name"), str) and isinstance(reference.get("key"), str):
        return EnvEntry(name, secret=reference["name"], key=reference["key"])
    return EnvEntry(name, value) if isinstance(value, str) else None


def _patterns(text: str) -> tuple[str, ...]:
    """As KServe's downloader reads them: a JSON list, else by comma."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = text.split(",")
    found = found if isinstance(found, list) else [found]
    return tuple(each.strip() for each in found if isinstance(each, str) and each.strip())
