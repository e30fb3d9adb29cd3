"""What Prometheus reads."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from actors.manifest import NodeName, OriginName
from actors.transferred import Transferred
from coordinator.control.metrics import MAX_REASONS, CacheSample, Metrics
from coordinator.plan.origin_budget import Budget, OriginUse


def series(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Every sample by name and sorted labels."""
    families = text_string_to_metric_families(metrics.render().decode())
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples}


def test_requests_are_counted_by_verb_and_code_and_watches_are_not_timed() -> None:
    metrics = Metrics("1")
    metrics.kube_request("list", 200, 0.01)
    metrics.kube_request("list", 0, 5.0)
    metrics.kube_request("watch", 200, 30.0)
    found = series(metrics)
    assert found["localmodel_kube_requests_total", (("code", "200"), ("verb", "list"))] == 1
    assert found["localmodel_kube_requests_total", (("code", "0"), ("verb", "list"))] == 1
    assert found["localmodel_kube_requests_total", (("code", "200"), ("verb", "watch"))] == 1
    assert found["localmodel_kube_request_seconds_count", (("verb", "list"),)] == 2
    assert ("localmodel_kube_request_seconds_count", (("verb", "watch"),)) not in found


def test_the_leader_is_seen_where_controller_runtime_shows_it() -> None:
    metrics = Metrics("1", leader_lock="lock")
    metrics.leading(True)
    assert series(metrics)["leader_election_master_status", (("name", "lock"),)] == 1
    metrics.leading(False)
    assert series(metrics)["leader_election_master_status", (("name", "lock"),)] == 0


def test_a_cache_is_shown_and_leaves_no_series_when_it_is_gone() -> None:
    metrics = Metrics("1")
    moved = Transferred(
        bytes_from_origin=10,
        bytes_from_peers=20,
        bytes_from_other_zones=15,
        wrong_peers={NodeName("a"): 2},
        wrong_readers={NodeName("b"): 1},
    )
    cache = CacheSample("llama", "team", {"NodeDownloaded": 3}, 10, 30, 5.0, moved)
    metrics.show([cache], {"ready": 3})
    key = (("name", "llama"), ("namespace", "team"))
    found = series(metrics)
    assert found["localmodel_cache_nodes", (*key, ("status", "NodeDownloaded"))] == 3
    assert found["localmodel_cache_size_bytes", key] == 10
    assert found["localmodel_cache_cached_bytes", key] == 30
    assert found["localmodel_cache_read_bytes", (("location", "origin"), *key)] == 10
    assert found["localmodel_cache_read_bytes", (("location", "peers"), *key)] == 20
    assert found["localmodel_cache_cross_zone_bytes", key] == 15
    assert found["localmodel_cache_wrong_chunks", (*key, ("when", "sent"))] == 2
    assert found["localmodel_cache_wrong_chunks", (*key, ("when", "read"))] == 1
    assert found["localmodel_cache_origin_amplification", key] == 1
    assert found["localmodel_cache_rate_bytes_per_second", key] == 5
    assert found["localmodel_agents", (("state", "ready"),)] == 3
    metrics.show([], {})
    assert not [name for name, _ in series(metrics) if name.startswith(("localmodel_cache", "localmodel_agents"))]


def test_an_origin_is_shown_with_its_budget_and_leaves_no_gauge_when_nobody_reads_it() -> None:
    metrics = Metrics("1")
    limited = OriginUse(
        OriginName("https://a"), Budget(64, 5e8), requests=12, wanted=40, nodes=3, rate_bytes_per_s=1e8, pause_s=9.0
    )
    metrics.show([], {}, [limited, OriginUse(OriginName("https://b"), Budget(8))])
    metrics.paused("https://a")
    found = {name: value for (name, labels), value in series(metrics).items() if labels == (("origin", "https://a"),)}
    assert {name: value for name, value in found.items() if not name.endswith("_created")} == {
        "localmodel_origin_budget_requests": 64,
        "localmodel_origin_budget_bytes_per_second": 5e8,
        "localmodel_origin_requests": 12,
        "localmodel_origin_wanted_requests": 40,
        "localmodel_origin_nodes": 3,
        "localmodel_origin_rate_bytes_per_second": 1e8,
        "localmodel_origin_pause_seconds": 9,
        "localmodel_origin_pauses_total": 1,
    }
    other = (("origin", "https://b"),)
    assert ("localmodel_origin_requests", other) in series(metrics)
    assert ("localmodel_origin_budget_bytes_per_second", other) not in series(metrics), "it has no limit"
    metrics.show([], {})
    left = {name for name, _ in series(metrics) if name.startswith("localmodel_origin")}
    assert left <= {"localmodel_origin_pauses_total", "localmodel_origin_pauses_created"}


def test_reasons_from_elsewhere_cannot_grow_without_bound() -> None:
    metrics = Metrics("1")
    for index in range(MAX_REASONS + 50):
        metrics.failed(f"Reason{index}")
    errors = {labels: value for (name, labels), value in series(metrics).items() if name == "localmodel_errors_total"}
    assert len(errors) == MAX_REASONS + 1
    assert errors[("reason", "Other"),] == 50


def test_two_coordinators_in_one_process_do_not_meet() -> None:
    first, second = Metrics("1"), Metrics("1")
    first.tick(0.1)
    first.tick_failed()
    first.watch_restarted()
    first.resolved("ok")
    assert series(first)["localmodel_tick_seconds_count", ()] == 1
    assert series(first)["localmodel_watch_restarts_total", ()] == 1
    assert series(first)["localmodel_resolves_total", (("outcome", "ok"),)] == 1
    assert series(second)["localmodel_tick_seconds_count", ()] == 0
