"""What a person does with stock kubectl, against the same servers as `tests/contracts/test_kube_contract.py`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from coordinator.dev.trial.waiting import eventually
from tests.kit import widgets
from tests.kit.kube_servers import KUBECTL, SERVERS, Capability, KubeServer, running
from tests.kit.widgets import WIDGETS, a_widget, unique

pytestmark = [pytest.mark.e2e, pytest.mark.skipif(KUBECTL is None, reason="kubectl is not installed")]


@pytest.fixture(scope="module", params=SERVERS)
def server(request: pytest.FixtureRequest) -> Iterator[KubeServer]:
    with running(request.param) as server:
        for crd in widgets.CRDS:
            server.kubectl("create", "-f", "-", stdin=json.dumps(crd))
        server.kubectl("wait", "--for=condition=Established", "crd", *(crd["metadata"]["name"] for crd in widgets.CRDS))
        eventually(lambda: server.request("GET", f"/openapi/v3/apis/{widgets.API_VERSION}").status == 200, timeout_s=20)
        yield server


def apply(server: KubeServer, value: dict[str, Any], *flags: str, check: bool = True) -> str:
    done = server.kubectl("apply", "-f", "-", *flags, stdin=yaml.safe_dump(value), check=check)
    return done.stdout + done.stderr


def read(server: KubeServer, name: str) -> dict[str, Any]:
    found: dict[str, Any] = server.request("GET", f"{WIDGETS}/{name}").ok()
    return found


def report(server: KubeServer, name: str, **status: Any) -> None:
    path = f"{WIDGETS}/{name}/status"
    server.request("PATCH", path, {"status": status}, content_type="application/merge-patch+json").ok()


def refused(server: KubeServer, *arguments: str, stdin: str | None = None) -> str:
    done = server.kubectl(*arguments, stdin=stdin, check=False)
    assert done.returncode != 0, done.stdout
    return done.stderr


def test_apply_creates_leaves_alone_and_configures(server: KubeServer) -> None:
    name = unique()
    said = [apply(server, a_widget(name, **spec)) for spec in ({"replicas": 1}, {"replicas": 1}, {"size": "2Gi"})]
    who = f"widget.{widgets.GROUP}/{name}"
    assert said == [f"{who} created\n", f"{who} unchanged\n", f"{who} configured\n"]
    assert read(server, name)["spec"] == {"uri": "hf://a/b", "size": "2Gi", "color": "red"}


def test_server_side_apply_conflicts_until_forced(server: KubeServer) -> None:
    name = unique()
    value = a_widget(name, replicas=1)
    assert "serverside-applied" in apply(server, value, "--server-side", "--field-manager=alice")
    value["spec"]["replicas"] = 2
    said = apply(server, value, "--server-side", "--field-manager=bob", check=False)
    assert 'conflict with "alice": .spec.replicas' in said
    apply(server, value, "--server-side", "--field-manager=bob", "--force-conflicts")
    assert read(server, name)["spec"]["replicas"] == 2


def test_server_side_apply_takes_over_from_client_side_apply(server: KubeServer) -> None:
    name = unique()
    apply(server, a_widget(name, replicas=1))
    apply(server, a_widget(name, replicas=2), "--server-side")
    apply(server, a_widget(name), "--server-side")
    assert "replicas" not in read(server, name)["spec"]


def test_definitions_can_be_applied_either_way(server: KubeServer) -> None:
    for flags in ((), (), ("--server-side",), ("--server-side",)):
        done = server.kubectl("apply", "-f", "-", *flags, stdin=yaml.safe_dump(widgets.CRDS[0]))
        assert "failed" not in done.stderr


def test_get_prints_the_columns_and_wide_prints_more(server: KubeServer) -> None:
    name = unique()
    apply(server, a_widget(name, replicas=3))
    header, row = server.kubectl("get", "wdg", name).stdout.splitlines()
    assert header.split() == ["NAME", "COLOR", "READY", "REPLICAS", "AGE"]
    assert (row.split()[:2], re.search(r"\d+s$", row) is not None) == ([name, "red"], True)
    header, row = server.kubectl("get", "widgets", name, "-o", "wide").stdout.splitlines()
    assert (header.split()[-1], row.split()[-1]) == ("URI", "hf://a/b")


def test_get_gives_yaml_json_jsonpath_and_names(server: KubeServer) -> None:
    name = unique()
    apply(server, a_widget(name))
    found = read(server, name)
    found["metadata"].pop("managedFields", None)
    assert yaml.safe_load(server.kubectl("get", "widget", name, "-o", "yaml").stdout) == found
    assert json.loads(server.kubectl("get", "widget", name, "-o", "json").stdout) == found
    assert server.kubectl("get", "widget", name, "-o", "jsonpath={.spec.size}").stdout == "1Gi"
    assert server.kubectl("get", "wdg", name, "-o", "name").stdout == f"widget.{widgets.GROUP}/{name}\n"


def test_get_selects_by_label_and_name(server: KubeServer) -> None:
    name, mark = unique(), unique("mark")
    apply(server, a_widget(name))
    assert "labeled" in server.kubectl("label", "widget", name, f"mark={mark}").stdout
    for selector in (("-l", f"mark in ({mark})"), ("--field-selector", f"metadata.name={name}")):
        assert server.kubectl("get", "widgets", "-o", "name", *selector).stdout.endswith(f"/{name}\n")
    assert "No resources found" in server.kubectl("get", "widgets", "-l", "mark=nobody").stderr


def test_get_watches(server: KubeServer) -> None:
    name = unique()
    apply(server, a_widget(name))
    with server.kubectl_running("get", "widget", name, "-w") as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("NAME")
        assert process.stdout.readline().split()[:2] == [name, "red"]
        server.kubectl("patch", "widget", name, "--type=merge", "-p", '{"spec":{"color":"green"}}')
        assert process.stdout.readline().split()[:2] == [name, "green"]


def test_describe_shows_fields_and_events(server: KubeServer) -> None:
    name = unique()
    apply(server, a_widget(name))
    uid = read(server, name)["metadata"]["uid"]
    about = {"kind": "Widget", "name": name, "apiVersion": widgets.API_VERSION, "uid": uid}
    now = "2026-01-02T03:04:05Z"
    event = {
        "metadata": {"name": f"{name}.1", "namespace": "default"},
        "involvedObject": about,
        "reason": "Tested",
        "message": "a message for a person",
        "type": "Warning",
        "count": 2,
        "firstTimestamp": now,
        "lastTimestamp": now,
        "source": {"component": "contract"},
    }
    server.request("POST", "/api/v1/namespaces/default/events", event).ok()
    said = server.kubectl("describe", "widget", name).stdout
    assert re.search(r"Size:\s+1Gi", said)
    assert re.search(r"Warning\s+Tested\s.*contract\s+a message for a person", said)
    assert (
        "a message for a person"
        in server.kubectl("get", "events", "--field-selector", f"involvedObject.name={name}").stdout
    )
    assert "a message for a person" in server.kubectl("events", "--for", f"widget/{name}").stdout


def test_wait_returns_when_a_condition_a_field_or_a_deletion_is_reached(server: KubeServer) -> None:
    name = unique()
    apply(server, a_widget(name))
    waits = ("--for=condition=Ready", "--for=jsonpath={.status.phase}=Done", "--for=delete")
    for reached, wait in zip(("condition", "phase", "delete"), waits, strict=True):
        with server.kubectl_running("wait", wait, f"widget/{name}", "--timeout=20s") as process:
            if reached == "condition":
                report(server, name, conditions=[{"type": "Ready", "status": "True"}])
            elif reached == "phase":
                report(server, name, phase="Done")
            else:
                server.request("DELETE", f"{WIDGETS}/{name}").ok()
            assert process.wait(20) == 0, wait


def test_patch_merges_and_edits_by_json(server: KubeServer) -> None:
    name = unique()
    apply(server, a_widget(name))
    server.kubectl("patch", "widget", name, "--type=merge", "-p", '{"spec":{"replicas":2}}')
    server.kubectl("patch", "widget", name, "--type=json", "-p", '[{"op":"remove","path":"/spec/replicas"}]')
    server.kubectl("patch", "widget", name, "--subresource=status", "--type=merge", "-p", '{"status":{"phase":"P"}}')
    found = read(server, name)
    assert ("replicas" in found["spec"], found["status"]) == (False, {"phase": "P"})


def test_edit_and_replace_change_the_object(server: KubeServer) -> None:
    name = unique()
    apply(server, a_widget(name))
    server.kubectl("edit", "widget", name, environment={"EDITOR": "sed -i s/1Gi/5Gi/"})
    assert read(server, name)["spec"]["size"] == "5Gi"
    whole = server.kubectl("get", "widget", name, "-o", "yaml").stdout.replace("5Gi", "6Gi")
    server.kubectl("replace", "-f", "-", stdin=whole)
    assert read(server, name)["spec"]["size"] == "6Gi"
    assert "the object has been modified" in refused(server, "replace", "-f", "-", stdin=whole)


def test_annotate_diff_and_dry_run(server: KubeServer) -> None:
    name = unique()
    apply(server, a_widget(name))
    server.kubectl("annotate", "widget", name, "note=x")
    assert read(server, name)["metadata"]["annotations"]["note"] == "x"
    changed = yaml.safe_dump(a_widget(name, size="8Gi"))
    shown = server.kubectl("diff", "-f", "-", stdin=changed, check=False)
    assert (shown.returncode, "+  size: 8Gi" in shown.stdout) == (1, True)
    assert "server dry run" in server.kubectl("apply", "--dry-run=server", "-f", "-", stdin=changed).stdout
    assert read(server, name)["spec"]["size"] == "1Gi"


REFUSED = {
    "a wrong enum": ({"color": "blue"}, 'spec.color: Unsupported value: "blue": supported values: "red", "green"'),
    "a missing field": ({"uri": None}, "spec.uri: Required value"),
    "a bad quantity": ({"size": "many"}, 'spec.size: Invalid value: "many": spec.size in body should match'),
    "an unknown field": ({"colour": "red"}, 'strict decoding error: unknown field "spec.colour"'),
}


@pytest.mark.parametrize(("spec", "expected"), REFUSED.values(), ids=REFUSED)
def test_apply_shows_why_it_was_refused(server: KubeServer, spec: dict[str, Any], expected: str) -> None:
    name = unique()
    said = apply(server, a_widget(name, **spec), check=False)
    assert expected in said
    if "unknown" not in expected:
        assert f'The Widget "{name}" is invalid' in said


def test_an_immutable_field_cannot_be_applied_anew(server: KubeServer) -> None:
    name = unique()
    apply(server, a_widget(name))
    said = apply(server, a_widget(name, uri="hf://other"), check=False)
    assert said.startswith(f'The Widget "{name}" is invalid: spec.uri: Invalid value: ')
    assert said.endswith(": uri is immutable\n")


def test_delete_waits_for_finalizers(server: KubeServer) -> None:
    name = unique()
    value = a_widget(name)
    value["metadata"]["finalizers"] = ["example.com/hold"]
    apply(server, value)
    with server.kubectl_running("delete", "widget", name) as process:
        eventually(lambda: "deletionTimestamp" in read(server, name)["metadata"])
        assert process.poll() is None
        server.kubectl("patch", "widget", name, "--type=merge", "-p", '{"metadata":{"finalizers":null}}')
        assert process.wait(20) == 0
    assert "not found" in refused(server, "get", "widget", name)


def test_delete_takes_along_what_is_owned(server: KubeServer) -> None:
    server.require(Capability.COLLECTS)
    owner, child = unique(), a_widget(unique())
    apply(server, a_widget(owner))
    uid = read(server, owner)["metadata"]["uid"]
    reference = {
        "apiVersion": widgets.API_VERSION,
        "kind": "Widget",
        "name": owner,
        "uid": uid,
        "blockOwnerDeletion": True,
    }
    child["metadata"]["ownerReferences"] = [reference]
    apply(server, child)
    server.kubectl("delete", "widget", owner, "--cascade=foreground")
    assert "not found" in refused(server, "get", "widget", child["metadata"]["name"])


def test_explain_reads_the_schema(server: KubeServer) -> None:
    said = server.kubectl("explain", "wdg.spec").stdout
    assert "What is wanted." in said
    assert re.search(r"uri\s+<string> -required-\n\s+Where it comes from\.", said)
    recursive = server.kubectl("explain", "widget", "--recursive").stdout
    assert re.search(r"parts\s+<\[\]Object>\n\s+name\s+<string> -required-", recursive)


def test_api_resources_versions_and_version(server: KubeServer) -> None:
    rows = {line.split()[0]: line.split() for line in server.kubectl("api-resources").stdout.splitlines()}
    assert rows["widgets"] == ["widgets", "wdg", widgets.API_VERSION, "false", "Widget"]
    assert {"nodes", "leases", "events", "persistentvolumeclaims"} <= set(rows)
    assert {"v1", widgets.API_VERSION} <= set(server.kubectl("api-versions").stdout.split())
    assert server.kubectl("get", "--raw", "/readyz").stdout == "ok"
    assert re.search(r"Server Version: .*v1\.", server.kubectl("version").stdout)
    assert "is running at" in server.kubectl("cluster-info").stdout


def test_namespaces_and_builtin_kinds_are_created_shown_and_deleted(server: KubeServer) -> None:
    name = unique("ns")
    server.kubectl("create", "namespace", name)
    assert re.search(rf"{name}\s+Active\s+\d+s", server.kubectl("get", "ns").stdout)
    server.kubectl("create", "configmap", "cm", "--from-literal=a=b", "-n", name)
    server.kubectl("create", "secret", "generic", "s", "--from-literal=a=b", "-n", name)
    assert server.kubectl("get", "cm", "cm", "-n", name, "-o", "jsonpath={.data.a}").stdout == "b"
    assert re.search(r"s\s+Opaque\s+1\s", server.kubectl("get", "secret", "s", "-n", name).stdout)
    for kind in ("cm", "ns"):
        assert server.kubectl("describe", kind, "cm" if kind == "cm" else name, "-n", name).stdout.startswith("Name: ")
    assert "not found" in refused(server, "create", "configmap", "cm", "-n", "no-such")
    if Capability.COLLECTS in server.capabilities:
        server.kubectl("delete", "namespace", name)
        assert "not found" in refused(server, "get", "namespace", name)


def test_nodes_are_shown_described_tainted_and_cordoned(server: KubeServer) -> None:
    name = unique("node")
    ready = {"type": "Ready", "status": "True", "reason": "KubeletReady", "message": "kubelet is posting ready status"}
    body = {"metadata": {"name": name}, "status": {"conditions": [ready]}}
    server.request("POST", "/api/v1/nodes", body).ok()
    server.kubectl("taint", "node", name, "gpu=true:NoSchedule")
    server.kubectl("cordon", name)
    assert "Ready,SchedulingDisabled" in server.kubectl("get", "node", name).stdout
    said = server.kubectl("describe", "node", name).stdout
    assert "gpu=true:NoSchedule" in said
    assert "kubelet is posting ready status" in said
    server.kubectl("patch", "node", name, "-p", '{"metadata":{"labels":{"zone":"a"}}}')
    assert server.kubectl("get", "node", name, "-o", "jsonpath={.metadata.labels.zone}").stdout == "a"
    server.kubectl("delete", "node", name)
