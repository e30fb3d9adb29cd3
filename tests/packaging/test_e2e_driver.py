"""The driver for real clusters: which steps run, what it says of the others, and that its manifests are whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from k8s.e2e import __main__ as driver
from k8s.e2e import install, origin
from k8s.e2e.__main__ import KUBELET, KUBERAY, SECOND, Step
from k8s.e2e.cluster import Cluster, Failed
from k8s.e2e.install import Images
from k8s.e2e.report import CANNOT, FAILED, PASSED, Outcome, document, exit_code, table
from tests.kit.manifests import kustomize, pick
from tests.packaging.test_manifests import check, needs_kubectl

IMAGES = Images("registry.test/ml/", "1.2.3")
CLUSTER = Cluster(None, None, lambda line: None, wait_s=1.0)


def broken() -> str:
    raise Failed("three of four")


STEPS = [
    Step("a", lambda: "fine"),
    Step("b", broken),
    Step("c", lambda: "never", (KUBELET,)),
    Step("d", lambda: "never", (), ("b",)),
    Step("e", lambda: "fine", (), ("a",)),
]


def test_a_step_that_fails_or_cannot_run_is_said_and_the_others_go_on() -> None:
    outcomes = driver.run(STEPS, {KUBELET: False}, lambda line: None)
    assert [(each.step, each.result) for each in outcomes] == [
        ("a", PASSED),
        ("b", FAILED),
        ("c", CANNOT),
        ("d", CANNOT),
        ("e", PASSED),
    ]
    assert outcomes[1].said == "three of four"
    assert outcomes[2].said == f"needs {KUBELET}"
    assert outcomes[3].said == "needs that b passed in the same run"


def test_only_some_steps_run_and_one_that_builds_on_another_says_so() -> None:
    outcomes = driver.run(STEPS, {}, lambda line: None, ["e"])
    assert [(each.step, each.result) for each in outcomes] == [("e", CANNOT)]


@pytest.mark.parametrize(
    ("results", "code"), [([PASSED], 0), ([PASSED, CANNOT], 0), ([CANNOT], 1), ([PASSED, FAILED], 1), ([], 1)]
)
def test_a_run_that_shows_nothing_is_no_success(results: list[str], code: int) -> None:
    assert exit_code([Outcome("x", result, 0.0) for result in results]) == code


def test_the_report_is_a_table_and_json() -> None:
    outcomes = [Outcome("hub", FAILED, 1.25, "a|b\nc")]
    assert table(outcomes).splitlines()[2] == "| hub | failed | 1.2 | a\\|b c |"
    assert json.loads(document(outcomes, {"serverVersion": "v1"})) == {
        "versions": {"serverVersion": "v1"},
        "steps": [{"step": "hub", "result": "failed", "seconds": 1.25, "said": "a|b\nc"}],
    }


@pytest.mark.parametrize("runs", [True, False])
def test_every_step_builds_on_earlier_ones_and_needs_what_a_cluster_is_asked_for(runs: bool) -> None:
    known: list[str] = []
    for step in driver.steps(CLUSTER, IMAGES, runs=runs):
        assert set(step.after) <= set(known), step.name
        assert set(step.needs) <= {KUBELET, SECOND, KUBERAY}
        known.append(step.name)
    assert len(set(known)) == len(known)


def test_every_step_is_described() -> None:
    described = (install.K8S.parent / "docs" / "tested-on.md").read_text()
    assert [step.name for step in driver.steps(CLUSTER, IMAGES, runs=True) if f"`{step.name}`" not in described] == []


def test_an_unknown_cluster_is_said_before_anything_is_changed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert driver.main(["--kubeconfig", str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err.startswith("e2e: kubectl")


@pytest.mark.slow
def test_what_pods_must_read_is_what_the_origins_have() -> None:
    hub = origin.expected(origin.HUB_URI)
    assert {"config.json", "model.safetensors.index.json", "special_tokens.empty"} <= hub.keys()
    assert origin.expected(origin.BUCKET_URI).keys() == {"config.json", "model.bin"}


def test_the_origin_runs_from_sources_that_are_there_and_fit() -> None:
    manifests = {each["kind"]: each for each in origin.manifests(IMAGES.ray)}
    data = manifests["ConfigMap"]["data"]
    (sources, _) = manifests["Deployment"]["spec"]["template"]["spec"]["volumes"]
    assert {item["key"] for item in sources["configMap"]["items"]} == data.keys()
    assert sum(map(len, data.values())) < 1 << 20, "as much as a ConfigMap may have"
    for each in origin.manifests(IMAGES.ray):
        check(dict(each))
    (container,) = manifests["Deployment"]["spec"]["template"]["spec"]["containers"]
    assert container["image"] == "registry.test/ml/localmodel-ray:1.2.3"


@needs_kubectl
@pytest.mark.slow
def test_the_overlay_allows_the_origin_and_takes_the_images(tmp_path: Path) -> None:
    (tmp_path / "kustomization.yaml").write_text(install.overlay(IMAGES, tmp_path))
    rendered = kustomize(tmp_path)
    container = pick(rendered, "Deployment", "localmodel-coordinator")["spec"]["template"]["spec"]["containers"][0]
    assert container["image"] == "registry.test/ml/localmodel:1.2.3"
    assert {install.ALLOWED, "--mark-nodes"} <= set(container["args"])
    assert {"name": "HF_ENDPOINT", "value": install.HUB} in container["env"]
    assert pick(rendered, "ClusterRole", "localmodel-coordinator-placement")
