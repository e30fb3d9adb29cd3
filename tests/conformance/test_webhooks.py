"""KServe's specs of its webhooks, each named by its id: as the API server asks, and as a client may."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from coordinator.cli.webhooks import WebhookServer
from coordinator.control.tls_contexts import TlsContexts
from coordinator.control.webhook_identity import SECRET, WEBHOOKS, WebhookIdentity
from coordinator.dev.laptop.webhooks import webhook_configuration
from coordinator.dev.ports import free_port
from coordinator.dev.trial.builders import Builder, CacheBuilder, a_cache, a_namespace_cache, a_service
from coordinator.kube.interface import NAMESPACES, SECRETS, KubeError, NotFound
from coordinator.plan.snapshot import CACHES, NAMESPACE_CACHES, NODE_GROUPS
from tests.kit.conformance import Told, a_whole_group
from tests.kit.control_plane import KSERVE, Cluster, soon
from tests.kit.kube_servers import KubeServer
from tests.kit.webhooks import CACHE_PATH, HOST, NAMESPACE_CACHE_PATH, V1, V1BETA1, Caller, a_review
from tests.kit.widgets import unique

LABEL, OF = "internal.serving.kserve.io/localmodel", "internal.serving.kserve.io/localmodel-namespace"
DENIED = 'admission webhook "{}.kserve-webhook-server.validator" denied the request: '
ON_CACHES = DENIED.format("localmodelcache")
ON_NAMESPACE_CACHES = DENIED.format("localmodelnamespacecache")


@pytest.fixture(scope="module")
def caller(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Caller]:
    """The coordinator's webhooks, which the API server asks while this lasts: what it cannot ask it refuses."""
    port = free_port()
    contexts = TlsContexts(tmp_path_factory.mktemp("certificates"))
    server = WebhookServer(port, cluster.admission.routes(), contexts.current, host="127.0.0.1")
    configuration = webhook_configuration(port)
    for webhook in configuration["webhooks"]:
        webhook["failurePolicy"] = "Fail"
    cluster.admin.create(WEBHOOKS, configuration)
    try:
        WebhookIdentity(cluster.admin, KSERVE, contexts).look()
        cluster.create(NODE_GROUPS, a_whole_group("w-gpu"))
        soon(lambda: is_refused(cluster, a_namespace_cache("default", unique()).in_group("none")))
        secret = cluster.admin.get(SECRETS, SECRET, namespace=KSERVE)
        yield Caller(port, base64.b64decode(secret["data"]["ca.crt"]), name=HOST)
    finally:
        cluster.admin.delete(WEBHOOKS, configuration["metadata"]["name"])
        server.close()
        soon(lambda: is_forgotten(cluster))


def is_refused(cluster: Cluster, cache: CacheBuilder) -> bool:
    try:
        cluster.create(NAMESPACE_CACHES, cache, "default")
    except KubeError as error:
        return "denied the request" in str(error)
    cluster.admin.delete(NAMESPACE_CACHES, cache.name, namespace="default")
    return False


def is_forgotten(cluster: Cluster) -> bool:
    cache = a_namespace_cache("default", unique()).in_group("none")
    return not is_refused(cluster, cache)


@pytest.fixture
def told(cluster: Cluster, caller: Caller) -> Told:
    return Told(cluster)


def refusal(write: Callable[[], object]) -> tuple[int, str]:
    """Code and message of what the API server answers."""
    with pytest.raises(KubeError) as caught:
        write()
    return caught.value.status, str(caught.value)


def in_w(name: str, uri: str) -> CacheBuilder:
    return a_cache(name, uri).in_group("w-gpu")


@pytest.mark.parametrize("llm", [False, True], ids=["W1", "W2"])
def test_delete_of_a_cache_in_use_is_denied(told: Told, llm: bool) -> None:
    name = unique("w")
    cache = in_w(name, f"hf://w/{name}")
    told.apply(cache)
    service = a_service(f"{name}-c", llm=llm).with_metadata(namespace="default", labels={LABEL: name})
    told.apply(service)
    soon(lambda: told.names(cache, "llmInferenceServices" if llm else "inferenceServices"))
    kind = "LLMInferenceService" if llm else "InferenceService"
    code, message = refusal(partial(told.delete, cache))
    assert code == 403
    assert f"{ON_CACHES}LocalModelCache {name} is being used by {kind} {name}-c" in message
    told.delete(service)
    soon(lambda: deleted(told, cache))


def deleted(told: Told, cache: CacheBuilder) -> bool:
    """Asked for again where it is refused."""
    try:
        told.delete(cache)
    except NotFound:
        return True
    except KubeError:
        return False
    return True


def test_W3_S4_create_is_denied_for_a_uri_another_cluster_cache_has(told: Told) -> None:  # noqa: N802 - the spec's id
    name = unique("w")
    told.apply(in_w(f"{name}-first", f"hf://w/{name}"))
    soon(lambda: told.status(in_w(f"{name}-first", "")))
    code, message = refusal(partial(told.apply, in_w(f"{name}-second", f"hf://w/{name}")))
    assert code == 403
    assert f"{ON_CACHES}LocalModelCache {name}-first has the same StorageURI hf://w/{name}" in message


def test_W4_W5_an_update_is_judged_by_its_uri(told: Told, caller: Caller) -> None:  # noqa: N802 - ditto
    name = unique("w")
    told.apply(in_w(f"{name}-first", f"hf://w/{name}"))
    soon(lambda: told.status(in_w(f"{name}-first", "")))
    second = in_w(f"{name}-second", f"hf://w/{name}-2")
    told.apply(second)
    told.kube.patch(CACHES, second.name, {"spec": {"modelSize": "2Gi"}})
    response = caller.review(CACHE_PATH, "UPDATE", in_w(second.name, f"hf://w/{name}").json, second.json)
    assert (response["allowed"], response["status"]["code"]) == (False, 403)
    assert response["status"]["message"] == f"LocalModelCache {name}-first has the same StorageURI hf://w/{name}"
    assert caller.review(CACHE_PATH, "UPDATE", second.json, second.json)["allowed"] is True


@pytest.mark.parametrize("namespace", [None, "default"], ids=["W6", "X7"])
def test_an_update_of_what_is_being_deleted_is_allowed_without_checks(
    told: Told, caller: Caller, namespace: str | None
) -> None:
    name = unique("w")
    told.apply(in_w(f"{name}-first", f"hf://w/{name}"))
    cache = a_namespace_cache(namespace, name).in_group("none") if namespace else in_w(name, f"hf://w/{name}")
    path = NAMESPACE_CACHE_PATH if namespace else CACHE_PATH
    assert caller.review(path, "UPDATE", cache.deleted().json, cache.json)["allowed"] is True


@pytest.mark.parametrize(
    ("path", "found"),
    [(CACHE_PATH, a_namespace_cache("default")), (NAMESPACE_CACHE_PATH, a_cache())],
    ids=["W7", "X8"],
)
def test_an_object_of_another_type_is_refused(caller: Caller, path: str, found: Builder) -> None:
    response = caller.review(path, "CREATE", found.json)
    assert (response["allowed"], response["status"]["code"]) == (False, 400)
    assert "expected *v1alpha1.LocalModel" in response["status"]["message"]


@pytest.mark.parametrize("llm", [False, True], ids=["X1", "X2"])
def test_delete_of_a_namespace_cache_in_use_is_denied(told: Told, llm: bool) -> None:
    name = unique("x")
    told.cluster.namespace(name)
    cache = a_namespace_cache(name, "m", f"hf://x/{name}").in_group("w-gpu")
    told.apply(cache)
    service = a_service("c", llm=llm).with_metadata(namespace=name, labels={LABEL: "m", OF: name})
    told.apply(service)
    soon(lambda: told.names(cache, "llmInferenceServices" if llm else "inferenceServices"))
    kind = "LLMInferenceService" if llm else "InferenceService"
    code, message = refusal(partial(told.delete, cache))
    assert code == 403
    assert f"{ON_NAMESPACE_CACHES}LocalModelNamespaceCache {name}/m is being used by {kind} {name}/c" in message
    told.delete(service)
    soon(lambda: deleted(told, cache))


def test_X3_create_with_a_node_group_that_is_not_there_is_denied(told: Told) -> None:  # noqa: N802 - ditto
    code, message = refusal(partial(told.apply, a_namespace_cache("default", unique()).in_group("gpu-none")))
    assert code == 404
    assert f'{ON_NAMESPACE_CACHES}LocalModelNodeGroup.serving.kserve.io "gpu-none" not found' in message


def test_X4_X5_X6_node_groups_that_are_there_are_allowed_and_others_are_not(told: Told) -> None:  # noqa: N802 - ditto
    name = unique("x")
    cache = a_namespace_cache("default", name).in_group("w-gpu")
    told.apply(cache)
    update = partial(told.kube.patch, NAMESPACE_CACHES, name, namespace="default")
    code, message = refusal(partial(update, {"spec": {"nodeGroups": ["gpu-none"]}}))
    assert code == 404
    assert f'{ON_NAMESPACE_CACHES}LocalModelNodeGroup.serving.kserve.io "gpu-none" not found' in message
    told.groups(f"{name}-2")
    update({"spec": {"nodeGroups": [f"{name}-2"]}})
    assert told.kube.get(NAMESPACE_CACHES, name, namespace="default")["spec"]["nodeGroups"] == [f"{name}-2"]


@pytest.mark.parametrize("version", [V1, V1BETA1])
def test_V1_a_review_is_answered_in_its_version(caller: Caller, version: str) -> None:  # noqa: N802 - ditto
    reply = caller.post(CACHE_PATH, a_review("CREATE", in_w(unique(), f"hf://v/{unique()}").json, version=version))
    assert (reply.status, reply.body["apiVersion"], reply.body["response"]["allowed"]) == (200, version, True)


def test_a_cache_gets_and_loses_its_finalizer_with_a_webhook_that_refuses(told: Told) -> None:
    name = unique("w")
    told.apply(in_w(name, f"hf://w/{name}"))
    soon(lambda: told.kube.get(CACHES, name)["metadata"].get("finalizers"))
    told.kube.delete(CACHES, name)
    soon(lambda: told.cluster.is_gone(CACHES, name))


def test_a_namespace_goes_with_a_cache_in_use(told: Told, server: KubeServer) -> None:
    if server.name != "dev":
        pytest.skip("who empties namespaces is a controller, which a bare API server does not have")
    name = unique("g")
    told.cluster.namespace(name)
    cache = a_namespace_cache(name, "m", f"hf://g/{name}").in_group("w-gpu")
    told.apply(cache)
    told.apply(a_service("c").with_metadata(namespace=name, labels={LABEL: "m", OF: name}))
    soon(lambda: told.names(cache))
    told.kube.delete(NAMESPACES, name)
    soon(lambda: told.cluster.is_gone(NAMESPACES, name))
