"""The short form of the kill matrix: one trial of some faults of every party. `python -m tests.killmatrix` runs all."""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.killmatrix import cluster, disks, nodes, table
from tests.killmatrix.__main__ import OF_NODES
from tests.killmatrix.cluster import Cluster
from tests.killmatrix.nodes import Nodes
from tests.killmatrix.trial import Fault, NotHere, Outcome

SHORT: dict[str, Fault[Nodes]] = {fault.name: fault for fault in OF_NODES if fault.short}
SHORT_OF_CLUSTER = {fault.name: fault for fault in cluster.FAULTS if fault.short}
AT_A_TIME = 3
"""Trials of nodes that run beside each other: more than half of one is waiting."""


@pytest.fixture(scope="module")
def outcomes(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Mapping[str, Future[Outcome]]]:
    """The outcomes of the trials of nodes that were chosen; each has a folder of its own."""
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
def test_a_disk_that_lost_power_is_written_again_though_a_neighbour_holds_the_old_mount(tmp_path: Path) -> None:
    nodes = Nodes(tmp_path / "nodes", tmp_path, random.Random(0))
    with nodes.closing:
        try:
            disks.an_ext4(nodes)
        except NotHere as error:
            pytest.skip(str(error))
        root = nodes.root(disks.VICTIM)
        with (root / "kept").open("wb", buffering=0) as kept:
            kept.write(b"before")
            os.fsync(kept.fileno())
        neighbour = subprocess.Popen(["unshare", "--mount", "sh", "-c", "echo; exec sleep 60"], stdout=subprocess.PIPE)
        with neighbour:
            assert neighbour.stdout is not None
            neighbour.stdout.readline()
            (root / "lost").write_bytes(b"in memory only")
            disks.shut_down(root)
            disks.mount_what_it_had(nodes)
            (root / "written").write_bytes(b"after")
            neighbour.kill()
        assert sorted(path.name for path in root.iterdir() if path.is_file()) == ["kept", "written"]


@pytest.mark.slow
def test_a_corrupt_file_or_a_byte_too_many_fails_a_trial() -> None:
    good = Outcome("disk", "power loss", 0, ready_s=1.0, twice_bytes=5, twice_bound_bytes=5)
    corrupt = Outcome("disk", "power loss", 1, ready_s=1.0, corrupt=1)
    twice = Outcome("disk", "power loss", 2, ready_s=1.0, twice_bytes=6, twice_bound_bytes=5)
    assert [each.good for each in (good, corrupt, twice)] == [True, False, False]
    (row,) = table.rows([good, corrupt, twice])
    assert row[-1] == "FAILED with seed 1, 2"
    assert table.summary([good, corrupt, twice]) == "1 faults, 3 trials: 1 corrupt files, 2 failed"
