"""Whether the cluster's CRDs have our status fields: KServe's own drop them without a word. Looked at again and again.

    a status patch is answered without the fields it had ──► pruned: only KServe's fields are written, and ours where
                                                             they still stand in an object, so that none is stale
    every PROBE_S one object is written in full          ──► answered with our fields: all is written again

By kind: somebody may apply the CRD of one. Belongs to the controller's thread.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from coordinator.kube.interface import Object
from coordinator.plan.announcements import Announcement
from coordinator.plan.patches import KSERVE_FIELDS, KSERVE_FIELDS_OF_GROUPS
from coordinator.plan.plan import Verb, Write
from coordinator.plan.snapshot import NODE_GROUPS

_log = logging.getLogger(__name__)

PROBE_S = 30.0
"""How often it is tried. A patch of which all is pruned changes nothing, and wakes nobody."""


class Pruning:
    def __init__(self, announce: Callable[[Iterable[Announcement]], None]) -> None:
        self._announce = announce
        self._pruned: frozenset[str] = frozenset()
        self._probe_at = 0.0

    @property
    def kinds(self) -> frozenset[str]:
        """The plurals of the kinds whose CRDs do not have our fields."""
        return self._pruned

    def notice(self, write: Write, answer: Object, now: float) -> bool:
        """What the answer to a write tells. Whether all of our fields that were in it are gone."""
        sent = _ours(write)
        if not sent:
            return False
        kind, gone = write.ref.resource, not sent & set(answer.get("status") or {})
        if gone and kind.plural not in self._pruned:
            self._pruned, self._probe_at = self._pruned | {kind.plural}, now + PROBE_S
            _log.warning(
                "status fields are pruned by the API server", extra={"kind": kind.kind, "fields": sorted(sent)}
            )
            message = (
                f"the cluster's CRD of {kind.kind} does not have localmodel's status fields (progress, conditions,"
                " reasons): apply k8s/crds to see them; the coordinator need not be restarted"
            )
            self._announce([Announcement(write.ref, True, "ExtensionFieldsPruned", message)])
        elif not gone and kind.plural in self._pruned:
            self._pruned -= {kind.plural}
            _log.info("status fields are no longer pruned", extra={"kind": kind.kind})
            message = f"the cluster's CRD of {kind.kind} has localmodel's status fields again"
            self._announce([Announcement(write.ref, False, "ExtensionFieldsKept", message)])
        return gone

    def with_probes(
        self, writes: Sequence[Write], in_full: Callable[[], Iterable[Write]], now: float
    ) -> Sequence[Write]:
        """`writes`, and if it is time one in full of every pruned kind. `in_full` plans as if nothing were pruned."""
        if not self._pruned or now < self._probe_at:
            return writes
        self._probe_at = now + PROBE_S
        probes: dict[str, Write] = {}
        for write in in_full():
            plural = write.ref.resource.plural
            if plural in self._pruned and _ours(write):
                probes.setdefault(plural, replace(write, material=True, probe=True))
        probed = {write.ref for write in probes.values()}
        return [*probes.values(), *(write for write in writes if write.ref not in probed)]


def _ours(write: Write) -> frozenset[str]:
    """Of the fields of status that a patch sets, those that KServe's CRDs do not have."""
    if write.verb not in (Verb.PATCH, Verb.PATCH_STATUS):
        return frozenset()
    status = write.body.get("status") or {}
    kserves = KSERVE_FIELDS_OF_GROUPS if write.ref.resource == NODE_GROUPS else KSERVE_FIELDS
    return frozenset(name for name, value in status.items() if value is not None) - kserves
