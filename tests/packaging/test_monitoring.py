"""Alerts, dashboard, runbooks: each names metrics that exist, fires when it should, and has its entry."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.kit.manifests import K8S, read
from tests.packaging.test_docs import exported

FOLDER = K8S / "components" / "monitoring"
(RULE,) = read(FOLDER / "prometheusrule.yaml")
ALERTS = {rule["alert"]: rule for group in RULE["spec"]["groups"] for rule in group["rules"]}
RUNBOOKS = (K8S.parent / "docs" / "runbooks.md").read_text()
PROMTOOL = shutil.which("promtool")
METRICS = {**exported()}

pytestmark = pytest.mark.slow
needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed (Debian: prometheus)")


def named(expression: str) -> set[str]:
    """The metrics of an expression, by the names that are described."""
    found = set(re.findall(r"\b(?:localmodel|leader_election)_\w+", expression))
    return {name.removesuffix("_bucket") for name in found}


def test_alerts_are_about_metrics_and_labels_that_exist() -> None:
    for name, rule in ALERTS.items():
        used = named(rule["expr"])
        assert used, name
        assert used <= METRICS.keys(), name
        labels = {label for metric in used for label in METRICS[metric][1]}
        assert set(re.findall(r'(\w+)(?:=~|!=|!~|=)"', rule["expr"])) <= labels, name
        for text in rule["annotations"].values():
            assert set(re.findall(r"\$labels\.(\w+)", text)) <= labels, name


def test_every_alert_has_a_severity_a_summary_and_a_runbook_entry_and_no_entry_is_about_nothing() -> None:
    for name, rule in ALERTS.items():
        assert rule["labels"]["severity"] in ("critical", "warning", "info")
        assert {"summary", "description"} < rule["annotations"].keys()
        assert rule["annotations"]["runbook_url"].endswith(f"/docs/runbooks.md#{name.lower()}")
    assert re.findall(r"^## (\w+)$", RUNBOOKS, re.MULTILINE) == list(ALERTS)


def dashboard() -> Any:
    return json.loads((FOLDER / "dashboard.json").read_text())


def test_the_dashboard_is_what_its_table_makes() -> None:
    command = [sys.executable, str(FOLDER / "dashboard.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_dashboard_shows_every_metric_and_none_that_is_not_there() -> None:
    targets = [target for panel in dashboard()["panels"] for target in panel.get("targets", ())]
    assert {name for target in targets for name in named(target["expr"])} == METRICS.keys()
    for target in targets:
        labels = {label for metric in named(target["expr"]) for label in METRICS[metric][1]} | {"pod"}
        assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= labels, target


def test_no_two_panels_lie_on_each_other() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in dashboard()["panels"]:
        at = panel["gridPos"]
        fields = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not fields & taken, panel["title"]
        assert max(x for x, _ in fields) < 24
        taken |= fields
    assert len({panel["id"] for panel in dashboard()["panels"]}) == len(dashboard()["panels"])


# Evaluated.

BUILD = ("localmodel_build_info{version='1'}", "1+0x120")
LEADS = ("leader_election_master_status{name='kserve-local-model-manager-leader-lock'}", "1+0x120")
TICKS = ("localmodel_last_good_tick_timestamp_seconds", "0+60x120")
WELL = [
    BUILD,
    LEADS,
    TICKS,
    ("localmodel_tick_errors_total", "2+0x120"),
    ("localmodel_left_out_objects", "0+0x120"),
    ("localmodel_agents{state='Ready'}", "3+0x120"),
    ("localmodel_kube_requests_total{verb='list',code='200'}", "0+100x120"),
    ("localmodel_kube_requests_total{verb='list',code='500'}", "0+1x120"),
    ("localmodel_cache_nodes{namespace='',name='llama',status='NodeDownloaded'}", "2+0x120"),
    ("localmodel_cache_nodes{namespace='',name='llama',status='NodeDownloading'}", "1+0x120"),
    ("localmodel_cache_rate_bytes_per_second{namespace='',name='llama'}", "0 5 0+0x118"),
    ("localmodel_cache_wrong_chunks{namespace='',name='llama',when='sent'}", "0+0x120"),
    ("localmodel_cache_origin_amplification{namespace='',name='llama'}", "1.1+0x120"),
    ("localmodel_resolves_total{outcome='ok'}", "0+10x120"),
    ("localmodel_origin_pause_seconds{origin='https://hub'}", "0+0x120"),
]

CASES: dict[str, list[tuple[str, str]]] = {
    "LocalModelCoordinatorAbsent": [("up", "1+0x120")],
    "LocalModelCoordinatorStalled": [BUILD, LEADS, ("localmodel_last_good_tick_timestamp_seconds", "0+60x5 300+0x115")],
    "LocalModelNoLeader": [BUILD, TICKS, (LEADS[0], "0+0x120")],
    "LocalModelTurnsFail": [BUILD, TICKS, ("localmodel_tick_errors_total", "0+1x120")],
    "LocalModelObjectsLeftOut": [BUILD, TICKS, ("localmodel_left_out_objects", "1+0x120")],
    "LocalModelKubernetesRequestsFail": [
        BUILD,
        TICKS,
        ("localmodel_kube_requests_total{verb='patch',code='403'}", "0+10x120"),
        ("localmodel_kube_requests_total{verb='list',code='200'}", "0+100x120"),
    ],
    "LocalModelAgentsMissing": [BUILD, TICKS, ("localmodel_agents{state='NoRayNode'}", "2+0x120")],
    "LocalModelWrongBytes": [
        BUILD,
        TICKS,
        ("localmodel_cache_wrong_chunks{namespace='team',name='llama',when='sent'}", "1+0x120"),
    ],
    "LocalModelDownloadsFail": [
        BUILD,
        TICKS,
        ("localmodel_cache_nodes{namespace='',name='llama',status='NodeDownloadError'}", "1+0x120"),
    ],
    "LocalModelDownloadStuck": [
        BUILD,
        TICKS,
        ("localmodel_cache_nodes{namespace='',name='llama',status='NodeDownloading'}", "1+0x120"),
        ("localmodel_cache_rate_bytes_per_second{namespace='',name='llama'}", "0+0x120"),
    ],
    "LocalModelReadTooOften": [
        BUILD,
        TICKS,
        ("localmodel_cache_nodes{namespace='',name='llama',status='NodeDownloaded'}", "3+0x120"),
        ("localmodel_cache_origin_amplification{namespace='',name='llama'}", "2.5+0x120"),
    ],
    "LocalModelSourcesFail": [BUILD, TICKS, ("localmodel_resolves_total{outcome='SourceDenied'}", "0+1x120")],
    "LocalModelOriginPaused": [BUILD, TICKS, ("localmodel_origin_pause_seconds{origin='https://hub'}", "30+0x120")],
}
"""Series, a value a minute, under which exactly this alert fires an hour later."""


def evaluate(folder: Path, series: list[tuple[str, str]], firing: set[str], minutes: int) -> str:
    """What promtool has to say against it; "" if exactly `firing` fire then."""
    (folder / "rules.yaml").write_text(yaml.safe_dump(RULE["spec"]))
    test = {
        "interval": "1m",
        "input_series": [{"series": name.replace("'", '"'), "values": values} for name, values in series],
        "promql_expr_test": [
            {
                "expr": 'count by (alertname) (ALERTS{alertstate="firing"})',
                "eval_time": f"{minutes}m",
                "exp_samples": [{"labels": f'{{alertname="{name}"}}', "value": 1} for name in sorted(firing)],
            }
        ],
    }
    file = folder / "test.yaml"
    file.write_text(yaml.safe_dump({"rule_files": ["rules.yaml"], "evaluation_interval": "1m", "tests": [test]}))
    done = subprocess.run([PROMTOOL or "", "test", "rules", str(file)], capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else done.stdout + done.stderr


@needs_promtool
def test_no_alert_fires_while_all_is_well(tmp_path: Path) -> None:
    assert evaluate(tmp_path, WELL, set(), 14) == ""


@needs_promtool
@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_fires_alone_for_what_it_is_about_and_not_before_its_time(name: str, tmp_path: Path) -> None:
    assert evaluate(tmp_path, CASES[name], {name}, 60) == ""
    assert evaluate(tmp_path, CASES[name], set(), 0) == ""


@needs_promtool
def test_promtool_finds_nothing_to_complain_of(tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(RULE["spec"]))
    done = subprocess.run(
        [PROMTOOL or "", "check", "rules", str(tmp_path / "rules.yaml")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_has_a_case() -> None:
    assert CASES.keys() == ALERTS.keys()
