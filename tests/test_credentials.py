"""What a cache's credentials mean, key by key, as KServe means it."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from actors.errors import SourceDenied
from actors.origin import SourceOptions
from coordinator.credentials import load_options
from coordinator.snapshot import Credentials

NAMESPACE = "kserve-localmodel-jobs"
OWN = SourceOptions({"HF_TOKEN": "own", "AWS_SESSION_TOKEN": "own", "AWS_ROLE_ARN": "own"}, timeout_s=5.0)

Object = Mapping[str, Any]
World = Mapping[tuple[str, str], Object]


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
            by_key("minio", region="eu-1", endpoint_url="http://other"),
            storage_config(minio=S3),
            S3_ENV | {"AWS_ENDPOINT_URL": "http://other", "AWS_DEFAULT_REGION": "eu-1"},
            id="parameters win",
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
                    ANNOTATION + "s3-cabundle": "/ca.pem",
                },
            ),
            S3_ENV
            | {
                "AWS_ENDPOINT_URL": "http://minio:9000",
                "AWS_DEFAULT_REGION": "r",
                "S3_VERIFY_SSL": "0",
                "S3_USER_VIRTUAL_BUCKET": "1",
                "awsAnonymousCredential": "false",
                "AWS_CA_BUNDLE": "/ca.pem",
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
