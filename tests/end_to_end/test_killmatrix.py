"""The short form of the kill matrix: one trial of some faults of every party. `python -m tests.killmatrix` runs all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from tests.killmatrix import cluster, nodes, table
from tests.killmatrix.__main__ import OF_NODES
from tests.killmatrix.cluster import Cluster
from tests.killmatrix.nodes import Nodes
from tests.killmatrix.trial import Fault, Outcome

SHORT: dict[str, Fault[Nodes]] = {fault.name: fault for fault in OF_NODES if fault.short}
SHORT_OF_CLUSTER = {fault.name: fault for fault in cluster.FAULTS if fault.short}
AT_A_TIME = 3
"""Trials of nodes that run beside each other: more than half of one is waiting."""


@pytest.fixture(scope="module")
def outcomes(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Mapping[str, Future[Outcome]]]:
    """What comes of the trials of nodes that were chosen; each has a folder of its own."""
    chosen = [name for name in SHORT if any(item.name.endswith(f"[{name}]") for item in request.session.items)]
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        yield {
            name: pool.submit(nodes.run, SHORT[name], 0, tmp_path_factory.mktemp("trial") / "nodes") for name in chosen
        }
        pool.shutdown(cancel_futures=True)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("cluster")) as made:
        yield made


def judge(outcome: Outcome) -> None:
    if outcome.skipped:
        pytest.skip(outcome.skipped)
    assert not outcome.error
    assert outcome.corrupt == 0
    assert outcome.twice_bytes <= outcome.twice_bound_bytes


@pytest.mark.e2e
@pytest.mark.parametrize("name", SHORT)
def test_nodes_end_with_the_origins_bytes(name: str, outcomes: Mapping[str, Future[Outcome]]) -> None:
    judge(outcomes[name].result())


@pytest.mark.e2e
@pytest.mark.parametrize("name", SHORT_OF_CLUSTER)
def test_a_cluster_ends_with_the_origins_bytes(name: str, running: Cluster) -> None:
    judge(cluster.run(SHORT_OF_CLUSTER[name], 0, running))


def test_every_fault_has_a_name_of_its_own_and_there_are_forty() -> None:
    names = [(fault.party, fault.name) for fault in OF_NODES] + [(fault.party, fault.name) for fault in cluster.FAULTS]
    assert len(set(names)) == len(names)
    assert len(names) >= 40


@pytest.mark.slow
def test_a_corrupt_file_or_a_byte_too_many_fails_a_trial() -> None:
    good = Outcome("disk", "power loss", 0, ready_s=1.0, twice_bytes=5, twice_bound_bytes=5)
    corrupt = Outcome("disk", "power loss", 1, ready_s=1.0, corrupt=1)
    twice = Outcome("disk", "power loss", 2, ready_s=1.0, twice_bytes=6, twice_bound_bytes=5)
    assert [each.good for each in (good, corrupt, twice)] == [True, False, False]
    (row,) = table.rows([good, corrupt, twice])
    assert row[-1] == "FAILED with seed 1, 2"
    assert table.summary([good, corrupt, twice]) == "1 faults, 3 trials: 1 corrupt files, 2 failed"
