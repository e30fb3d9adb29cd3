"""What people read: sizes as people write them, a subject, the next step, and nothing of what is underneath."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest

from actors.agent.capacity import Limit, Room, Waiting
from actors.agent.evictions import Entry
from actors.errors import Failure, InsufficientStorage
from actors.fill.origin_quota import Quota, Quotas
from actors.manifest import OriginName, StorageKey
from actors.messages import NodeName, OriginShare, Phase
from actors.sizes import format_bytes, say_bytes
from coordinator.dev.trial.builders import (
    NOW,
    CacheBuilder,
    World,
    a_cache,
    a_group,
    a_namespace_cache,
    a_node,
    a_report,
    a_silent_agent,
    a_world,
)
from coordinator.fleet import absence
from coordinator.fleet.interface import AgentView
from coordinator.plan.eviction import Eviction
from coordinator.plan.fold import FINAL, explained
from coordinator.plan.reading import read_node

GIB, MIB = 1 << 30, 1 << 20
N1 = NodeName("n1")
ROOM = Room(
    "/models",
    free_bytes=300 * MIB,
    headroom_bytes=50 * MIB,
    used_bytes=150 * MIB,
    limit=Limit(200 * MIB, used_bytes=150 * MIB),
)
GROUP_ROOM = Room("/models", 9 * GIB, 0, 0, limit=Limit(200 * MIB, group="gpu"))


def raised_by(room: Room, needed: int) -> str:
    with pytest.raises(InsufficientStorage) as error:
        room.check(needed)
    return str(error.value)


def behind(room: Room) -> str:
    with pytest.raises(InsufficientStorage) as error:
        room.check_turn(0, [Waiting("hf://a/b", 7, 100 * MIB)])
    return str(error.value)


def an_eviction() -> str:
    key, other = StorageKey("0" * 16), StorageKey("1" * 16)
    return Eviction(N1, "/models", key, ("old",), 3 * GIB, NOW, other, ("new",), "hf://n/w", 5 * GIB).reason  # type: ignore[arg-type]  # keys as they are


TOLD: dict[str, tuple[str, tuple[str, ...]]] = {
    "more than the group may have": (
        raised_by(GROUP_ROOM, 256 * MIB),
        ("needs 256Mi in /models, 200Mi allowed for group gpu", "storageLimit"),
    ),
    "more than is free": (
        raised_by(Room("/models", 300 * MIB, 100 * MIB, 0), 256 * MIB),
        ("needs 256Mi in /models: 300Mi are free, of which 100Mi stay free", "make room"),
    ),
    "one byte too many": (
        raised_by(GROUP_ROOM, 200 * MIB + 1),
        ("needs 201Mi", "200Mi allowed"),
    ),
    "another goes first": (behind(ROOM), ("hf://a/b", "priority 7 over 0", "100Mi", "spec.priority")),
    "what made room": (
        str(Entry(NOW, 3 * GIB, StorageKey("0" * 16), "hf://n/w", 5 * GIB).error()),
        ("its 3Gi", "hf://n/w, which needs 5Gi", "spec.pinned"),
    ),
    "what would make room": (an_eviction(), ("n1: old (3Gi)", "makes room for new, which needs 5Gi")),
    "an agent that is away": (absence.RESTARTING.message, ("the node agent", "is started again")),
    "an agent that stays away": (absence.silent("2026-01-01T00:00:00Z").message, ("since 2026-01-01T00:00:00Z",)),
    "an agent that ends again and again": (
        absence.away(5.0, "", [1.0, 2.0, 3.0], 4.0).message,
        ("3 times or more within 10m", "the log of the Ray worker"),
    ),
    "an agent that is set up wrongly": (
        absence.raised("ValueError: LOCALMODEL_CHUNK: 0 is not a size", starting=True).message,
        ("cannot start", "LOCALMODEL_CHUNK"),
    ),
    "what Ray says of an agent": (
        absence.raised("The actor 5f3a9c0d11b2e4a7 died: RayActorError", starting=False).message,
        ("the log of the Ray worker on this node says why",),
    ),
    "no Ray worker": (absence.no_ray_node("n1").message, ("node n1", "localmodel/node=n1", "DaemonSet")),
    "no Ray head": (absence.no_ray("head:6379").message, ("the Ray head at head:6379", "agents go on")),
}

_BARE = re.compile(r"(?<![\w.:/@-])\d{4,}(?![\w.:/-])")
"""A number of four digits or more that stands by itself: not in a time, a name, a path or an address."""
_UNIT = re.compile(r"\d{4,} (bytes|nodes|files)\b")
_INSIDES = re.compile(r"Actor\w*Error|Ray\w*Error|Traceback|\bray::|actor_id|\b[0-9a-f]{32,}\b(?!-)|died unexpectedly")


def is_for_people(message: str) -> bool:
    text = re.sub(r"sha256:[0-9a-f]+", "", message)
    return not _INSIDES.search(text) and not _BARE.search(_UNIT.sub("", text)) and bool(text.strip())


@pytest.mark.parametrize("case", TOLD)
def test_a_message_names_the_thing_the_size_and_the_next_step(case: str) -> None:
    message, words = TOLD[case]
    assert is_for_people(message), message
    assert [word for word in words if word not in message] == []


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("needs 268435456 in /models", False),
        ("needs 256Mi in /models", True),
        ("has 268435456 bytes", True),
        ("since 2026-01-01T00:00:00Z at http://h:8080/x", True),
        ("The actor died: ActorDiedError", False),
        ("", False),
    ],
)
def test_the_rule_itself(message: str, *, expected: bool) -> None:
    assert is_for_people(message) is expected


def worlds() -> Iterator[tuple[str, World]]:
    """One for each sort of trouble that the coordinator words itself."""
    cache = a_cache("llama")

    def world(*, nodes: int = 1, cache: CacheBuilder = cache, **node: Any) -> World:
        names = [f"n{number + 1}" for number in range(nodes)]
        return a_world(cache, a_group(), *(a_node(name) for name in names))

    full = Failure("InsufficientStorage", raised_by(GROUP_ROOM, 256 * MIB))
    yield "no room", world(nodes=2).reporting("n1", a_report(cache, Phase.PENDING, failure=full)).reporting("n2")
    waits = Failure("WaitingForOrigin", "waits for its turn at https://hub")
    yield "waits", world().reporting("n1", a_report(cache, Phase.DOWNLOADING, failure=waits))
    for reason in ("AgentRestarting", "AgentUnavailable", "AgentDied", "NoRayNode"):
        silent = world()
        silent.agents["n1"] = a_silent_agent(reason)
        yield reason, silent
    for reason in sorted(FINAL):
        failing = world().reporting("n1")
        failure = Failure(reason, f"hf://models/llama cannot be read ({reason})", retryable=False)
        yield reason, failing.unresolved(cache, failure, retry_at=NOW + 60)
    yield "no group", a_world(cache, a_node("n1"))
    yield "no members", a_world(cache, a_group(), a_node("n1").in_pool("other"))
    bad = a_cache("llama").with_spec(modelSize="much")
    yield "invalid", a_world(bad, a_group(), a_node("n1"))
    shared = [a_namespace_cache("team", "one", cache.uri), a_cache("two", cache.uri).with_spec(revision="v2")]
    yield "conflict", a_world(cache, *shared, a_group(), a_node("n1")).reporting("n1", a_report(cache))


WORLDS = dict(worlds())


@pytest.mark.parametrize("case", WORLDS)
def test_every_condition_and_every_event_is_for_people(case: str) -> None:
    world = WORLDS[case]
    said = []
    for _ in range(4):
        said += [event.message for write in world.step().writes for event in write.events]
    for builder in world.objects:
        said += [
            each["message"] for each in builder.json.get("status", {}).get("conditions", []) if each.get("message")
        ]
    assert said
    assert [message for message in said if not is_for_people(message)] == []


def conditions_of(world: World) -> dict[str, tuple[str, str, str]]:
    world.settle()
    (cache,) = (builder for builder in world.objects if builder.json["kind"] == "LocalModelCache")
    return {
        each["type"]: (each["status"], each["reason"], each.get("message", ""))
        for each in cache.json["status"]["conditions"]
    }


@pytest.mark.parametrize("reason", sorted(FINAL))
def test_no_next_try_is_announced_where_nothing_will_change(reason: str) -> None:
    world = dict(worlds())[reason]
    found = conditions_of(world)
    assert found["Degraded"][:2] == ("True", reason)
    assert "next try" not in found["Degraded"][2]
    (detail,) = world.snapshot().local_nodes[N1].status["models"]
    assert "retryTime" not in detail


@pytest.mark.parametrize("reason", ["SourceUnreachable", "SourceDenied", "CredentialsMissing"])
def test_it_is_where_others_may_change_something(reason: str) -> None:
    cache = a_cache("llama")
    world = a_world(cache, a_group(), a_node("n1")).reporting("n1")
    world.unresolved(cache, Failure(reason, "the hub says no"), retry_at=NOW + 60)
    assert "next try" in conditions_of(world)["Degraded"][2]


WAITS = ("AgentStarting", "AgentRestarting", "AgentOutdated")


@pytest.mark.parametrize("reason", WAITS)
def test_a_planned_restart_is_no_failure_and_no_event(reason: str) -> None:
    cache = a_cache("llama")
    world = a_world(cache, a_group(), a_node("n1")).reporting("n1", a_report(cache, Phase.DOWNLOADING))
    world.settle()
    world.agents["n1"] = a_silent_agent(reason, last=world.agents["n1"])
    made = world.plan()
    assert [event for write in made.writes for event in write.events if event.warning] == []
    assert conditions_of(world)["Degraded"][0] == "False"


@pytest.mark.slow
def test_waiting_for_an_origin_is_no_failure() -> None:
    world = dict(worlds())["waits"]
    found = conditions_of(world)
    assert found["Degraded"][0] == "False"
    assert found["Progressing"][:2] == ("True", "Downloading")


def test_a_node_that_was_told_nothing_of_an_origin_does_not_blame_others() -> None:
    quotas = Quotas()
    quotas.allow({})
    assert quotas.of(OriginName("https://hub")).hindrance() is None
    quota = Quota(OriginName("https://hub"))
    quota.allow(OriginShare(0))
    found = quota.hindrance()
    assert found is not None
    assert "https://hub" in found[0].message


NODE_REASONS: dict[str, tuple[dict[str, Any], str, str]] = {
    "a node that is not ready": ({"ready": False}, "NoRayNode", "NodeNotReady"),
    "a node that is not ready, with an agent that is silent": ({"ready": False}, "AgentUnavailable", "NodeNotReady"),
    "a cordoned node without a worker": ({"cordoned": True}, "NoRayNode", "NodeCordoned"),
    "a cordoned node whose agent is silent": ({"cordoned": True}, "AgentUnavailable", "AgentUnavailable"),
    "a node that its autoscaler removes": (
        {"taint": "ToBeDeletedByClusterAutoscaler"},
        "AgentRestarting",
        "NodeDraining",
    ),
    "a node that Karpenter disrupts": ({"taint": "karpenter.sh/disrupted"}, "AgentUnavailable", "NodeDraining"),
    "a dead node that somebody gave up": (
        {"ready": False, "taint": "node.kubernetes.io/out-of-service"},
        "AgentUnavailable",
        "NodeDraining",
    ),
    "a node with another taint": ({"taint": "nvidia.com/gpu"}, "NoRayNode", "NoRayNode"),
    "a node that is well": ({}, "NoRayNode", "NoRayNode"),
    "an agent that raised": ({"ready": False}, "AgentError", "AgentError"),
}


@pytest.mark.parametrize("case", NODE_REASONS)
def test_the_node_is_named_as_the_reason_where_it_is(case: str) -> None:
    state, reason, expected = NODE_REASONS[case]
    node = a_node("n1").ready(state.get("ready", True)).with_spec(unschedulable=state.get("cordoned", False))
    node = node.with_spec(taints=[{"key": state["taint"], "effect": "NoSchedule"}]) if "taint" in state else node
    view = explained(AgentView(failure=Failure(reason, "…")), read_node(node.json))
    assert view.failure is not None
    assert view.failure.reason == expected
    if expected != reason:
        assert "node n1" in view.failure.message


HEARD = {"False": "its kubelet reports a problem", "Unknown": "its kubelet no longer reports"}


@pytest.mark.parametrize("status", HEARD)
def test_a_node_that_is_dead_is_told_from_one_that_has_a_problem(status: str) -> None:
    node = a_node("n1").with_status(conditions=[{"type": "Ready", "status": status}])
    failure = explained(AgentView(failure=Failure("AgentUnavailable", "…")), read_node(node.json)).failure
    assert failure is not None
    assert HEARD[status] in failure.message


def test_a_cordoned_node_says_how_it_gets_its_model() -> None:
    world = a_world(a_cache("llama"), a_group(), a_node("n1").with_spec(unschedulable=True))
    world.agents["n1"] = a_silent_agent("NoRayNode")
    found = conditions_of(world)
    assert found["Ready"][1] == "NodeCordoned"
    assert "kubectl uncordon n1" in found["Ready"][2]
    assert found["Degraded"][0] == "False"


def test_three_restarts_within_ten_minutes_are_a_failure_and_one_is_not() -> None:
    reasons = [
        absence.away(lost_s, "since", ended, 700.0).reason
        for lost_s, ended in [(5.0, [699.0]), (5.0, [1.0, 2.0, 699.0]), (5.0, [200.0, 300.0, 699.0]), (61.0, [699.0])]
    ]
    assert reasons == ["AgentRestarting", "AgentRestarting", "AgentDied", "AgentUnavailable"]


SIZES = [(0, "0", "0"), (1023, "1023", "1023"), (1536, "1.5Ki", "1.5Ki"), (3145727, "2.9Mi", "3Mi")]
SIZES += [(200 * MIB + 1, "200Mi", "201Mi"), (GIB - 1, "1023Mi", "1Gi"), ((1 << 63) - 1, "7.9Ei", "8Ei")]


@pytest.mark.parametrize(("count", "down", "up"), SIZES)
def test_what_is_needed_is_rounded_up_and_what_there_is_down(count: int, down: str, up: str) -> None:
    assert (format_bytes(count), format_bytes(count, up=True)) == (down, up)


def test_a_small_number_of_bytes_has_its_unit_in_a_sentence() -> None:
    assert [say_bytes(count) for count in (0, 12, 4096)] == ["0", "12 bytes", "4Ki"]
