"""Objects of S3 that nothing but a checksum vouches for: from the bucket to the disk of a node, over real sockets."""

from __future__ import annotations

import base64
import hashlib
import json
import random
from collections.abc import Iterator

import pytest

from actors.manifest import ModelSource, Resolved, storage_key
from actors.messages import Phase
from actors.sources.options import SourceOptions
from actors.sources.resolve import resolve
from coordinator.dev.trial.waiting import eventually
from tests.kit.nodes import Node, until, wants
from tests.kit.s3 import S3, Object

URI = "s3://bucket/model"
KEY = storage_key(URI)
WEIGHTS = random.Random(5).randbytes(700_000)
CRC64 = "6942f3d297720d73"
"""Of WEIGHTS, bit by bit as in https://reveng.sourceforge.io/crc-catalogue/17plus.htm#crc.cat.crc-64-nvme"""
UNDER_KMS = {
    "ETag": '"0123456789abcdef0123456789abcdef-1"',
    "x-amz-server-side-encryption": "aws:kms",
    "x-amz-checksum-crc64nvme": base64.b64encode(bytes.fromhex(CRC64)).decode(),
    "x-amz-checksum-type": "FULL_OBJECT",
}


def crc64nvme(content: bytes) -> str:
    """The definition, too slow for anything else."""
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x9A6C9329AC4BC9B5 if byte & 1 else 0)
        table.append(byte)
    crc = 0xFFFFFFFFFFFFFFFF
    for byte in content:
        crc = table[(crc ^ byte) & 0xFF] ^ crc >> 8
    return f"{crc ^ 0xFFFFFFFFFFFFFFFF:016x}"


@pytest.fixture
def s3() -> Iterator[S3]:
    config = b"{}"
    plain = {"ETag": f'"{hashlib.md5(config).hexdigest()}"'}
    objects = {"weights.bin": Object(WEIGHTS, UNDER_KMS), "config.json": Object(config, plain)}
    with S3({f"bucket/model/{name}": content for name, content in objects.items()}) as s3:
        yield s3


def resolved(s3: S3) -> Resolved:
    env = {"AWS_ENDPOINT_URL": s3.url, "AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "key"}
    return resolve(ModelSource(URI), SourceOptions(env | {"AWS_DEFAULT_REGION": "us-east-1"}))


def test_what_only_a_checksum_vouches_for_is_checked_by_it_and_known_by_its_sha256(s3: S3, node: Node) -> None:
    assert crc64nvme(WEIGHTS) == CRC64
    found = resolved(s3)
    assert [(file.path, file.digest, file.checksum) for file in found.manifest.files] == [
        ("config.json", f"md5:{hashlib.md5(b'{}').hexdigest()}", None),
        ("weights.bin", None, f"crc64nvme:{CRC64}"),
    ]
    assert found.manifest.digest is None, "a checksum names nothing"
    agent = node.agent()
    agent.reconcile(wants(found))
    ready = until(agent, Phase.READY, key=KEY)
    assert ready.verified == {"md5": 1, "crc64nvme": 1}
    marker = json.loads((node.folder(URI) / ".localmodel/manifest.json").read_text())
    assert marker["verified"] == {"config.json": "md5", "weights.bin": "crc64nvme"}
    assert marker["manifest"]["files"][1] == {
        "path": "weights.bin",
        "size": len(WEIGHTS),
        "digest": f"sha256:{hashlib.sha256(WEIGHTS).hexdigest()}",
        "checksum": f"crc64nvme:{CRC64}",
    }


def test_bytes_with_another_checksum_are_read_once_more(s3: S3, node: Node) -> None:
    found = resolved(s3)
    s3.objects["bucket/model/weights.bin"].wrong = 1
    agent = node.agent()
    agent.reconcile(wants(found))
    ready = until(agent, Phase.READY, key=KEY)
    assert (ready.attempt, ready.bytes_from_origin) == (0, 2 * len(WEIGHTS) + len(b"{}"))
    assert (node.folder(URI) / "weights.bin").read_bytes() == WEIGHTS


@pytest.mark.slow
def test_bytes_that_never_have_the_checksum_are_not_published_until_they_do(s3: S3, node: Node) -> None:
    found = resolved(s3)
    s3.objects["bucket/model/weights.bin"].wrong = -1
    agent = node.agent()
    agent.reconcile(wants(found))
    failed = until(agent, Phase.FAILED, reason="IntegrityError", key=KEY)
    assert failed.failure is not None
    assert f"weights.bin: expected crc64nvme:{CRC64}, got crc64nvme:" in failed.failure.message
    assert failed.retry_at is not None
    assert not node.folder(URI).exists()
    s3.objects["bucket/model/weights.bin"].wrong = 0

    def tick() -> bool:
        agent.reconcile(wants(found))
        return node.folder(URI).exists()

    eventually(tick, every_s=0.01, seen=agent.report)
    assert until(agent, Phase.READY, key=KEY).failure is None
