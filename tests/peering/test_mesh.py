"""What a node decides in a cooperative fill: worlds where anything may happen in any order, and each answer alone."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from actors.mesh import bitmap
from actors.mesh.actions import Answer, AskPeer, Done, Elsewhere, Origin, Outcome, ReadOrigin, Release, Steal, Wait
from actors.mesh.announcements import NOTHING
from actors.mesh.limits import Pace
from actors.mesh.membership import Member, Membership
from actors.mesh.mesh import Mesh
from actors.mesh.peer import Standing
from actors.messages import NodeName
from tests.kit.mesh_world import PACE, World, wrong

SEEDS = st.integers(0, 10**6)
A, B, C = NodeName("a"), NodeName("b"), NodeName("c")
RIGHT = Origin(A, b"right")


def node(names: str = "ab", chunks: int = 20, pace: Pace = PACE, have: int = 0) -> Mesh:
    """The mesh of node a."""
    membership = Membership("fill", [Member(NodeName(name)) for name in names], chunks)
    return Mesh(A, membership, pace, rng=random.Random(1), now=0.0, have=have)


def actions(mesh: Mesh, now: float = 0.0) -> list[ReadOrigin | AskPeer | Steal]:
    begun: list[ReadOrigin | AskPeer | Steal] = []
    while not isinstance(action := mesh.next(now), Wait | Done):
        begun.append(action)
    return begun


def reads(mesh: Mesh) -> list[int]:
    return [action.chunk for action in actions(mesh) if isinstance(action, ReadOrigin)]


# --- whole worlds ---


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(SEEDS, st.integers(1, 6), st.integers(0, 40))
def test_without_a_failure_every_chunk_is_read_once_and_everybody_gets_everything(
    seed: int, nodes: int, chunks: int
) -> None:
    world = World("abcdef"[:nodes], chunks, random.Random(seed))
    world.run()
    assert world.reads == Counter(range(chunks))


@pytest.mark.slow
@settings(max_examples=15, deadline=None)
@given(SEEDS)
def test_when_nodes_die_the_others_finish_and_read_again_only_what_was_lost(seed: int) -> None:
    rng = random.Random(seed)
    world = World("abcdef", 40, rng)
    world.run(until=lambda: world.reads.total() >= rng.randrange(5, 35))
    victims = rng.sample("abcdef", 2)
    only_theirs = set[int]()
    for victim in victims:
        world.kill(victim)
    living = world.living()
    for victim in victims:
        theirs = set(bitmap.members(world.meshes[victim].have))
        only_theirs |= {c for c in theirs if not any(world.meshes[n].have >> c & 1 for n in living)}
    for _ in range(rng.randrange(30)):
        world.step()
    world.notice()
    world.run()
    in_flight = PACE.reads_per_owner(6) * 2 + 2  # and what they had just been given to read
    assert world.reads.total() - 40 <= len(only_theirs) + in_flight


@pytest.mark.slow
@settings(max_examples=5, deadline=None)
@given(SEEDS)
@example(627841)  # two acted for it at the same moment
def test_a_member_that_cannot_be_reached_is_acted_for_when_nothing_else_moves(seed: int) -> None:
    world = World("abcd", 30, random.Random(seed))
    world.deaf = {"b"}  # nobody reaches it, and it still reaches all others
    world.run()
    assert world.reads.total() <= 30 + PACE.unpassed + PACE.reads_per_owner(4)


@settings(max_examples=5, deadline=None)
@given(SEEDS)
def test_nobody_reads_the_origin_while_a_member_has_a_copy(seed: int) -> None:
    world = World("abcs", 30, random.Random(seed), seeds="s")
    world.origin_is_down = True
    world.run()
    assert world.reads.total() == 0


@settings(max_examples=5, deadline=None)
@given(SEEDS)
def test_a_node_that_joins_a_running_fill_reads_nothing(seed: int) -> None:
    world = World("abc", 30, random.Random(seed), late="j")
    world.run(until=lambda: world.reads.total() >= 10)
    world.members.append("j")
    membership = world.membership()
    for mesh in world.meshes.values():
        mesh.join(membership, world.now)
    world.meshes["j"] = world.start("j")
    world.run()
    assert world.reads == Counter(range(30))


@settings(max_examples=5, deadline=None)
@given(SEEDS)
def test_a_node_that_starts_again_with_its_journal_costs_the_origin_nothing_more(seed: int) -> None:
    half = bitmap.bitmap(range(0, 30, 2))
    world = World("abc", 30, random.Random(seed), have={"b": half})
    world.run()
    assert world.reads == Counter(range(1, 30, 2))


@settings(max_examples=5, deadline=None)
@given(SEEDS)
def test_who_sends_wrong_bytes_is_named_and_left_alone_and_the_chunk_comes_from_elsewhere(seed: int) -> None:
    world = World("abcd", 30, random.Random(seed))
    world.wrong_bytes = {"b": 5}
    world.run()
    assert {name for mesh in world.meshes.values() for name in wrong(mesh)} <= {"b"}
    assert world.reads.total() <= 30 + PACE.unpassed + PACE.reads_per_owner(4)


@settings(max_examples=5, deadline=None)
@given(SEEDS, st.sampled_from(["", "s"]))
def test_of_a_copy_that_has_rotted_in_places_only_these_are_read_from_the_origin(seed: int, seeds: str) -> None:
    """`s` holds everything at the start: as a member that owned all of it, or as a seed."""
    rotten = bitmap.bitmap([0, 7, 20])
    world = World(
        "abcs", 60, random.Random(seed), have={"s": bitmap.full(60)}, seeds=seeds, late="" if seeds else "abc"
    )
    world.rotten = {"s": rotten}
    world.run()
    assert set(world.reads) == set(bitmap.members(rotten))
    assert max(world.reads.values()) <= 3, "each of the others finds out for itself, and one of them reads it"
    assert {name for mesh in world.meshes.values() for name in wrong(mesh)} == {"s"}


@settings(max_examples=5, deadline=None)
@given(SEEDS, st.sampled_from(["", "d"]))
def test_chunks_that_nodes_have_elsewhere_on_their_disks_are_read_once_and_sent_to_none_of_these(
    seed: int, seeds: str
) -> None:
    """And nobody who has read some waits for others to take them."""
    world = World("abcd", 60, random.Random(seed), seeds=seeds)
    world.old = {name: bitmap.full(55) for name in "abc"}
    world.run()
    assert world.reads == Counter() if seeds else world.reads == Counter(range(60))
    lacking = {name: 60 - world.readers[name] for name in "abc"}
    assert all(lacking[name] - 5 <= world.copied[name] <= 55 for name in lacking)
    assert world.now < PACE.takeover_s


@settings(max_examples=5, deadline=None)
@given(SEEDS)
def test_of_an_origin_that_comes_back_at_most_what_was_in_flight_is_read_twice(seed: int) -> None:
    world = World("abcd", 30, random.Random(seed))
    world.run(until=lambda: world.reads.total() >= 15)
    world.origin_is_down = True
    for _ in range(500):
        world.step()
    world.origin_is_down = False
    world.run()
    assert set(world.reads) == set(range(30))
    assert world.reads.total() <= 30 + PACE.reads_per_owner(4)


@settings(max_examples=5, deadline=None)
@given(SEEDS)
def test_a_reader_that_announces_wrong_bytes_is_blamed_once_the_file_is_right(seed: int) -> None:
    world = World("abcd", 30, random.Random(seed))
    world.bad_reader = "b"
    world.run()
    by_b = {chunk for chunk, origin in world.meshes["a"].origins.items() if origin.digest == b"wrong"}
    for name, mesh in world.meshes.items():
        mesh.withdraw(range(30))
        assert isinstance(mesh.next(world.now), Done), "the caller reads them, not the mesh"
        for chunk in range(30):
            assert mesh.asked(C, chunk, world.now) is not Answer.DATA
            mesh.put_back(chunk, Origin(mesh.me, b"right"))
        assert mesh.complete
        assert mesh.settle(range(30), world.now) == dict.fromkeys(by_b, "b")
        assert ("b" in wrong(mesh)) == (bool(by_b) and name != "b")


# --- one node alone ---


def test_one_node_alone_reads_everything_from_the_origin_in_file_order() -> None:
    mesh, read = node("a", chunks=1000), list[int]()
    while begun := actions(mesh):
        assert len(begun) <= 8
        for action in begun:
            assert isinstance(action, ReadOrigin)
            read.append(action.chunk)
            assert mesh.landed(action.chunk, RIGHT, 0.0) == []
    assert read == list(range(1000))
    assert mesh.next(0.0) == Done()


def test_an_origin_that_asks_for_a_pause_gets_it() -> None:
    mesh = node("a")
    mesh.quiet_origin(until=7.0)
    assert mesh.next(1.0) == Wait(7.0)
    assert len(actions(mesh, 7.0)) == 8


def test_a_read_that_failed_is_begun_again_when_the_caller_said() -> None:
    mesh = node("a", chunks=1)
    assert actions(mesh) == [ReadOrigin(0)]
    mesh.failed(0, Outcome.ORIGIN, 1.0, retry_at=3.0)
    assert mesh.next(1.0) == Wait(3.0)
    assert actions(mesh, 3.0) == [ReadOrigin(0)]


# --- answers ---


def test_a_request_is_answered_with_what_is_known_of_the_chunk() -> None:
    mesh = node("ab", chunks=60, pace=Pace(slots=2, holds=1), have=bitmap.bitmap(range(30)))
    mesh.heard(B, 0, 0.0)
    coming = [action.chunk for action in actions(mesh) if isinstance(action, ReadOrigin)]
    unbegun = next(chunk for chunk in range(30, 60) if chunk not in coming)
    cases: dict[str, tuple[int, Answer]] = {
        "what is here": (0, Answer.DATA),
        "the same again while the first copy is on its way": (0, Answer.BUSY),
        "what is neither here nor coming": (unbegun, Answer.NOT_YET),
        "what is on its way": (coming[0], Answer.HOLD),
        "what is on its way, and another waits": (coming[0], Answer.BUSY),
        "with the last slot": (1, Answer.DATA),
        "without a slot": (2, Answer.BUSY),
    }
    assert {name: mesh.asked(B, chunk, 0.0) for name, (chunk, _) in cases.items()} == {
        name: answer for name, (_, answer) in cases.items()
    }


def test_a_held_request_is_answered_the_moment_the_chunk_lands_or_fails() -> None:
    mesh = node("ab")
    mesh.heard(B, 0, 0.0)
    first, second, *_ = [action.chunk for action in actions(mesh) if isinstance(action, ReadOrigin)]
    assert (mesh.asked(B, first, 0.0), mesh.asked(B, second, 0.0)) == (Answer.HOLD, Answer.HOLD)
    assert mesh.landed(first, RIGHT, 1.0) == [Release(B, first, Answer.DATA)]
    assert mesh.failed(second, Outcome.ORIGIN, 1.0) == [Release(B, second, Answer.NOT_YET)]
    mesh.unhold(B, second)  # too late: without effect


def test_a_request_held_too_long_is_not_told_that_nobody_reads_what_is_still_on_its_way() -> None:
    mesh = node("ab")
    mesh.heard(B, 0, 0.0)
    first, second, *_ = [action.chunk for action in actions(mesh) if isinstance(action, ReadOrigin)]
    assert (mesh.asked(B, first, 0.0), mesh.asked(B, second, 0.0)) == (Answer.HOLD, Answer.HOLD)
    assert mesh.unhold(B, first) is Answer.BUSY
    mesh.failed(second, Outcome.ORIGIN, 2.0)
    assert mesh.unhold(B, second) is Answer.NOT_YET


def test_who_gave_a_chunk_away_names_its_new_reader_and_takes_it_back_when_that_one_is_lost() -> None:
    mesh = node("abc", pace=Pace(slots=4, origin_reads=1))
    for peer in (B, C):
        mesh.heard(peer, 0, 0.0)
    actions(mesh)
    given_away = mesh.asked_for_work(B, 0.0)
    assert given_away is not None
    assert mesh.asked(C, given_away, 0.0) == Elsewhere(B)
    mesh.join(mesh.membership.without(frozenset({B})), 1.0)
    assert mesh.asked(C, given_away, 1.0) in (Answer.NOT_YET, Answer.HOLD)


def test_who_may_be_given_a_chunk_this_moment_does_not_say_that_it_does_not_read_it() -> None:
    mesh = node("ab", chunks=12, pace=Pace(slots=4))
    mesh.heard(B, bitmap.bitmap(mesh.membership.owned(A)), 0.0)
    given = mesh.membership.owned(B)[0]
    assert mesh.asked(B, given, 0.0) is Answer.NOT_YET
    assert Steal(B) in actions(mesh)
    assert mesh.asked(B, given, 0.0) is Answer.BUSY, "its answer is on its way"
    mesh.stolen(B, None, 0.0)
    assert mesh.asked(B, given, 0.0) is Answer.NOT_YET


def test_two_that_ask_each_other_for_a_chunk_do_not_wait_for_each_other() -> None:
    mesh = node("ab")
    chunk = next(action.chunk for action in actions(mesh) if isinstance(action, AskPeer))
    assert mesh.asked(B, chunk, 0.0) is Answer.NOT_YET
    mesh.failed(chunk, Outcome.NOT_YET, 0.0)


def test_no_more_is_read_at_a_time_than_is_allowed_and_more_as_soon_as_it_is() -> None:
    mesh = node("a", pace=Pace(slots=4, origin_reads=8))
    assert not mesh.allow(2)
    first, second = reads(mesh)
    assert reads(mesh) == []
    mesh.landed(first, RIGHT, 0.0)
    assert len(reads(mesh)) == 1
    assert mesh.allow(4)
    assert len(reads(mesh)) == 2
    assert not mesh.allow(0)
    mesh.landed(second, RIGHT, 0.0)
    assert reads(mesh) == []
    assert mesh.allow(None)
    assert len(reads(mesh)) == 8 - 3


def test_who_may_not_read_gives_all_its_chunks_away_and_asks_for_none() -> None:
    mesh = node("ab", chunks=12, pace=Pace(slots=4))
    mesh.allow(0)
    mesh.heard(B, 0, 0.0)
    assert not any(isinstance(action, ReadOrigin | Steal) for action in actions(mesh))
    given = set[int]()
    while (chunk := mesh.asked_for_work(B, 0.0)) is not None:
        given.add(chunk)
    assert given == set(mesh.membership.owned(A)), "the last one, too"
    assert not any(isinstance(action, ReadOrigin | Steal) for action in actions(mesh, 3.0))


def test_who_may_not_read_the_origin_still_reads_from_a_copy() -> None:
    members = [Member(A), Member(B, owns=False, seed=True)]
    mesh = Mesh(A, Membership("fill", members, 4), Pace(slots=4), rng=random.Random(1), now=0.0)
    mesh.allow(0)
    assert [action.peer for action in actions(mesh) if isinstance(action, AskPeer)]


@pytest.mark.parametrize("seed", range(5))
def test_a_fill_ends_though_only_one_of_its_owners_may_read(seed: int) -> None:
    world = World("abcd", 40, random.Random(seed))
    for name in "bcd":
        world.meshes[name].allow(0)
    world.run()
    assert set(world.readers) == {"a"}
    assert world.reads.total() == 40


def test_no_more_is_read_than_may_wait_for_somebody_to_take_it() -> None:
    mesh = node("ab", chunks=100, pace=Pace(slots=4, unpassed=3, origin_reads=2))
    mesh.heard(B, 0, 0.0)
    read = list[int]()
    while begun := [action.chunk for action in actions(mesh) if isinstance(action, ReadOrigin)]:
        read += begun
        for chunk in begun:
            mesh.landed(chunk, RIGHT, 0.0)
    assert len(read) == 3
    assert mesh.asked(B, read[0], 0.0) is Answer.DATA
    assert mesh.served(B, read[0], 0.0, ok=True)
    assert len(actions(mesh)) >= 1


# --- peers ---


def test_a_peer_is_asked_only_for_what_it_shows_and_not_while_it_is_quarantined() -> None:
    everything = bitmap.full(20)
    mesh = node("ab", pace=Pace(slots=1))
    mesh.heard(B, everything, 0.0)
    [asked] = actions(mesh)
    assert isinstance(asked, AskPeer)
    assert asked.peer == B
    mesh.failed(asked.chunk, Outcome.CORRUPT, 0.0)
    assert wrong(mesh) == {B: 1}
    assert all(isinstance(action, ReadOrigin) for action in actions(mesh, 1.0))
    assert not mesh.heard(B, everything, 2.0) or not any(isinstance(a, AskPeer) for a in actions(mesh, 2.0))
    mesh.heard(B, everything, 31.0)
    assert any(isinstance(action, AskPeer) for action in actions(mesh, 31.0))


@pytest.mark.parametrize(("moved", "slots"), [(True, 3), (False, 4)])
def test_a_chunk_that_only_was_named_says_nothing_of_the_link(moved: bool, slots: int) -> None:
    """One that was sent and took too long is followed by fewer at a time."""
    pace = Pace(slots=4)
    mesh = node("ab", pace=pace)
    mesh.heard(B, bitmap.full(20), 0.0)
    asked = [action.chunk for action in actions(mesh) if isinstance(action, AskPeer)]
    for chunk in asked[:2]:
        mesh.landed(chunk, Origin(B, b"right"), 2 * pace.aim_s, moved=moved)
    assert int(mesh.state.width) == slots


QUARANTINES = {
    "w": 30.0,
    "ww": 60.0,
    7 * "r" + "w": 30.0,
    8 * "r" + "w": 0.0,
    8 * "r" + "ww": 60.0,
    16 * "r" + "ww": 0.0,
    "w" + 15 * "r" + "w": 60.0,
}
"""By what came from a peer, right or wrong: for how long it is in quarantine after the last."""


@pytest.mark.parametrize(("came", "quarantine_s"), QUARANTINES.items(), ids=QUARANTINES)
def test_a_peer_of_whose_chunks_most_are_right_is_not_quarantined(came: str, quarantine_s: float) -> None:
    peer = Standing(have=bitmap.full(len(came)))
    for chunk, each in enumerate(came):
        if each == "r":
            peer.delivered()
        else:
            peer.sent_wrong(chunk, 0.0, 30.0)
    assert peer.quarantined_until == quarantine_s
    assert peer.have == bitmap.bitmap(chunk for chunk, each in enumerate(came) if each == "r")


def test_a_quarantine_ends_early_a_few_times_and_never_that_of_a_reader_whose_digests_were_wrong() -> None:
    peer = Standing()
    ended = []
    for chunk in range(5):
        peer.sent_wrong(chunk, 0.0, 30.0)
        ended.append(peer.release(1.0))
    assert ended == [True, True, True, False, False]
    reader = Standing()
    reader.lied(0.0, 30.0)
    assert not reader.release(1.0)


def test_a_chunk_that_came_with_wrong_bytes_is_read_from_the_origin_by_the_next_in_order_at_once() -> None:
    """Both of the late nodes find it out; one of them reads."""
    members = [Member(B), Member(A, owns=False), Member(C, owns=False)]
    readers = set()
    for me in (A, C):
        mesh = Mesh(me, Membership("fill", members, 4), PACE, rng=random.Random(1), now=0.0, have=0b0111)
        mesh.heard(A if me == C else C, 0, 0.0)
        mesh.heard(B, 1 << 3, 0.0)
        [asked] = actions(mesh)
        assert asked == AskPeer(3, B)
        mesh.failed(3, Outcome.CORRUPT, 0.0)
        mesh.heard(B, 1 << 3, 0.1, whole=True)
        if actions(mesh, 0.2) == [ReadOrigin(3)]:
            readers.add(me)
    assert len(readers) == 1


def test_nobody_is_blamed_for_a_chunk_of_which_no_digest_was_made() -> None:
    mesh = node("ab", chunks=2, have=0b11)
    mesh.origins[1] = Origin(B, b"wrong")
    mesh.withdraw([0, 1])
    for chunk in (0, 1):
        mesh.put_back(chunk, Origin(A, b"right"))
    assert mesh.settle([0, 1], 0.0) == {1: B}
    assert wrong(mesh) == {B: 1}


def test_a_peer_in_the_same_zone_is_preferred() -> None:
    zones = {"a": "east", "b": "west", "c": "east"}
    members = [Member(NodeName(name), zone=zone) for name, zone in zones.items()]
    mesh = Mesh(A, Membership("fill", members, 20), Pace(slots=20), rng=random.Random(1), now=0.0)
    mesh.heard(B, bitmap.full(20), 0.0)
    mesh.heard(C, bitmap.full(12), 0.0)
    asked = {action.chunk: action.peer for action in actions(mesh) if isinstance(action, AskPeer)}
    assert asked == {chunk: C if chunk < 12 else B for chunk in range(20)}


def test_news_are_what_landed_since_and_everything_to_whom_knows_nothing() -> None:
    mesh = node("a", chunks=4, have=0b1000)
    whole = mesh.news(NOTHING)
    assert (whole.chunks, whole.whole) == (0b1000, True)
    assert mesh.news(whole.cursor).chunks == 0
    assert not mesh.urgent(whole.cursor)
    for action in actions(mesh)[:2]:
        assert isinstance(action, ReadOrigin)
        mesh.landed(action.chunk, RIGHT, 0.0)
    news = mesh.news(whole.cursor)
    assert (news.chunks, news.whole, mesh.urgent(whole.cursor)) == (0b0011, False, True)
    mesh.withdraw([0])
    assert mesh.news(news.cursor).whole


def test_a_peer_that_asks_but_cannot_be_reached_is_tried_again_soon_and_stays_suspected() -> None:
    peer, rng = Standing(), random.Random(1)
    for _ in range(6):
        peer.unreachable(0.0, rng)
    assert not peer.ready(1.0)
    peer.asks(0.0)
    assert (peer.ready(0.9), peer.ready(1.0), peer.trusted(1.0)) == (False, True, False)
    peer.lied(1.0, first_s=30.0)
    peer.asks(1.0)
    assert (peer.ready(30.9), peer.ready(31.0)) == (False, True)


@pytest.mark.parametrize(("reader", "blamed"), [(B, {0: B}), (NodeName("nobody \x1b[2J"), {})])
def test_only_a_member_is_blamed_for_wrong_bytes(reader: NodeName, blamed: dict[int, NodeName]) -> None:
    """A peer could name another for each chunk, and all of them would end in a status."""
    mesh = node(have=1)
    mesh.origins[0] = Origin(reader, b"wrong")
    mesh.withdraw(range(1))
    mesh.put_back(0, RIGHT)
    known = len(mesh.state.peers.standings)
    assert mesh.settle(range(1), 0.0) == blamed
    assert len(mesh.state.peers.standings) == known
