"""What a node tells the peers that ask it: for a chunk, or for work. Pure."""

from __future__ import annotations

from actors.mesh.actions import Answer, AskPeer, Elsewhere
from actors.mesh.state import State
from actors.messages import NodeName

GIVEN_AT_ONCE = 2
"""Chunks that a peer is given to read at a time, by a node that could read them itself."""


def asked(state: State, peer: NodeName, chunk: int, now: float) -> Answer | Elsewhere:
    """The answer to a request for a chunk."""
    state.asks(peer, now)
    here, flying = bool(state.have >> chunk & 1), state.transfers.flying.get(chunk)
    coming = flying is not None and flying != AskPeer(chunk, peer)  # or each would wait for the other
    if not here and not coming:
        reader = state.claims.given.get(chunk)
        if reader is not None and reader not in (peer, state.me) and not state.peers.standing(reader).in_default:
            return Elsewhere(reader)
        if chunk in state.claims.stolen or peer == state.stealing:
            return Answer.BUSY  # we shall read it, or may: its owner must not take it back
    return state.uploads.asked(peer, chunk, now, here=here, coming=coming, stranger=state.peers.is_stranger(peer))


def served(state: State, peer: NodeName, chunk: int, now: float, *, ok: bool, moved: bool) -> bool:
    """Whether something may be begun, now that the chunk went out, or did not."""
    state.uploads.sent(peer, chunk, now, ok=ok and moved)
    taker = state.peers.standings.get(peer)
    if ok and taker is not None:
        taker.waited_for = True
    if not ok or not state.unpassed >> chunk & 1:
        return False
    state.unpassed &= ~(1 << chunk)
    return bool(state.claims.own)


def unhold(state: State, peer: NodeName, chunk: int) -> Answer:
    """The answer to a request that was held in vain.

    Not NOT_YET while the chunk is on its way, or an owner would take a node for idle that reads from a slow origin.
    """
    state.uploads.unhold(peer, chunk)
    return Answer.BUSY if chunk in state.transfers.flying else Answer.NOT_YET


def asked_for_work(state: State, peer: NodeName, now: float) -> int | None:
    """A chunk of ours that has not been begun: `peer` reads it from now on. None: nothing to give."""
    state.asks(peer, now)
    claims = state.claims
    claims.drop(state.wanted)
    if not claims.own or peer not in state.membership.members or claims.own[0] >= state.horizon:
        return None
    if _has_enough(state, peer):
        return None
    if not state.transfers.reading and len(claims.own) == 1 and state.may_read:
        return None
    return claims.give(peer)


def _has_enough(state: State, peer: NodeName) -> bool:
    """The peer has been given as much as it may have unread. A node that may read nothing itself gives all it has."""
    unread = state.wanted
    given = sum(who == peer and unread >> chunk & 1 for chunk, who in state.claims.given.items())
    return bool(state.source.allowed) and given >= GIVEN_AT_ONCE
