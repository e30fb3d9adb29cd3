"""`Mesh.check` sees each thing that must not be: the worlds of the other tests call it after every step."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from actors.mesh.actions import Answer, AskPeer, Origin, ReadOrigin, Steal, Wait
from actors.mesh.invariants import RULES
from actors.mesh.membership import Member, Membership
from actors.mesh.mesh import Mesh
from actors.mesh.peer import Standing
from actors.mesh.state import State
from actors.messages import NodeName
from tests.kit.mesh_world import PACE, World

A, B, C = NodeName("a"), NodeName("b"), NodeName("c")


def at_work() -> Mesh:
    """The mesh of node a, which has read a chunk, given one away, reads some, and asks its peers for others."""
    mesh = Mesh(A, Membership("fill", [Member(A), Member(B), Member(C)], 40), PACE, rng=random.Random(1), now=0.0)
    for peer in (B, C):
        mesh.heard(peer, 1 << mesh.membership.owned(peer)[0], 0.0)
    begun = []
    while not isinstance(action := mesh.next(0.0), Wait):
        begun.append(action)
    read = [action.chunk for action in begun if isinstance(action, ReadOrigin)]
    assert len(read) > 1
    assert any(isinstance(action, AskPeer) for action in begun)
    mesh.landed(read[0], Origin(A, b"right"), 0.1)
    assert mesh.asked(B, read[1], 0.1) is Answer.HOLD
    assert mesh.asked_for_work(B, 0.1) is not None
    mesh.check()
    return mesh


def first(bits: int) -> int:
    return (bits & -bits).bit_length() - 1


def request(state: State) -> AskPeer:
    return next(action for action in state.transfers.flying.values() if isinstance(action, AskPeer))


def lose(state: State) -> None:
    state.missing &= state.missing - 1


def have_twice(state: State) -> None:
    state.have |= 1 << first(state.missing)


def miss_what_flies(state: State) -> None:
    state.missing |= 1 << request(state).chunk


def have_beyond_the_end(state: State) -> None:
    state.have |= 1 << 40


def forget_when_it_began(state: State) -> None:
    del state.transfers.began[request(state).chunk]


def read_what_is_not_begun(state: State) -> None:
    state.transfers.reading.add(first(state.missing))


def mistake_a_read_for_a_request(state: State) -> None:
    state.transfers.reading.clear()


def ask_beyond_the_slots(state: State) -> None:
    for _ in range(PACE.slots):
        state.begin(AskPeer(first(state.missing), B), 0.2)


def read_beyond_the_limit(state: State) -> None:
    for _ in range(PACE.origin_reads):
        chunk = first(state.missing)
        state.transfers.reading.add(chunk)
        state.begin(ReadOrigin(chunk), 0.2)


def count_a_request_too_many(state: State) -> None:
    state.peers.standing(B).asking += PACE.slots


def ask_again_for_what_came_wrong(state: State) -> None:
    asked = request(state)
    state.peers.standings[asked.peer].spoiled |= 1 << asked.chunk


def trust_what_came_wrong(state: State) -> None:
    state.peers.standings[B].spoiled |= state.peers.standings[B].have


def name_a_chunk_twice(state: State) -> None:
    state.claims.own.append(state.claims.own[0])


def keep_what_was_given(state: State) -> None:
    state.claims.own.appendleft(next(iter(state.claims.given)))


def forget_what_is_ours(state: State) -> None:
    state.claims.own.popleft()


def give_what_is_here(state: State) -> None:
    state.claims.given[first(state.have)] = B


def give_to_ourselves(state: State) -> None:
    state.claims.given[next(iter(state.claims.given))] = A


def give_to_no_member(state: State) -> None:
    state.claims.given[next(iter(state.claims.given))] = NodeName("x")


def replace_a_standing(state: State) -> None:
    state.peers.standings[B] = Standing(neighbour=True)


def lose_a_neighbour(state: State) -> None:
    state.peers.neighbours.pop()


def be_gone_and_here(state: State) -> None:
    state.peers.gone[B] = Standing()


def show_what_nobody_has(state: State) -> None:
    state.peers.shown |= 1 << first(state.have)


def have_taken_what_never_came(state: State) -> None:
    state.unpassed |= 1 << first(state.missing)


def count_a_held_request_twice(state: State) -> None:
    state.uploads._holding += 1


BREAKS: dict[Callable[[State], None], str] = {
    lose: "every chunk is here, missing or under way, or was taken back",
    have_beyond_the_end: "every chunk is here, missing or under way, or was taken back",
    have_twice: "a chunk is only one of here, missing and under way",
    miss_what_flies: "a chunk is only one of here, missing and under way",
    forget_when_it_began: "what is known of a transfer fits what was begun",
    read_what_is_not_begun: "what is known of a transfer fits what was begun",
    mistake_a_read_for_a_request: "what is known of a transfer fits what was begun",
    ask_beyond_the_slots: "no more is under way than there are slots for",
    read_beyond_the_limit: "no more is under way than there are slots for",
    count_a_request_too_many: "no peer counts as asked more often than it is",
    ask_again_for_what_came_wrong: "a chunk that came with wrong bytes is not asked of the same peer again",
    trust_what_came_wrong: "a chunk that came with wrong bytes is not asked of the same peer again",
    name_a_chunk_twice: "what is to be read here next is named once, and given to nobody",
    keep_what_was_given: "what is to be read here next is named once, and given to nobody",
    forget_what_is_ours: "what is wanted and ours is among what is to be read next",
    give_what_is_here: "what another was given to read is not here, and that is another member",
    give_to_ourselves: "what another was given to read is not here, and that is another member",
    give_to_no_member: "what another was given to read is not here, and that is another member",
    replace_a_standing: "neighbours are members that have a standing",
    lose_a_neighbour: "neighbours are members that have a standing",
    be_gone_and_here: "neighbours are members that have a standing",
    show_what_nobody_has: "what is shown is what neighbours have",
    have_taken_what_never_came: "what nobody has taken yet is here",
    count_a_held_request_twice: "uploads are counted",
}


@pytest.mark.parametrize(("breaks", "rule"), BREAKS.items(), ids=lambda each: getattr(each, "__name__", ""))
def test_what_must_not_be_is_seen(breaks: Callable[[State], None], rule: str) -> None:
    mesh = at_work()
    breaks(mesh.state)
    with pytest.raises(AssertionError) as error:
        mesh.check()
    assert rule in str(error.value)


def test_every_rule_is_broken_by_one_of_these() -> None:
    assert set(BREAKS.values()) == set(RULES)


def test_a_world_looks_after_every_step() -> None:
    world = World("ab", 40, random.Random(1))
    world.run(until=lambda: world.reads.total() > 5)
    world.meshes["a"].state.unpassed = (1 << 40) - 1
    with pytest.raises(AssertionError, match="what nobody has taken yet is here"):
        world.run()


def test_a_chunk_that_is_given_to_a_node_that_already_acts_for_its_reader_is_read_once() -> None:
    mesh = Mesh(A, Membership("fill", [Member(A), Member(B)], 40), PACE, rng=random.Random(1), now=0.0)
    [theirs] = mesh.membership.owned(B)[:1]
    mesh.heard(B, 0, 0.0)
    while not isinstance(mesh.next(0.0), Wait | Steal):
        pass
    mesh.state.claims.take_over([theirs])  # as when B did not deliver for long enough, while its answer was under way
    mesh.state.claim()
    mesh.stolen(B, theirs, 1.0)
    mesh.check()
    assert list(mesh.state.claims.own).count(theirs) == 1
