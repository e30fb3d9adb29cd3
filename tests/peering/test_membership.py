"""Who reads which chunk, and who talks to whom: the same for everybody, and little changes when the members do."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.mesh import bitmap
from actors.mesh.limits import MAX_CHUNKS, Width, choose_chunk_bytes, choose_slots
from actors.mesh.membership import NEIGHBOURS, Member, Membership
from actors.messages import NodeName

NAMES = st.lists(st.integers(0, 999).map(lambda n: NodeName(f"n{n}")), min_size=1, max_size=12, unique=True)


def fleet(*names: str, chunks: int = 100) -> Membership:
    return Membership("fill", [Member(NodeName(name)) for name in names], chunks)


@pytest.mark.slow
@given(NAMES, st.integers(0, 200), st.randoms(use_true_random=False))
def test_every_chunk_has_one_owner_that_all_members_agree_on(
    names: list[NodeName], chunks: int, rng: random.Random
) -> None:
    shuffled = rng.sample(names, len(names))
    one, other = fleet(*names, chunks=chunks), fleet(*shuffled, chunks=chunks)
    assert one.owner == other.owner
    assert sorted(chunk for name in names for chunk in one.owned(name)) == list(range(chunks))
    assert all(one.order(chunk)[0] == one.owner[chunk] for chunk in range(0, chunks, 17))
    assert all(sorted(one.order(chunk)) == sorted(names) for chunk in range(0, chunks, 17))


@pytest.mark.slow
@given(NAMES.filter(lambda names: len(names) > 1))
def test_only_the_chunks_of_a_member_that_left_move_each_to_the_next_in_order(names: list[NodeName]) -> None:
    before = fleet(*names)
    after = before.without(frozenset(names[:1]))
    for chunk in range(0, before.chunks, 9):
        assert after.owner[chunk] == next(name for name in before.order(chunk) if name != names[0])


def test_shares_are_nearly_equal() -> None:
    shares = [len(fleet(*"abcdefgh", chunks=8000).owned(NodeName(name))) for name in "abcdefgh"]
    assert 700 < min(shares) <= max(shares) < 1300


def test_a_late_joiner_owns_nothing_unless_only_such_are_left_and_a_seed_never_does() -> None:
    founder, joiner, seed = Member(NodeName("f")), Member(NodeName("j"), owns=False), Member(NodeName("s"), seed=True)
    cases = {
        "a founder owns all": ([founder, joiner, seed], {"f"}),
        "without founders the joiners do": ([joiner, seed], {"j"}),
        "with seeds alone nobody has to": ([seed], set()),
    }
    for name, (members, owners) in cases.items():
        assert set(Membership("fill", members, 50).owner) == owners, name


@pytest.mark.parametrize("count", [1, 2, 33, 34, 200])
@pytest.mark.parametrize("zones", [1, 3])
def test_neighbours_are_mutual_few_and_connect_everybody(count: int, zones: int) -> None:
    members = [Member(NodeName(f"n{number}"), zone=f"z{number % zones}") for number in range(count)]
    membership = Membership("fill", members, 1)
    beside = {member.name: membership.neighbours(member.name) for member in members}
    assert all(len(others) <= NEIGHBOURS and name not in others for name, others in beside.items())
    assert all(name in beside[other] for name, others in beside.items() for other in others)
    reached, frontier = {members[0].name}, [members[0].name]
    while frontier:
        new = beside[frontier.pop()] - reached
        reached |= new
        frontier.extend(new)
    assert len(reached) == count


@pytest.mark.slow
@given(st.sets(st.integers(0, 300), min_size=1))
def test_a_bitmap_is_the_set_of_its_members(numbers: set[int]) -> None:
    bits = bitmap.bitmap(numbers)
    ordered = sorted(numbers)
    assert list(bitmap.members(bits)) == ordered
    assert [bitmap.nth(bits, rank) for rank in range(len(ordered))] == ordered
    assert bitmap.pick(bits, random.Random(1)) in numbers
    assert bitmap.full(3) == bitmap.bitmap([0, 1, 2])


def test_the_chunk_size_follows_the_link_and_keeps_bitmaps_small() -> None:
    cases = {
        "a slow link: as short as a request is worth": (1 << 30, 25e6 / 8, 1 << 20),
        "200 Mbit/s": (1 << 30, 25e6, 1 << 20),
        "1 Gbit/s": (1 << 30, 125e6, 4 << 20),
        "25 Gbit/s": (140 * 10**9, 3.125e9, 16 << 20),
        "a huge model: fewer, larger chunks": (2 * 10**12, 3.125e9, 128 << 20),
    }
    assert {name: choose_chunk_bytes(size, link) for name, (size, link, _) in cases.items()} == {
        name: expected for name, (_, _, expected) in cases.items()
    }
    assert all(size // choose_chunk_bytes(size, link) <= MAX_CHUNKS for size, link, _ in cases.values())


def test_slots_are_what_a_link_carries_in_a_second_within_bounds() -> None:
    assert [choose_slots(1 << 20, rate) for rate in (1e3, 8 << 20, 1e12)] == [2, 8, 32]


def test_fewer_slots_are_used_while_most_transfers_take_long() -> None:
    width = Width(8, aim_s=1.0)
    for _ in range(20):
        width.took(3.0)
    assert int(width) == 2
    for _ in range(20):
        width.took(0.1)
    assert int(width) == 8
    for seconds in [0.1, 0.1, 9.0] * 20:  # a slow peer among fast ones
        width.took(seconds)
    assert int(width) >= 7
