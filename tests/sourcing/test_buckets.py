"""What object stores call things: KServe's names for their settings, and what each knows of an object's digest."""

from __future__ import annotations

import base64
import errno
import hashlib
import sys
from typing import Any
from urllib.parse import urlsplit

import pytest
from botocore.config import Config
from botocore.session import Session

from actors.digest import Digester
from actors.errors import SourceUnsupported
from actors.manifest import Digest
from actors.sources.object_digests import described, s3_head
from actors.sources.object_stores import dialect_of, in_azure, s3_options
from actors.sources.options import SourceOptions

SHA256 = hashlib.sha256(b"weights").digest()
MD5 = hashlib.md5(b"weights").hexdigest()
CRC64 = base64.b64encode(bytes.fromhex("ae8b14860a799888")).decode()
CRC32C, CRC32 = (base64.b64encode(bytes.fromhex(each)).decode() for each in ("e3069283", "cbf43926"))
UNDER_KMS = {"ETag": f'"{MD5}"', "ServerSideEncryption": "aws:kms"}
IN_PARTS = f'"{MD5}-4"'


@pytest.mark.parametrize(
    ("head", "digest", "checksum"),
    [
        pytest.param({"ETag": f'"{MD5}"'}, f"md5:{MD5}", None, id="a plain object"),
        pytest.param({"ETag": f'"{MD5}"', "ServerSideEncryption": "AES256"}, f"md5:{MD5}", None, id="encrypted by S3"),
        pytest.param(UNDER_KMS, None, None, id="encrypted by KMS"),
        pytest.param(
            {"ETag": f'"{MD5}"', "SSECustomerAlgorithm": "AES256"}, None, None, id="encrypted by the customer"
        ),
        pytest.param(
            {"ETag": f'"{MD5}"', "ChecksumSHA256": base64.b64encode(SHA256).decode()},
            f"sha256:{SHA256.hex()}",
            None,
            id="with sha256",
        ),
        pytest.param(
            {"ETag": f'"{MD5}"', "ChecksumCRC64NVME": CRC64}, f"md5:{MD5}", None, id="an MD5 is better than a CRC"
        ),
        pytest.param(
            UNDER_KMS | {"ChecksumCRC64NVME": CRC64, "ChecksumType": "FULL_OBJECT"},
            None,
            "crc64nvme:ae8b14860a799888",
            id="a CRC is better than nothing",
        ),
        pytest.param(
            UNDER_KMS | {"ChecksumCRC32": CRC32, "ChecksumCRC32C": CRC32C}, None, "crc32c:e3069283", id="CRC32C"
        ),
        pytest.param(UNDER_KMS | {"ChecksumCRC32": CRC32}, None, "crc32:cbf43926", id="CRC32"),
        pytest.param(
            UNDER_KMS | {"ChecksumCRC32C": f"{CRC32C}-4", "ChecksumType": "COMPOSITE"},
            None,
            None,
            id="a CRC of the parts' CRCs is no help",
        ),
        pytest.param(
            {"ETag": f'"{MD5}"', "ChecksumSHA256": base64.b64encode(SHA256).decode(), "ChecksumType": "COMPOSITE"},
            f"md5:{MD5}",
            None,
            id="nor is a sha256 of them, however it is written",
        ),
    ],
)
def test_what_s3_knows_of_an_objects_digest(head: dict[str, str], digest: str | None, checksum: str | None) -> None:
    class Client:
        def call_s3(self, method: str, **arguments: str) -> dict[str, Any]:
            asked = {"Bucket": "bucket", "Key": "a/b.bin", "ChecksumMode": "ENABLED"}
            assert (method, arguments) == ("head_object", asked)
            return {"ContentLength": 7, **head}

    found = s3_head(Client(), "bucket/a/b.bin")
    assert (found.size, found.digest, found.checksum) == (7, digest, checksum)


@pytest.mark.parametrize(
    ("head", "parts", "digest"),
    [
        pytest.param({}, {1: 100, 2: 100}, f"md5-100:{MD5}-4", id="parts of one size"),
        pytest.param({"ContentLength": 400}, {1: 100, 2: 100}, f"md5-100:{MD5}-4", id="a last part of that size, too"),
        pytest.param({"ETag": f'"{MD5}-1"'}, {1: 350}, f"md5-350:{MD5}-1", id="one part"),
        pytest.param(
            {"ChecksumSHA256": base64.b64encode(SHA256).decode() + "-4"},
            {1: 100, 2: 100},
            f"md5-100:{MD5}-4",
            id="a sha256 of the parts' sha256s is no help",
        ),
        pytest.param({}, {1: 100, 2: 90}, None, id="parts of several sizes"),
        pytest.param(
            {"ChecksumCRC64NVME": CRC64}, {1: 100, 2: 100}, f"md5-100:{MD5}-4", id="this, too, is better than a CRC"
        ),
        pytest.param(
            {"ChecksumCRC64NVME": CRC64},
            {1: 100, 2: 90},
            "crc64nvme:ae8b14860a799888",
            id="parts of several sizes, and a CRC of the whole",
        ),
        pytest.param({}, {1: 60, 2: 60}, None, id="as many parts would not make it up"),
        pytest.param({}, {1: 350, 2: 350}, None, id="a store that does not know parts"),
        pytest.param({}, {1: OSError(errno.ENOSYS, "501")}, None, id="a store that refuses parts"),
        pytest.param({"ServerSideEncryption": "aws:kms"}, {}, None, id="encrypted by KMS"),
    ],
)
def test_what_s3_knows_of_an_object_that_was_uploaded_in_parts(
    head: dict[str, Any], parts: dict[int, int | OSError], digest: str | None
) -> None:
    class Client:
        def call_s3(self, method: str, **arguments: Any) -> dict[str, Any]:
            answer = {"ContentLength": 350, "ETag": IN_PARTS, **head}
            if "PartNumber" not in arguments:
                return answer
            found = parts[arguments["PartNumber"]]
            if isinstance(found, OSError):
                raise found
            return answer | {"ContentLength": found}

    found = s3_head(Client(), "bucket/a/b.bin")
    assert (found.digest or found.checksum) == digest


def test_trouble_while_asking_for_parts_is_not_taken_for_an_answer() -> None:
    class Client:
        def call_s3(self, method: str, **arguments: Any) -> dict[str, Any]:
            if "PartNumber" in arguments:
                raise OSError(errno.EBUSY, "SlowDown")
            return {"ContentLength": 350, "ETag": IN_PARTS}

    with pytest.raises(OSError, match="SlowDown"):
        s3_head(Client(), "bucket/a/b.bin")


@pytest.mark.parametrize("size", [0, 1, 99, 100, 101, 350, 400])
def test_the_digest_of_an_object_in_parts_is_computed_as_s3_does_it(size: int) -> None:
    content = bytes(byte % 251 for byte in range(size))
    parts = [hashlib.md5(content[at : at + 100]).digest() for at in range(0, size, 100)]
    digester = Digester("md5-100", size)
    for at in range(0, size, 37):
        digester.update(content[at : at + 37])
    assert digester.digest() == f"md5-100:{hashlib.md5(b''.join(parts)).hexdigest()}-{len(parts)}"


@pytest.mark.parametrize(
    ("algorithm", "expected"),
    [("crc64nvme", "ae8b14860a799888"), ("crc32c", "e3069283"), ("crc32", "cbf43926")],
)
def test_checksums_are_those_of_the_catalogue_and_stand_beside_the_sha256(algorithm: str, expected: str) -> None:
    """https://reveng.sourceforge.io/crc-catalogue/ has each one's checksum of these nine digits."""
    digits, checksum = b"123456789", Digest(f"{algorithm}:{expected}")
    digester = Digester("sha256", len(digits), checksum)
    for at in range(0, len(digits), 4):
        digester.update(memoryview(bytearray(digits))[at : at + 4])
    assert digester.digest() == f"sha256:{hashlib.sha256(digits).hexdigest()}"
    assert digester.mismatch(None) is None
    digester.update(b"0")
    assert (digester.mismatch(None) or "").startswith(f"expected {checksum}, got {algorithm}:")


def test_a_checksum_without_the_package_for_it_is_refused_and_the_package_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "awscrt", None)
    with pytest.raises(SourceUnsupported, match=r"crc64nvme, .* cannot be checked .*pip install awscrt") as caught:
        Digester("sha256", 9, Digest("crc64nvme:ae8b14860a799888"))
    assert caught.value.reason == "PackageMissing"


@pytest.mark.parametrize(
    ("info", "expected"),
    [
        pytest.param(
            {"md5Hash": base64.b64encode(SHA256[:16]).decode(), "crc32c": CRC32C},
            (f"md5:{SHA256[:16].hex()}", None, None),
            id="GCS",
        ),
        pytest.param(
            {"crc32c": CRC32C, "etag": "CKih16GjycICEAE="}, (None, "crc32c:e3069283", None), id="GCS, composite"
        ),
        pytest.param(
            {"content_settings": {"content_md5": bytearray(SHA256[:16])}, "etag": '"0x8D"'},
            (f"md5:{SHA256[:16].hex()}", None, '"0x8D"'),
            id="Azure",
        ),
        pytest.param(
            {"content_settings": {"content_md5": None}, "etag": '"0x8D"'}, (None, None, '"0x8D"'), id="Azure, no MD5"
        ),
        pytest.param({"size": 7}, (None, None, None), id="a folder"),
    ],
)
def test_what_a_listing_knows_of_an_objects_digest(
    info: dict[str, Any], expected: tuple[str | None, str | None, str | None]
) -> None:
    assert described(info) == expected


AZURE = {"account_name": "acct"}


@pytest.mark.parametrize(
    ("uri", "env", "url", "expected"),
    [
        pytest.param(
            "https://acct.blob.core.windows.net/models/llama/v1",
            {"AZURE_STORAGE_ACCESS_KEY": "k"},
            "abfs://models/llama/v1",
            AZURE | {"account_key": "k"},
            id="Azure, as KServe writes it",
        ),
        pytest.param(
            "https://acct.z12.blob.storage.azure.net/models/llama",
            {},
            "abfs://models/llama",
            AZURE | {"anon": True},
            id="Azure, in a zone",
        ),
        pytest.param(
            "az://models/llama",
            {"AZURE_STORAGE_ACCOUNT_NAME": "acct", "AZ_CLIENT_ID": "c", "AZ_CLIENT_SECRET": "s", "AZ_TENANT_ID": "t"},
            "az://models/llama",
            AZURE | {"client_id": "c", "client_secret": "s", "tenant_id": "t"},
            id="Azure, a service principal",
        ),
        pytest.param(
            "abfs://models/llama",
            {"STORAGE_OPTIONS": '{"account_name": "acct", "anon": false}'},
            "abfs://models/llama",
            AZURE | {"anon": False},
            id="Azure, the identity of the node",
        ),
        pytest.param(
            "gs://b/m", {"STORAGE_OPTIONS": '{"token": {}}'}, "gs://b/m", {"token": {}}, id="Google, with a key file"
        ),
        pytest.param(
            "hdfs://models/llama",
            {"STORAGE_OPTIONS": '{"host": "nn"}'},
            "webhdfs://models/llama",
            {"host": "nn"},
            id="HDFS",
        ),
    ],
)
def test_how_a_store_is_opened(uri: str, env: dict[str, str], url: str, expected: dict[str, Any]) -> None:
    dialect = dialect_of(uri, SourceOptions(env))
    assert (dialect.url, dialect.storage_options) == (url, expected)


@pytest.mark.parametrize(
    ("uri", "listed"),
    [
        ("https://acct.blob.core.windows.net/models/llama", True),
        ("https://acct.blob.core.windows.net/models/llama?sv=1&sig=x", False),
        ("https://acct.blob.core.windows.net/", False),
        ("https://acct.blob.core.windows.net.evil.example/models/llama", False),
        ("https://a.b.blob.core.windows.net/models", False),
        ("http://acct.blob.core.windows.net/models/llama", False),
    ],
)
def test_which_urls_are_containers_in_azure(uri: str, listed: bool) -> None:
    assert in_azure(uri) is listed


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        pytest.param(
            {"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "key", "AWS_SESSION_TOKEN": "token"},
            {"anon": False, "key": "id", "secret": "key", "token": "token"},
            id="keys",
        ),
        pytest.param({"awsAnonymousCredential": "True"}, {"anon": True}, id="anonymous"),
        pytest.param(
            {"AWS_ENDPOINT_URL": "http://minio:9000"}, {"endpoint_url": "http://minio:9000"}, id="an endpoint"
        ),
        pytest.param({"AWS_DEFAULT_REGION": "eu-1"}, {"client_kwargs": {"region_name": "eu-1"}}, id="a region"),
        pytest.param({"AWS_CA_BUNDLE": "/ca.pem"}, {"client_kwargs": {"verify": "/ca.pem"}}, id="a CA bundle"),
        pytest.param(
            {"AWS_CA_BUNDLE": "/ca.pem", "S3_VERIFY_SSL": "0"}, {"client_kwargs": {"verify": False}}, id="no checks"
        ),
    ],
)
def test_kserves_names_become_what_s3fs_calls_them(env: dict[str, str], expected: dict[str, object]) -> None:
    assert s3_options(SourceOptions(env)).items() >= expected.items()


@pytest.mark.parametrize(
    ("env", "style"),
    [({}, "auto"), ({"S3_USER_VIRTUAL_BUCKET": "1"}, "virtual"), ({"S3_USER_VIRTUAL_BUCKET": "0"}, "auto")],
)
def test_buckets_in_host_names_are_a_wish(env: dict[str, str], style: str) -> None:
    assert s3_options(SourceOptions(env))["config_kwargs"]["s3"] == {"addressing_style": style}


@pytest.mark.parametrize(
    ("env", "host"),
    [
        ({"S3_USE_ACCELERATE": "1"}, "bucket.s3-accelerate.amazonaws.com"),
        ({"S3_USE_ACCELERATE": "true", "AWS_DEFAULT_REGION": "eu-central-1"}, "bucket.s3-accelerate.amazonaws.com"),
        ({"S3_USE_ACCELERATE": "0"}, "bucket.s3.amazonaws.com"),
        ({"S3_USE_ACCELERATE": "1", "AWS_ENDPOINT_URL": "http://minio:9000"}, "minio:9000"),
    ],
)
def test_the_accelerated_endpoint_is_for_aws_alone(env: dict[str, str], host: str) -> None:
    given = s3_options(SourceOptions({"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "key", **env}))
    client = Session().create_client(
        "s3",
        region_name=given["client_kwargs"].get("region_name", "us-east-1"),
        endpoint_url=given["endpoint_url"],
        aws_access_key_id="id",
        aws_secret_access_key="key",  # of nobody
        config=Config(**given["config_kwargs"]),
    )
    signed = client.generate_presigned_url("get_object", Params={"Bucket": "bucket", "Key": "model"})
    assert urlsplit(signed).netloc == host
