"""What follows when a read or a request has ended: a chunk landed, or did not, or is read elsewhere. Pure."""

from __future__ import annotations

from actors.mesh.actions import AskPeer, Origin, Outcome, Release
from actors.mesh.peer import Standing
from actors.mesh.state import State
from actors.mesh.takeover import pardon
from actors.messages import NodeName


def landed(state: State, chunk: int, origin: Origin, now: float, *, moved: bool) -> list[Release]:
    """The chunk is on the disk and has the digest it was announced with."""
    was_read, began = chunk in state.transfers.reading, state.transfers.began[chunk]
    action = state.end(chunk)
    bit = 1 << chunk
    state.missing &= ~bit
    state.have |= bit
    state.origins[chunk] = origin
    state.log.add(chunk, fresh=was_read)
    state.claims.landed(chunk)
    if was_read:
        state.unpassed |= bit
    if isinstance(action, AskPeer):
        state.patience.feed(state.patience.worth_s, now)
        state.answered(action.peer, now)
        peer = state.peers.standing(action.peer)
        if peer.delivered():
            state.claims.taken_over.clear()
            state.look(now)
        if moved and peer.have & bit:
            state.width.took(now - began)
    else:
        state.patience.read(now - began, now, for_others=chunk in state.claims.taken_over)
    return state.uploads.arrived(chunk, now)


def failed(state: State, chunk: int, outcome: Outcome, now: float, retry_at: float) -> list[Release]:
    """The read or request brought nothing."""
    was_read, began = chunk in state.transfers.reading, state.transfers.began[chunk]
    action = state.end(chunk)
    if was_read:
        state.claims.put_back(chunk)
    if isinstance(action, AskPeer):
        peer = state.peers.standing(action.peer)
        if peer.in_default and began > peer.defaulted_at:  # it was tried
            peer.default(now, state.pace.quarantine_s)
        _judge(state, action, peer, outcome, now)
        if not was_read and not state.peers.shown >> chunk & 1:
            state.claim()  # it may be ours to read by now
    else:
        state.source.pause(retry_at)
        if retry_at > now:
            pardon(state)
            state.look(now)
    return state.uploads.lost(chunk)


def _judge(state: State, asked: AskPeer, peer: Standing, outcome: Outcome, now: float) -> None:
    """What the answer says of the peer, and of its chunk."""
    if outcome is Outcome.UNREACHABLE:
        peer.unreachable(now, state.rng)
        state.look(now)
        return
    if outcome is Outcome.CORRUPT:
        peer.sent_wrong(asked.chunk, now, state.pace.quarantine_s)
        if state.claims.reader(asked.chunk) == asked.peer and _reads_instead(state, asked.chunk, now) == state.me:
            state.claims.steal(asked.chunk)
        state.look(now)
        return
    state.answered(asked.peer, now)
    if outcome is Outcome.BUSY:
        peer.busy(now, state.rng)
    elif peer.have >> asked.chunk & 1:  # what we knew of it is not so any more
        peer.have &= ~(1 << asked.chunk)
        state.look(now)
    else:
        state.inquiry.miss(now, state.rng)
    if outcome is Outcome.NOT_YET and peer.known and state.claims.given.get(asked.chunk) == asked.peer:
        del state.claims.given[asked.chunk]  # it does not read it


def _reads_instead(state: State, chunk: int, now: float) -> NodeName | None:
    """The next in order of those that can be counted on and have not given the chunk with wrong bytes."""
    out = state.peers.lost(now) | state.peers.spoilers(chunk)
    order = [name for name in state.membership.order(chunk) if name not in out]
    return next(iter(order or state.membership.without(out).order(chunk)), None)


def redirected(state: State, chunk: int, to: NodeName, now: float) -> list[Release]:
    """The chunk's reader says who reads it in its place. Nobody else is believed, nor followed on and on."""
    action = state.end(chunk)
    if isinstance(action, AskPeer):
        state.answered(action.peer, now)
        if state.claims.reader(chunk) == action.peer and to != action.peer:
            if chunk in state.claims.given:
                state.inquiry.miss(now, state.rng)
            state.claims.redirected(chunk, to)
        else:
            state.peers.standing(action.peer).busy(now, state.rng)
            state.inquiry.miss(now, state.rng)
    state.claim()
    return state.uploads.lost(chunk)


def stolen(state: State, owner: NodeName, chunk: int | None, now: float, *, reached: bool) -> None:
    """The owner's answer to Steal: a chunk that this node reads now, or nothing to give."""
    state.stealing = None
    if reached:
        state.answered(owner, now)
    else:
        state.peers.standing(owner).unreachable(now, state.rng)
        state.look(now)
    if chunk is None or not _may_take(state, owner, chunk):
        state.theft.miss(now, state.rng)
        return
    state.theft.hit(now)
    state.claims.steal(chunk)


def _may_take(state: State, owner: NodeName, chunk: int) -> bool:
    """We lack what it gives us. It may pass on what others gave it, but not without end: they may be reading it."""
    if not 0 <= chunk < state.membership.chunks or not state.wanted >> chunk & 1:
        return False
    if state.claims.reader(chunk) == owner:
        return True
    peer = state.peers.standing(owner)
    peer.gifts += 1
    return peer.gifts <= state.pace.unpassed
