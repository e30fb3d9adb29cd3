"""What holds of a node's state between any two events, whatever its peers do. Tests look after every step. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

from actors.mesh import bitmap
from actors.mesh.actions import AskPeer, ReadOrigin
from actors.mesh.state import State


def broken(state: State) -> Iterator[str]:
    """The invariants that do not hold."""
    return (what for what, holds in RULES.items() if not holds(state))


def _is_somewhere(state: State) -> bool:
    flying = bitmap.bitmap(state.transfers.flying)
    here, missing = state.have, state.missing
    nowhere = state.all & ~(here | missing | flying)
    return not (here | missing | flying) & ~state.all and not nowhere & ~state.withdrawn.chunks


def _is_in_one_place(state: State) -> bool:
    flying = bitmap.bitmap(state.transfers.flying)
    twice = state.have & state.missing | (state.have | state.missing) & flying
    return not twice & ~state.withdrawn.chunks  # one that is read alone may still arrive from a peer, too


def _transfers_agree(state: State) -> bool:
    flying, reading = state.transfers.flying, state.transfers.reading
    if state.transfers.began.keys() != flying.keys() or not (reading | state.transfers.strange) <= flying.keys():
        return False
    return all(
        action.chunk == chunk and (chunk in reading if isinstance(action, ReadOrigin) else True)
        for chunk, action in flying.items()
    )


def _slots_are_kept(state: State) -> bool:
    transfers, pace = state.transfers, state.pace
    return (
        transfers.requests <= pace.slots
        and len(transfers.strange - transfers.reading) <= pace.strangers
        and sum(isinstance(each, ReadOrigin) for each in transfers.flying.values()) <= max(1, pace.origin_reads)
    )


def _peers_are_asked_as_counted(state: State) -> bool:
    asked = Counter(each.peer for each in state.transfers.flying.values() if isinstance(each, AskPeer))
    return all(0 <= peer.asking <= asked[name] for name, peer in state.peers.standings.items())


def _what_came_wrong_is_not_asked_again(state: State) -> bool:
    asked = (each for each in state.transfers.flying.values() if isinstance(each, AskPeer))
    peers = state.peers.standings
    spoiled = any(each.peer in peers and peers[each.peer].spoils(each.chunk) for each in asked)
    return not spoiled and not any(peer.spoiled & peer.have for peer in peers.values())


def _own_is_ours(state: State) -> bool:
    own, claims = set(state.claims.own), state.claims
    return len(own) == len(claims.own) and not own & claims.given.keys() and bitmap.bitmap(own) & ~state.all == 0


def _nothing_of_ours_is_forgotten(state: State) -> bool:
    return state.claims.mine(state.wanted) <= set(state.claims.own)


def _given_is_read_by_others(state: State) -> bool:
    given = state.claims.given
    readers = set(given.values())
    return (
        not bitmap.bitmap(given) & state.have and state.me not in readers and readers <= state.membership.members.keys()
    )


def _neighbours_are_known(state: State) -> bool:
    peers = state.peers
    named = {name for name, peer in peers.standings.items() if peer.neighbour}
    return (
        named == {name for name, _ in peers.neighbours}
        and all(peers.standings.get(name) is peer for name, peer in peers.neighbours)
        and named <= state.membership.members.keys()
        and not peers.standings.keys() & peers.gone.keys()
    )


def _shown_is_had(state: State) -> bool:
    had = near = 0
    for _, peer in state.peers.neighbours:
        had |= peer.have
        near |= peer.have if peer.near else 0
    shown, shown_near = state.peers.shown, state.peers.shown_near
    return not (shown & ~had or shown_near & ~near or shown_near & ~shown or had & ~state.all)


def _unpassed_was_read(state: State) -> bool:
    return not state.unpassed & ~(state.have | state.withdrawn.chunks)


RULES: dict[str, Callable[[State], bool]] = {
    "every chunk is here, missing or under way, or was taken back": _is_somewhere,
    "a chunk is only one of here, missing and under way": _is_in_one_place,
    "what is known of a transfer fits what was begun": _transfers_agree,
    "no more is under way than there are slots for": _slots_are_kept,
    "no peer counts as asked more often than it is": _peers_are_asked_as_counted,
    "a chunk that came with wrong bytes is not asked of the same peer again": _what_came_wrong_is_not_asked_again,
    "what is to be read here next is named once, and given to nobody": _own_is_ours,
    "what is wanted and ours is among what is to be read next": _nothing_of_ours_is_forgotten,
    "what another was given to read is not here, and that is another member": _given_is_read_by_others,
    "neighbours are members that have a standing": _neighbours_are_known,
    "what is shown is what neighbours have": _shown_is_had,
    "what nobody has taken yet is here": _unpassed_was_read,
    "uploads are counted": lambda state: state.uploads.is_consistent,
}
