"""ClusterStorageContainers: which are heeded, for which caches, what of them applies, and what is said not to."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from actors.errors import SourceDenied
from actors.sources.options import SourceOptions
from coordinator.api.resources import StatusKey
from coordinator.control.container_env import over
from coordinator.dev.trial.builders import a_cache, a_world
from coordinator.plan.snapshot import EnvEntry
from coordinator.plan.storage_containers import read_storage_container, with_containers


def raw(name: str = "hub", *formats: dict[str, str], env: Any = (), **fields: Any) -> dict[str, Any]:
    container = {"name": "storage-initializer", "env": list(env), **fields.pop("container", {})}
    spec = {"workloadType": "localModelDownloadJob", "supportedUriFormats": list(formats), "container": container}
    disabled = fields.pop("disabled", False)
    return {"metadata": {"name": name}, "spec": {**spec, **fields}, "disabled": disabled}


HF = {"prefix": "hf://"}


@pytest.mark.parametrize(
    ("formats", "uri", "matches"),
    [
        ([HF], "hf://a/b", True),
        ([HF], "s3://a/b", False),
        ([], "hf://a/b", False),
        ([{"regex": r"https://(.+?).blob.core.windows.net/(.+)"}], "https://x.blob.core.windows.net/y", True),
        ([{"regex": "b$"}], "hf://a/b", True),
        ([{"prefix": "s3://", "regex": "hf"}], "hf://a/b", False),
        ([{"prefix": ""}], "hf://a/b", False),
        ([{"prefix": "gs://"}, HF], "hf://a/b", True),
    ],
    ids=[
        "a prefix", "another prefix", "no format", "a regex", "a regex anywhere", "a prefix wins over a regex",
        "an empty prefix", "any of several",
    ],
)  # fmt: skip
def test_which_uris_it_is_for(formats: list[dict[str, str]], uri: str, matches: bool) -> None:
    found = read_storage_container(raw("hub", *formats))
    assert found is not None
    assert found.matches(uri) is matches


@pytest.mark.parametrize("fields", [{"disabled": True}, {"workloadType": "initContainer"}, {"workloadType": None}])
def test_what_is_not_for_downloads(fields: dict[str, Any]) -> None:
    assert read_storage_container(raw("hub", HF, **fields)) is None


def test_a_regex_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="supportedUriFormats"):
        read_storage_container(raw("hub", {"regex": "("}))


def test_what_changes_nothing_is_named() -> None:
    field = {"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}
    found = read_storage_container(raw("hub", HF, env=[field], container={"image": "mine", "resources": {}}))
    assert found is not None
    assert found.unheeded == ("container.image", "container.resources", "container.env POD")


@pytest.mark.parametrize("text", ['["*.json", "*.safetensors"]', "*.json, *.safetensors"])
def test_patterns_and_environment_apply_to_caches_that_match(text: str) -> None:
    env = [{"name": "STORAGE_ALLOW_PATTERNS", "value": text}, {"name": "HF_ENDPOINT", "value": "https://mirror"}]
    found = [read_storage_container(raw("b", HF, env=env)), read_storage_container(raw("c", HF))]
    picky = a_cache("picky").with_spec(exclude=["*.bin"])
    snapshot = a_world(a_cache(), a_cache("other", "s3://x/y"), picky).snapshot()
    asked = with_containers(snapshot, [each for each in reversed(found) if each is not None]).caches
    llama = asked[StatusKey("llama")]
    assert llama.source.include == ("*.json", "*.safetensors")
    assert llama.selection == llama.source.selection != snapshot.caches[StatusKey("llama")].selection
    assert llama.credentials.container == (EnvEntry("HF_ENDPOINT", "https://mirror"),)
    assert llama.credentials.name != snapshot.caches[StatusKey("llama")].credentials.name
    assert (asked[StatusKey("picky")].source.include, asked[StatusKey("picky")].source.exclude) == ((), ("*.bin",))
    assert asked[StatusKey("other")] is snapshot.caches[StatusKey("other")]


def test_values_and_secrets_stand_above_the_operators_own() -> None:
    entries = (
        EnvEntry("HF_ENDPOINT", "https://mirror"),
        EnvEntry("HF_TOKEN", secret="token", key="t"),
        EnvEntry("PATH", "/evil"),
    )
    secret = {"data": {"t": base64.b64encode(b"hf_x").decode()}}
    own = SourceOptions({"HF_ENDPOINT": "https://hub", "AWS_DEFAULT_REGION": "eu"})
    env = over(own, entries, lambda kind, name: secret if (kind, name) == ("Secret", "token") else None).env
    assert env == {"HF_ENDPOINT": "https://mirror", "HF_TOKEN": "hf_x", "AWS_DEFAULT_REGION": "eu"}
    assert over(own, (), lambda kind, name: None) is own
    with pytest.raises(SourceDenied, match="no key 't'"):
        over(own, entries, lambda kind, name: None)
