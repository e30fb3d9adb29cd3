"""What a source is read with: the environment, the memory and the disk of node agents are searched for it."""

from __future__ import annotations

import base64
import json
import secrets
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from actors.manifest import ModelSource, Resolved, storage_key
from actors.messages import DesiredRoot, DesiredState, Member, Phase
from actors.sources.options import SourceOptions
from actors.sources.resolve import resolve
from coordinator.dev.laptop.cluster import JOB_NAMESPACE, LaptopCluster, LaptopOptions
from coordinator.dev.origin.repository import Repository
from coordinator.dev.origin.sample import write_sample
from coordinator.dev.origin.server import Origin
from coordinator.dev.trial.agent_process import AgentProcess
from coordinator.dev.trial.waiting import eventually
from coordinator.kube.interface import SECRETS, SERVICE_ACCOUNTS
from tests.kit.laptop import Laptop, agent_pids
from tests.kit.nodes import same_bytes
from tests.kit.peers import MIB, OWNER, a_company, wants
from tests.kit.traces import traces
from tests.sourcing.test_source import KEY, s3_server

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("secrets") / "bucket" / "sample"
    write_sample(folder, 4 * MIB)
    return folder


@pytest.fixture
def secret() -> str:
    return f"hf_{secrets.token_hex(16)}"


def fill_in_processes(uri: str, resolved: Resolved, folder: Path, sample: Path) -> Iterator[AgentProcess]:
    """Two agents that have filled the model together, running still."""
    with ExitStack() as stack:
        agents = []
        for name in ("node-1", "node-2"):
            (folder / name / "models").mkdir(parents=True)
            environment = {
                "LOCALMODEL_HOST_ROOT": str(folder / name),
                "LOCALMODEL_HEADROOM": "0",
                "LOCALMODEL_PEER_HOST": "127.0.0.1",
            }
            agents.append(stack.enter_context(AgentProcess(name, environment)))
        members = []
        for agent in agents:
            report = agent.reconcile(DesiredState(OWNER, (DesiredRoot("/models"),)))
            members.append(Member(agent.node, report.incarnation, None, report.peer_address or ""))
        state = wants(resolved, a_company(members), uri)
        for agent in agents:
            agent.reconcile(state)

        def ready() -> bool:
            return all(model.phase is Phase.READY for agent in agents for model in agent.reconcile(state).models)

        eventually(ready, timeout_s=60, seen=lambda: [agent.reconcile(None).models for agent in agents])
        for agent in agents:
            assert same_bytes(folder / agent.node / "models" / "models" / storage_key(uri), sample)
            yield agent


def key_of_a_bucket(endpoint: str, secret: str, **more: str) -> SourceOptions:
    keys = {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": secret}
    return SourceOptions({"AWS_ENDPOINT_URL": endpoint, "AWS_DEFAULT_REGION": "us-east-1", **keys, **more})


def in_memory_only(secret: str, agent: AgentProcess, folder: Path) -> bool:
    places = traces(secret, agent.pid, folder / agent.node)
    return bool(places) and all(place.startswith("memory of") for place in places)


def test_of_a_gated_repository_agents_never_see_the_token(tmp_path: Path, sample: Path, secret: str) -> None:
    uri = "hf://a/gated"
    with Origin({"a/gated": Repository("a/gated", sample, token=secret)}) as origin:
        resolved = resolve(ModelSource(uri), SourceOptions({"HF_ENDPOINT": origin.hub_endpoint, "HF_TOKEN": secret}))
        for agent in fill_in_processes(uri, resolved, tmp_path, sample):
            disk = tmp_path / agent.node
            assert traces(secret, agent.pid, disk) == []
            assert traces(storage_key(uri), agent.pid, disk), "what is there is found"


def test_of_a_bucket_agents_never_see_the_secret_key(tmp_path: Path, sample: Path, secret: str) -> None:
    uri = "s3://bucket/sample"
    with s3_server(sample.parent.parent, "--auth-key", f"{KEY},{secret}") as endpoint:
        resolved = resolve(ModelSource(uri), key_of_a_bucket(endpoint, secret))
        for agent in fill_in_processes(uri, resolved, tmp_path, sample):
            assert traces(secret, agent.pid, tmp_path / agent.node) == []


def test_a_key_that_agents_must_have_is_in_their_memory_and_nowhere_else(
    tmp_path: Path, sample: Path, secret: str
) -> None:
    uri = "s3://bucket/sample"
    with s3_server(sample.parent.parent, "--auth-key", f"{KEY},{secret}") as endpoint:
        # Signed links would be read by what verifies certificates.
        resolved = resolve(ModelSource(uri), key_of_a_bucket(endpoint, secret, S3_VERIFY_SSL="0"))
        for agent in fill_in_processes(uri, resolved, tmp_path, sample):
            assert in_memory_only(secret, agent, tmp_path)


def test_a_header_that_agents_must_send_is_in_their_memory_and_nowhere_else(
    tmp_path: Path, sample: Path, secret: str
) -> None:
    with Origin({"a/gated": Repository("a/gated", sample, token=secret)}) as origin:
        large = min(sample.glob("*.safetensors"))
        uri = f"{origin.hub_endpoint}/a/gated/resolve/main/{large.name}"
        headers = json.dumps({"Authorization": f"Bearer {secret}"})
        resolved = resolve(ModelSource(uri), SourceOptions({"127.0.0.1-headers": headers}))
        alone = tmp_path / "alone"
        alone.mkdir()
        (alone / large.name).hardlink_to(large)
        for agent in fill_in_processes(uri, resolved, tmp_path, alone):
            assert in_memory_only(secret, agent, tmp_path)


@pytest.mark.ray
def test_in_a_cluster_neither_the_coordinators_own_token_nor_that_of_a_secret_reaches_an_agent(
    tmp_path_factory: pytest.TempPathFactory, sample: Path, secret: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, uri = f"hf_{secrets.token_hex(16)}", "hf://a/gated"
    monkeypatch.setenv("HF_TOKEN", own)
    gated = Repository("a/gated", sample, token=secret)
    folder = tmp_path_factory.mktemp("c")
    with Origin({"a/gated": gated}) as origin, LaptopCluster(folder, LaptopOptions(nodes=2, sample_bytes=0)) as cluster:
        laptop = Laptop(cluster)
        data = {"HF_TOKEN": secret, "HF_ENDPOINT": origin.hub_endpoint}
        encoded = {name: base64.b64encode(value.encode()).decode() for name, value in data.items()}
        metadata = {"name": "reader", "namespace": JOB_NAMESPACE}
        laptop.kube.create(
            SECRETS,
            {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "data": encoded},
            namespace=JOB_NAMESPACE,
        )
        account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata, "secrets": [{"name": "reader"}]}
        laptop.kube.create(SERVICE_ACCOUNTS, account, namespace=JOB_NAMESPACE)
        laptop.apply("gated", uri, serviceAccountName="reader")
        laptop.until_ready("gated")
        for node in cluster.nodes:
            disk = folder / "nodes" / node
            assert same_bytes(laptop.folder(node, uri), sample)
            (pid,) = agent_pids(cluster, node)
            for text in (own, secret):
                assert traces(text, pid, disk) == []
            assert traces(storage_key(uri), pid, disk), "what is there is found"
        logs = {path.name: path.read_text() for path in cluster.logs.iterdir()}
        assert [name for name, text in logs.items() if secret in text or own in text] == []
