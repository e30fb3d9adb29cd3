"""Which peer is asked for which chunk now. Pure.

Random chunks of those that neighbours show: the order of the file, or the rarest first, is slower. A chunk that no
neighbour shows is asked of its owner, a few at a time.
"""

from __future__ import annotations

from actors.mesh import bitmap
from actors.mesh.actions import AskPeer, ReadOrigin
from actors.mesh.peer import BUSY_S
from actors.mesh.state import State

TRIES = 3
"""So many random chunks are looked at before a while is waited for a peer that is not busy."""


def pull(state: State, now: float) -> AskPeer | ReadOrigin | None:
    """A random chunk that a neighbour has, of one that may be asked."""
    available = state.peers.shown_near & state.missing or state.peers.shown & state.missing
    if not available:
        return _try_again(state, now)
    if now < state.pull_after:
        state.later(state.pull_after)
        return None
    most = state.pace.slots - state.uploads.shared  # see `Serving`: it would be busy, and not be asked for a while
    for _ in range(TRIES):
        chunk = bitmap.pick(available, state.rng)
        holders = [
            each
            for each in state.peers.neighbours
            if each[1].have >> chunk & 1
            and each[1].not_before <= now
            and each[1].asking < most
            and not each[1].in_default
        ]
        if holders:
            near = [each for each in holders if each[1].near] or holders
            return state.begin(AskPeer(chunk, near[int(state.rng.random() * len(near))][0]), now)
        available &= ~(1 << chunk)
        if not available:
            break
    state.pull_after = now + state.rng.uniform(*BUSY_S)
    state.later(state.pull_after)
    return None


def _try_again(state: State, now: float) -> AskPeer | ReadOrigin | None:
    """A chunk that only a peer in default claims to have: if it delivers, it is counted on again."""
    for name, peer in state.peers.neighbours:
        if not peer.in_default or not peer.have & state.missing:
            continue
        if peer.not_before <= now:
            return state.begin(AskPeer(bitmap.pick(peer.have & state.missing, state.rng), name), now)
        state.later(peer.not_before)
    return None


def inquire(state: State, now: float) -> AskPeer | ReadOrigin | None:
    """A chunk that no neighbour shows, of its owner."""
    if state.is_alone:
        return None
    if now < state.inquiry.after:
        state.later(state.inquiry.after)
        return None
    unknown = state.unknown
    if unknown and len(state.transfers.strange) < state.pace.strangers:
        chunk = bitmap.pick(unknown, state.rng)
        owner = state.claims.reader(chunk)
        peer = state.peers.standing(owner)
        if owner != state.me and peer.ready(now) and not peer.spoils(chunk):
            return state.begin(AskPeer(chunk, owner), now)
    state.inquiry.miss(now, state.rng)
    state.later(state.inquiry.after)
    return None
