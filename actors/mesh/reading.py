"""Whether a chunk is read from the source now, and which. Pure.

The source is the members that held a committed copy at the start (seeds), else the origin. A node reads what it owns in
ascending order, not far ahead of what is seen anywhere, and not more than a few chunks that nobody has yet taken. A
node with nothing left to read asks slower owners for chunks that they have not begun.
"""

from __future__ import annotations

from actors.mesh import bitmap
from actors.mesh.actions import AskPeer, ReadOrigin, Steal
from actors.mesh.peer import Standing
from actors.mesh.state import State
from actors.messages import NodeName


def read(state: State, now: float) -> AskPeer | ReadOrigin | None:
    """The next chunk of ours, if it may be begun."""
    claims, paused_until = state.claims, state.source.paused_until
    if not claims.own or len(state.transfers.reading) >= state.source.reads:
        return None
    if now < paused_until:
        state.later(paused_until)
        return None
    if now < state.settled_at and not all(peer.known or peer.silent for _, peer in state.peers.neighbours):
        state.later(state.settled_at)
        return None
    if state.is_full(now):
        return None
    claims.drop(state.wanted)
    if not claims.own or claims.own[0] >= state.horizon:
        return None
    return read_one(state, claims.own[0], now)


def read_one(state: State, chunk: int, now: float) -> AskPeer | ReadOrigin | None:
    """This chunk from a seed, or, where none can be reached or all gave it with wrong bytes, from the origin."""
    seeds = [(name, state.peers.standing(name)) for name in state.membership.seeds if name != state.me]
    seeds = [(name, peer) for name, peer in seeds if not peer.spoils(chunk)]
    trusted = [(name, peer) for name, peer in seeds if peer.trusted(now)]
    action: AskPeer | ReadOrigin | None
    if trusted:
        action = _from_seed(state, chunk, trusted, now)
    elif seeds and now < (due := state.patience.idle_since + state.pace.takeover_s):
        state.later(due)
        return None
    elif seeds and state.release(now):
        state.later(now)
        return None
    else:
        action = ReadOrigin(chunk) if state.transfers.origin_reads < state.source.allowed else None
    if action is None:
        return None
    state.claims.begun(chunk)
    state.transfers.reading.add(chunk)
    return state.begin(action, now)


def _from_seed(state: State, chunk: int, trusted: list[tuple[NodeName, Standing]], now: float) -> AskPeer | None:
    ready = [(name, peer) for name, peer in trusted if peer.ready(now)]
    if not ready:
        state.later(min(peer.not_before for _, peer in trusted))
        return None
    near = [name for name, peer in ready if peer.near] or [name for name, _ in ready]
    return AskPeer(chunk, state.rng.choice(near))


def steal(state: State, now: float) -> Steal | None:
    """Nothing is left to read here: ask an owner of what nobody shows for a chunk that it has not begun."""
    if state.claims.own or state.transfers.reading or state.stealing or not state.may_read or state.is_full(now):
        return None
    if now < (due := max(state.theft.after, state.source.paused_until)):
        state.later(due)
        return None
    unknown = state.unknown
    if unknown:
        owner = state.claims.reader(bitmap.pick(unknown, state.rng))
        if owner != state.me and state.peers.standing(owner).trusted(now):
            state.stealing = owner
            return Steal(owner)
    state.theft.miss(now, state.rng)
    state.later(state.theft.after)
    return None
