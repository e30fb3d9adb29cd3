"""What a cache's credentials mean, key by key, as KServe means it."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from actors.errors import SourceDenied, SourceError
from actors.manifest import ModelSource
from actors.sources.filesystems import check_environment, opened
from actors.sources.object_stores import dialect_of, wants_identity
from actors.sources.options import OTHER_STORES, STORES, SourceOptions
from actors.sources.options import S3 as S3_STORE
from actors.sources.resolve import resolve
from actors.transport.answers import PRIVATE_REDIRECTS
from actors.trust import STRICT
from coordinator.control.credentials import NAMESPACES, load_options, trusting
from coordinator.control.secret_keys import Defaults
from coordinator.plan.snapshot import Credentials
from tests.kit.witness import Witness

ROOT = Path(__file__).resolve().parents[2]
NAMESPACE = "kserve-localmodel-jobs"
OWN = SourceOptions({"HF_TOKEN": "own", "AWS_SESSION_TOKEN": "own", "AWS_ROLE_ARN": "own"}, timeout_s=5.0)

Object = Mapping[str, Any]
World = dict[tuple[str, str], Object]


def secret(data: Mapping[str, str | bytes], annotations: Mapping[str, str] | None = None) -> Object:
    encoded = {
        key: base64.b64encode(value if isinstance(value, bytes) else value.encode()) for key, value in data.items()
    }
    return {
        "metadata": {"annotations": dict(annotations or {})},
        "data": {key: value.decode() for key, value in encoded.items()},
    }


def account(*secrets: str, annotations: Mapping[str, str] | None = None) -> Object:
    return {"metadata": {"annotations": annotations}, "secrets": [{"name": name} for name in secrets]}


def storage_config(**entries: object) -> World:
    values = {key: value if isinstance(value, str) else json.dumps(value) for key, value in entries.items()}
    return {("Secret", "storage-config"): secret(values)}


def a_bundle(name: str, key: str = "cabundle.crt") -> World:
    return {("ConfigMap", name): {"data": {key: CERTIFICATE}}}


def reading(world: World) -> Callable[[str, str], Object | None]:
    return lambda kind, name: world.get((kind, name))


def load(credentials: Credentials, world: World) -> dict[str, str]:
    """What was added to, or taken from, the coordinator's own."""
    env = load_options(credentials, reading(world), namespace=NAMESPACE, own=OWN).env
    removed = dict.fromkeys(OWN.env.keys() - env.keys(), "(removed)")
    return removed | {name: value for name, value in env.items() if OWN.env.get(name) != value}


def by_key(key: str | None, **parameters: str) -> Credentials:
    return Credentials(storage_key=key, parameters=tuple(parameters.items()))


def by_account(data: Mapping[str, str | bytes], annotations: Mapping[str, str] | None = None) -> World:
    return {("ServiceAccount", "reader"): account("one"), ("Secret", "one"): secret(data, annotations)}


S3 = {"type": "s3", "access_key_id": "id", "secret_access_key": "key", "endpoint_url": "http://minio:9000"}
REMOVED = {"AWS_SESSION_TOKEN": "(removed)", "AWS_ROLE_ARN": "(removed)"}
S3_ENV = {"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "key", **REMOVED}
CERTIFICATE = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----"
READER = Credentials(service_account="reader")
ANNOTATION = "serving.kserve.io/"


def test_without_credentials_the_coordinators_own_are_used() -> None:
    assert load_options(Credentials(), reading({}), namespace=NAMESPACE, own=OWN) is OWN


@pytest.mark.parametrize(
    ("credentials", "world", "env"),
    [
        pytest.param(
            by_key("minio"),
            storage_config(minio=S3 | {"region": "us-south", "bucket": "b", "verify_ssl": "0", "anonymous": "True"}),
            S3_ENV
            | {
                "AWS_ENDPOINT_URL": "http://minio:9000",
                "AWS_DEFAULT_REGION": "us-south",
                "S3_VERIFY_SSL": "0",
                "awsAnonymousCredential": "True",
            },
            id="s3, by its fields",
        ),
        pytest.param(
            by_key("minio", region="eu-1", endpoint_url="http://minio:9000/", verify_ssl="true"),
            storage_config(minio=S3),
            S3_ENV | {"AWS_ENDPOINT_URL": "http://minio:9000/", "AWS_DEFAULT_REGION": "eu-1", "S3_VERIFY_SSL": "true"},
            id="parameters win where they send nothing elsewhere",
        ),
        pytest.param(
            by_key("hf", endpoint_url="https://huggingface.co"),
            storage_config(hf={"type": "hf", "token": "hf_1"}),
            {"HF_TOKEN": "hf_1", "HF_ENDPOINT": "https://huggingface.co"},
            id="anybody may name the public hub",
        ),
        pytest.param(
            by_key("minio", endpoint_url="https://s3.eu-central-1.amazonaws.com"),
            storage_config(minio={"type": "s3", "access_key_id": "id", "secret_access_key": "key"}),
            S3_ENV | {"AWS_ENDPOINT_URL": "https://s3.eu-central-1.amazonaws.com"},
            id="anybody may name AWS",
        ),
        pytest.param(
            by_key("minio", endpoint_url="http://other", access_key_id="mine", secret_access_key="also"),
            storage_config(minio=S3 | {"session_token": "theirs"}),
            {
                "AWS_ACCESS_KEY_ID": "mine",
                "AWS_SECRET_ACCESS_KEY": "also",
                "AWS_ENDPOINT_URL": "http://other",
                **REMOVED,
            },
            id="whoever brings keys says where they go",
        ),
        pytest.param(
            by_key(None, type="hf", endpoint_url="http://mirror.example"),
            {},
            {"HF_ENDPOINT": "http://mirror.example", "HF_TOKEN": "(removed)"},
            id="an endpoint alone is asked without credentials",
        ),
        pytest.param(
            by_key(None, type="s3", endpoint_url="http://minio:9000"),
            {},
            {"AWS_ENDPOINT_URL": "http://minio:9000", **REMOVED},
            id="also of a bucket",
        ),
        pytest.param(
            by_key("hf"),
            storage_config(hf={"type": "hf", "token": "hf_1"}),
            {"HF_TOKEN": "hf_1"},
            id="hf, by its token",
        ),
        pytest.param(
            by_key(None, type="s3"),
            storage_config(default_s3={"region": "r"}, default={"region": "other"}),
            {"AWS_DEFAULT_REGION": "r"},
            id="parameters alone read the default of their type",
        ),
        pytest.param(
            by_key(None, type="s3", region="r"), {}, {"AWS_DEFAULT_REGION": "r"}, id="parameters alone need no Secret"
        ),
        pytest.param(
            by_key("hdfs"),
            storage_config(hdfs={"type": "hdfs", "HDFS_NAMENODE": "https://namenode:9871", "USER_PROXY": "me"}),
            {"STORAGE_OPTIONS": '{"host": "namenode", "port": 9871, "use_https": true, "proxy_to": "me"}'},
            id="hdfs is WebHDFS",
        ),
        pytest.param(
            READER,
            by_account({"awsAccessKeyID": "id", "awsSecretAccessKey": "key"}),
            S3_ENV,
            id="a Secret with KServe's names of the AWS keys",
        ),
        pytest.param(
            READER,
            by_account(
                {"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "key"},
                {
                    ANNOTATION + "s3-endpoint": "minio:9000",
                    ANNOTATION + "s3-usehttps": "0",
                    ANNOTATION + "s3-region": "r",
                    ANNOTATION + "s3-verifyssl": "0",
                    ANNOTATION + "s3-usevirtualbucket": "1",
                    ANNOTATION + "s3-useanoncredential": "false",
                    ANNOTATION + "s3-cabundle": CERTIFICATE,
                },
            ),
            S3_ENV
            | {
                "AWS_ENDPOINT_URL": "http://minio:9000",
                "AWS_DEFAULT_REGION": "r",
                "S3_VERIFY_SSL": "0",
                "S3_USER_VIRTUAL_BUCKET": "1",
                "awsAnonymousCredential": "false",
                "AWS_CA_BUNDLE": CERTIFICATE,
            },
            id="a Secret with settings in annotations",
        ),
        pytest.param(READER, by_account({"HF_TOKEN": "hf_1", "PATH": "/x"}), {"HF_TOKEN": "hf_1"}, id="a hub token"),
        pytest.param(
            READER,
            by_account({"https-host": "files.example\n", "headers": '{"a": "b"}'}),
            {"files.example-headers": '{"a": "b"}'},
            id="headers for a web host",
        ),
        pytest.param(
            READER,
            by_account({".dockerconfigjson": '{"auths": {}}'}),
            {"DOCKER_CONFIG_JSON": '{"auths": {}}'},
            id="the login of a registry",
        ),
        pytest.param(
            READER,
            by_account({"AZ_CLIENT_ID": "c", "AZURE_STORAGE_ACCESS_KEY": "k", "AZ_SUBSCRIPTION_ID": "s"}),
            {"AZ_CLIENT_ID": "c", "AZURE_STORAGE_ACCESS_KEY": "k"},
            id="a login for Azure",
        ),
        pytest.param(
            READER,
            by_account({"gcloud-application-credentials.json": '{"type": "service_account"}'}),
            {"STORAGE_OPTIONS": '{"token": {"type": "service_account"}}'},
            id="a Google key file",
        ),
        pytest.param(
            READER,
            by_account({"keystore": b"\xff\x00", "HF_TOKEN": "hf_1"}),
            {"HF_TOKEN": "hf_1"},
            id="a file that is not text is no obstacle",
        ),
        pytest.param(
            READER,
            {("ServiceAccount", "reader"): account(annotations={ANNOTATION + "s3-region": "r"})},
            {"AWS_DEFAULT_REGION": "r"},
            id="a ServiceAccount with annotations and no Secret",
        ),
        pytest.param(READER, {("ServiceAccount", "reader"): {"metadata": {}}}, {}, id="a bare ServiceAccount"),
        pytest.param(
            Credentials("reader", "hf"),
            storage_config(hf={"type": "hf", "token": "hf_1"}),
            {"HF_TOKEN": "hf_1"},
            id="spec.storage wins over the ServiceAccount",
        ),
    ],
)
def test_credentials_become_options(credentials: Credentials, world: World, env: dict[str, str]) -> None:
    assert load(credentials, world) == env


def test_the_secrets_of_a_service_account_add_up_and_the_timeout_is_kept() -> None:
    world = {
        ("ServiceAccount", "reader"): account("one", "two"),
        ("Secret", "one"): secret({"HF_TOKEN": "hf_1"}),
        ("Secret", "two"): secret({"AWS_DEFAULT_REGION": "r"}),
    }
    loaded = load_options(READER, reading(world), namespace=NAMESPACE, own=OWN)
    own = {"AWS_SESSION_TOKEN": "own", "AWS_ROLE_ARN": "own"}
    assert dict(loaded.env) == {"HF_TOKEN": "hf_1", "AWS_DEFAULT_REGION": "r"} | own
    assert loaded.timeout_s == OWN.timeout_s


@pytest.mark.parametrize(
    ("credentials", "world", "reason", "message"),
    [
        pytest.param(
            by_key("minio"),
            {},
            "CredentialsMissing",
            "Secret kserve-localmodel-jobs/storage-config does not exist; spec.storage.key wants its key 'minio'",
            id="no storage Secret",
        ),
        pytest.param(
            by_key("minio"),
            storage_config(other=S3),
            "CredentialsMissing",
            "Secret kserve-localmodel-jobs/storage-config has no key 'minio', which spec.storage.key names",
            id="no such key in it",
        ),
        pytest.param(
            READER,
            {},
            "CredentialsMissing",
            "ServiceAccount kserve-localmodel-jobs/reader does not exist; spec.serviceAccountName names it",
            id="no ServiceAccount",
        ),
        pytest.param(
            READER,
            {("ServiceAccount", "reader"): account("one")},
            "CredentialsMissing",
            "Secret kserve-localmodel-jobs/one does not exist; ServiceAccount reader lists it",
            id="no Secret that the ServiceAccount lists",
        ),
        pytest.param(
            by_key("minio"),
            storage_config(minio="{s3cret"),
            "CredentialsInvalid",
            "key 'minio' of Secret kserve-localmodel-jobs/storage-config is not a JSON object",
            id="broken JSON",
        ),
        pytest.param(
            by_key("minio"),
            storage_config(minio={"type": "ftp", "password": "s3cret"}),
            "CredentialsInvalid",
            "key 'minio' of Secret kserve-localmodel-jobs/storage-config, with spec.storage.parameters: "
            "type 'ftp' is not one of s3, hf, hdfs, webhdfs",
            id="an unknown type",
        ),
        pytest.param(
            by_key("hf", endpoint_url="http://evil.example"),
            storage_config(hf={"type": "hf", "token": "s3cret"}),
            "CredentialsInvalid",
            "spec.storage.parameters names another endpoint_url than key 'hf' of Secret "
            "kserve-localmodel-jobs/storage-config, whose credentials are for nobody else: put endpoint_url into key "
            "'hf' of Secret kserve-localmodel-jobs/storage-config, or leave it out of the parameters",
            id="a token, sent elsewhere",
        ),
        *(
            pytest.param(
                by_key("minio", **{field: value}),
                storage_config(minio=S3),
                "CredentialsInvalid",
                f"spec.storage.parameters names another {field} than key 'minio' of Secret "
                f"kserve-localmodel-jobs/storage-config, whose credentials are for nobody else: put {field} into key "
                "'minio' of Secret kserve-localmodel-jobs/storage-config, or leave it out of the parameters",
                id=f"keys, with another {field}",
            )
            for field, value in {
                "endpoint_url": "http://evil.example",
                "verify_ssl": "0",
                "ca_bundle": "-----BEGIN CERTIFICATE-----",
            }.items()
        ),
        pytest.param(
            by_key("minio", endpoint_url="http://evil.example", access_key_id="mine", session_token="t"),
            storage_config(minio=S3 | {"anonymous": "false"}),
            "CredentialsInvalid",
            "spec.storage.parameters names another endpoint_url than key 'minio' of Secret "
            "kserve-localmodel-jobs/storage-config, whose credentials are for nobody else: put endpoint_url into key "
            "'minio' of Secret kserve-localmodel-jobs/storage-config, or leave it out of the parameters",
            id="half a credential of each",
        ),
        pytest.param(
            by_key("minio", type="hf"),
            storage_config(minio=S3 | {"token": "s3cret"}),
            "CredentialsInvalid",
            "spec.storage.parameters says type 'hf', and key 'minio' of Secret kserve-localmodel-jobs/storage-config "
            "'s3': leave it out",
            id="read as something else",
        ),
        pytest.param(
            by_key("hdfs", HDFS_NAMENODE="http://evil.example"),
            storage_config(hdfs={"type": "hdfs", "HDFS_NAMENODE": "https://namenode:9871", "USER_PROXY": "me"}),
            "CredentialsInvalid",
            "spec.storage.parameters names another HDFS_NAMENODE than key 'hdfs' of Secret "
            "kserve-localmodel-jobs/storage-config: leave it out, or put it there",
            id="another name node",
        ),
        pytest.param(
            by_key("hdfs", USER_PROXY="root"),
            storage_config(hdfs={"type": "hdfs", "HDFS_NAMENODE": "https://namenode:9871", "USER_PROXY": "me"}),
            "CredentialsInvalid",
            "spec.storage.parameters names another USER_PROXY than key 'hdfs' of Secret "
            "kserve-localmodel-jobs/storage-config: leave it out, or put it there",
            id="another user",
        ),
        pytest.param(
            READER,
            {
                ("ServiceAccount", "reader"): account("one", "two"),
                ("Secret", "one"): secret({"HF_TOKEN": "s3cret"}),
                ("Secret", "two"): secret({"HF_ENDPOINT": "http://evil.example"}),
            },
            "CredentialsInvalid",
            "Secret kserve-localmodel-jobs/one and Secret kserve-localmodel-jobs/two each hold a part of what belongs "
            "together (HF_ENDPOINT, HF_TOKEN): credentials are sent only where the same Secret says, so put all of it "
            "into one",
            id="the place in another Secret",
        ),
        pytest.param(
            READER,
            {
                ("ServiceAccount", "reader"): account("one", annotations={ANNOTATION + "s3-endpoint": "evil:9000"}),
                ("Secret", "one"): secret({"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "s3cret"}),
            },
            "CredentialsInvalid",
            "ServiceAccount kserve-localmodel-jobs/reader and Secret kserve-localmodel-jobs/one each hold a part of "
            "what belongs together (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, AWS_SECRET_ACCESS_KEY): credentials are sent "
            "only where the same Secret says, so put all of it into one",
            id="the place at the ServiceAccount",
        ),
        *(
            pytest.param(
                READER,
                by_account({"HF_TOKEN": "s3cret", "HF_ENDPOINT": endpoint}),
                "CredentialsInvalid",
                "endpoint_url (HF_ENDPOINT) in the credentials is not an address such as https://minio.example:9000, "
                "without user, query or fragment",
                id=f"an endpoint that is none: {endpoint!r}",
            )
            for endpoint in (
                "file:///etc/passwd",
                "ftp://host",
                "hub.example",
                "http://",
                "http://u:s3cret@host",
                "http://a b",
                "http://host\r\nx",
                "http://host?x",
                "http://[::1",
                "http://host:99999",
            )
        ),
        pytest.param(
            READER,
            by_account({"AWS_CA_BUNDLE_CONFIGMAP": "gone"}),
            "CredentialsMissing",
            f"ConfigMap {NAMESPACE}/gone does not exist; Secret {NAMESPACE}/one names it for certificates",
            id="a ConfigMap of certificates that is not there",
        ),
        pytest.param(
            READER,
            by_account({"AWS_CA_BUNDLE_CONFIGMAP": "trusted"}) | a_bundle("trusted", "other.crt"),
            "CredentialsInvalid",
            f"ConfigMap {NAMESPACE}/trusted has no certificates under 'cabundle.crt' (as PEM)",
            id="a ConfigMap without certificates",
        ),
        *(
            pytest.param(
                READER,
                by_account({"AWS_CA_BUNDLE": path}),
                "CredentialsInvalid",
                "ca_bundle (AWS_CA_BUNDLE, serving.kserve.io/s3-cabundle) is a path in the coordinator's pod: put the "
                "certificates themselves there, as PEM, or have AWS_CA_BUNDLE set for the coordinator",
                id=f"a file of the coordinator: {path}",
            )
            for path in ("/proc/self/environ", "/ca.pem", "ca.pem", "True")
        ),
        pytest.param(
            by_key("hdfs"),
            storage_config(
                hdfs={"type": "hdfs", "HDFS_NAMENODE": "http://nn:1", "KERBEROS_PRINCIPAL": "localmodel@EXAMPLE"}
            ),
            "CredentialsInvalid",
            "Secret kserve-localmodel-jobs/storage-config wants Kerberos, for which the coordinator has a ticket of "
            "its own at best",
            id="the coordinator's ticket",
        ),
        pytest.param(
            by_key("hdfs"),
            storage_config(hdfs={"type": "hdfs", "HDFS_NAMENODE": "s3cret"}),
            "CredentialsInvalid",
            "Secret kserve-localmodel-jobs/storage-config has no usable HDFS_NAMENODE (expected http[s]://host:port)",
            id="a name node that is no URL",
        ),
    ],
)
def test_what_is_missing_or_broken_is_named(credentials: Credentials, world: World, reason: str, message: str) -> None:
    with pytest.raises(SourceDenied) as caught:
        load(credentials, world)
    assert (caught.value.reason, str(caught.value), caught.value.retryable) == (reason, message, False)


# --- whose identity, for whom ---

OPERATOR = SourceOptions(
    {
        "HF_TOKEN": "own",
        "HF_ENDPOINT": "http://mirror.operator",
        "AWS_ACCESS_KEY_ID": "own",
        "AWS_SECRET_ACCESS_KEY": "own",
        "AWS_ENDPOINT_URL": "http://minio.operator",
        "AWS_CA_BUNDLE": "/etc/ca.pem",
        "AWS_DEFAULT_REGION": "r",
        "AZURE_STORAGE_ACCOUNT_NAME": "operators",
        "AZURE_STORAGE_ACCESS_KEY": "own",
        "STORAGE_OPTIONS": '{"token": "google_default"}',
        "DOCKER_CONFIG_JSON": "own",
        "web.operator-headers": "own",
        "S3_VERIFY_SSL": "0",
        "LOCALMODEL_PRIVATE_REDIRECTS": "1",
    }
)
IDENTITY = {name for name, value in OPERATOR.env.items() if value == "own"} | {"STORAGE_OPTIONS"}


def loaded(credentials: Credentials, world: World, *, namespaced_own: bool = False) -> SourceOptions:
    return load_options(credentials, reading(world), namespace=NAMESPACE, own=OPERATOR, namespaced_own=namespaced_own)


def test_a_namespaced_cache_uses_no_identity_of_the_coordinators() -> None:
    options = loaded(Credentials(namespaced=True), {})
    assert dict(options.env) == {name: value for name, value in OPERATOR.env.items() if name not in IDENTITY}
    assert options.ambient == frozenset()


def test_unless_a_flag_says_so() -> None:
    assert loaded(Credentials(namespaced=True), {}, namespaced_own=True) is OPERATOR
    assert loaded(Credentials(), {}) is OPERATOR


KEYS = {"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "key"}


@pytest.mark.parametrize(
    ("data", "gone", "ambient"),
    [
        pytest.param({"HF_TOKEN": "t"}, set(), STORES, id="a token for the operator's mirror"),
        pytest.param({"HF_TOKEN": "t", "HF_ENDPOINT": "http://h"}, set(), STORES, id="a token for its own"),
        pytest.param({"HF_ENDPOINT": "http://h"}, {"HF_TOKEN"}, STORES, id="another hub, and no token"),
        pytest.param(KEYS, set(), {OTHER_STORES}, id="keys for the operator's store"),
        pytest.param(
            {**KEYS, "AWS_ENDPOINT_URL": "http://m"}, {"S3_VERIFY_SSL"}, {OTHER_STORES}, id="keys for its own store"
        ),
        pytest.param(
            {"AWS_ENDPOINT_URL": "http://m"}, {"S3_VERIFY_SSL", *KEYS}, {OTHER_STORES}, id="another store, and no keys"
        ),
        pytest.param({"AWS_CA_BUNDLE": CERTIFICATE}, {*KEYS}, {OTHER_STORES}, id="others to believe"),
        pytest.param({"S3_VERIFY_SSL": "false"}, {*KEYS}, {OTHER_STORES}, id="anybody to believe"),
        pytest.param({"awsAnonymousCredential": "1"}, {*KEYS}, {OTHER_STORES}, id="nobody"),
        pytest.param({"AWS_DEFAULT_REGION": "r2"}, set(), STORES, id="a region"),
        pytest.param(
            {"AZURE_STORAGE_ACCESS_KEY": "k"}, {"STORAGE_OPTIONS"}, {S3_STORE}, id="a key for the operator's account"
        ),
        pytest.param(
            {"AZURE_STORAGE_ACCOUNT_NAME": "theirs"},
            {"AZURE_STORAGE_ACCESS_KEY", "STORAGE_OPTIONS"},
            {S3_STORE},
            id="another account, and no key",
        ),
        pytest.param(
            {"STORAGE_OPTIONS": "{}"},
            {"AZURE_STORAGE_ACCESS_KEY", "AZURE_STORAGE_ACCOUNT_NAME"},
            {S3_STORE},
            id="options of another store",
        ),
        pytest.param({"DOCKER_CONFIG_JSON": "{}"}, set(), STORES, id="logins of registries"),
        pytest.param(
            {"LOCALMODEL_PRIVATE_REDIRECTS": "0", "HTTP_PROXY": "http://evil", "SSL_CERT_FILE": "/x"},
            set(),
            STORES,
            id="what only an operator says",
        ),
    ],
)
def test_what_of_the_coordinators_goes_with_a_secret(data: dict[str, str], gone: set[str], ambient: set[str]) -> None:
    options = loaded(READER, by_account(data))
    assert OPERATOR.env.keys() - options.env.keys() == gone - data.keys()
    assert all(options.env[name] == data[name] for name in data.keys() & options.env.keys() - {PRIVATE_REDIRECTS})
    assert options.env[PRIVATE_REDIRECTS] == "1"
    assert options.ambient == ambient
    namespaced = loaded(replace(READER, namespaced=True), by_account(data))
    assert {name for name in namespaced.env.keys() & IDENTITY if namespaced.env[name] == OPERATOR.env[name]} == set()
    assert namespaced.ambient == frozenset()


def test_parameters_may_repeat_what_the_operator_names() -> None:
    world = storage_config(hf={"type": "hf", "token": "hf_1"})
    assert loaded(by_key("hf", endpoint_url="http://mirror.operator/"), world).get("HF_TOKEN") == "hf_1"
    with pytest.raises(SourceDenied, match="names another endpoint_url"):
        loaded(by_key("hf", endpoint_url="https://huggingface.co"), world)


def test_what_a_cache_may_reach_is_the_operators_to_say() -> None:
    own = SourceOptions({}, trust=STRICT)
    for credentials in (READER, replace(READER, namespaced=True), by_key(None, type="hf", endpoint_url="http://h")):
        found = load_options(credentials, reading(by_account({"HF_TOKEN": "t"})), namespace=NAMESPACE, own=own)
        assert found.trust is STRICT


# --- options for fsspec in a Secret ---


@pytest.mark.slow
@pytest.mark.parametrize(
    ("uri", "given", "kept"),
    [
        pytest.param("gs://b/m", {"token": {"type": "service_account"}}, None, id="a key file's content"),
        pytest.param("gs://b/m", {"project": "p"}, {"project": "p", "token": "anon"}, id="nobody, and not the node"),
        pytest.param("gs://b/m", {"token": "anon"}, None, id="nobody"),
        pytest.param("gs://b/m", {"token": "/etc/passwd"}, "token must be", id="a file of the coordinator's"),
        pytest.param("gs://b/m", {"token": "google_default"}, "token must be", id="the coordinator's identity"),
        pytest.param("gs://b/m", {"token": "cloud"}, "token must be", id="the node's identity"),
        pytest.param("gs://b/m", {"token": "cache"}, "token must be", id="a file of pickles"),
        pytest.param(
            "gs://b/m",
            {"token": {"type": "external_account", "credential_source": {"file": "/etc/passwd"}}},
            "token must be",
            id="a credential that is read from a file",
        ),
        pytest.param("gs://b/m", {"session_kwargs": {"trust_env": True}}, "'session_kwargs'", id="how to connect"),
        pytest.param("gs://b/m", {"requester_pays": "p"}, {"requester_pays": "p", "token": "anon"}, id="who pays"),
        pytest.param("gs://b/m", {"protocol": "file"}, "'protocol'", id="another filesystem"),
        pytest.param("gs://b/m", {"target_protocol": "file", "fo": "/etc/passwd"}, "'target_protocol'", id="a chain"),
        pytest.param("gs://b/m", {"target_options": {}}, "'target_options'", id="options of a chain"),
        pytest.param(
            "abfs://c/m",
            {"account_name": "acct", "account_key": "k"},
            {"account_name": "acct", "account_key": "k"},
            id="an account key",
        ),
        pytest.param(
            "abfs://c/m", {"account_name": "acct"}, {"account_name": "acct", "anon": True}, id="Azure, nobody"
        ),
        pytest.param("abfs://c/m", {"anon": False}, "'anon'", id="Azure, the coordinator's identity"),
        pytest.param("abfs://c/m", {"credential": "x"}, "'credential'", id="Azure, some object"),
        pytest.param("abfs://c/m", {"account_name": "evil.example/x"}, "no storage account", id="Azure, another host"),
        pytest.param(
            "abfs://c@acct.dfs.core.windows.net/m",
            {"account_name": "other", "account_key": "k"},
            {"account_name": "acct", "anon": True},
            id="Azure, a key of another account",
        ),
        pytest.param(
            "https://acct.blob.core.windows.net/c/m",
            {"account_name": "other", "account_key": "k"},
            {"account_name": "acct", "anon": True},
            id="Azure, a key of another account, by URL",
        ),
        pytest.param(
            "hdfs://m",
            {"host": "nn", "port": 1, "user": "u", "use_https": True},
            {"host": "nn", "port": 1, "user": "u", "use_https": True},
            id="HDFS",
        ),
        pytest.param("hdfs://m", {"host": "nn", "kerberos": True}, "'kerberos'", id="HDFS, the coordinator's ticket"),
        pytest.param("hdfs://m", {"session_verify": "/x"}, "'session_verify'", id="HDFS, a file"),
        pytest.param("hdfs://m", {"session_cert": "/x"}, "'session_cert'", id="HDFS, a certificate"),
        pytest.param("hdfs://m", {"data_proxy": {"a": "b"}}, "'data_proxy'", id="HDFS, elsewhere"),
        pytest.param("hdfs://m", {"host": ["nn"]}, "plain value", id="HDFS, a list"),
        pytest.param("sftp://host/m", {"key_filename": "/x"}, "'key_filename'", id="what an operator allowed"),
    ],
)
def test_what_options_may_come_with_a_cache(uri: str, given: dict[str, Any], kept: Any) -> None:
    options = loaded(replace(READER, namespaced=True), by_account({"STORAGE_OPTIONS": json.dumps(given)}))
    if isinstance(kept, str):
        with pytest.raises(SourceDenied, match=kept) as caught:
            dialect_of(uri, options)
        assert caught.value.reason == "CredentialsInvalid"
        return
    dialect = dialect_of(uri, options)
    assert dict(dialect.storage_options) == (given if kept is None else kept)
    assert not wants_identity(dialect.url.partition("://")[0], dialect.storage_options)


@pytest.mark.parametrize("region", ["evil.example/#", "r@evil.example", "-r", "r-", "a" * 64, "eu central"])
def test_a_region_is_no_host(region: str) -> None:
    with pytest.raises(SourceDenied, match="region"):
        dialect_of("s3://b/m", loaded(by_key(None, type="s3", region=region), {}))


@pytest.mark.parametrize(("credentials", "anonymous"), [(Credentials(namespaced=True), True), (Credentials(), False)])
def test_who_has_no_keys_is_nobody_unless_it_is_the_operator(credentials: Credentials, anonymous: bool) -> None:
    own = SourceOptions({"AWS_DEFAULT_REGION": "r"})
    dialect = dialect_of("s3://b/m", load_options(credentials, reading({}), namespace=NAMESPACE, own=own))
    assert dialect.storage_options["anon"] is anonymous
    assert wants_identity("s3", dialect.storage_options) is not anonymous


def test_certificates_in_a_secret_become_a_file_that_only_we_can_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for _ in range(2):
        filesystem, _ = opened("s3://b/m", {"anon": True, "client_kwargs": {"verify": CERTIFICATE}}, fresh=True)
        path = Path(filesystem.client_kwargs["verify"])
        assert path.read_text() == CERTIFICATE
        assert path.stat().st_mode & 0o077 == 0
        assert path.parent.stat().st_mode & 0o077 == 0
    assert len(list(tmp_path.rglob("*.pem"))) == 1


@pytest.mark.slow
def test_certificates_are_gone_with_the_process_that_was_given_them(tmp_path: Path) -> None:
    script = (
        "from actors.sources.filesystems import opened\n"
        f"opened('s3://b/m', {{'anon': True, 'client_kwargs': {{'verify': {CERTIFICATE!r}}}}})\n"
        "import pathlib, tempfile\n"
        "print(len(list(pathlib.Path(tempfile.gettempdir()).rglob('*.pem'))))"
    )
    environment = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["CONNECTION_STRING", "ACCOUNT_KEY", "SAS_TOKEN", "CLIENT_SECRET"])
def test_what_adlfs_would_add_from_the_environment_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"AZURE_STORAGE_{name}", "own")
    with pytest.raises(SourceDenied, match=f"AZURE_STORAGE_{name}") as caught:
        check_environment()
    assert "own" not in str(caught.value).split()


def test_a_login_in_the_home_folder_goes_to_no_name_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.2 login us password s3cret\nmachine 127.0.0.4 login us password s3cret\n")
    monkeypatch.setenv("NETRC", str(netrc))
    with (
        Witness("127.0.0.4", lambda path: (200, {}, b"data")) as data_node,
        Witness("127.0.0.2", lambda path: (307, {"Location": f"{data_node.url}/x"}, b"")) as name_node,
    ):
        place = {"host": name_node.host, "port": name_node.port}
        for login, shown in (({}, 0), ({"user": "me", "password": "mine"}, 1)):
            filesystem, _ = opened("webhdfs:///x", {**place, **login}, fresh=True)
            assert filesystem.session.get(f"{name_node.url}/x", timeout=2).content == b"data"
            assert (len(name_node.authorizations), data_node.authorizations) == (shown, set())


@pytest.mark.parametrize("header", ["Host", "transfer-encoding", "Content-Length", "CONNECTION"])
def test_headers_of_a_secret_say_who_asks_and_not_where_a_request_ends(header: str) -> None:
    options = loaded(READER, by_account({"https-host": "files.example", "headers": json.dumps({header: "x"})}))
    with pytest.raises(SourceDenied, match=header) as caught:
        resolve(ModelSource("https://files.example/m.bin"), options)
    assert caught.value.reason == "CredentialsInvalid"


# --- what goes over the wire ---


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["hf", "s3", "hdfs", "oci", "web"])
@pytest.mark.parametrize("namespaced", [True, False])
def test_no_credential_of_anybody_reaches_an_endpoint_that_only_the_cache_names(
    kind: str, namespaced: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither what the coordinator was told to use, nor what libraries find in its environment and in its home."""
    env = {
        "HF_TOKEN": "OWN",
        **dict.fromkeys(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), "OWN"),
        "DOCKER_CONFIG_JSON": json.dumps({"auths": {"registry.example": {"auth": "T1dO"}}}),
        "files.example-headers": json.dumps({"Authorization": "OWN"}),
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    own = SourceOptions(env, timeout_s=2.0)
    (tmp_path / "netrc").write_text("default login OWN password OWN\n")
    (tmp_path / "aws").write_text("[default]\naws_access_key_id = OWN\naws_secret_access_key = OWN\n")
    (tmp_path / "token").write_text("OWN")
    (tmp_path / ".docker").mkdir()
    (tmp_path / ".docker" / "config.json").write_text(json.dumps({"auths": {"127.0.0.2": {"auth": "T1dO"}}}))
    places = {"NETRC": "netrc", "AWS_SHARED_CREDENTIALS_FILE": "aws", "HF_TOKEN_PATH": "token", "HOME": ""}
    for name, value in {**env, **{name: str(tmp_path / file) for name, file in places.items()}}.items():
        monkeypatch.setenv(name, value)
    with Witness("127.0.0.2") as evil:
        place = f"127.0.0.2:{evil.port}"
        uri, parameters = {
            "hf": ("hf://a/b", {"type": "hf", "endpoint_url": evil.url}),
            "s3": ("s3://bucket/m", {"type": "s3", "endpoint_url": evil.url}),
            "hdfs": ("hdfs://x/m", {"type": "hdfs", "HDFS_NAMENODE": evil.url}),
            "oci": (f"oci://{place}/a/b", {}),
            "web": (f"{evil.url}/m.bin", {}),
        }[kind]
        credentials = replace(by_key(None, **parameters), namespaced=namespaced)
        with pytest.raises(SourceError):
            resolve(ModelSource(uri), load_options(credentials, reading({}), namespace=NAMESPACE, own=own))
        assert evil.asked
        assert "OWN" not in repr(evil.asked)
        assert evil.authorizations == set()


def test_a_hub_that_answers_with_a_cookie_does_not_get_it_back() -> None:
    """One client asks for all caches: a session of one tenant's must not speak for another."""
    with Witness("127.0.0.2", lambda path: (404, {"Set-Cookie": "session=theirs; Path=/"}, b"")) as hub:
        for token in ("hf_1", None):
            env = {"HF_ENDPOINT": hub.url} | ({"HF_TOKEN": token} if token else {})
            with pytest.raises(SourceError):
                resolve(ModelSource("hf://a/b"), SourceOptions(env, 2.0))
        assert len(hub.asked) >= 2
        assert [headers["cookie"] for _, _, headers in hub.asked if "cookie" in headers] == []
        assert hub.authorizations == {"Bearer hf_1"}


@pytest.mark.parametrize(
    ("uri", "env"),
    [
        ("hf://a/b", {"HF_TOKEN": "theirs"}),
        ("http://127.0.0.2:{port}/m.bin", {"127.0.0.2-headers": '{"Authorization": "theirs"}'}),
        (
            "oci://127.0.0.2:{port}/a/b",
            {"DOCKER_CONFIG_JSON": '{"auths": {"127.0.0.2:{port}": {"username": "theirs", "password": "p"}}}'},
        ),
    ],
)
def test_a_credential_does_not_follow_a_redirect_to_another_host(uri: str, env: dict[str, str]) -> None:
    with Witness("127.0.0.3") as other, Witness("127.0.0.2") as named:
        named.answer = lambda path: (302, {"Location": f"{other.url}/x"}, b"")
        port = str(named.port)
        known = {name: value.replace("{port}", port) for name, value in env.items()} | {"HF_ENDPOINT": named.url}
        with pytest.raises(SourceError):
            resolve(ModelSource(uri.replace("{port}", port)), SourceOptions(known, 2.0))
        assert named.asked
        assert other.authorizations == set()
        assert "theirs" not in repr(other.asked)


FOR_A = {NAMESPACES: "team-a, team-c"}
OWNED: dict[str, tuple[Credentials, World]] = {
    "a ServiceAccount": (
        READER,
        {("ServiceAccount", "reader"): account("s", annotations=FOR_A), ("Secret", "s"): secret({"HF_TOKEN": "t"})},
    ),
    "a Secret of a ServiceAccount": (
        READER,
        {("ServiceAccount", "reader"): account("s"), ("Secret", "s"): secret({"HF_TOKEN": "t"}, FOR_A)},
    ),
    "a key of the storage Secret": (
        Credentials(storage_key="k"),
        {("Secret", "storage-config"): secret({"k": json.dumps({"type": "hf", "token": "t"})}, FOR_A)},
    ),
    "the storage Secret's default": (
        Credentials(parameters=(("type", "hf"),)),
        {("Secret", "storage-config"): secret({"default_hf": json.dumps({"type": "hf", "token": "t"})}, FOR_A)},
    ),
}


@pytest.mark.parametrize("case", OWNED)
def test_a_namespace_uses_only_what_is_for_it(case: str) -> None:
    named, world = OWNED[case]
    for namespace in ("team-a", "team-c", None):
        credentials = replace(named, namespaced=namespace is not None, namespace=namespace)
        assert load(credentials, world)["HF_TOKEN"] == "t"
    for namespace in ("team-b", "team", "team-a,team-c", ""):
        with pytest.raises(SourceDenied) as caught:
            load(replace(named, namespaced=True, namespace=namespace), world)
        assert caught.value.reason == "CredentialsInvalid"
        assert "team-c" not in str(caught.value).replace(namespace or "-", "")


def test_what_nobody_claims_is_for_all_as_in_kserve() -> None:
    world = {("ServiceAccount", "reader"): account("s"), ("Secret", "s"): secret({"HF_TOKEN": "t"})}
    assert load(replace(READER, namespaced=True, namespace="team-b"), world)["HF_TOKEN"] == "t"


def test_the_name_of_credentials_is_what_it_was_before_they_knew_their_namespace() -> None:
    """It stands in the status of caches as the proof of what they may read."""
    assert replace(READER, namespace="team-a").name == READER.name


@pytest.mark.parametrize(
    "held",
    ["[" * 100_000, '{"a":' * 100_000, '{"type":[]}', '{"type":{}}', '{"type":null}', '{"type":1}', "1e400"]
    + [json.dumps({"type": "hdfs", "HDFS_NAMENODE": url}) for url in ("http://n:99999", "http://[", "http://n:x")],
    ids=lambda held: held[:50],
)
def test_junk_in_a_secret_is_refused_by_name(held: str) -> None:
    for credentials, world in (
        (by_key("k"), storage_config(k=held)),
        (READER, by_account({"gcloud-application-credentials.json": held + "]"})),
    ):
        with pytest.raises(SourceDenied, match="Secret ") as caught:
            load(credentials, world)
        assert caught.value.reason == "CredentialsInvalid"


def test_an_endpoint_is_no_longer_than_one() -> None:
    world = storage_config(k={"type": "hf", "token": "hf_x", "endpoint_url": "https://" + "h." * 600 + "example"})
    with pytest.raises(SourceDenied, match="is not an address such as"):
        load(by_key("k"), world)


# As KServe has it, where that is not written anywhere above.

TEAM = "team-a"
IN_TEAM: dict[str, Any] = {"namespaced": True, "namespace": TEAM}


def asked(credentials: Credentials, job: World, own: World | None = None, **configured: Any) -> dict[str, str]:
    """The environment, without the coordinator's own."""
    defaults = Defaults.of(configured)
    found = load_options(
        credentials,
        reading(job),
        namespace=NAMESPACE,
        own=SourceOptions({}),
        read_own=None if own is None else reading(own),
        defaults=defaults,
    )
    return dict(found.env)


S3_KEYS = {"awsAccessKeyID": "id", "awsSecretAccessKey": "key"}
KEYS_ENV = {"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "key"}


@pytest.mark.parametrize(
    ("credentials", "world", "env"),
    [
        pytest.param(
            by_key(None, region="eu"),
            {("ServiceAccount", "default"): account("one"), ("Secret", "one"): secret({"HF_TOKEN": "t"})},
            {"HF_TOKEN": "t"},
            id="parameters without a type: the ServiceAccount default",
        ),
        pytest.param(by_key(None, region="eu"), {}, {}, id="which need not be there"),
        pytest.param(
            Credentials(service_account="reader", parameters=(("region", "eu"),)),
            by_account({"HF_TOKEN": "t"}),
            {"HF_TOKEN": "t"},
            id="parameters beside a ServiceAccount",
        ),
        pytest.param(
            Credentials(service_account="reader", parameters=(("type", "s3"), ("region", "eu"))),
            by_account({"HF_TOKEN": "t"}),
            {"HF_TOKEN": "t"},
            id="parameters of a type beside a ServiceAccount",
        ),
        pytest.param(
            by_key("minio"),
            {("Secret", "minio"): secret({**S3_KEYS, "S3_ENDPOINT": "minio:9000", "S3_USE_HTTPS": "0"})},
            KEYS_ENV | {"AWS_ENDPOINT_URL": "http://minio:9000"},
            id="a key that is the name of a Secret",
        ),
        pytest.param(
            by_key("minio"),
            {**storage_config(minio={"type": "hf", "token": "t"}), ("Secret", "minio"): secret(S3_KEYS)},
            {"HF_TOKEN": "t"},
            id="the Secret of keys comes first",
        ),
        pytest.param(
            READER,
            by_account({**S3_KEYS, "S3_ENDPOINT": "minio:9000", "S3_VERIFY_SSL": "0", "S3_USER_VIRTUAL_BUCKET": "1"}),
            KEYS_ENV | {"AWS_ENDPOINT_URL": "https://minio:9000", "S3_VERIFY_SSL": "0", "S3_USER_VIRTUAL_BUCKET": "1"},
            id="keys named S3_*",
        ),
        pytest.param(
            READER,
            by_account(S3_KEYS, {ANNOTATION + "s3-useaccelerate": "1"}),
            KEYS_ENV | {"S3_USE_ACCELERATE": "1"},
            id="the accelerated endpoint",
        ),
        pytest.param(
            READER,
            by_account(S3_KEYS, {ANNOTATION + "s3-cabundle-configmap": "trusted"}) | a_bundle("trusted"),
            KEYS_ENV | {"AWS_CA_BUNDLE": CERTIFICATE},
            id="certificates in a ConfigMap, by annotation",
        ),
        pytest.param(
            READER,
            by_account({**S3_KEYS, "AWS_CA_BUNDLE_CONFIGMAP": "trusted"}) | a_bundle("trusted"),
            KEYS_ENV | {"AWS_CA_BUNDLE": CERTIFICATE},
            id="certificates in a ConfigMap, by key",
        ),
        pytest.param(
            READER,
            by_account(
                S3_KEYS,
                {ANNOTATION + "s3-cabundle-configmap": "trusted", ANNOTATION + "s3-cabundle": "/certs/minio.pem"},
            )
            | a_bundle("trusted", "minio.pem"),
            KEYS_ENV | {"AWS_CA_BUNDLE": CERTIFICATE},
            id="a path in it names the key of the ConfigMap",
        ),
        pytest.param(
            by_key("minio"),
            storage_config(minio={"type": "s3", "anonymous": "true", "cabundle_configmap": "trusted"})
            | a_bundle("trusted"),
            {"awsAnonymousCredential": "true", "AWS_CA_BUNDLE": CERTIFICATE},
            id="certificates in a ConfigMap, by a key's field",
        ),
        pytest.param(
            READER,
            by_account(S3_KEYS | {"S3_ENDPOINT": "b:1", "S3_USE_HTTPS": "0"}, {ANNOTATION + "s3-endpoint": "a:1"}),
            KEYS_ENV | {"AWS_ENDPOINT_URL": "http://a:1"},
            id="annotations win over keys, each for itself",
        ),
    ],
)
def test_kserves_ways_of_naming_credentials(credentials: Credentials, world: World, env: dict[str, str]) -> None:
    assert asked(credentials, world) == env


CONFIGURED: dict[str, Any] = {
    "s3": {
        "s3AccessKeyIDName": "the-id",
        "s3SecretAccessKeyName": "the-key",
        "s3Endpoint": "s3.corp:9000",
        "s3UseHttps": "0",
        "s3Region": "corp",
        "s3VerifySSL": "0",
        "s3UseVirtualBucket": "",
        "s3CABundle": "/path/of/another/container",
        "s3UseAnonymousCredential": None,
    },
    "gcs": {"gcsCredentialFileName": "key.json"},
}


@pytest.mark.parametrize(
    ("data", "annotations", "env"),
    [
        (
            {"the-id": "id", "the-key": "key"},
            {},
            KEYS_ENV | {"AWS_ENDPOINT_URL": "http://s3.corp:9000", "AWS_DEFAULT_REGION": "corp", "S3_VERIFY_SSL": "0"},
        ),
        (
            {**S3_KEYS, "S3_ENDPOINT": "minio:1", "AWS_DEFAULT_REGION": "mine"},
            {ANNOTATION + "s3-usehttps": "1", ANNOTATION + "s3-verifyssl": "1"},
            KEYS_ENV | {"AWS_ENDPOINT_URL": "https://minio:1", "AWS_DEFAULT_REGION": "mine", "S3_VERIFY_SSL": "1"},
        ),
        ({"HF_TOKEN": "t"}, {}, {"HF_TOKEN": "t"}),
        ({"key.json": "{}"}, {}, {"STORAGE_OPTIONS": '{"token": {}}'}),
    ],
    ids=["keys and defaults", "a Secret's own words win", "nothing of S3 without its keys", "the file of a bucket"],
)
def test_kserves_configuration_names_keys_and_defaults(
    data: dict[str, str], annotations: dict[str, str], env: dict[str, str]
) -> None:
    assert asked(READER, by_account(data, annotations), **CONFIGURED) == env


@pytest.mark.parametrize("junk", [{"s3": "nonsense", "gcs": 3}, {"s3": {"s3Endpoint": 3}}, {"s3": None}])
def test_junk_in_kserves_configuration_means_nothing(junk: dict[str, Any]) -> None:
    assert asked(READER, by_account(S3_KEYS), **junk) == KEYS_ENV


def token(value: str) -> World:
    return by_account({"HF_TOKEN": value})


KEY_IN_TEAM = Credentials(storage_key="k", **IN_TEAM)
READER_IN_TEAM = Credentials(service_account="reader", **IN_TEAM)


@pytest.mark.parametrize(
    ("credentials", "own", "job", "found"),
    [
        (READER_IN_TEAM, token("own"), token("job"), "own"),
        (READER_IN_TEAM, {}, token("job"), "job"),
        (READER_IN_TEAM, token("own"), {}, "own"),
        (KEY_IN_TEAM, storage_config(k={"type": "hf", "token": "own"}), storage_config(k={"type": "hf"}), "own"),
        (KEY_IN_TEAM, storage_config(x={"type": "hf"}), storage_config(k={"type": "hf", "token": "job"}), "job"),
        (KEY_IN_TEAM, {("Secret", "k"): secret({"HF_TOKEN": "own"})}, storage_config(k={"type": "hf"}), "own"),
        (Credentials(parameters=(("a", "b"),), **IN_TEAM), {}, {}, None),
    ],
)
def test_a_namespaces_own_credentials_come_before_those_of_the_job_namespace(
    credentials: Credentials, own: World, job: World, found: str | None
) -> None:
    assert asked(credentials, job, own).get("HF_TOKEN") == found


def test_a_cluster_cache_looks_into_the_job_namespace_alone() -> None:
    assert asked(READER, token("job"), token("own"))["HF_TOKEN"] == "job"


def test_a_secret_of_the_job_namespace_that_is_for_others_is_not_the_fallback() -> None:
    kept = {**storage_config(k={"type": "hf", "token": "t"})[("Secret", "storage-config")]}
    kept["metadata"] = {"annotations": {NAMESPACES: "team-b"}}
    with pytest.raises(SourceDenied, match="is not for caches of namespace team-a"):
        asked(KEY_IN_TEAM, {("Secret", "storage-config"): kept}, {})


@pytest.mark.parametrize("credentials", [KEY_IN_TEAM, READER_IN_TEAM])
def test_what_is_in_neither_namespace_is_said_of_both(credentials: Credentials) -> None:
    with pytest.raises(SourceDenied, match=NAMESPACE) as caught:
        asked(credentials, {}, {})
    assert caught.value.reason == "CredentialsMissing"
    assert "namespace team-a" in str(caught.value)


INITIALIZER = {"caBundleConfigMapName": "trusted"}


@pytest.mark.parametrize(
    ("own", "initializer", "worlds", "bundle"),
    [
        ({}, {}, {"jobs": a_bundle("trusted")}, None),
        ({}, {"caBundleConfigMapName": ""}, {"jobs": a_bundle("trusted")}, None),
        ({}, {"caBundleConfigMapName": 7}, {"jobs": a_bundle("trusted")}, None),
        ({}, INITIALIZER, {"jobs": a_bundle("trusted"), "kserve": {}}, CERTIFICATE),
        ({}, INITIALIZER, {"jobs": {}, "kserve": a_bundle("trusted")}, CERTIFICATE),
        ({"AWS_CA_BUNDLE": "/ca.pem"}, INITIALIZER, {"jobs": a_bundle("trusted")}, "/ca.pem"),
    ],
)
def test_certificates_for_every_source_are_the_operators_or_kserves(
    own: dict[str, str], initializer: Mapping[str, Any], worlds: Mapping[str, World], bundle: str | None
) -> None:
    reads = {namespace: reading(world) for namespace, world in worlds.items()}
    assert trusting(SourceOptions(own), initializer, reads).env == own | ({"AWS_CA_BUNDLE": bundle} if bundle else {})


def test_certificates_for_every_source_that_are_not_there_are_named() -> None:
    with pytest.raises(SourceDenied, match="ConfigMap jobs/trusted or kserve/trusted does not exist") as caught:
        trusting(SourceOptions({}), INITIALIZER, {"jobs": reading({}), "kserve": reading({})})
    assert caught.value.reason == "CredentialsMissing"
