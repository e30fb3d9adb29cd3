"""Whether a cache could have fetched what its nodes hold. Pure.

A folder is shared by all caches of one URI. The bytes are there once; the right to them is each cache's own:

    cluster cache without credentials    goes by the coordinator's identity, and needs no proof, unless it is contested:
                                         a cache that asks with its own also says where, so what it brought under the
                                         same URI may be other content
    any other                            asks the source itself, with its own credentials ──► `Proof`, in its status
                                         until then a copy is not its copy: not counted, not measured, not described

A proof is of one content: the digest, or the commit. It outlives restarts and a source that is down, because it stands
in `status`, which a cache's author cannot write: it is a subresource, and nobody but the coordinator is given it. With
other credentials in the spec the source is asked again; the old proof holds until the source, asked with the new ones,
refuses. Where KServe's own CRDs drop the proof, a node that is written as Downloaded stands in for it.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, replace

from actors.errors import Failure
from actors.manifest import StorageKey
from actors.messages import Earlier, ModelReport, Phase
from coordinator.api.resources import NodeStatus, StatusKey
from coordinator.plan.memory import Memory
from coordinator.plan.orphans import key_of, lists_others
from coordinator.plan.snapshot import Cache, Resolution, Snapshot
from coordinator.plan.tally import SourceState

_NO_REFUSAL = frozenset({"DigestMismatch", "InvalidURI", "RevisionNotFound"})
"""Failures for good that say nothing about who may read."""


@dataclass(frozen=True, slots=True)
class Proof:
    """What a cache's status says that it was resolved to. `current`: with the credentials that its spec names now."""

    selection: str | None
    revision: str | None = None
    manifest_digest: str | None = None
    current: bool = True


def asks_itself(cache: Cache) -> bool:
    """Whether a copy is its copy only once its own source has said so."""
    return _is_of_others(cache) or cache.contested


def _is_of_others(cache: Cache) -> bool:
    """Whether it goes by an identity that is not the coordinator's."""
    return cache.ref.namespace is not None or _names_credentials(cache)


def _names_credentials(cache: Cache) -> bool:
    named = cache.credentials
    return named.service_account is not None or named.storage_key is not None or bool(named.parameters)


_CONTESTED = frozenset({"SourceConflict", "Unproven"})
"""What stands in the status of a cache that is contested until it has its own copy, also when the others are gone.

Caches that want other files of a URI than each other have a conflict that is none about who has read what.
"""


def with_contested(snapshot: Snapshot, memory: Memory | None = None) -> Mapping[StatusKey, Cache]:
    """Its caches, with those marked that go by the coordinator's identity, and share their URI with such as do not.

    A cache that names no credentials asks as nobody, but where the coordinator does. Of a cache that is gone without a
    trace but the line of a node's list, that line tells.
    """
    caches, memory = snapshot.caches, memory or Memory()
    names = memory.same("names", frozenset(caches))
    shared = {cache.storage_key for cache in caches.values() if _names_credentials(cache)}
    for name, local in snapshot.local_nodes.items():
        if memory.call(("strangers", name), lists_others, local, names):
            lines = (entry for key, entry in local.listed.items() if key not in caches)
            shared |= {key_of(line) for line in lines if line.get("serviceAccountName") or line.get("storage")}
    asked_for = defaultdict[StorageKey, set[str]](set)
    for cache in caches.values():
        asked_for[cache.storage_key].add(cache.selection)
    contested = {
        key: memory.call(("contested", key), _contested, cache)
        for key, cache in caches.items()
        if not _is_of_others(cache)
        and (cache.storage_key in shared or (len(asked_for[cache.storage_key]) == 1 and _was_contested(cache)))
    }
    return {**caches, **contested} if contested else caches


def _contested(cache: Cache) -> Cache:
    return replace(cache, contested=True)


def _was_contested(cache: Cache) -> bool:
    conditions = cache.status.get("conditions") or ()
    return any(each.get("type") == "Ready" and each.get("reason") in _CONTESTED for each in conditions)


def proof_of(cache: Cache) -> Proof | None:
    """None: it was never resolved, as far as its status tells."""
    status = cache.status
    selection, revision, digest = (status.get(name) for name in ("selection", "revision", "manifestDigest"))
    if selection is not None:
        current = not _is_of_others(cache) or status.get("resolvedAs") == cache.credentials.name
        return Proof(selection, revision, digest, current)
    held = NodeStatus.DOWNLOADED in (status.get("nodeStatus") or {}).values()
    return Proof(None, current=False) if held and status.get("observedGeneration") is None else None


def is_answered(cache: Cache, resolution: Resolution | None) -> bool:
    """Whether the source itself has said what the present spec asks for."""
    resolved = resolution.resolved if resolution is not None else None
    if resolved is None or resolved.unreadable is not None:
        return False
    return resolved.manifest.source.selection == cache.selection


def is_refused(failure: Failure | None) -> bool:
    """Whether these credentials will not do, for all that is known."""
    return failure is not None and not failure.retryable and failure.reason not in _NO_REFUSAL


def has_standing(cache: Cache, resolution: Resolution | None) -> bool:
    """Whether it has a say in what others share."""
    return not asks_itself(cache) or is_answered(cache, resolution) or proof_of(cache) is not None


def forsaken(caches: Iterable[Cache], resolutions: Mapping[StatusKey, Resolution]) -> frozenset[StorageKey]:
    """The models that a cache is deleted of and that nobody is left to have: the sources refuse all others.

    A cache that has been shown to have a right to a copy keeps it, whatever the source says later.
    """
    deleted, kept = set[StorageKey](), set[StorageKey]()
    for cache in caches:
        resolution = resolutions.get(cache.key)
        if cache.deleted_at is not None:
            deleted.add(cache.storage_key)
        elif has_standing(cache, resolution) or resolution is None or not is_refused(resolution.failure):
            kept.add(cache.storage_key)
    return frozenset(deleted - kept)


def rank(cache: Cache, resolution: Resolution | None) -> int:
    """Whose request decides what is in a shared folder, and where; the lowest first, and of equals the oldest.

    0: it is here, as far as status tells, and its spec has not been edited since. 1: it has, or it conflicts with the
    others since it was: an edit takes from nobody what is there. 2: it could be fetched. 3: its source refuses or has
    not answered yet, or has another digest than it expects.
    """
    known = known_digest(cache, resolution)
    if cache.digest is not None and known is not None and known != cache.digest:
        return 3
    proof = proof_of(cache)
    if proof is not None and proof.selection == cache.selection:
        return 1 if _is_edited(cache) else 0
    if asks_itself(cache):
        return 2 if is_answered(cache, resolution) else 3
    failure = resolution.failure if resolution is not None else None
    return 3 if failure is not None and not failure.retryable else 2


def _is_edited(cache: Cache) -> bool:
    if cache.status.get("observedGeneration") not in (None, cache.generation):
        return True
    return any(each.get("reason") == "SourceConflict" for each in cache.status.get("conditions") or ())


def could_provide(cache: Cache, resolution: Resolution | None) -> bool:
    """Whether what its source has answered can be fetched for all who share the folder."""
    known = known_digest(cache, resolution)
    return is_answered(cache, resolution) and (cache.digest is None or known in (None, cache.digest))


def known_digest(cache: Cache, resolution: Resolution | None) -> str | None:
    """The manifest digest of what the present spec asks for."""
    if resolution is not None and resolution.resolved is not None and is_answered(cache, resolution):
        return resolution.resolved.manifest.digest
    proof = proof_of(cache)
    return proof.manifest_digest if proof is not None and proof.selection == cache.selection else None


@dataclass(frozen=True, slots=True)
class Access:
    """What one cache may take for its own. `proof` None: nothing, unless its source has just `answered`."""

    cache: Cache
    source: SourceState
    asks: bool
    proof: Proof | None

    @classmethod
    def of(cls, cache: Cache, source: SourceState) -> Access:
        asks, proof = asks_itself(cache), proof_of(cache)
        if asks and proof is not None and not proof.current and is_refused(source.failure):
            proof = None
        return cls(cache, source, asks, proof)

    @property
    def granted(self) -> bool:
        """Whether it has read its source."""
        return not self.asks or self.source.answered or self.proof is not None

    @property
    def unproven(self) -> bool:
        """Whether its source is to be asked although nothing may be missing."""
        return self.asks and (self.proof is None or not self.proof.current)

    def permits(self, copy: ModelReport | Earlier) -> bool:
        """Whether it could have fetched this content: it has read the same digest at its source.

        Where no digest is known, the same commit; but a commit is only what whoever answered has called it.
        """
        if not self.asks:
            return True
        cache, source, proof, digest = self.cache, self.source, self.proof, copy.manifest_digest
        if source.answered:
            if digest is not None and source.manifest_digest is not None:
                if digest == source.manifest_digest:
                    return True
            elif copy.selection == cache.selection and _is_alike(copy, source):
                return True
        if proof is None:
            return False
        if digest is not None and proof.manifest_digest is not None:
            return digest == proof.manifest_digest
        if proof.selection is None:
            return copy.selection == cache.selection
        known = proof.revision is not None and copy.revision == proof.revision
        return copy.selection == proof.selection and (known or proof.manifest_digest is None)

    def is_current(self, copy: ModelReport) -> bool:
        """Whether it is what the present spec asks for: the same request, or another that comes to the same files."""
        if copy.selection == self.cache.selection:
            return True
        return copy.manifest_digest is not None and copy.manifest_digest == self._digest

    @property
    def _digest(self) -> str | None:
        if self.source.manifest_digest is not None:
            return self.source.manifest_digest
        proof = self.proof
        return proof.manifest_digest if proof is not None and proof.selection == self.cache.selection else None

    def served(self, copy: ModelReport) -> Earlier | None:
        """The copy of an earlier request of this very cache, which serves until there is a newer; None: it is not."""
        earlier = copy.earlier or (of_report(copy) if copy.phase is Phase.READY else None)
        if earlier is None or not self.permits(earlier):
            return None
        same = earlier.selection == self.cache.selection
        if same and self.cache.digest is not None and earlier.manifest_digest != self.cache.digest:
            return None
        if copy.earlier is not None and not self.asks:
            return earlier
        proof = self.proof
        if proof is None:
            return None
        same = proof.selection == earlier.selection
        return earlier if same or earlier.manifest_digest == (proof.manifest_digest or "") else None


def of_report(copy: ModelReport) -> Earlier:
    return Earlier(copy.selection, copy.revision, copy.manifest_digest, copy.bytes_total, copy.finished_at)


def _is_alike(copy: ModelReport | Earlier, source: SourceState) -> bool:
    """The same commit; or where the source names neither commit nor digests, the same size as far as it is known."""
    if source.revision is not None:
        return copy.revision == source.revision
    return source.manifest_digest is None and source.total_bytes in (None, copy.bytes_total)


_OF_OTHERS = (
    (re.compile(r"(made room at \S+ for )(.+?), which needs .+?;"), r"\1another model;"),
    (
        re.compile(r"(goes after )(.+?)(, which has priority \S+ over \S+) and waits for .+? in "),
        r"\1another model\3 in ",
    ),
)
"""What agents say of a model that is in the way of another: its URI, and how large it is."""


def discreet(failure: Failure, own: Container[str]) -> Failure:
    """The same without what it says of models that are none of `own`, the URIs of the reader's namespace."""
    for pattern, without in _OF_OTHERS:
        found = pattern.search(failure.message)
        if found is not None and found[2] not in own:
            return replace(failure, message=pattern.sub(without, failure.message))
    return failure


def veiled(
    caches: Iterable[Cache], sources: Mapping[StatusKey, SourceState], memory: Memory | None = None
) -> dict[StatusKey, SourceState]:
    """The same without the commits of others in what is said to a cache that has not read its source.

    It is asked for the commit that others hold, so the answer may name it.
    """
    found, commits = dict(sources), defaultdict[StorageKey, set[str]](set)
    failing = []
    for cache in caches:
        if isinstance(commit := cache.status.get("revision"), str):
            commits[cache.storage_key].add(commit)
        source = found.get(cache.key)
        if source is not None and source.failure is not None and asks_itself(cache) and proof_of(cache) is None:
            failing.append((cache, source, source.failure))
    memory = memory or Memory()
    for cache, source, failure in failing:
        others = memory.same(
            ("others'", cache.key), frozenset(commits[cache.storage_key] - {cache.source.revision or ""})
        )
        found[cache.key] = memory.call(("veiled", cache.key), _without, others, source, failure)
    return found


def _without(commits: Iterable[str], source: SourceState, failure: Failure) -> SourceState:
    message = failure.message
    for commit in sorted(commits):
        message = message.replace(commit, "what nodes hold")
    return replace(source, failure=replace(failure, message=message))
