"""A member that does anything but its part stalls nobody while the origin is well, and costs the origin little.

The bounds are for a fill of `CHUNKS` chunks of which one node alone reads 8 at a time, in `READ_S` each: it would take
0.25 s. Patience is then `Pace.takeover_s`, 5 s; before a node knows how long a read takes, four times that.
"""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from actors.mesh.actions import Answer, AskPeer, Done, Elsewhere, Origin, Outcome, ReadOrigin, Steal, Wait
from actors.mesh.limits import Pace
from actors.mesh.membership import Member, Membership
from actors.mesh.mesh import Mesh
from actors.mesh.pauses import REFILL_PER_S, Pauses
from actors.mesh.peer import DEFAULT_MAX_S, Standing
from actors.mesh.uploads import LATE_S, Serving
from actors.messages import NodeName
from tests.kit.mesh_liars import LIARS
from tests.kit.mesh_world import PACE, Liar, World

CHUNKS = 40
READ_S = 0.05
STALL_S = 8 * PACE.takeover_s
"""All that one liar costs, in all: to be found out, and found out again when it is given another chance."""
DRIP_S = {"gives a chunk every second": 1.0 * CHUNKS, "is another incarnation every second": 2 * STALL_S}
"""More where the liar does deliver, slowly, or is a new member all the time."""
A, B, C = NodeName("a"), NodeName("b"), NodeName("c")


def read_twice(honest: int, liars: int = 1) -> int:
    """Chunks that may be read once more: what a liar takes, or has all others take, at a time."""
    return 0 if honest == 1 else 4 * honest * liars


def a_world(honest: int, liars: dict[str, Liar], seed: int, seeds: str = "") -> World:
    return World("abcdefg"[:honest], CHUNKS, random.Random(seed), liars=liars, read_s=READ_S, seeds=seeds)


@pytest.mark.slow
@pytest.mark.parametrize("honest", [1, 2, 7])
@pytest.mark.parametrize("kind", LIARS)
def test_a_liar_among_honest_members_stalls_none(kind: str, honest: int) -> None:
    world = a_world(honest, {"y": LIARS[kind]()}, seed=honest)
    world.run(steps=100_000)
    assert world.now <= DRIP_S.get(kind, STALL_S)
    assert world.reads.total() <= CHUNKS + read_twice(honest)


@pytest.mark.slow
@pytest.mark.parametrize(("one", "other"), list(pairwise([*LIARS, next(iter(LIARS))])))
def test_two_liars_of_different_kinds_stall_none(one: str, other: str) -> None:
    world = a_world(2, {"y": LIARS[one](), "z": LIARS[other]()}, seed=1)
    world.run(steps=200_000)
    assert world.now <= max(DRIP_S.get(kind, 0.0) for kind in (one, other)) + 2 * STALL_S
    assert world.reads.total() <= CHUNKS + read_twice(2, liars=2)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["is always busy, and claims everything", "is silent after accepting", "trickles"])
def test_a_copy_that_never_gives_is_replaced_by_the_origin(kind: str) -> None:
    world = a_world(2, {"y": LIARS[kind]()}, seed=1, seeds="y")
    world.run(steps=100_000)
    assert world.now <= 2 * STALL_S
    assert world.reads.total() <= CHUNKS + read_twice(2)


@pytest.mark.slow
def test_two_that_redirect_to_each_other_are_not_followed_for_long() -> None:
    liars = {"y": LIARS["redirects to itself what it owns"](), "z": LIARS["redirects to itself what it owns"]()}
    liars["y"].to, liars["z"].to = "z", "y"  # type: ignore[attr-defined]  # they are of one kind
    world = a_world(2, liars, seed=1)
    world.run(steps=100_000)
    assert world.now <= STALL_S
    assert world.reads.total() <= CHUNKS + read_twice(2, liars=2)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_honest_peers_that_are_slow_are_waited_for(seed: int) -> None:
    """A read takes longer than any fixed patience would allow."""
    world = World("abcd", CHUNKS, random.Random(seed), read_s=4 * PACE.takeover_s)
    world.run()
    assert world.reads.total() == CHUNKS


# --- one node ---


def node(names: str = "ab", chunks: int = 20, **pace: float) -> Mesh:
    membership = Membership("fill", [Member(NodeName(name)) for name in names], chunks)
    return Mesh(A, membership, Pace(slots=4, **pace), rng=random.Random(1), now=0.0)  # type: ignore[arg-type]  # by name


def begun(mesh: Mesh, now: float) -> list[AskPeer | ReadOrigin | Steal]:
    found: list[AskPeer | ReadOrigin | Steal] = []
    while not isinstance(action := mesh.next(now), Wait | Done):
        found.append(action)
    return found


def in_default(mesh: Mesh) -> float:
    """Peer b claims everything, is busy, and is found out. When that is."""
    now = 0.0
    mesh.heard(B, (1 << 60) - 1, 0.0)
    while not mesh.state.peers.standings[B].in_default:
        now += 0.1
        for action in begun(mesh, now):
            if isinstance(action, AskPeer):
                mesh.failed(action.chunk, Outcome.BUSY, now)
            elif isinstance(action, ReadOrigin):
                mesh.landed(action.chunk, Origin(A, b"right"), now + 0.01)
        assert now < 2 * mesh.pace.takeover_s
    return now


def test_what_a_peer_in_default_claims_is_read_and_it_is_tried_again_and_trusted_once_it_delivers() -> None:
    mesh = node(chunks=60)
    now = in_default(mesh)
    reads = [action.chunk for action in begun(mesh, now) if isinstance(action, ReadOrigin)]
    assert reads, "its claims hold nothing back"
    mesh.heard(B, (1 << 60) - 1, now + 1.0, whole=True)
    assert not mesh.state.peers.standings[B].trusted(now + 1.0), "news are no chunk"
    later = now + mesh.pace.quarantine_s
    assert not [action for action in begun(mesh, later - 0.1) if isinstance(action, AskPeer)]
    tried = [action for action in begun(mesh, later) if isinstance(action, AskPeer)]
    assert len(tried) == 1, "once"
    mesh.landed(tried[0].chunk, Origin(B, b"right"), later)
    assert mesh.state.peers.standings[B].trusted(later)


def test_a_request_to_a_peer_in_default_is_given_up() -> None:
    mesh = node()
    mesh.heard(B, (1 << 60) - 1, 0.0)
    asked = [action.chunk for action in begun(mesh, 0.0) if isinstance(action, AskPeer)]
    for now in range(1, 25):
        for action in begun(mesh, float(now)):
            if isinstance(action, ReadOrigin):
                mesh.landed(action.chunk, Origin(A, b"right"), now + 0.01)
    assert asked
    assert all(mesh.abandons(chunk) for chunk in asked)


def test_only_who_is_to_read_a_chunk_may_name_another_and_nobody_takes_from_us_what_is_ours() -> None:
    mesh = node("abc")
    mine = mesh.membership.owned(A)[0]
    mesh.heard(B, 1 << mine, 0.0)
    [asked] = [action for action in begun(mesh, 0.0) if isinstance(action, AskPeer) and action.chunk == mine]
    mesh.redirected(asked.chunk, C, 0.0)
    assert mesh.asked(C, mine, 0.0) != Elsewhere(C)
    assert mine not in mesh.state.claims.given


def test_a_peer_is_given_little_to_read_at_a_time_by_a_node_that_reads_itself() -> None:
    mesh = node("abc", chunks=60)
    given = [chunk for _ in range(20) if (chunk := mesh.asked_for_work(B, 0.0)) is not None]
    assert len(given) == 2
    mesh.heard(B, 1 << given[0], 1.0)
    assert mesh.asked_for_work(B, 1.0) is not None, "it has read one"


def test_what_an_owner_that_starts_again_was_reading_is_left_to_it_unless_it_says_that_it_does_not() -> None:
    members = {name: Member(name, "1") for name in (A, B)}
    mesh = Mesh(A, Membership("fill", members.values(), 20), PACE, rng=random.Random(1), now=0.0)
    theirs = mesh.membership.owned(B)[: PACE.reads_per_owner(2)]
    again = [members[A], Member(B, "2", owns=False)]
    mesh.join(Membership("fill", again, 20), 1.0)
    mesh.heard(B, 0, 1.0)
    assert not set(theirs) & set(mesh.state.claims.own)
    assert set(mesh.membership.owned(B)) == set()
    inquiries = (action for tenth in range(50) for action in begun(mesh, 1.0 + tenth / 10))
    asked = next(action for action in inquiries if isinstance(action, AskPeer))
    assert asked.chunk in theirs
    mesh.failed(asked.chunk, Outcome.NOT_YET, 1.0)
    assert asked.chunk in mesh.state.claims.own


def test_a_node_that_starts_again_reads_on_what_it_had_begun_though_it_owns_nothing_any_more() -> None:
    members = [Member(A, "2", owns=False), Member(B)]
    mesh = Mesh(A, Membership("fill", members, 20), PACE, rng=random.Random(1), now=0.0, begun=0b11000)
    mesh.heard(B, 0, 0.0)
    assert {action.chunk for action in begun(mesh, 0.0) if isinstance(action, ReadOrigin)} == {3, 4}


# --- pauses that peers speak of ---


def test_a_pause_that_a_peer_speaks_of_is_heeded_for_a_moment() -> None:
    mesh = node("ab")
    mesh.told_to_pause(B, 1e16, 0.0)
    assert not [action for action in begun(mesh, 4.9) if isinstance(action, ReadOrigin)]
    assert [action for action in begun(mesh, 5.1) if isinstance(action, ReadOrigin)]


def test_a_pause_goes_with_the_peer_that_spoke_of_it() -> None:
    for changed in (Membership("fill", [Member(A)], 20), Membership("fill", [Member(A), Member(B, "2")], 20)):
        mesh = node("ab")
        mesh.told_to_pause(B, 1e16, 0.0)
        mesh.join(changed, 0.1)
        assert [action for action in begun(mesh, 1.1) if isinstance(action, ReadOrigin)]


def test_a_pause_of_a_stranger_is_not_heeded() -> None:
    mesh = node("ab")
    mesh.told_to_pause(NodeName("x"), 1e16, 0.0)
    assert [action for action in begun(mesh, 1.1) if isinstance(action, ReadOrigin)]


@pytest.mark.parametrize("pause_s", [0.3, 5.0, 60.0, float("inf")])
@pytest.mark.parametrize("peers", [1, 8])
def test_all_that_peers_say_of_pauses_costs_a_twelfth_of_the_time(pause_s: float, peers: int) -> None:
    pauses, paused, now, step = Pauses(5.0, 0.0), 0.0, 0.0, 0.1
    while now < 600.0:
        for number in range(peers):
            pauses.say(NodeName(f"n{number}"), pause_s, now)
        paused += min(step, max(0.0, pauses.until - now))
        now += step
    assert paused <= 5.0 + 600.0 * REFILL_PER_S + 1.0


def test_a_short_pause_is_heeded_as_long_as_it_is() -> None:
    pauses = Pauses(5.0, 0.0)
    pauses.say(B, 2.0, 1.0)
    assert pauses.until == 3.0
    pauses.say(C, 0.5, 1.0)
    assert pauses.until == 3.0


# --- what a peer in default, or one that takes and takes, is given ---


def test_each_time_a_peer_is_found_out_it_is_left_alone_for_longer() -> None:
    peer, pauses = Standing(), []
    for _ in range(6):
        peer.default(0.0, 30.0)
        pauses.append(peer.not_before)
    assert pauses == [30.0, 60.0, 120.0, 240.0, DEFAULT_MAX_S, DEFAULT_MAX_S]


def test_neither_news_nor_an_answer_nor_a_question_ends_a_default() -> None:
    peer = Standing()
    peer.default(0.0, 30.0)
    peer.unreachable(0.0, random.Random(1))
    peer.told(1.0)
    peer.alive()
    peer.asks(1.0)
    assert (peer.trusted(29.0), peer.ready(29.0), peer.ready(30.0)) == (False, False, True)
    assert peer.delivered()
    assert peer.trusted(30.0)


def test_news_of_a_peer_that_could_not_be_asked_twice_do_not_end_its_pause() -> None:
    peer, rng = Standing(), random.Random(1)
    peer.unreachable(0.0, rng)
    assert peer.told(0.1), "once may be by chance"
    peer.unreachable(0.2, rng)
    assert not peer.told(0.3)
    assert peer.told(5.0)
    peer.unreachable(5.0, rng)
    assert not peer.ready(6.5), "the pauses go on growing"


def test_a_peer_that_takes_chunks_and_does_not_read_them_leaves_a_slot_to_others_and_soon_all() -> None:
    serving = Serving(Pace(slots=4))
    serving.shared = True

    def ask(peer: NodeName, chunk: int, now: float) -> Answer:
        return serving.asked(peer, chunk, now, here=True, coming=False, stranger=False)

    assert [ask(B, chunk, 0.0) for chunk in range(4)] == [Answer.DATA] * 3 + [Answer.BUSY]
    assert (ask(C, 0, 0.0), ask(C, 1, 0.0)) == (Answer.DATA, Answer.BUSY)
    assert ask(B, 9, LATE_S) is Answer.BUSY
    serving.sent(C, 0, 0.1, ok=True)
    assert [ask(C, chunk, LATE_S) for chunk in range(3)] == [Answer.DATA] * 3


def test_with_one_other_member_it_gets_all_slots() -> None:
    serving = Serving(Pace(slots=4))
    given = [serving.asked(B, chunk, 0.0, here=True, coming=False, stranger=False) for chunk in range(5)]
    assert given == [Answer.DATA] * 4 + [Answer.BUSY]
