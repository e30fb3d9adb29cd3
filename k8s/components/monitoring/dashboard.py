"""The Grafana dashboard, from the table below: `dashboard.py --write`, or `--check`.

`ROWS` is the whole content. A test holds that every metric in it exists, and that every metric that exists is in it.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("dashboard.json")
CACHE = 'namespace=~"$namespace", name=~"$cache"'


@dataclass(frozen=True, slots=True)
class Panel:
    """One graph: a title, a unit of Grafana's, and what to draw: (expression, legend)."""

    title: str
    unit: str
    draws: tuple[tuple[str, str], ...]
    kind: str = "timeseries"


def one(title: str, unit: str, expression: str, legend: str = "", kind: str = "timeseries") -> Panel:
    return Panel(title, unit, ((expression, legend),), kind)


ROWS: dict[str, tuple[Panel, ...]] = {
    "At a glance": (
        one("Node agents", "short", "sum by (state) (localmodel_agents)", "{{state}}", "stat"),
        one("Nodes of caches", "short", f"sum by (status) (localmodel_cache_nodes{{{CACHE}}})", "{{status}}", "stat"),
        one("Arriving now", "Bps", f"sum(localmodel_cache_rate_bytes_per_second{{{CACHE}}})", "", "stat"),
        one(
            "Not read from origins",
            "percentunit",
            f'sum(localmodel_cache_read_bytes{{{CACHE}, location="peers"}})'
            f" / sum(localmodel_cache_read_bytes{{{CACHE}}})",
            "",
            "stat",
        ),
    ),
    "Caches": (
        one(
            "Nodes, by status",
            "short",
            f"sum by (name, status) (localmodel_cache_nodes{{{CACHE}}})",
            "{{name}} {{status}}",
        ),
        one("Arriving", "Bps", f"sum by (name) (localmodel_cache_rate_bytes_per_second{{{CACHE}}})", "{{name}}"),
        one(
            "Read, by where from",
            "bytes",
            f"sum by (name, location) (localmodel_cache_read_bytes{{{CACHE}}})",
            "{{name}} {{location}}",
        ),
        Panel(
            "Finished, and the size of one copy",
            "bytes",
            (
                (f"sum by (name) (localmodel_cache_cached_bytes{{{CACHE}}})", "{{name}} finished"),
                (f"max by (name) (localmodel_cache_size_bytes{{{CACHE}}})", "{{name}} one copy"),
            ),
        ),
        one("Copies read from the origin", "short", f"localmodel_cache_origin_amplification{{{CACHE}}}", "{{name}}"),
        one("Read across zones", "bytes", f"sum by (name) (localmodel_cache_cross_zone_bytes{{{CACHE}}})", "{{name}}"),
        Panel(
            "Seconds until a copy is there, and until its first byte (p90)",
            "s",
            tuple(
                (
                    "histogram_quantile(0.9,"
                    f" sum by (outcome, le) (rate(localmodel_{name}_seconds_bucket[$__rate_interval])))",
                    f"{said} {{{{outcome}}}}",
                )
                for name, said in (("fill", "copy"), ("first_byte", "first byte"), ("ready", "cache"))
            ),
        ),
        one(
            "Read in the time shown, by where from",
            "bytes",
            "sum by (location) (increase(localmodel_read_bytes_total[$__range]))",
            "{{location}}",
        ),
        one(
            "Free on the disks of the fullest nodes",
            "bytes",
            'bottomk(10, localmodel_node_disk_bytes{use="free"})',
            "{{node}}",
        ),
        one("Wrong chunks", "short", f"localmodel_cache_wrong_chunks{{{CACHE}}}", "{{name}} {{when}}"),
    ),
    "Origins": (
        Panel(
            "Requests under way, wanted and allowed",
            "short",
            (
                ("localmodel_origin_requests", "{{origin}} under way"),
                ("localmodel_origin_wanted_requests", "{{origin}} wanted"),
                ("localmodel_origin_budget_requests", "{{origin}} allowed"),
            ),
        ),
        Panel(
            "Read, and allowed",
            "Bps",
            (
                ("localmodel_origin_rate_bytes_per_second", "{{origin}}"),
                ("localmodel_origin_budget_bytes_per_second", "{{origin}} allowed"),
            ),
        ),
        one("Nodes that read", "short", "localmodel_origin_nodes", "{{origin}}"),
        Panel(
            "Pauses",
            "s",
            (
                ("localmodel_origin_pause_seconds", "{{origin}} left"),
                ("increase(localmodel_origin_pauses_total[$__rate_interval])", "{{origin}} new"),
            ),
        ),
    ),
    "Coordinator": (
        Panel(
            "A turn of the loop",
            "s",
            (
                (
                    "histogram_quantile(0.5, sum by (le) (rate(localmodel_tick_seconds_bucket[$__rate_interval])))",
                    "p50",
                ),
                (
                    "histogram_quantile(0.99, sum by (le) (rate(localmodel_tick_seconds_bucket[$__rate_interval])))",
                    "p99",
                ),
                ("time() - max(localmodel_last_good_tick_timestamp_seconds)", "since the last good one"),
            ),
        ),
        Panel(
            "What goes wrong",
            "short",
            (
                ("increase(localmodel_tick_errors_total[$__rate_interval])", "turns"),
                ("increase(localmodel_watch_restarts_total[$__rate_interval])", "watches"),
                ("max(localmodel_left_out_objects)", "objects left out"),
                ("sum by (reason) (increase(localmodel_errors_total[$__rate_interval]))", "{{reason}}"),
            ),
        ),
        one(
            "Requests to the Kubernetes API",
            "reqps",
            "sum by (verb, code) (rate(localmodel_kube_requests_total[$__rate_interval]))",
            "{{verb}} {{code}}",
        ),
        one(
            "How long they take (p99)",
            "s",
            "histogram_quantile(0.99,"
            " sum by (verb, le) (rate(localmodel_kube_request_seconds_bucket[$__rate_interval])))",
            "{{verb}}",
        ),
        one(
            "Questions to sources",
            "short",
            "sum by (outcome) (increase(localmodel_resolves_total[$__rate_interval]))",
            "{{outcome}}",
        ),
        Panel(
            "Leader and version",
            "short",
            (("leader_election_master_status", "{{pod}} leads"), ("localmodel_build_info", "{{pod}} {{version}}")),
        ),
    ),
}

SOURCE = {"type": "prometheus", "uid": "${datasource}"}
WIDTH, HEIGHT, STAT_HEIGHT = 12, 8, 4


def panel(about: Panel, number: int, x: int, y: int, width: int, height: int) -> dict[str, Any]:
    return {
        "id": number,
        "title": about.title,
        "type": about.kind,
        "datasource": SOURCE,
        "gridPos": {"x": x, "y": y, "w": width, "h": height},
        "fieldConfig": {"defaults": {"unit": about.unit, "min": 0}, "overrides": []},
        "targets": [
            {"refId": chr(65 + at), "expr": expression, "legendFormat": legend, "datasource": SOURCE}
            for at, (expression, legend) in enumerate(about.draws)
        ],
    }


def panels() -> list[dict[str, Any]]:
    """Rows of two graphs, or of four numbers."""
    found: list[dict[str, Any]] = []
    y = 0
    for title, row in ROWS.items():
        found.append(
            {
                "id": len(found) + 1,
                "title": title,
                "type": "row",
                "gridPos": {"x": 0, "y": y, "w": 24, "h": 1},
                "panels": [],
            }
        )
        y += 1
        stats = all(each.kind == "stat" for each in row)
        width, height, across = (WIDTH // 2, STAT_HEIGHT, 4) if stats else (WIDTH, HEIGHT, 2)
        for at, each in enumerate(row):
            x = at % across * width
            found.append(panel(each, len(found) + 1, x, y + at // across * height, width, height))
        y += -(-len(row) // across) * height
    return found


def variable(name: str, label: str) -> dict[str, Any]:
    query = f"label_values(localmodel_cache_nodes, {label})"
    return {
        "name": name,
        "type": "query",
        "datasource": SOURCE,
        "query": {"query": query, "refId": name},
        "refresh": 2,
        "includeAll": True,
        "allValue": ".*",
        "multi": True,
        "current": {"text": "All", "value": "$__all"},
    }


def dashboard() -> dict[str, Any]:
    return {
        "title": "localmodel",
        "uid": "localmodel",
        "tags": ["localmodel"],
        "schemaVersion": 39,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {
            "list": [
                {"name": "datasource", "type": "datasource", "query": "prometheus"},
                variable("namespace", "namespace"),
                variable("cache", "name"),
            ]
        },
        "panels": panels(),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    mode = parser.add_mutually_exclusive_group(required=True)
    mode.add_argument("--write", action="store_true")
    mode.add_argument("--check", action="store_true")
    text = json.dumps(dashboard(), indent=1) + "\n"
    if parser.parse_args().write:
        FILE.write_text(text)
        return 0
    if FILE.exists() and FILE.read_text() == text:
        return 0
    sys.stderr.write(f"{FILE} is not what dashboard.py makes; run make generate\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
