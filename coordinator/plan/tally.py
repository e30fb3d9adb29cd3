"""All that is known of one cache: of its source, on one node, and on all nodes together."""

from __future__ import annotations

from dataclasses import dataclass, field

from actors.errors import Failure
from actors.messages import Earlier, ModelReport, NodeName, Phase
from actors.transferred import Transferred, total
from coordinator.api.resources import NodeStatus
from coordinator.plan.snapshot import Cache


@dataclass(frozen=True, slots=True)
class SourceState:
    """All that is known of a cache's source. Neither `resolved` nor `failure`: it is being resolved, or need not be.

    `unreadable`: it cannot be asked, and `resolved` is what the nodes say that hold it; `failing_since` is of that.
    `answered`: what is said here is what it said itself, asked with the cache's own credentials.
    """

    resolved: str | None = None
    total_bytes: int | None = None
    revision: str | None = None
    manifest_digest: str | None = None
    failure: Failure | None = None
    retry_at: float | None = None
    unreadable: Failure | None = None
    carries_options: bool = False
    failing_since: float | None = None
    answered: bool = False


Cell = tuple[NodeStatus, Failure | None, float | None, ModelReport | None]
"""One cache on one node: KServe's word, what is wrong, when it is tried again (epoch seconds), what the agent reports.

The report is None where there is no usable one. A plain tuple, because a large cluster has very many of them.
"""


@dataclass(slots=True)
class Tally:
    """What all nodes together say of one cache. Filled by `fold`, then only read.

    `earlier` counts those of the `available` that hold what the spec asked for before; `coming` is the revision that is
    being fetched. `barred`: on some node is a copy that is not shown to be this cache's to take.
    `orphans`: the nodes that hold a copy and should not any more, each with the reason; they count like the others.
    `strays`: those with a copy in the folder of an earlier path, each with that folder; they do not count.
    """

    cache: Cache
    source: SourceState
    node_status: dict[str, NodeStatus] = field(default_factory=dict)
    available: int = 0
    failed: int = 0
    downloading: int = 0
    earlier: int = 0
    barred: bool = False
    bytes_total: int = 0
    bytes_cached: int = 0
    rate: float = 0.0
    seconds_left: float | None = None
    unmeasured: int = 0
    revision: str | None = None
    manifest_digest: str | None = None
    coming: str | None = None
    started_at: float | None = None
    finished_at: float | None = None
    troubles: list[tuple[NodeName, Failure, float | None]] = field(default_factory=list)
    orphans: list[tuple[NodeName, str]] = field(default_factory=list)
    strays: list[tuple[NodeName, str]] = field(default_factory=list)
    reports: list[ModelReport] = field(default_factory=list)

    @property
    def moved(self) -> Transferred:
        """What has come over the network for it, over all nodes. Summed when it is asked for."""
        return total(self.reports)

    @property
    def total(self) -> int:
        return len(self.node_status)

    @property
    def size_bytes(self) -> int:
        """Of one copy; 0 as long as it is not known."""
        return self.source.total_bytes or self.bytes_total

    def add(self, node: NodeName, cell: Cell) -> None:
        word, failure, retry_at, report = cell
        self.node_status[node] = word
        if report is not None:
            self.reports.append(report)
            started, size = report.started_at, report.bytes_total
            if started is not None and (self.started_at is None or started < self.started_at):
                self.started_at = started
            if size > self.bytes_total:
                self.bytes_total = size
            if report.revision is not None and self.coming is None:
                self.coming = report.revision
        if word is NodeStatus.DOWNLOADED:
            self.available += 1
            if report is None:
                self.unmeasured += 1
                self.earlier += self.cache.status.get("selection") not in (None, self.cache.selection)
            elif report.earlier is not None:
                self._add_earlier(node, failure, retry_at, report, report.earlier)
            else:
                self.bytes_cached += report.bytes_total
                if self.manifest_digest is None:
                    self.manifest_digest, self.revision = report.manifest_digest, report.revision
                finished = report.finished_at
                if finished is not None and (self.finished_at is None or finished > self.finished_at):
                    self.finished_at = finished
            return
        if failure is not None:
            self.troubles.append((node, failure, retry_at))
        if report is not None:
            self.bytes_cached += report.bytes_done
        if word is NodeStatus.ERROR:
            self.failed += 1
        elif word is NodeStatus.DOWNLOADING and report is not None:
            self._add_progress(report)

    def _add_earlier(
        self, node: NodeName, failure: Failure | None, retry_at: float | None, report: ModelReport, earlier: Earlier
    ) -> None:
        self.earlier += 1
        if failure is not None:
            self.troubles.append((node, failure, retry_at))
        if report.phase in (Phase.DOWNLOADING, Phase.VERIFYING):
            self.bytes_cached += report.bytes_done
            self._add_progress(report)
        else:
            self.bytes_cached += earlier.bytes_total
            self.bytes_total = max(self.bytes_total, earlier.bytes_total)

    def _add_progress(self, report: ModelReport) -> None:
        self.downloading += 1
        left = remaining_seconds(report)
        if left is not None:
            self.rate += report.rate_bytes_per_s
            if self.seconds_left is None or left > self.seconds_left:
                self.seconds_left = left


def is_earlier(report: ModelReport | None) -> bool:
    """Whether what a node holds is not what the spec asks for now."""
    return report is not None and report.earlier is not None


def remaining_seconds(report: ModelReport) -> float | None:
    """None while nothing moves."""
    rate, left = report.rate_bytes_per_s, report.bytes_total - report.bytes_done
    if rate < 1:
        return None
    return left / rate if left > 0 else 0.0
