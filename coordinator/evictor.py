"""Between what the plan would evict and what is evicted: a fresh look at the pods of each node, or just words.

    plan says who would go ──► dry run: said, once each
                          └──► pods of those nodes are listed ──► the next plan has seen them, and orders

A watch can be behind without knowing it. A list is not, so no order is given that a list of the node's pods, at most
`LOOK_S` old, does not bear out. `see` and `act` belong to the controller's thread; a look is made in another.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from dataclasses import replace

from actors.messages import NodeName
from coordinator.eviction import Eviction, Policy
from coordinator.informers import Observed
from coordinator.kube import PODS, Kube, KubeError
from coordinator.pods import Pod, read_pod
from coordinator.snapshot import Snapshot
from coordinator.transitions import Announcement

_log = logging.getLogger(__name__)

LOOK_S = 5.0
"""How old a list of a node's pods may be when it is acted on."""


class Evictor:
    """`looked` is called, from any thread, when a look has been answered."""

    def __init__(
        self,
        policy: Policy,
        pods: Observed[Pod | None],
        kube: Kube,
        executor: Executor,
        announce: Callable[[Iterable[Announcement]], None],
        clock: Callable[[], float],
        looked: Callable[[], None],
        home: str = "",
    ) -> None:
        self._policy = policy
        self._pods = pods
        self._kube = kube
        self._executor = executor
        self._announce = announce
        self._clock = clock
        self._looked = looked
        self._home = home
        self._lock = threading.Lock()
        self._looks: dict[NodeName, tuple[float, list[Pod]]] = {}
        self._looking: set[NodeName] = set()
        self._said: frozenset[Eviction] = frozenset()

    def see(self, snapshot: Snapshot, now: float) -> Snapshot:
        """The same with the policy, and with all that is known of pods."""
        if not self._pods.synced or self._pods.failure is not None:
            return replace(snapshot, evict_idle_s=self._policy.idle_s)
        with self._lock:
            self._looks = {node: look for node, look in self._looks.items() if 0 <= now - look[0] <= LOOK_S}
            looks = dict(self._looks)
        pods = [pod for pod in self._pods.items().values() if pod is not None]
        pods += [pod for _, found in looks.values() for pod in found]
        return replace(snapshot, evict_idle_s=self._policy.idle_s, pods=pods, looked_at=frozenset(looks))

    def act(self, snapshot: Snapshot, going: tuple[Eviction, ...]) -> None:
        """What is new among `going` is said; where it is not looked yet, somebody looks."""
        verb = "would evict" if self._policy.dry_run else "evicting"
        for each in going:
            if each in self._said:
                continue
            fields = {"node": each.node, "model": ", ".join(each.caches), "bytes": each.size_bytes}
            _log.info(verb, extra={**fields, "for": ", ".join(each.for_caches), "why": each.reason})
            if self._policy.dry_run:
                refs = [snapshot.caches[key].ref for key in each.caches]
                self._announce(Announcement(ref, False, "WouldEvict", each.reason) for ref in refs)
        self._said = frozenset(going)
        if self._policy.dry_run:
            return
        for node in sorted({each.node for each in going} - snapshot.looked_at - self._looking):
            self._looking.add(node)
            self._executor.submit(self._look, node)

    def _look(self, node: NodeName) -> None:
        """In another thread. What fails is tried again for as long as something is to go there."""
        asked_at = self._clock()
        try:
            found, _ = self._kube.list(PODS, field_selector=f"spec.nodeName={node}")
            pods = [pod for each in found if (pod := read_pod(each, self._home)) is not None]
        except (KubeError, ValueError) as error:
            _log.warning("cannot look at the pods of a node", extra={"node": node, "error": str(error)})
        else:
            with self._lock:
                self._looks[node] = asked_at, pods
        finally:
            self._looking.discard(node)
        self._looked()
