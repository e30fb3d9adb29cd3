"""Disks do not fill up: what does not fit waits for its turn, and what runs out of space leaves nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from actors.agent.capacity import Limit, Room, Waiting
from actors.errors import InsufficientStorage
from actors.manifest import ModelSource, Resolved, StorageKey, storage_key
from actors.messages import DesiredRoot, ModelReport, NodeReport, Phase
from actors.sizes import say_bytes
from actors.sources.options import SourceOptions
from actors.sources.resolve import resolve
from coordinator.dev.origin.faults import Fault
from coordinator.dev.origin.server import Origin
from coordinator.dev.trial.waiting import eventually
from tests.kit.disks import tmpfs
from tests.kit.nodes import Node, a_removal, model, ordering, together, until, until_gone, wants

MIB = 1 << 20

# --- what fits ---

ROOM = Room("/models", free_bytes=100, headroom_bytes=10, used_bytes=50)
LIMITED = replace(ROOM, limit=Limit(80, used_bytes=50, group="gpu"))

FITS: dict[str, tuple[Room, int, int, bool, str | None]] = {
    "to the last byte": (ROOM, 90, 0, False, None),
    "one byte more": (ROOM, 91, 0, False, "100 bytes are free, of which 10 bytes stay free and 0 are reserved"),
    "what an interrupted fill holds is not needed again": (ROOM, 91, 1, False, None),
    "what is promised and not taken yet is not free": (
        replace(ROOM, reserved_bytes=30, unallocated_bytes=20),
        71,
        0,
        False,
        "100 bytes are free, of which 10 bytes stay free and 20 bytes are reserved",
    ),
    "up to the limit": (LIMITED, 30, 0, False, None),
    "over the limit": (
        LIMITED,
        31,
        0,
        False,
        "80 bytes allowed for group gpu, of which 50 bytes are used and 0 reserved",
    ),
    "over the limit with what others were promised": (
        replace(LIMITED, reserved_bytes=10, limit=replace(LIMITED.limit, reserved_bytes=10)),
        21,
        0,
        False,
        "80 bytes allowed for group gpu, of which 50 bytes are used and 10 bytes reserved",
    ),
    "what is free is said in round numbers": (
        replace(ROOM, free_bytes=78_577_991_680),
        1 << 40,
        0,
        False,
        "73.1Gi are free, of which 10 bytes stay free",
    ),
    "what other groups hold in the same folder counts for the disk alone": (
        replace(LIMITED, used_bytes=500, limit=Limit(80, group="gpu")),
        80,
        0,
        False,
        None,
    ),
    "a repair may exceed the limit": (LIMITED, 31, 0, True, None),
    "a repair may not exceed the disk": (LIMITED, 91, 0, True, "100 bytes are free"),
}


@pytest.mark.parametrize("case", FITS)
def test_what_fits(case: str) -> None:
    room, needed, held, repair, message = FITS[case]
    if message is None:
        room.check(needed, held_bytes=held, repair=repair)
        return
    with pytest.raises(InsufficientStorage) as raised:
        room.check(needed, held_bytes=held, repair=repair)
    assert str(raised.value).startswith(f"needs {say_bytes(needed, up=True)} in /models")
    assert message in str(raised.value)


LACKING: dict[str, tuple[Room, int, int | None, int, int]] = {
    "room to spare": (ROOM, 50, None, 0, -40),
    "exactly the room": (ROOM, 90, None, 0, 0),
    "the disk is short": (ROOM, 100, None, 0, 10),
    "more on the way than in the end": (ROOM, 50, 100, 0, 10),
    "what an interrupted fill holds is not lacking": (ROOM, 100, None, 5, 5),
    "the limit is short": (LIMITED, 40, None, 0, 10),
    "the disk is shorter than the limit": (replace(LIMITED, free_bytes=20), 40, None, 0, 30),
    "what was promised to other groups does not count against the limit": (LIMITED.promise(20, 0), 30, None, 0, 0),
    "what was promised to others": (ROOM.promise(20), 80, None, 0, 10),
}


@pytest.mark.parametrize("case", LACKING)
def test_what_is_lacking_is_what_must_go_for_it_to_fit(case: str) -> None:
    room, needed, peak, held, lacking = LACKING[case]
    assert room.lacking_bytes(needed, peak_bytes=peak, held_bytes=held) == lacking

    def emptier(gone: int) -> Room:
        limit = replace(room.limit, used_bytes=room.limit.used_bytes - gone)
        return replace(room, free_bytes=room.free_bytes + gone, used_bytes=room.used_bytes - gone, limit=limit)

    emptier(lacking).check(needed, peak_bytes=peak, held_bytes=held)
    with pytest.raises(InsufficientStorage):
        emptier(lacking - 1).check(needed, peak_bytes=peak, held_bytes=held)


TURNS: dict[str, tuple[Room, list[Waiting], str | None]] = {
    "nobody waits": (ROOM, [], None),
    "a more important model waits": (
        ROOM,
        [Waiting("hf://a/b", 6, 95), Waiting("hf://c/d", 7, 95), Waiting("hf://e/f", 4, 95)],
        "goes after hf://c/d, which has priority 7 over 5 and waits for 95 bytes in /models",
    ),
    "an equal waits": (ROOM, [Waiting("hf://a/b", 5, 95)], None),
    "what waits would fit if all models were gone": (ROOM, [Waiting("hf://a/b", 6, 140)], "goes after hf://a/b"),
    "what waits could not even have an empty disk": (ROOM, [Waiting("hf://a/b", 6, 141)], None),
    "what waits is larger than the limit": (LIMITED, [Waiting("hf://a/b", 6, 81)], None),
}


@pytest.mark.parametrize("case", TURNS)
def test_whose_turn_it_is(case: str) -> None:
    room, waiting, message = TURNS[case]
    if message is None:
        room.check_turn(5, waiting)
        return
    with pytest.raises(InsufficientStorage, match=message):
        room.check_turn(5, waiting)


# --- a node ---


@pytest.fixture
def origin(tmp_path: Path) -> Iterator[Origin]:
    repos = {}
    for name, size in (("a/large", 3 * MIB), ("b/large", 3 * MIB), ("c/small", MIB)):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(name.encode() * (size // len(name)))
        repos[name] = folder
    with Origin(repos) as running:
        yield running


@pytest.fixture
def small_disk(node: Node) -> Iterator[Node]:
    """A node whose models are on a filesystem of 5 MiB."""
    with tmpfs(node.root, "size=5m"), node:
        yield node


def fill_up(path: Path) -> None:
    """Nothing more fits on the filesystem."""
    with path.open("wb", buffering=0) as file, suppress(OSError):
        while file.write(bytes(4096)):
            pass


def resolve_from(origin: Origin, name: str) -> Resolved:
    return resolve(ModelSource(f"hf://{name}"), SourceOptions({"HF_ENDPOINT": origin.hub_endpoint}))


def key(name: str) -> StorageKey:
    return storage_key(f"hf://{name}")


def said(report: NodeReport, name: str) -> str:
    found = model(report, key(name))
    return found.failure.message if found is not None and found.failure is not None else ""


def test_of_two_models_that_fit_only_one_at_a_time_the_second_starts_when_the_first_goes(
    small_disk: Node, origin: Origin
) -> None:
    first, second = (wants(resolve_from(origin, name)) for name in ("a/large", "b/large"))
    agent = small_disk.agent()
    agent.reconcile(first)
    until(agent, Phase.READY, key=key("a/large"))
    agent.reconcile(together(first, second))
    waiting = until(agent, Phase.PENDING, reason="InsufficientStorage", key=key("b/large"))
    assert waiting.failure is not None
    needed = next(iter(second.resolved.values())).manifest.total_bytes
    assert waiting.failure.message.startswith(f"needs {say_bytes(needed, up=True)} in /models")
    assert "are free, of which 0 stay free" in waiting.failure.message
    assert origin.stats()["repos"].get("b/large", {"bytes": 0})["bytes"] == 0, "nothing is fetched that does not fit"
    assert small_disk.left_behind() == []

    agent.reconcile(ordering(second, a_removal(key("a/large"))))
    until_gone(agent, key("a/large"))
    until(agent, Phase.READY, key=key("b/large"))


@pytest.mark.slow
def test_when_another_program_takes_the_space_on_the_way_it_is_said_and_nothing_is_left(
    small_disk: Node, origin: Origin
) -> None:
    origin.faults.set(Fault(path="/_cdn/*", latency_s=1.0))
    agent = small_disk.agent(backoff_first_s=2.0, backoff_max_s=2.0)
    agent.reconcile(wants(resolve_from(origin, "a/large")))
    until(agent, Phase.DOWNLOADING, key=key("a/large"))
    ingest = small_disk.root / ".localmodel/ingest"
    eventually(lambda: any(path.stat().st_size > MIB for path in ingest.rglob("*.safetensors")), every_s=0.01)
    filler = small_disk.root / "filler"
    fill_up(filler)
    origin.faults.clear()

    failed = until(agent, Phase.PENDING, reason="InsufficientStorage", key=key("a/large"))
    assert failed.failure is not None
    assert (failed.attempt, failed.failure.message[:16]) == (1, "the disk is full")
    assert not small_disk.folder("hf://a/large").exists()
    eventually(lambda: small_disk.left_behind() == [], seen=small_disk.left_behind)
    assert small_disk.agents[0].report().roots[0].reserved_bytes == 0
    filler.unlink()
    until(agent, Phase.READY, key=key("a/large"))


@pytest.mark.slow
def test_a_less_important_model_does_not_take_the_space_that_a_more_important_one_waits_for(
    node: Node, origin: Origin
) -> None:
    low, high, small = (resolve_from(origin, name) for name in ("a/large", "b/large", "c/small"))
    root = (DesiredRoot("/models", 5 * MIB),)
    agent = node.agent()
    agent.reconcile(replace(wants(low), roots=root))
    until(agent, Phase.READY, key=key("a/large"))

    more = together(wants(high, priority=10), wants(small, priority=1))
    agent.reconcile(replace(together(wants(low), more), roots=root))
    until(agent, Phase.PENDING, reason="InsufficientStorage", key=key("b/large"))
    behind = until(agent, Phase.PENDING, reason="InsufficientStorage", key=key("c/small"))
    assert "goes after hf://b/large, which has priority 10 over 1" in said(agent.report(), "c/small")
    assert behind.attempt == 0

    agent.reconcile(ordering(replace(more, roots=root), a_removal(key("a/large"))))
    until(agent, Phase.READY, key=key("b/large"))
    until(agent, Phase.READY, key=key("c/small"))
    reports = {each.key: each for each in agent.report().models}
    assert _started(reports[key("b/large")]) <= _started(reports[key("c/small")])


def test_among_equals_whoever_fits_goes(node: Node, origin: Origin) -> None:
    large, other, small = (resolve_from(origin, name) for name in ("a/large", "b/large", "c/small"))
    agent = node.agent()
    agent.reconcile(replace(wants(large), roots=(DesiredRoot("/models", 5 * MIB),)))
    until(agent, Phase.READY, key=key("a/large"))
    state = together(wants(large), wants(other), wants(small))
    agent.reconcile(replace(state, roots=(DesiredRoot("/models", 5 * MIB),)))
    until(agent, Phase.READY, key=key("c/small"))
    until(agent, Phase.PENDING, reason="InsufficientStorage", key=key("b/large"))


def test_a_limit_that_is_used_up_does_not_stop_a_repair(node: Node, origin: Origin) -> None:
    resolved = resolve_from(origin, "a/large")
    agent = node.agent()
    state = replace(wants(resolved), roots=(DesiredRoot("/models", resolved.manifest.total_bytes),))
    agent.reconcile(state)
    until(agent, Phase.READY, key=key("a/large"))
    agent.close()
    folder = node.folder("hf://a/large")
    folder.chmod(0o755)
    (folder / "model.safetensors").unlink()
    again = node.agent()
    again.reconcile(state)
    assert until(again, Phase.READY, key=key("a/large")).repaired == "model.safetensors is missing"


def _started(report: ModelReport) -> float:
    assert report.started_at is not None
    return report.started_at
