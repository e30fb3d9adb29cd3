"""The control plane over HTTP: the real client, informers, Events and loop, against the development API server."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from actors.messages import DesiredState, NodeName, NodeReport, Phase
from actors.sources.options import SourceOptions
from coordinator.api.crds import load
from coordinator.api.resources import StatusKey
from coordinator.control.controller import Controller
from coordinator.control.informers import Informers
from coordinator.control.metrics import Metrics
from coordinator.dev.apiserver.server import ApiServer, write_kubeconfig
from coordinator.dev.trial.builders import Builder, a_cache, a_group, a_node, a_report, a_resolution, an_agent
from coordinator.dev.trial.waiting import eventually
from coordinator.kube.config import load_config
from coordinator.kube.events import Recorder
from coordinator.kube.http import HttpKube
from coordinator.kube.interface import EVENTS, NODES
from coordinator.plan.patches import KSERVE_FIELDS
from coordinator.plan.plan import Want
from coordinator.plan.snapshot import CACHES, LOCAL_NODES, NODE_GROUPS, Credentials, Resolution
from tests.kit.fake_fleet import FakeFleet, ScriptedAgent

Json = dict[str, Any]


class DutifulAgent(ScriptedAgent):
    """Holds everything that was resolved for it, from the moment it hears of it."""

    def __init__(self, node: NodeName) -> None:
        super().__init__(node)
        self._name = node

    def reconcile(self, desired: DesiredState) -> NodeReport:
        models = [
            a_report(model.source, Phase.READY if model.resolved else Phase.PENDING, resolved=model.resolved)
            for model in desired.models
        ]
        report = an_agent(self._name, *models, known=frozenset(m.resolved for m in desired.models if m.resolved)).report
        assert report is not None
        return report


class InstantResolver:
    """Every source resolves at once, and stays known."""

    def __init__(self) -> None:
        self.known: dict[StatusKey, Resolution] = {}

    def want(self, wants: Mapping[StatusKey, Want], load_options: Callable[[Credentials], SourceOptions]) -> None:
        self.known |= {key: a_resolution(want.source) for key, want in wants.items()}

    def resolutions(self) -> Mapping[StatusKey, Resolution]:
        return self.known


@contextmanager
def running(crds: list[Json], folder: Path) -> Iterator[HttpKube]:
    """A controller at work; yields a client of its API server."""
    with ApiServer(crds) as server:
        write_kubeconfig(folder / "config", server.url)
        kube = HttpKube(load_config(str(folder / "config")), timeout_s=10.0)
        recorder = Recorder(kube)
        informers = Informers.over(kube, changed=lambda: controller.wake(), poisoned=lambda ref, error: None)
        controller = Controller(
            informers,
            kube,
            FakeFleet(DutifulAgent),
            InstantResolver(),
            recorder,
            Metrics("0"),
            leading=lambda: True,
            load_options=lambda credentials: SourceOptions(),
        )
        stop = threading.Event()
        loop = threading.Thread(target=controller.run, args=(stop,), kwargs={"tick_s": 0.2})
        informers.start()
        loop.start()
        try:
            yield kube
        finally:
            stop.set()
            loop.join(10.0)
            informers.stop()
            recorder.close()
            kube.close()
            informers.stop(5.0)


def apply(kube: HttpKube, *builders: Builder) -> None:
    kinds = {"LocalModelCache": CACHES, "LocalModelNodeGroup": NODE_GROUPS, "Node": NODES}
    for builder in builders:
        body = deepcopy(builder.json)
        for server_side in ("uid", "resourceVersion", "generation", "creationTimestamp", "finalizers"):
            body["metadata"].pop(server_side, None)
        kube.create(kinds[body["kind"]], body)


def status(kube: HttpKube, name: str) -> Json:
    found: Json = dict(kube.get(CACHES, name).get("status", {}))
    return found


def reasons(kube: HttpKube, name: str) -> set[str]:
    return {event["reason"] for event in kube.list(EVENTS)[0] if event["involvedObject"]["name"] == name}


def quiet(kube: HttpKube) -> Callable[[], bool]:
    """Holds when two looks in a row see the same versions."""
    seen: list[Any] = [None]

    def unchanged() -> bool:
        kinds = (CACHES, LOCAL_NODES, NODE_GROUPS)
        now = [[found["metadata"]["resourceVersion"] for found in kube.list(kind)[0]] for kind in kinds]
        before, seen[0] = seen[0], now
        return bool(before == now)

    return unchanged


@pytest.mark.slow
def test_from_apply_to_ready_to_deleted(tmp_path: Path) -> None:
    with running(load(), tmp_path) as kube:
        apply(kube, a_node("n1"), a_node("n2"), a_group(), a_cache("a", "s3://m"))
        eventually(lambda: status(kube, "a").get("copies") == {"available": 2, "total": 2})
        assert status(kube, "a")["available"] == "2/2"
        conditions = {c["type"]: c["status"] for c in status(kube, "a")["conditions"]}
        assert conditions == {"Ready": "True", "Progressing": "False", "Degraded": "False"}

        apply(kube, a_cache("b", "s3://m"))
        eventually(lambda: status(kube, "b").get("available") == "2/2")
        local = kube.get(LOCAL_NODES, "n1")
        assert [entry["modelName"] for entry in local["spec"]["localModels"]] == ["a", "b"]
        assert local["metadata"]["ownerReferences"][0]["kind"] == "Node"
        eventually(lambda: {"Resolved", "NodeDownloaded", "Ready"} <= reasons(kube, "a"))
        eventually(lambda: "DuplicateSource" in reasons(kube, "b"))
        eventually(quiet(kube), every_s=1.0)

        kube.delete(CACHES, "a")
        eventually(lambda: [c["metadata"]["name"] for c in kube.list(CACHES)[0]] == ["b"])
        eventually(lambda: len(kube.get(LOCAL_NODES, "n1")["spec"]["localModels"]) == 1)
        kube.delete(NODES, "n2")
        eventually(lambda: status(kube, "b").get("nodeStatus") == {"n1": "NodeDownloaded"})
        eventually(lambda: [n["metadata"]["name"] for n in kube.list(LOCAL_NODES)[0]] == ["n1"])
        kube.delete(NODE_GROUPS, "gpu")
        kube.delete(CACHES, "b")
        eventually(lambda: kube.list(CACHES)[0] == [])


@pytest.mark.slow
def test_on_a_cluster_that_has_kserves_own_crds(tmp_path: Path) -> None:
    """Our status fields vanish in every answer: said once, and no write follows another."""
    with running([without_our_status(crd) for crd in load()], tmp_path) as kube:
        apply(kube, a_node("n1"), a_group(), a_cache("a", "s3://m"))
        eventually(lambda: status(kube, "a").get("copies") == {"available": 1, "total": 1})
        assert set(status(kube, "a")) == {"copies", "nodeStatus"}
        eventually(lambda: any("ExtensionFieldsPruned" in reasons(kube, name) for name in ("a", "n1")))
        eventually(quiet(kube), every_s=1.0)


def without_our_status(crd: Mapping[str, Any]) -> Json:
    """The CRD with KServe's own status fields only."""
    mine: Json = deepcopy(dict(crd))
    kept = KSERVE_FIELDS | {"inferenceServices", "llmInferenceServices", "used", "available"}
    for version in mine["spec"]["versions"]:
        schema = version["schema"]["openAPIV3Schema"]["properties"]["status"]
        if mine["spec"]["names"]["kind"] != "LocalModelNodeGroup":
            kept = kept - {"available"}
        schema["properties"] = {name: value for name, value in schema["properties"].items() if name in kept}
    return mine
