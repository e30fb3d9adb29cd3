"""Between what the plan would evict and what is evicted: words for people, or just words.

    plan says who would go ──► dry run: said, once each
                          └──► the pods of those nodes are looked at (see `looks`), and the next plan orders

`see` and `act` belong to the controller's thread.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import replace

from coordinator.control.informers import Observed
from coordinator.plan.announcements import Announcement
from coordinator.plan.eviction import Eviction, Policy
from coordinator.plan.pods import Pod
from coordinator.plan.snapshot import Snapshot

_log = logging.getLogger(__name__)


class Evictor:
    """Carries out one policy."""

    def __init__(
        self, policy: Policy, pods: Observed[Pod | None], announce: Callable[[Iterable[Announcement]], None]
    ) -> None:
        self._policy = policy
        self._pods = pods
        self._announce = announce
        self._said: frozenset[Eviction] = frozenset()

    def see(self, snapshot: Snapshot) -> Snapshot:
        """The same with the policy, and with all that is known of pods."""
        if not self._pods.synced or self._pods.failure is not None:
            return replace(snapshot, evict_idle_s=self._policy.idle_s)
        pods = [pod for pod in self._pods.items().values() if pod is not None]
        pods += [pod for node in snapshot.looked_at for pod in snapshot.looks[node].pods]
        return replace(snapshot, evict_idle_s=self._policy.idle_s, evict_dry_run=self._policy.dry_run, pods=pods)

    def act(self, snapshot: Snapshot, going: tuple[Eviction, ...]) -> None:
        """Announces those of `going` that are new."""
        verb = "would evict" if self._policy.dry_run else "evicting"
        for each in going:
            if each in self._said:
                continue
            fields = {"node": each.node, "model": ", ".join(each.caches), "bytes": each.size_bytes}
            _log.info(verb, extra={**fields, "for": ", ".join(each.for_caches), "why": each.reason})
            if self._policy.dry_run:
                refs = [snapshot.caches[key].ref for key in each.caches]
                self._announce(Announcement(ref, False, "WouldEvict", each.said_to(ref.namespace)) for ref in refs)
        self._said = frozenset(going)
