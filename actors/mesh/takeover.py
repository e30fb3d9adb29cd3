"""What a node does when nothing comes: it acts for peers that are lost, and for those that do not deliver. Pure.

    nothing moves for `Pace.takeover_s` ──► act for the members that cannot be reached from here
    … for as long as our patience       ──► peers that were asked and delivered nothing are in default: their claims and
                                            their ownership count for nothing until they deliver
    … and still nothing to do           ──► read what is missing here itself, one chunk at a time

A member that leaves is replaced by the next in order at once; that is for `Membership`.
"""

from __future__ import annotations

from actors.mesh import bitmap
from actors.mesh.actions import AskPeer, ReadOrigin
from actors.mesh.patience import NOW
from actors.mesh.peer import Standing
from actors.mesh.reading import read_one
from actors.mesh.state import State
from actors.messages import NodeName


def take_over(state: State, now: float) -> AskPeer | ReadOrigin | None:
    """A chunk that another was to read, once nothing has moved for long enough."""
    if state.transfers.origin_reads or not state.may_read or state.is_alone:
        return None
    if now < state.source.origin_after:
        state.patience.feed(NOW, now)
    if now < state.source.paused_until:
        state.later(state.source.paused_until)
        return None
    full = state.is_full(now)  # nobody reaches us, maybe
    if now < (due := state.patience.idle_since + state.pace.takeover_s * (2 if full else 1)):
        state.later(due)
        return None
    for _, peer in state.peers.neighbours if full else ():
        peer.waited_for = False
    if state.release(now):
        state.later(now)
        return None
    give_up(state, now)
    lost = state.peers.lost(now)
    chunks = _acted_for(state, lost, now) if state.wanted else _claimed_only(state, lost, now)
    if not chunks:
        return None
    state.claims.take_over(chunks)
    state.claim()
    return read_one(state, chunks[0], now)


def _acted_for(state: State, lost: frozenset[NodeName], now: float) -> list[int]:
    """What nobody shows: all that is ours without those that are lost, else one chunk, after those before us."""
    given, patience, wanted = state.claims.given, state.patience, state.wanted
    mine = [chunk for chunk in state.membership.without(lost).owned(state.me) if wanted >> chunk & 1]
    mine = [chunk for chunk in mine if given.get(chunk, state.me) in lost | {state.me}]
    if mine:
        return mine
    chunk = bitmap.pick(wanted, state.rng)
    order = state.membership.order(chunk)
    unable = lost | state.peers.spoilers(chunk)
    able = [name for name in order if name not in unable]
    rank = able.index(state.me) if state.me in able else len(able)
    rank += given.get(chunk) in able  # it comes before all of them
    begun_s = 0.0 if order[0] in able else state.pace.takeover_s  # the member that acts for it begins only then
    if now - patience.idle_since < begun_s + rank * patience.limit_s:
        state.later(now + state.pace.silence_s)
        return []
    return [chunk]


def _claimed_only(state: State, lost: frozenset[NodeName], now: float) -> list[int]:
    """Everything is said to be somewhere, and nothing comes: one chunk. At first, to know what a normal read is."""
    patience = state.patience
    if patience.knows_reads and now < (due := patience.idle_since + patience.limit_s):
        state.later(due)
        return []
    mine = [chunk for chunk in state.membership.without(lost).owned(state.me) if state.missing >> chunk & 1]
    if mine:
        return mine[:1]
    if now < (due := patience.idle_since + 2 * patience.limit_s):  # those whose it is come first
        state.later(due)
        return []
    return [bitmap.pick(state.missing, state.rng)] if state.missing else []


def give_up(state: State, now: float) -> None:
    """The peers that were asked meanwhile, and delivered nothing, are in default once our patience is over."""
    if not state.may_read or state.transfers.origin_reads or now < state.source.paused_until:
        return
    patience_s, idle_since = state.patience.limit_s, state.patience.idle_since
    if now < (due := idle_since + patience_s):
        state.later(due)
        return
    owing = _owing(state, now - patience_s)
    lacking, seeds = state.all & ~state.have, state.membership.seeds
    claiming = {name: peer for name, peer in owing.items() if peer.have & lacking or name in seeds}
    if not claiming and now < (due := idle_since + 2 * patience_s):
        state.later(due)  # an owner may wait for the same as we, and acts for its reader by now
        return
    if not _found_in_default(state, claiming or owing, now):
        return
    for peer in owing.values():
        peer.owes_since = None
    state.look(now)
    wanted = state.wanted
    without = state.membership.without(state.peers.lost(now))
    state.claims.taken_over.update(chunk for chunk in without.owned(state.me) if wanted >> chunk & 1)
    state.claim()


def _owing(state: State, since: float) -> dict[NodeName, Standing]:
    """The peers that owe us a chunk, and were asked after `since`, or still are."""
    asked = state.transfers.asked()
    return {
        name: peer
        for name, peer in state.peers.standings.items()
        if peer.owes_since is not None and not peer.in_default and (name in asked or peer.asked_at >= since)
    }


def _found_in_default(state: State, owing: dict[NodeName, Standing], now: float) -> bool:
    """Whether one of these has owed us a chunk for half of our patience: it is in default."""
    half_s, found = state.patience.limit_s / 2, False
    for peer in owing.values():
        since = peer.owes_since or 0.0
        if now >= since + half_s:
            peer.default(now, state.pace.quarantine_s)
            found = True
        else:
            state.later(since + half_s)
    return found


def pardon(state: State) -> None:
    """The origin fails us, too: a peer that owes us chunks may not be to blame, and what it was to read is its own."""
    for peer in state.peers.standings.values():
        peer.pardon()
    state.claims.taken_over.clear()
