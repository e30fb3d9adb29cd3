"""What a source consists of while it cannot be asked: the nodes that hold it say so.

    the source does not answer ──► one node that holds the pinned copy is asked for its manifest
    the manifest is here       ──► stands in for the answer: the nodes that lack the model fill from those that hold it
    the source answers again   ──► its answer, as ever; it is asked all the while

Pure. Which copy it is, is never left to chance: what `spec.digest` names, else the revision and digest that the cache's
status has, else what all copies agree on. A manifest counts if it has that digest, whoever sends it. So a branch that
moved while nobody could look is never mixed in.

A source that does answer is believed: "no such model" and "not allowed" are for a person to decide about, and no copy
speaks against them. Nor does a source that is down let anybody in: a cache that goes by credentials of its own, and was
never resolved with them, learns nothing from copies.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from actors.errors import Failure, SourceError
from actors.manifest import Manifest, StorageKey, known_from_a_copy, make_manifest
from actors.messages import ModelReport, NodeName, NodeReport, Phase
from coordinator.api.resources import StatusKey
from coordinator.plan.access import asks_itself, proof_of
from coordinator.plan.memory import Memory
from coordinator.plan.placement import Members
from coordinator.plan.snapshot import Cache, Resolution, Snapshot


@dataclass(frozen=True, slots=True)
class Copies:
    """`resolutions` are the snapshot's, with what copies say where there is no answer.

    `asked`: of which models each node is to send the manifest. `manifests` are those in use, by cache.
    """

    resolutions: Mapping[StatusKey, Resolution]
    asked: Mapping[NodeName, frozenset[StorageKey]] = field(default_factory=dict)
    manifests: Mapping[StatusKey, Manifest] = field(default_factory=dict)


def known_from_copies(snapshot: Snapshot, members: Members, memory: Memory | None = None) -> Copies:
    """Every source that does not answer is known from a copy of it, or a node that holds one is asked, if any does."""
    resolutions, memory = dict(snapshot.resolutions), memory or Memory()
    asked: dict[NodeName, frozenset[StorageKey]] = {}
    manifests: dict[StatusKey, Manifest] = {}
    servers: dict[NodeName, _Server] | None = None
    for cache, failure in _unanswered(snapshot):
        servers = dict(_servers(snapshot, members)) if servers is None else servers
        places = [servers[name] for name in members.wanting([cache]) if name in servers]
        copies = {server.report.node: server for server in places if _holds(server, cache)}
        digest = _named_digest(cache) or _written(cache, "manifestDigest") or _agreed(copies.values(), cache)
        holders = sorted(name for name, server in copies.items() if _digest(server, cache) == digest)
        if digest is None or not holders:
            continue
        told = (copies[name].report.manifests.get(cache.storage_key) for name in holders)
        known = (each for each in (snapshot.manifests.get(cache.key), *told) if each is not None)
        manifest = next((each for each in known if _is_of(each, cache, digest)), None)
        if manifest is None:
            asked[holders[0]] = asked.get(holders[0], frozenset()) | {cache.storage_key}
        else:
            manifests[cache.key] = manifest
            unanswered = resolutions[cache.key]
            resolutions[cache.key] = memory.call(("copy", cache.key), _standing_in, unanswered, manifest, failure)
    return Copies(resolutions, asked, manifests)


def _standing_in(resolution: Resolution, manifest: Manifest, failure: Failure) -> Resolution:
    return replace(resolution, resolved=known_from_a_copy(manifest, failure))


@dataclass(frozen=True, slots=True)
class _Server:
    """An agent that answers and from which others can read, with its models by key."""

    report: NodeReport
    models: Mapping[StorageKey, ModelReport]


def _unanswered(snapshot: Snapshot) -> Iterator[tuple[Cache, Failure]]:
    """The questions asked in vain of sources that are down, throttle, or cannot be reached."""
    for key, resolution in snapshot.resolutions.items():
        cache, failure = snapshot.caches.get(key), resolution.failure
        if cache is None or resolution.resolved is not None or failure is None or not failure.retryable:
            continue
        proof = proof_of(cache)
        if not asks_itself(cache) or (proof is not None and proof.selection == cache.selection):
            yield cache, failure


def _named_digest(cache: Cache) -> str | None:
    """The digest that its author insists on; one with credentials of its own cannot name what was not given to it."""
    return None if asks_itself(cache) and _written(cache, "manifestDigest") else cache.digest


def _servers(snapshot: Snapshot, members: Members) -> Iterator[tuple[NodeName, _Server]]:
    for name in members.placements:
        view = snapshot.agent(name)
        if view.failure is None and view.report is not None and view.report.peer_address is not None:
            yield name, _Server(view.report, view.models)


def _holds(server: _Server, cache: Cache) -> bool:
    """It has committed what the cache asks for, at the revision that the cache was resolved to."""
    model = server.models.get(cache.storage_key)
    if model is None or model.phase is not Phase.READY or model.selection != cache.selection:
        return False
    return _written(cache, "revision") in (None, model.revision)


def _digest(server: _Server, cache: Cache) -> str | None:
    return server.models[cache.storage_key].manifest_digest


def _agreed(copies: Iterable[_Server], cache: Cache) -> str | None:
    """The digest of all copies; None if they differ."""
    digests = {_digest(server, cache) for server in copies}
    return digests.pop() if len(digests) == 1 else None


def _written(cache: Cache, name: str) -> str | None:
    """What the cache's status says in answer to its present spec."""
    value = cache.status.get(name) if cache.status.get("selection") == cache.selection else None
    return value if isinstance(value, str) else None


def _is_of(manifest: Manifest, cache: Cache, digest: str) -> bool:
    """It is what is asked for, and names no file that could leave its folder."""
    if manifest.digest != digest or manifest.source.selection != cache.selection:
        return False
    if _written(cache, "revision") not in (None, manifest.revision):
        return False
    try:
        return make_manifest(manifest.source, manifest.revision, manifest.files) == manifest
    except SourceError:
        return False
