"""Caches and copies as rows: what is wrong first, and with which numbers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from actors.errors import Failure
from actors.messages import ModelReport, NodeName, Phase
from coordinator.api.resources import StatusKey
from coordinator.dev.trial.builders import GIB, NOW, World, a_cache, a_group, a_node, a_report, a_world
from coordinator.view.cluster import KINDS, ClusterView, read_view
from coordinator.view.rows import CacheRow, Rank, rows, totals
from coordinator.view.savings import Saving, savings
from tests.kit.views import FAST, FULL, GONE, OTHER, SLOW, a_mixed_world, view_of

LLAMA = a_cache("llama")


def a_fleet(*reports: ModelReport | None) -> World:
    """`llama` on nodes n0, n1, …, each with such a report."""
    world = a_world(a_group(), a_cache("llama")).resolved(LLAMA, 10 * GIB)
    for number, report in enumerate(reports):
        world.add(a_node(f"n{number}")).reporting(f"n{number}", *filter(None, [report]))
    world.settle()
    return world


def filling(rate: float, done: int = GIB, **fields: Any) -> ModelReport:
    return a_report(LLAMA, Phase.DOWNLOADING, total=10 * GIB, done=done, rate_bytes_per_s=rate, **fields)


def the_row(world: World) -> CacheRow:
    (row,) = rows(view_of(world))
    return row


def test_what_is_wrong_comes_first() -> None:
    found = rows(view_of(a_mixed_world()))

    assert [(row.key, row.rank) for row in found] == [
        ("team-a/mistral", Rank.FAILED),
        ("llama-70b", Rank.STUCK),
        ("small", Rank.WAITING),
    ]
    llama = found[1]
    assert [copy.node for copy in llama.copies] == [FULL, SLOW, FAST, OTHER, GONE]
    assert [copy.rank for copy in llama.copies] == [
        Rank.STUCK,
        Rank.SLOW,
        Rank.MOVING,
        Rank.MOVING,
        Rank.WAITING,
    ]


failed = a_report(LLAMA, Phase.FAILED, failure=Failure("SourceUnreachable", "no route"), retry_at=NOW + 9, attempt=2)
damaged = replace(a_report(LLAMA, Phase.PENDING), damage="w.bin", failure=Failure("Damaged", "w.bin is damaged"))


@pytest.mark.parametrize(
    ("report", "rank", "phase", "reason"),
    [
        (a_report(LLAMA, total=10 * GIB), Rank.DONE, "Ready", None),
        (filling(5e6), Rank.MOVING, "Downloading", None),
        (filling(0.0), Rank.MOVING, "Downloading", None),
        (a_report(LLAMA, Phase.PENDING), Rank.WAITING, "Pending", None),
        (failed, Rank.FAILED, "Failed", "SourceUnreachable"),
        (damaged, Rank.FAILED, "Damaged", "Damaged"),
        (
            a_report(LLAMA, Phase.PENDING, failure=Failure("InsufficientStorage", "no room")),
            Rank.STUCK,
            "Pending",
            "InsufficientStorage",
        ),
        (a_report(LLAMA, Phase.PENDING, failure=Failure("Evicted", "made room")), Rank.WAITING, "Pending", "Evicted"),
        (None, Rank.WAITING, "Pending", None),
    ],
)
def test_a_copy_is_ranked_by_what_its_node_says(
    report: ModelReport | None, rank: Rank, phase: str, reason: str | None
) -> None:
    (copy,) = the_row(a_fleet(report)).copies

    assert (copy.rank, copy.phase, copy.reason) == (rank, phase, reason)


@pytest.mark.parametrize(
    ("rates", "slow"),
    [
        ((100e6, 100e6, 100e6), []),
        ((100e6, 100e6, 49e6), ["n2"]),
        ((100e6, 100e6, 51e6), []),
        ((100e6, 10e6), ["n1"]),
        ((10e6,), []),
        ((100e6, 100e6, 0.0), []),
        ((100e6, 90e6, 1e6, 2e6, 110e6), ["n2", "n3"]),
    ],
)
def test_a_node_is_slow_beside_the_others(rates: tuple[float, ...], slow: list[str]) -> None:
    row = the_row(a_fleet(*(filling(rate) for rate in rates)))

    assert sorted(copy.node for copy in row.copies if copy.rank is Rank.SLOW) == slow
    assert all((copy.slow_beside is not None) == (copy.node in slow) for copy in row.copies)


def test_a_row_has_the_numbers_of_the_status() -> None:
    row = the_row(a_fleet(a_report(LLAMA, total=10 * GIB), filling(1 << 20, bytes_from_origin=0, bytes_from_peers=GIB)))

    assert (row.ready, row.reason, row.available, row.nodes) == (False, "Downloading", 1, 2)
    assert (row.size, row.cached, row.share) == (10 * GIB, 11 * GIB, 0.55)
    assert (row.rate, row.eta, row.origin, row.peers) == (1 << 20, "2h33m", 10 * GIB, GIB)
    assert row.from_peers == pytest.approx(1 / 11)


def test_a_ready_cache_that_needs_attention_is_not_done() -> None:
    world = a_fleet(a_report(LLAMA, total=10 * GIB))
    world.add(a_cache("twin", LLAMA.uri).created("2026-02-01T00:00:00Z"))
    world.settle()

    found = {row.key: row for row in rows(view_of(world))}

    assert (found[StatusKey("llama")].rank, found[StatusKey("llama")].reason) == (Rank.DONE, "AllNodesReady")
    twin = found[StatusKey("twin")]
    assert (twin.ready, twin.rank, twin.reason) == (True, Rank.STUCK, "DuplicateSource")


def test_kserves_words_alone_are_understood() -> None:
    world = a_fleet(a_report(LLAMA, total=10 * GIB), filling(1e6))
    for each in world.objects:
        each.json.get("status", {}).pop("conditions", None)
        for field in ("models", "bytes", "agent"):
            each.json.get("status", {}).pop(field, None)

    row = the_row(world)

    assert (row.ready, row.available, row.nodes, row.size) == (False, 1, 2, None)
    assert [(copy.node, copy.phase) for copy in row.copies] == [("n1", "Downloading"), ("n0", "Ready")]


def test_a_cache_nobody_has_looked_at_has_no_status() -> None:
    (row,) = rows(view_of(a_world(a_cache("llama"))))

    assert (row.ready, row.nodes, row.share, row.copies, row.rank) == (None, 0, None, (), Rank.WAITING)


@pytest.mark.parametrize(
    "junk", [None, 7, "x", [], {"nodeStatus": 3}, {"bytes": "many"}, {"conditions": [{"a": 1}, 3]}]
)
def test_a_status_that_somebody_else_wrote_hides_nothing(junk: Any) -> None:
    world = a_fleet(filling(1e6))
    (cache,) = (each for each in world.objects if each.json["kind"] == "LocalModelCache")
    cache.json["status"] = junk

    row = the_row(world)

    assert (row.key, [copy.node for copy in row.copies]) == ("llama", ["n0"])


def test_an_object_without_a_name_is_passed_over() -> None:
    view = read_view({kind: [{"metadata": {}}] for kind in KINDS}, NOW)

    assert view == ClusterView(nodes={}, at=NOW)


def test_one_node_is_asked_about() -> None:
    found = rows(view_of(a_mixed_world()), node=NodeName(SLOW))

    assert [(row.key, [copy.node for copy in row.copies]) for row in found] == [
        ("team-a/mistral", [SLOW]),
        ("llama-70b", [SLOW]),
        ("small", [SLOW]),
    ]


def test_the_sum_is_of_what_is_measured() -> None:
    whole = totals(rows(view_of(a_mixed_world())))

    assert (whole.caches, whole.ready, whole.copies, whole.available) == (3, 0, 15, 4)
    assert (whole.cached, whole.wanted, whole.size) == (37 * GIB, 80 * GIB, 16 * GIB)
    assert (whole.origin, whole.peers, whole.amplification) == (16 * GIB, 21 * GIB, 1.0)


def test_what_was_saved_is_what_peers_gave() -> None:
    each, whole = savings(rows(view_of(a_mixed_world())))

    assert [(one.key, one.origin, one.peers, one.other_zones, one.amplification) for one in each] == [
        ("llama-70b", 15 * GIB, 18 * GIB, 0, 1.0),
        ("small", GIB, 3 * GIB, GIB // 2, 1.0),
    ]
    assert (whole.size, whole.saved, whole.since) == (16 * GIB, 21 * GIB, "2023-11-14T22:12:20Z")
    assert savings([]) == ([], Saving("", 0, 0, 0, 0, 0, None))
