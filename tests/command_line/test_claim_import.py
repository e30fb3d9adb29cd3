"""`localmodel import`, as the Job of an import runs it: in a folder with `models`, with Secrets as mounted files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from actors.manifest import storage_key
from coordinator import cli
from coordinator.dev.origin.repository import Repository
from coordinator.dev.origin.sample import REPO
from coordinator.dev.origin.server import Origin
from tests.kit.s3_server import S3, s3

SAMPLE_BYTES = 1 << 16
URI = "s3://bucket/model/"
CONTENT = {"model/config.json": b"{}", "model/sub/weights": b"w" * 4096}


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3]:
    monkeypatch.setenv("LOCALMODEL_ALLOW_ORIGINS", "127.0.0.1")
    with s3(CONTENT) as running:
        yield running


def imported(claim: Path, uri: str, *more: str, secrets: Path | None = None) -> int:
    secrets = secrets or claim.parent / "secrets"
    folder = claim / "models" / storage_key(uri)
    return cli.main(["import", "--namespace=team", f"--secrets={secrets}", *more, "--", uri, str(folder)])


def files(folder: Path) -> dict[str, bytes]:
    found = (each for each in folder.rglob("*") if each.is_file() and ".localmodel" not in each.parts)
    return {str(each.relative_to(folder)): each.read_bytes() for each in found}


def test_a_uri_that_ends_in_a_slash_has_both_names(bucket: S3, tmp_path: Path) -> None:
    anonymous = ("--parameter=type=s3", f"--parameter=endpoint_url={bucket.url}", "--parameter=anonymous=true")
    claim = tmp_path / "claim"
    wanted = {"config.json": b"{}", "sub/weights": b"w" * 4096}
    for _ in range(2):  # a pod that ended right before the second name is followed by another
        assert imported(claim, URI, *anonymous) == 0
        for uri in (URI, URI.removesuffix("/")):
            assert files(claim / "models" / storage_key(uri)) == wanted


def test_a_key_of_the_secret_of_keys_is_used(bucket: S3, tmp_path: Path) -> None:
    held = tmp_path / "secrets" / "storage-config"
    held.mkdir(parents=True)
    fields = {"type": "s3", "endpoint_url": bucket.url, "access_key_id": "a", "secret_access_key": "b"}
    (held / "team").write_text(json.dumps(fields))
    uri = "s3://bucket/model"
    assert imported(tmp_path / "claim", uri, "--storage-key=team") == 0
    assert imported(tmp_path / "other", uri, "--storage-key=../storage-config/team") == 1


@pytest.mark.parametrize(
    ("uri", "why"),
    [
        ("file:///etc", "no reader for file:// is allowed"),
        ("http://169.254.169.254/latest", "169.254.169.254"),
        ("http://127.0.0.1:1/x", "127.0.0.1"),
    ],
)
def test_what_no_operator_allows_is_not_read(
    uri: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("LOCALMODEL_ALLOW_ORIGINS", raising=False)
    assert imported(tmp_path / "claim", uri) == 1
    said = capsys.readouterr().err
    assert why in said
    assert "allow" in said
    assert not (tmp_path / "claim").exists()


def test_a_token_of_the_pod_is_not_every_tenants(
    sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LOCALMODEL_ALLOW_ORIGINS", "127.0.0.1")
    monkeypatch.setenv("HF_TOKEN", "hf_operator")
    with Origin({REPO: Repository(REPO, sample, token="hf_operator")}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.hub_endpoint)
        assert imported(tmp_path / "claim", f"hf://{REPO}") == 1
        assert "gated" in capsys.readouterr().err
        monkeypatch.delenv("LOCALMODEL_ALLOW_ORIGINS")
        assert cli.main(["fill", f"hf://{REPO}", str(tmp_path / "mine")]) == 0, "the token is right"


def test_a_wrong_allow_list_is_a_wrong_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCALMODEL_ALLOW_ORIGINS", "not an address/99")
    with pytest.raises(SystemExit) as ended:
        imported(tmp_path / "claim", URI)
    assert ended.value.code == 2
