"""Real node agents, a real origin that counts what it is asked at a time, and the plans that share it out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from actors.manifest import Resolved
from actors.mesh.limits import DEAD_S
from actors.messages import NodeName, OriginReport, Phase
from actors.sources.options import SourceOptions
from actors.sources.resolve import resolve
from coordinator.dev.origin.faults import Fault
from coordinator.dev.origin.sample import REPO, write_sample
from coordinator.dev.origin.server import Origin
from coordinator.dev.trial.builders import CacheBuilder, World, a_cache, a_group, a_node, a_silent_agent
from coordinator.dev.trial.waiting import eventually
from coordinator.fleet.interface import AgentView
from coordinator.plan.origin_budget import Budget, Budgets
from coordinator.plan.plan import Plan, plan
from coordinator.plan.snapshot import Resolution
from tests.kit.nodes import same_bytes
from tests.kit.peers import MIB, Peer, running

pytestmark = pytest.mark.slow

SAMPLE_BYTES = 4 * MIB
OTHER = "localmodel/other"
RATE = 2 * MIB
"""Of one connection: slow enough that every request lasts for several plans."""
LLAMA, QWEN = a_cache("llama", f"hf://{REPO}"), a_cache("qwen", f"hf://{OTHER}")


@pytest.fixture
def origin(sample: Path) -> Iterator[Origin]:
    with Origin({REPO: sample, OTHER: sample}, rate_bytes_per_s=RATE) as running_origin:
        yield running_origin


@dataclass
class Governed:
    """A coordinator without Kubernetes and Ray: it plans from what the agents report, and tells them what follows."""

    peers: Sequence[Peer]
    caches: Sequence[CacheBuilder]
    resolutions: dict[str, Resolved]
    budget: Budget
    late_s: float = 0.0
    """How much later it is than the clock says."""
    gone: set[str] = field(default_factory=set)
    views: dict[str, AgentView] = field(default_factory=dict)
    last: Plan | None = None

    def tick(self) -> None:
        now = time.time() + self.late_s
        for peer in self.peers:
            if peer.name in self.gone:
                self.views[peer.name] = a_silent_agent("AgentDied", last=self.views[peer.name])
            else:
                self.views[peer.name] = AgentView(peer.agent.report(), now)
        world = World().add(*self.caches, a_group("gpu"), *(a_node(peer.name) for peer in self.peers))
        world.agents = self.views
        world.resolutions = {key: Resolution(resolved) for key, resolved in self.resolutions.items()}
        snapshot = replace(
            world.snapshot(),
            budgets=Budgets(self.budget),
            governed=self.last.shares.by_origin if self.last is not None else {},
            companies=self.last.companies if self.last is not None else {},
            secret=b"secret",
        )
        self.last = plan(snapshot, now)
        for peer in self.peers:
            if peer.name not in self.gone:
                peer.agent.reconcile(self.last.desired[peer.name])

    def until(self, reached: Callable[[], bool]) -> None:
        def ticked() -> bool:
            self.tick()
            return reached()

        eventually(ticked, timeout_s=120, every_s=0.05, seen=lambda: [peer.agent.report() for peer in self.peers])

    def ready(self) -> bool:
        living = [peer for peer in self.peers if peer.name not in self.gone]
        models = [peer.model(cache.uri) for peer in living for cache in self.caches]
        return all(model is not None and model.phase is Phase.READY for model in models)

    def said(self, peer: Peer) -> OriginReport:
        (report,) = peer.agent.report().origins
        return report


def governed(
    tmp_path: Path, origin: Origin, nodes: int, *caches: CacheBuilder, budget: int, **settings: object
) -> Governed:
    known: dict[str, object] = {"peer_host": None, "connections": 8, "chunk_bytes": 128 << 10, **settings}
    peers = [Peer(tmp_path / f"node-{number}", f"node-{number}", **known) for number in range(nodes)]
    options = SourceOptions({"HF_ENDPOINT": origin.hub_endpoint})
    resolutions = {str(cache.key): resolve(cache.source, options) for cache in caches}
    return Governed(peers, caches, resolutions, Budget(budget))


def test_several_nodes_with_two_models_never_ask_more_at_a_time_than_the_budget(
    tmp_path: Path, origin: Origin, sample: Path
) -> None:
    cluster = governed(tmp_path, origin, 3, LLAMA, QWEN, budget=5)
    with running(*cluster.peers):
        cluster.until(cluster.ready)
        assert all(same_bytes(peer.folder(cache.uri), sample) for peer in cluster.peers for cache in cluster.caches)
        assert origin.stats()["atATime"] == 5, "all of the budget, and no more"
        cluster.until(lambda: not any(peer.agent.report().origins for peer in cluster.peers))
    assert origin.stats()["bytes"] == 3 * 2 * SAMPLE_BYTES


def test_with_more_nodes_than_requests_each_has_its_turn(tmp_path: Path, origin: Origin) -> None:
    cluster = governed(tmp_path, origin, 3, LLAMA, budget=1)
    waited = set[str]()

    def all_ready() -> bool:
        for peer in cluster.peers:
            model = peer.model(LLAMA.uri)
            if model is not None and model.failure is not None and model.failure.reason == "WaitingForOrigin":
                waited.add(peer.name)
        return cluster.ready()

    with running(*cluster.peers):
        cluster.until(all_ready)
    assert len(waited) == 2, "and the others said what they waited for"
    assert origin.stats()["atATime"] == 1


def test_a_pause_that_one_node_is_asked_for_stops_all_fills_of_all_nodes(tmp_path: Path, origin: Origin) -> None:
    cluster = governed(tmp_path, origin, 3, LLAMA, QWEN, budget=12)
    with running(*cluster.peers):
        cluster.until(lambda: all(cluster.said(peer).requests > 1 for peer in cluster.peers))
        origin.faults.set(Fault(path=f"/{REPO}/*", status=429, retry_after="55", times=1))
        cluster.until(lambda: any(cluster.said(peer).pause_s for peer in cluster.peers))
        cluster.tick()  # that one of them was asked is told to the others
        cluster.until(lambda: all(cluster.said(peer).requests == 0 for peer in cluster.peers))

        asked = origin.stats()["requests"]
        for _ in range(20):
            cluster.tick()
        assert origin.stats()["requests"] == asked
        assert sum(cluster.said(peer).pause_s > 0 for peer in cluster.peers) == 1, "what was told is not told back"
        cluster.until(lambda: all(_waits(peer) for peer in cluster.peers))
        assert cluster.last is not None
        (usage,) = cluster.last.shares.usage
        assert 0 < usage.pause_s <= 55


def _waits(peer: Peer) -> bool:
    """One of its models at least says that the origin asked for a pause, and none that anything else is wrong."""
    models = [model for cache in (LLAMA, QWEN) if (model := peer.model(cache.uri)) is not None]
    reasons = {model.failure.reason for model in models if model.failure is not None}
    return reasons == {"SourceThrottled"}


def test_the_share_of_a_node_that_died_is_used_by_the_others(tmp_path: Path, origin: Origin) -> None:
    cluster = governed(tmp_path, origin, 2, LLAMA, QWEN, budget=8)
    living, victim = cluster.peers
    with running(*cluster.peers):
        cluster.until(lambda: cluster.said(living).requests == 4)
        assert cluster.said(living).granted == 4
        victim.agent.close()
        cluster.gone.add(victim.name)
        cluster.tick()
        assert cluster.said(living).granted == 4, "it may be back in a moment"
        cluster.late_s = DEAD_S + 1
        cluster.until(lambda: cluster.said(living).requests == 8)
        cluster.until(cluster.ready)


def test_what_was_agreed_on_holds_while_nobody_plans(tmp_path: Path, origin: Origin) -> None:
    cluster = governed(tmp_path, origin, 2, LLAMA, budget=4)
    with running(*cluster.peers):
        cluster.until(lambda: all(cluster.said(peer).granted == 2 for peer in cluster.peers))
        eventually(cluster.ready, timeout_s=120, every_s=0.05)
    assert origin.stats()["atATime"] <= 4


def test_nodes_that_fill_together_read_the_origin_once_and_within_the_budget(
    tmp_path: Path, origin: Origin, sample: Path
) -> None:
    cluster = governed(tmp_path, origin, 4, LLAMA, budget=2, peer_host="127.0.0.1")
    with running(*cluster.peers):
        cluster.until(cluster.ready)
        assert all(same_bytes(peer.folder(LLAMA.uri), sample) for peer in cluster.peers)
    assert origin.stats()["atATime"] <= 2
    assert origin.stats()["bytes"] <= 1.02 * SAMPLE_BYTES


def test_owners_that_may_not_read_any_more_leave_their_chunks_to_one_that_may(tmp_path: Path) -> None:
    sample = tmp_path / "sample"
    write_sample(sample, 2 * SAMPLE_BYTES)
    with Origin({REPO: sample}, rate_bytes_per_s=RATE / 4) as origin:  # or it would be over before they are told
        cluster = governed(tmp_path, origin, 3, LLAMA, budget=6, peer_host="127.0.0.1")
        with running(*cluster.peers):
            cluster.until(lambda: all(cluster.said(peer).requests for peer in cluster.peers))
            cluster.budget = Budget(1)
            cluster.until(lambda: sum(cluster.said(peer).granted or 0 for peer in cluster.peers) == 1)
            cluster.until(cluster.ready)
            assert all(same_bytes(peer.folder(LLAMA.uri), sample) for peer in cluster.peers)
        assert origin.stats()["bytes"] <= 1.02 * 2 * SAMPLE_BYTES, "no chunk was read twice"


def test_a_node_that_starts_again_in_the_middle_is_told_its_share_and_goes_on(
    tmp_path: Path, origin: Origin, sample: Path
) -> None:
    cluster = governed(tmp_path, origin, 2, LLAMA, budget=4)
    first, second = cluster.peers
    with running(first, second):
        cluster.until(lambda: all(cluster.said(peer).requests for peer in cluster.peers))
        first.agent.close()
        again = Peer(first.host_root, NodeName(first.name), peer_host=None, connections=8, chunk_bytes=128 << 10)
        cluster.peers = [again, second]
        with running(again):
            assert again.agent.report().origins == (), "it was told nothing yet"
            cluster.tick()
            assert (cluster.said(again).granted, cluster.said(second).granted) == (2, 2)
            cluster.until(cluster.ready)
            assert same_bytes(again.folder(LLAMA.uri), sample)
