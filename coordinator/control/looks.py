"""Fresh looks at the pods of single nodes: nothing is removed that a look, at most `FRESH_S` old, does not bear out.

    plan names the nodes whose pods matter ──► they are listed, in other threads ──► the next plan has seen them

A watch can be behind without knowing it; a list is not. `see` and `want` belong to the controller's thread.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from dataclasses import replace

from actors.messages import NodeName
from coordinator.control.claims import Known, followed
from coordinator.kube.interface import PODS, Kube, KubeError
from coordinator.plan.pods import Look, read_pod
from coordinator.plan.snapshot import Snapshot

_log = logging.getLogger(__name__)

FRESH_S = 5.0
"""How old a list of a node's pods may be when it is acted on."""
AGAIN_S = 10.0
"""How soon a node is looked at again where something waits for its pods."""
LOOKS_PER_S, LASTING_PER_S = 50.0, 10.0
"""How many lists are asked for, over all nodes, at most and for long: where many nodes wait, each is looked at less."""
KEPT_S = 600.0


class Looks:
    """`looked` is called, from any thread, when a look has been answered. `home` is the coordinator's namespace."""

    def __init__(
        self,
        kube: Kube,
        executor: Executor,
        clock: Callable[[], float],
        looked: Callable[[], None],
        home: str = "",
    ) -> None:
        self._kube = kube
        self._executor = executor
        self._clock = clock
        self._looked = looked
        self._home = home
        self._lock = threading.Lock()
        self._looks: dict[NodeName, Look] = {}
        self._looking: set[NodeName] = set()
        self._claims: dict[NodeName, Known] = {}
        self._failure: str | None = None
        self._tokens, self._filled_at = LOOKS_PER_S, 0.0

    def see(self, snapshot: Snapshot, now: float) -> Snapshot:
        """The same with what is known of the pods of single nodes."""
        with self._lock:
            self._looks = {node: look for node, look in self._looks.items() if 0 <= now - look.at <= KEPT_S}
            looks = dict(self._looks)
            self._claims = {node: known for node, known in self._claims.items() if node in looks}
        fresh = frozenset(node for node, look in looks.items() if look.failure is None and now - look.at <= FRESH_S)
        return replace(snapshot, looks=looks, looked_at=fresh)

    def want(self, nodes: Iterable[NodeName], now: float) -> None:
        """Somebody looks at the nodes that nobody has looked at for a while, the longest ago first."""
        wanted = sorted(set(nodes))
        again_s = max(AGAIN_S, len(wanted) / LASTING_PER_S)
        self._tokens = min(LOOKS_PER_S, self._tokens + max(0.0, now - self._filled_at) * LOOKS_PER_S)
        self._filled_at = now
        with self._lock:
            last = {node: look.at for node, look in self._looks.items()}
            due = [node for node in wanted if now - last.get(node, 0.0) >= again_s and node not in self._looking]
            due = sorted(due, key=lambda node: last.get(node, 0.0))[: int(self._tokens)]
            self._tokens -= len(due)
            self._looking.update(due)
        for node in due:
            self._executor.submit(self._look, node)

    def _look(self, node: NodeName) -> None:
        """In another thread. What fails is tried again for as long as somebody wants it."""
        asked_at = self._clock()
        claims = self._claims.get(node, {})
        try:
            found, _ = self._kube.list(PODS, field_selector=f"spec.nodeName={node}")
            read = (read_pod(each, self._home) for each in found)
            pods, claims = followed(self._kube, (pod for pod in read if pod is not None), claims)
            look = Look(asked_at, pods)
        except (KubeError, ValueError) as error:
            look = Look(asked_at, failure=str(error))
        finally:
            with self._lock:
                self._looking.discard(node)
        with self._lock:
            self._looks[node], self._claims[node] = look, claims
            failure, self._failure = self._failure, look.failure
        if look.failure is not None and look.failure != failure:
            _log.warning("cannot look at the pods of a node", extra={"node": node, "error": look.failure})
        self._looked()
