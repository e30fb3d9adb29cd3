"""The import of a model into a claim: what is said of it, which Job is made, and what that Job may reach."""

from __future__ import annotations

from typing import Any

import pytest

from coordinator.dev.trial.builders import Builder, CacheBuilder, World, a_world
from coordinator.plan.import_job import SPEC_HASH, job_name
from coordinator.plan.jobs import read_template
from coordinator.plan.reading import read_namespace_cache
from coordinator.plan.writes import Verb
from tests.deciding.test_shared_claim import a_claim, a_shared_cache
from tests.kit.manifests import K8S, read

COMPLETE = {"conditions": [{"type": "Complete", "status": "True"}]}
FAILED = {"conditions": [{"type": "Failed", "status": "True", "message": "it has reached its backoff limit"}]}


def a_template() -> Builder:
    """The base's."""
    built = Builder("PodTemplate", "localmodel-import", "v1")
    built.json |= read(K8S / "base" / "import.yaml")[0]
    return built


def importing(cache: CacheBuilder, *more: Builder) -> World:
    world = a_world(cache, a_template(), *more)
    world.volumes_known = world.imports_known = True
    return world


def with_job(cache: CacheBuilder, status: dict[str, Any] | None = None) -> World:
    """Its Job was made, and is so far."""
    world = importing(cache, a_claim())
    world.settle()
    (job_of(world) or {})["status"] = status or {}
    return world


def job_of(world: World, name: str = "llama-import") -> dict[str, Any] | None:
    return world.find("Job", name, "team")


def raw(world: World) -> dict[str, Any]:
    """The cache as it stands."""
    found = world.find("LocalModelNamespaceCache", "llama", "team")
    assert found is not None
    return found


def said(world: World) -> tuple[str, str, str, str]:
    """Ready, its reason, and whether it is Progressing and Degraded."""
    world.settle()
    status = raw(world)["status"]
    ready, progressing, degraded = status["conditions"]
    return ready["status"], ready["reason"], progressing["status"], degraded["status"]


def pod_of(world: World) -> dict[str, Any]:
    world.settle()
    pod: dict[str, Any] = (job_of(world) or {})["spec"]["template"]["spec"]
    return pod


@pytest.mark.parametrize(
    ("status", "expected", "copies"),
    [
        ({}, ("False", "ImportPending", "True", "False"), {"total": 1}),
        ({"active": 1, "ready": 0}, ("False", "ImportPending", "True", "False"), {"total": 1}),
        ({"active": 1, "ready": 1}, ("False", "ImportRunning", "True", "False"), {"total": 1}),
        ({"failed": 1, "ready": 1}, ("False", "ImportRunning", "True", "False"), {"total": 1}),
        (COMPLETE, ("True", "ImportSucceeded", "False", "False"), {"available": 1, "total": 1}),
        (FAILED, ("False", "ImportFailed", "False", "True"), {"failed": 1, "total": 1}),
    ],
    ids=["no pod yet", "a pod that waits", "a pod that runs", "a second pod that runs", "complete", "given up"],
)
def test_what_is_said_follows_the_job(status: Any, expected: tuple[str, ...], copies: dict[str, int]) -> None:
    world = with_job(a_shared_cache(), status)
    assert said(world) == expected
    written = raw(world)["status"]
    assert (written["copies"], written.get("nodeStatus", {})) == (copies, {})


def test_a_complete_import_says_how_a_pod_mounts_it() -> None:
    cache = a_shared_cache()
    world = with_job(cache, COMPLETE)
    world.settle()
    status = raw(world)["status"]
    key = read_namespace_cache(cache.json).storage_key
    assert status["claims"] == [{"namespace": "team", "name": "disk", "subPath": f"models/{key}"}]


def test_nothing_is_taken_back_while_nobody_knows_the_jobs() -> None:
    world = with_job(a_shared_cache(), COMPLETE)
    world.settle()
    world.imports_known = False
    assert world.plan().writes == ()


def test_a_job_of_somebody_else_is_left_alone() -> None:
    foreign = Builder("Job", "llama-import", "batch/v1").with_metadata(namespace="team")
    world = importing(a_shared_cache(), a_claim(), foreign)
    assert said(world)[1] == "ImportJobConflict"
    assert job_of(world) == foreign.json


def test_the_job_has_later_kserves_name_annotations_owner_and_limit() -> None:
    cache = a_shared_cache()
    world = with_job(cache)
    job = job_of(world) or {}
    assert job["spec"]["backoffLimit"] == 2
    assert "ttlSecondsAfterFinished" not in job["spec"]
    annotations = job["metadata"]["annotations"]
    assert annotations["serving.kserve.io/import-pvc-uid"] == "uid-disk"
    assert annotations["serving.kserve.io/import-storage-key"] == read_namespace_cache(cache.json).storage_key
    assert annotations[SPEC_HASH]
    (owner,) = job["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["uid"], owner["controller"]) == ("LocalModelNamespaceCache", "uid-llama", True)


@pytest.mark.parametrize("length", [56, 57, 200, 253])
def test_a_long_name_is_shortened_and_stays_its_own(length: int) -> None:
    names = [job_name(read_namespace_cache(a_shared_cache("a" * (length - 1) + last).json))[1] for last in "xy"]
    assert len({*names}) == 2
    assert all(len(name) <= 63 and name.endswith("-import") for name in names)


def test_the_pod_mounts_the_claim_and_nothing_else_of_the_namespace() -> None:
    pod = pod_of(importing(a_shared_cache(), a_claim()))
    assert pod["automountServiceAccountToken"] is False
    assert "serviceAccountName" not in pod
    assert pod["restartPolicy"] == "Never"
    assert pod["volumes"] == [
        {"name": "tmp", "emptyDir": {}},
        {"name": "model", "persistentVolumeClaim": {"claimName": "disk"}},
    ]
    (container,) = pod["containers"]
    assert container["args"][-1] == "/mnt/models/models/" + read_namespace_cache(a_shared_cache().json).storage_key


@pytest.mark.parametrize(
    ("storage", "secrets"),
    [
        ({"key": "team-s3"}, {"storage-config": ["team-s3"], "team-s3": None}),
        ({"key": "storage-config"}, {"storage-config": ["storage-config"]}),
        ({"key": "Team_S3"}, {"storage-config": ["Team_S3"]}),
        ({"key": "../../etc"}, {}),
        ({"parameters": {"type": "s3", "anonymous": "true"}}, {"storage-config": ["default_s3", "default"]}),
        ({"parameters": {"region": "eu"}}, {}),
    ],
    ids=["a key", "a key of the Secret's name", "no name of a Secret", "no key at all", "parameters", "without a type"],
)
def test_the_pod_gets_the_secrets_that_the_cache_names(storage: Any, secrets: dict[str, list[str] | None]) -> None:
    pod = pod_of(importing(a_shared_cache().with_spec(storage=storage), a_claim()))
    mounted = [volume["secret"] for volume in pod["volumes"] if "secret" in volume]
    found = {each["secretName"]: [i["key"] for i in each["items"]] if "items" in each else None for each in mounted}
    assert found == secrets
    assert all(each["optional"] for each in mounted)


def test_no_word_of_a_tenant_is_taken_for_a_flag() -> None:
    cache = a_shared_cache(uri="hf://models/llama").with_spec(
        revision="--secrets=/", include=["--verify"], storage={"key": "--x", "parameters": {"--a": "--b=c"}}
    )
    (container,) = pod_of(importing(cache, a_claim()))["containers"]
    words = container["args"][: container["args"].index("--")]
    assert {"--revision=--secrets=/", "--include=--verify", "--storage-key=--x", "--parameter=--a=--b=c"} <= {*words}


def test_a_service_account_is_said_not_to_count() -> None:
    world = importing(a_shared_cache().with_spec(serviceAccountName="reader"), a_claim())
    assert said(world)[1] == "ImportCredentialError"
    assert job_of(world) is None


@pytest.mark.parametrize(
    ("status", "change", "replaced"),
    [
        ({}, "spec", True),
        (FAILED, "spec", True),
        (FAILED, "retry", True),
        (COMPLETE, "spec", False),
        (COMPLETE, "claim", True),
        ({}, "nothing", False),
        (FAILED, "nothing", False),
    ],
)
def test_which_jobs_are_replaced(status: Any, change: str, replaced: bool) -> None:
    world = with_job(a_shared_cache(), status)
    world.settle()
    cache = raw(world)
    if change == "spec":
        cache["spec"]["revision"] = "v2"
    elif change == "retry":
        cache["metadata"]["annotations"] = {"localmodel.kserve.io/retry": '{"*": "now"}'}
    elif change == "claim":
        (world.find("PersistentVolumeClaim", "disk", "team") or {})["metadata"]["uid"] = "another"
    gone = [write for write in world.plan().writes if write.ref.resource.kind == "Job"]
    assert [(write.verb, write.foreground) for write in gone] == ([(Verb.DELETE, True)] if replaced else [])


def test_an_import_of_the_spec_before_is_said_to_be_one() -> None:
    world = with_job(a_shared_cache(), COMPLETE)
    raw(world)["spec"]["revision"] = "v2"
    assert said(world)[:2] == ("True", "ImportSucceeded")
    ready = raw(world)["status"]["conditions"][0]
    assert "as it was asked for before" in ready["message"]


def test_a_cache_that_is_deleted_waits_for_its_job() -> None:
    cache = a_shared_cache()
    world = with_job(cache, {"active": 1, "ready": 1})
    cache.deleted()
    world.imports_known = False
    assert world.plan().writes == (), "its Job may have been made a moment ago"
    world.imports_known = True
    (write,) = world.plan().writes
    assert (write.verb, write.ref.resource.kind, write.foreground) == (Verb.DELETE, "Job", True)
    (job_of(world) or {})["metadata"]["deletionTimestamp"] = "2026-06-01T00:00:00Z"
    assert world.plan().writes == ()
    world.objects = [each for each in world.objects if each.json["kind"] != "Job"]
    (write,) = world.plan().writes
    assert write.body["metadata"]["finalizers"] is None


def test_a_template_without_its_container_or_image_is_none() -> None:
    template = a_template().json
    assert read_template(template) is not None
    for name, image in (("other", "x"), ("import", "")):
        spec = {"containers": [{"name": name, "image": image}]}
        assert read_template({**template, "template": {"spec": spec}}) is None
