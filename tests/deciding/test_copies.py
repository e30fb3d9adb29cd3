"""A source that does not answer is known from a copy of it: which copy counts, who is asked, and what is said."""

from __future__ import annotations

from dataclasses import replace

import pytest

from actors.errors import Failure
from actors.manifest import Digest, Manifest, ManifestFile, ModelSource, storage_key
from actors.messages import DesiredModel, DesiredState, NodeName, Phase
from actors.times import rfc3339
from coordinator.dev.trial.builders import GIB, NOW, CacheBuilder, World, a_cache, a_group, a_node, a_report, an_agent
from coordinator.fleet.interface import AgentView
from coordinator.plan.plan import Plan, plan
from coordinator.plan.snapshot import Resolution

DOWN = Failure("SourceUnreachable", "https://hub.test refused the connection")
THROTTLED = Failure("SourceThrottled", "https://hub.test answered 429", retry_after_s=60.0)
COMMIT, MOVED = "c0ffee", "bad5eed"


def a_manifest(source: ModelSource, *, revision: str = COMMIT, content: str = "a", path: str = "0.bin") -> Manifest:
    return Manifest(source, revision, (ManifestFile(path, GIB, Digest(f"sha256:{content * 64}")),))


def a_holder(
    name: str, cache: CacheBuilder, manifest: Manifest, *, tells: bool = False, peer: bool = True, **fields: object
) -> AgentView:
    """An agent with a committed copy; `tells`: it was asked for the manifest."""
    report = a_report(
        cache,
        **{"revision": manifest.revision, "manifest_digest": manifest.digest, **fields},  # type: ignore[arg-type]  # by name
    )
    return reachable(an_agent(name, report), manifest if tells else None, peer=peer)


def reachable(view: AgentView, manifest: Manifest | None = None, *, peer: bool = True) -> AgentView:
    assert view.report is not None
    told = {} if manifest is None else {storage_key(manifest.source.uri): manifest}
    address = f"{view.report.node}:7000" if peer else None
    return replace(view, report=replace(view.report, peer_address=address, manifests=told))


def a_cluster(cache: CacheBuilder, *, holder: AgentView, failure: Failure = DOWN) -> World:
    """`a` holds the model, `b` and `c` came later; the origin has been failing for a minute."""
    world = World().add(cache, a_group("gpu"), *(a_node(name) for name in "abc"))
    world.resolutions[cache.key] = Resolution(failure=failure, retry_at=NOW + 30, attempt=3, failing_since=NOW - 60)
    world.agents = {"a": holder, "b": reachable(an_agent("b")), "c": reachable(an_agent("c"))}
    return world


def a_pinned_cache(manifest: Manifest | None = None, **status: object) -> CacheBuilder:
    """A cache whose status says what it was resolved to when the origin still answered."""
    cache = a_cache()
    manifest = manifest or a_manifest(cache.source)
    pinned = {"selection": cache.source.selection, "revision": manifest.revision, "manifestDigest": manifest.digest}
    return cache.with_status(**{**pinned, **status})


def state(made: Plan, node: str) -> DesiredState:
    return made.desired[NodeName(node)]


def model(made: Plan, node: str) -> DesiredModel:
    (found,) = state(made, node).models
    return found


def condition(world: World, cache: CacheBuilder, kind: str) -> tuple[str, str, str]:
    world.settle()
    (found,) = [each for each in cache.json["status"]["conditions"] if each["type"] == kind]
    return found["status"], found["reason"], found["message"]


@pytest.mark.parametrize("failure", [DOWN, THROTTLED])
def test_one_holder_is_asked_for_the_manifest_and_nobody_starts_before_it_is_here(failure: Failure) -> None:
    cache = a_pinned_cache()
    world = a_cluster(cache, holder=a_holder("a", cache, a_manifest(cache.source)), failure=failure)
    world.agents["c"] = a_holder("c", cache, a_manifest(cache.source))
    made = world.plan()
    asked = {name: state(made, name).manifests for name in "abc"}
    assert asked == {"a": {storage_key(cache.uri)}, "b": frozenset(), "c": frozenset()}
    assert model(made, "b").resolved is None
    assert made.companies == {}
    assert condition(world, cache, "Ready")[1] == failure.reason


def test_what_the_holder_says_is_what_the_others_fill_together_with_it_as_their_seed() -> None:
    cache = a_pinned_cache()
    manifest = a_manifest(cache.source)
    world = a_cluster(cache, holder=a_holder("a", cache, manifest, tells=True))
    made = world.plan()
    (resolved,) = state(made, "b").resolved.values()
    assert (resolved.manifest, resolved.unreadable) == (manifest, DOWN)
    assert model(made, "b").resolved == model(made, "c").resolved == resolved.name
    (company,) = made.companies.values()
    assert {member.name: member.seed for member in company.members} == {"a": True, "b": False, "c": False}
    assert made.wants.keys() == {cache.key}, "the origin is asked on"
    assert made.wants[cache.key].pinned_revision == COMMIT


def test_the_manifest_is_kept_and_not_asked_for_again_also_when_another_holder_is_left() -> None:
    cache = a_pinned_cache()
    world = a_cluster(cache, holder=a_holder("a", cache, a_manifest(cache.source), tells=True))
    first = world.plan()
    world.agents["c"] = a_holder("c", cache, a_manifest(cache.source))
    world.agents["a"] = replace(world.agents["a"], failure=Failure("AgentDied", "gone"))
    second = plan(replace(world.snapshot(), manifests=first.manifests, companies=first.companies), NOW)
    assert model(second, "b").resolved == model(first, "b").resolved
    assert {name: state(second, name).manifests for name in "abc"} == dict.fromkeys("abc", frozenset())


def test_it_is_let_go_of_when_the_origin_answers_again() -> None:
    cache = a_pinned_cache()
    world = a_cluster(cache, holder=a_holder("a", cache, a_manifest(cache.source), tells=True))
    first = world.plan()
    world.resolved(cache)
    second = plan(replace(world.snapshot(), manifests=first.manifests), NOW)
    assert second.manifests == {}
    (resolved,) = state(second, "b").resolved.values()
    assert resolved.unreadable is None


def test_status_says_since_when_the_origin_is_silent_and_that_peers_give_what_it_does_not() -> None:
    cache = a_pinned_cache()
    manifest = a_manifest(cache.source)
    world = a_cluster(cache, holder=a_holder("a", cache, manifest, tells=True))
    filling = a_report(cache, Phase.DOWNLOADING, done=GIB // 2)
    world.agents["b"] = reachable(an_agent("b", filling))
    said = (
        f"origin unavailable since {rfc3339(NOW - 60)}, filling {COMMIT} from peers that hold it"
        f" (SourceUnreachable: https://hub.test refused the connection; next try {rfc3339(NOW + 30)})"
    )
    assert condition(world, cache, "Degraded") == ("True", "FillingFromPeers", said)
    status, reason, message = condition(world, cache, "Ready")
    assert (status, reason) == ("False", "Downloading")
    assert message.endswith(said)
    assert cache.json["status"]["revision"] == COMMIT
    assert cache.json["status"]["manifestDigest"] == manifest.digest


HERE = a_cache().source
GOOD = a_manifest(HERE)


@pytest.mark.parametrize(
    ("cache", "held", "sent"),
    [
        pytest.param(
            a_pinned_cache(),
            a_manifest(HERE, revision=MOVED, content="b"),
            None,
            id="a copy of a branch that has moved",
        ),
        pytest.param(
            a_pinned_cache(),
            a_manifest(HERE, revision=MOVED),
            None,
            id="a copy at another revision than the pinned one",
        ),
        pytest.param(
            a_pinned_cache(revision=None),
            a_manifest(HERE, content="b"),
            None,
            id="a copy of another digest than pinned",
        ),
        pytest.param(
            a_pinned_cache().with_spec(digest=f"sha256:{'0' * 64}"), GOOD, None, id="a copy that spec.digest excludes"
        ),
        pytest.param(a_pinned_cache(), GOOD, a_manifest(HERE, content="b"), id="a manifest that is not the copy's"),
        pytest.param(
            a_pinned_cache(),
            GOOD,
            a_manifest(ModelSource(HERE.uri, "v2")),
            id="a manifest of another request",
        ),
        pytest.param(
            a_pinned_cache(a_manifest(HERE, path="../up")),
            a_manifest(HERE, path="../up"),
            a_manifest(HERE, path="../up"),
            id="a manifest that leaves its folder",
        ),
    ],
)
def test_what_is_not_the_pinned_model_does_not_stand_in_for_it(
    cache: CacheBuilder, held: Manifest, sent: Manifest | None
) -> None:
    holder = reachable(a_holder("a", cache, held), sent or held)
    made = a_cluster(cache, holder=holder).plan()
    assert model(made, "b").resolved is None
    assert made.manifests == {}


@pytest.mark.parametrize(
    "failure",
    [
        Failure("SourceNotFound", "404", retryable=False),
        Failure("SourceDenied", "401", retryable=False),
    ],
)
def test_an_origin_that_answers_no_is_believed(failure: Failure) -> None:
    cache = a_pinned_cache()
    world = a_cluster(cache, holder=a_holder("a", cache, a_manifest(cache.source), tells=True), failure=failure)
    assert model(world.plan(), "b").resolved is None
    assert condition(world, cache, "Ready")[1] == failure.reason


def test_a_node_that_others_cannot_read_from_is_no_help() -> None:
    cache = a_pinned_cache()
    world = a_cluster(cache, holder=a_holder("a", cache, a_manifest(cache.source), tells=True, peer=False))
    made = world.plan()
    assert model(made, "b").resolved is None
    assert state(made, "a").manifests == frozenset()


def test_without_a_word_in_status_copies_that_agree_count_and_such_as_differ_do_not() -> None:
    cache = a_cache()
    world = a_cluster(cache, holder=a_holder("a", cache, a_manifest(cache.source), tells=True))
    world.agents["c"] = a_holder("c", cache, a_manifest(cache.source))
    assert model(world.plan(), "b").resolved is not None
    world.agents["c"] = a_holder("c", cache, a_manifest(cache.source, content="b"))
    assert model(world.plan(), "b").resolved is None


def test_the_expected_digest_names_the_copy_whatever_the_others_hold() -> None:
    good = a_manifest(a_cache().source)
    cache = a_cache().with_spec(digest=good.digest)
    world = a_cluster(cache, holder=a_holder("a", cache, good, tells=True))
    world.agents["c"] = a_holder("c", cache, a_manifest(cache.source, content="b"))
    (resolved,) = state(world.plan(), "b").resolved.values()
    assert resolved.manifest.digest == good.digest


def test_two_requests_for_the_same_bytes_each_have_their_own_manifest() -> None:
    one, other = a_pinned_cache(), a_cache("mirror")
    mirrored = a_manifest(other.source)
    other.with_status(selection=other.source.selection, revision=COMMIT, manifestDigest=mirrored.digest)
    assert mirrored.digest == a_manifest(one.source).digest
    world = a_cluster(one, holder=a_holder("a", one, a_manifest(one.source), tells=True)).add(other)
    world.resolutions[other.key] = world.resolutions[one.key]
    report = a_report(other, revision=COMMIT, manifest_digest=mirrored.digest)
    world.agents["c"] = reachable(an_agent("c", report), mirrored)
    made = world.plan()
    assert {key: manifest.source for key, manifest in made.manifests.items()} == {
        one.key: one.source,
        other.key: other.source,
    }
