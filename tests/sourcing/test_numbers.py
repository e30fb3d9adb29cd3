"""Numbers from outside, at each place where one comes in: within bounds, or what holds it is refused by name."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.agent.settings import AgentSettings
from actors.disk.journal import read
from actors.errors import SourceError
from actors.manifest import MAX_PATH_BYTES, Manifest, ManifestFile, ModelSource, make_manifest
from actors.numbers import LARGEST, count, decimal, moment, within
from actors.sizes import parse_bytes
from actors.sources.entries import files_of
from actors.sources.options import SourceOptions
from actors.sources.resolve import resolve
from actors.transferred import Transferred
from actors.transport.answers import expires_at, retry_after_s
from coordinator.cli import settings
from coordinator.cli.fill import add_fill_arguments
from coordinator.plan.origin_budget import parse_requests
from tests.sourcing.test_bounds import Answer, asked, sends, server

SOURCE = ModelSource("s3://bucket/model")
NO_SIZES = [-1, 2**63, 2**70, 1.5, 5.0, math.nan, math.inf, True, False, "5", "+5", "", None, [], {}]
"""What a document can hold where a size should be. `None` is a size that is not told."""


@pytest.mark.parametrize("value", NO_SIZES, ids=repr)
def test_a_count_is_a_whole_number_from_0_on(value: object) -> None:
    with pytest.raises(ValueError, match="no whole number from 0 on"):
        count(value)


@given(st.integers(0, LARGEST))
def test_every_other_number_is_a_count_and_can_be_written_and_read(value: int) -> None:
    assert count(value) == decimal(str(value)) == value


@pytest.mark.parametrize(
    "text", ["", " 5", "5 ", "+5", "-5", "1_000", "٣", "５", "²", "0x10", "1e3", "5.0", "9" * 20, "9" * 5000, "5\n"]
)
def test_a_number_in_a_header_is_ascii_digits(text: str) -> None:
    assert decimal(text) is None
    with pytest.raises(ValueError, match=r"PORT: .* is not a number from 1 to 9"):
        within("PORT", text, 1, 9)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e12, 2**70, True, "5", []], ids=repr)
def test_a_time_is_finite_and_has_a_date(value: object) -> None:
    with pytest.raises(ValueError, match="is no time"):
        moment(value)


# Sizes, by source


def hub(size: object) -> Answer:
    def answer(request: Any) -> None:
        described = {"id": "owner/name", "sha": "0" * 40, "gated": False, "siblings": []}
        tree = [{"type": "file", "path": "f", "oid": "1" * 40, "size": size}]
        sends(json.dumps(tree if "/tree/" in request.path else described).encode())(request)

    return answer


def hub_lfs(size: object) -> Answer:
    def answer(request: Any) -> None:
        described = {"id": "owner/name", "sha": "0" * 40, "gated": False, "siblings": []}
        tree = [{"type": "file", "path": "f", "oid": "1" * 40, "size": 9, "lfs": {"oid": "2" * 64, "size": size}}]
        sends(json.dumps(tree if "/tree/" in request.path else described).encode())(request)

    return answer


def registry(size: object) -> Answer:
    layer = {
        "mediaType": "application/octet-stream",
        "digest": f"sha256:{'1' * 64}",
        "size": size,
        "annotations": {"org.opencontainers.image.title": "f"},
    }
    kind = "application/vnd.oci.image.manifest.v1+json"
    return sends(json.dumps({"schemaVersion": 2, "mediaType": kind, "layers": [layer]}).encode(), kind)


def webhdfs(size: object) -> Answer:
    def answer(request: Any) -> None:
        entry = {"type": "FILE", "pathSuffix": "f", "length": size, "blockSize": 1}
        folder = {"type": "DIRECTORY", "pathSuffix": "", "length": 0}
        listed = {"FileStatuses": {"FileStatus": [entry]}}
        sends(json.dumps({"FileStatus": folder} if "GETFILESTATUS" in request.path else listed).encode())(request)

    return answer


BY_SOURCE = [("hf", hub), ("hf", hub_lfs), ("oci", registry), ("hdfs", webhdfs)]


@pytest.mark.parametrize("size", NO_SIZES, ids=repr)
@pytest.mark.parametrize(("kind", "answering"), BY_SOURCE, ids=["hub", "hub, LFS", "registry", "webhdfs"])
def test_a_size_that_is_none_is_refused_whoever_lists_it(
    kind: str, answering: Callable[[object], Answer], size: object
) -> None:
    with server(answering(size)) as place:
        uri, env = asked(kind, place)
        with pytest.raises(SourceError) as caught:
            resolve(ModelSource(uri), SourceOptions(env, 5.0))
    assert caught.value.reason in ("InvalidManifest", "InvalidAnswer")


@pytest.mark.parametrize("size", [0, 5, LARGEST])
@pytest.mark.parametrize(("kind", "answering"), BY_SOURCE, ids=["hub", "hub, LFS", "registry", "webhdfs"])
def test_any_other_size_is_taken(kind: str, answering: Callable[[object], Answer], size: int) -> None:
    with server(answering(size)) as place:
        uri, env = asked(kind, place)
        assert resolve(ModelSource(uri), SourceOptions(env, 5.0)).manifest.total_bytes == size


@pytest.mark.slow
@pytest.mark.parametrize("size", ["-5", "5.5", "nan", "1_000", "99999999999999999999", "", "+5", "five"])
def test_a_size_in_a_bucket_that_is_none_is_refused(size: str) -> None:
    body = (
        '<?xml version="1.0"?><ListBucketResult><Name>bucket</Name><IsTruncated>false</IsTruncated><Contents><Key>k/f'
        f"</Key><Size>{size}</Size><LastModified>2026-01-01T00:00:00Z</LastModified></Contents></ListBucketResult>"
    )

    def answer(request: Any) -> None:
        if request.command == "HEAD":
            request.send_response(200)
            request.send_header("Content-Length", "1000" if size in ("1_000", "+5") else size or "x")
            request.send_header("ETag", '"d41d8cd98f00b204e9800998ecf8427e"')
            request.end_headers()
        else:
            sends(body.encode(), "application/xml")(request)

    with server(answer) as place:
        uri, env = asked("s3", place)
        try:
            found = resolve(ModelSource(uri), SourceOptions(env, 2.0)).manifest.total_bytes
        except SourceError as error:
            assert error.reason != "ResolveFailed"  # noqa: PT017  # either outcome is right, a wrong number is not
        else:
            assert size in ("1_000", "+5")
            assert found == 1000  # what the object itself says


@pytest.mark.parametrize("size", NO_SIZES, ids=repr)
def test_a_size_that_any_filesystem_lists_is_a_whole_number(size: object) -> None:
    found = {"bucket/model/f": {"name": "bucket/model/f", "type": "file", "size": size}}
    with pytest.raises(SourceError, match="'bucket/model/f', which cannot be part of a model: its size"):
        files_of(SOURCE, found, "bucket/model")


@pytest.mark.parametrize("text", ["+5", "1_000", "٣".encode().decode("latin-1"), "-5", "9" * 30, "5, 5", "5;x"])
def test_a_length_of_a_web_server_that_is_none_is_no_size(text: str) -> None:
    def answer(request: Any) -> None:
        request.send_response(200)
        request.send_header("Content-Length", text)
        request.end_headers()
        request.wfile.write(b"12345")
        request.close_connection = True

    with server(answer) as place:
        try:
            found = resolve(ModelSource(f"http://{place}/f"), SourceOptions({}, 2.0)).manifest.total_bytes
        except SourceError as error:
            assert error.reason != "ResolveFailed"  # noqa: PT017  # either outcome is right, a wrong number is not
        else:
            assert found == 5  # as many as came


# Manifests


@pytest.mark.parametrize("size", [value for value in NO_SIZES if value is not None], ids=repr)
def test_no_manifest_has_a_size_that_is_none(size: Any) -> None:
    with pytest.raises(SourceError, match="lists 'f' with a size that is none"):
        make_manifest(SOURCE, None, [ManifestFile("f", size)])
    data = make_manifest(SOURCE, None, [ManifestFile("f", 5)]).to_json()
    data["files"][0]["size"] = size
    with pytest.raises(ValueError, match="no whole number"):
        Manifest.from_json(data)


def test_the_sum_of_sizes_is_bounded_too() -> None:
    with pytest.raises(SourceError, match="bytes together"):
        make_manifest(SOURCE, None, [ManifestFile("f", LARGEST), ManifestFile("g", 1)])
    assert make_manifest(SOURCE, None, [ManifestFile("f", LARGEST)]).total_bytes == LARGEST


@pytest.mark.parametrize(
    ("path", "good"),
    [
        ("n" * 255, True),
        ("n" * 256, False),
        ("ü" * 127 + "n", True),
        ("ü" * 128, False),
        ("folder/" + "n" * 256 + "/f", False),
        ("/".join(["n" * 200] * 15), True),
        ("/".join(["n" * 200] * 16), False),
    ],
)
def test_a_path_is_one_that_a_disk_takes(path: str, good: bool) -> None:
    assert good == (len(path.encode()) <= MAX_PATH_BYTES and max(map(len, map(str.encode, path.split("/")))) <= 255)
    if good:
        make_manifest(SOURCE, None, [ManifestFile(path, 1)])
        return
    with pytest.raises(SourceError, match="no disk takes a path") as caught:
        make_manifest(SOURCE, None, [ManifestFile(path, 1)])
    assert len(str(caught.value)) < 400


def test_names_that_differ_in_case_are_two_files() -> None:
    assert len(make_manifest(SOURCE, None, [ManifestFile("README", 1), ManifestFile("readme", 1)]).files) == 2


# Times


@pytest.mark.parametrize("text", ["nan", "inf", "-inf", "1e400", "1e300", "+5s", "", "soon", "1_0x"])
def test_a_signed_url_that_expires_at_no_time_does_not_say_when(text: str) -> None:
    assert expires_at(f"https://h/f?Signature=x&Expires={text}") is None


@pytest.mark.parametrize("text", ["nan", "inf", "-5", "+5", "1e9", "٣", "5.5", "", " "])
def test_a_pause_that_is_no_number_is_not_asked_for(text: str) -> None:
    assert retry_after_s({"Retry-After": text}) is None


@pytest.mark.parametrize("text", ["9" * 400, "99999999999"])
def test_a_pause_without_end_is_cut(text: str) -> None:
    assert retry_after_s({"Retry-After": text}) == 3600
    assert retry_after_s({"RateLimit": f"x;t={text}"}) in (3600, None)


# What lies on disks


@pytest.mark.parametrize(
    "line",
    [
        "[0,0,1.5]",
        "[0,0.0,5]",
        "[0.0,0,5]",
        "[true,0,5]",
        "[0,false,5]",
        "[0,0,true]",
        "[0,-1,5]",
        "[0,6,5]",
        "[0,0,11]",
        "[1,0,5]",
        "[-1,0,5]",
        "[0,0,NaN]",
        "[0,0,1e400]",
        "[0,0,-1.0]",
        '["0",0,5]',
        "[0,0]",
        "[" * 100_000,
        "{}",
    ],
)
def test_a_journal_ends_at_a_line_that_is_none(tmp_path: Path, line: str) -> None:
    path = tmp_path / "journal"
    path.write_text(f"[0,0,5]\n{line}\n[0,5,10]\n")
    done, length = read(path, [10])
    assert (list(done), list(done[0]), length) == ([0], [(0, 5)], 8)


@pytest.mark.parametrize("value", NO_SIZES, ids=repr)
def test_what_has_moved_is_counted_in_whole_bytes(value: object) -> None:
    for data in ({"bytesFromOrigin": value}, {"wrongPeers": {"n": value}}):
        with pytest.raises(ValueError, match="no whole number"):
            Transferred.from_json(data)


# Settings


BAD_SETTINGS: Mapping[str, tuple[str, ...]] = {
    "LOCALMODEL_CHUNK": ("0", "1", "-1", "63Ki", "2Gi", "9" * 30, "nan", "١Mi", "1_000_000", "1e9"),
    "LOCALMODEL_CONNECTIONS": ("0", "-1", "1025", "٣", "1_0", "nan", "9" * 30),
    "LOCALMODEL_CONCURRENT_MODELS": ("0", "1001", "+1"),
    "LOCALMODEL_STALL_TIMEOUT_SECONDS": ("0", "86401", "1e9", "inf", "9" * 30),
    "LOCALMODEL_SCRUB_INTERVAL_SECONDS": ("0", "9" * 20, "nan"),
    "LOCALMODEL_PEER_PORT": ("65536", "-1", "٨٠", "9" * 30),
    "LOCALMODEL_HEADROOM": ("-1", "9" * 30, "9999999999T", "NaN"),
    "LOCALMODEL_RATE_LIMIT": ("-1", "nan", "inf", "9" * 30),
    "LOCALMODEL_MIN_SPEED": ("-1", "1.5", "9" * 30),
}


@pytest.mark.parametrize(("name", "text"), [(name, text) for name, texts in BAD_SETTINGS.items() for text in texts])
def test_a_setting_out_of_bounds_is_refused_by_its_name(name: str, text: str) -> None:
    with pytest.raises(ValueError, match=f"^{name}: "):
        AgentSettings.from_env({name: text})


def test_settings_at_their_bounds_are_taken() -> None:
    env = {"LOCALMODEL_CHUNK": "64Ki", "LOCALMODEL_CONNECTIONS": "1024", "LOCALMODEL_STALL_TIMEOUT_SECONDS": "86400"}
    found = AgentSettings.from_env(env)
    assert (found.chunk_bytes, found.connections, found.stall_timeout_s) == (65536, 1024, 86400.0)
    assert AgentSettings.from_env({"LOCALMODEL_CHUNK": "1Gi"}) == replace(AgentSettings(), chunk_bytes=1 << 30)


@pytest.mark.parametrize("text", ["0", "-1", "1025", "٣", "1_0", "9" * 30, "nan"])
def test_the_connections_of_a_fill_are_a_number_within_bounds(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    add_fill_arguments(parser)
    with pytest.raises(SystemExit):
        parser.parse_args(["hf://a/b", "d", f"--connections={text}"])
    assert "is not a number from 1 to 1024" in capsys.readouterr().err


@pytest.mark.parametrize(
    "flag",
    [
        "--webhook-port=-1",
        "--webhook-port=99999",
        "--webhook-port=٨٠",
        "--tick-seconds=nan",
        "--tick-seconds=inf",
        "--tick-seconds=0",
        "--tick-seconds=-1",
        "--tick-seconds=1e400",
        "--eviction-idle-seconds=nan",
        "--origin-requests=0",
        "--origin-requests=٣",
        "--origin-requests=9999999999",
        "--origin-bandwidth=-1",
        "--origin-bandwidth=1e400",
        "--origin-budgets=https://h=0",
    ],
)
def test_a_flag_out_of_bounds_is_one_clear_line(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        settings.parse([flag], {})
    assert flag.partition("=")[0] in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "", "٣", "9" * 30])
def test_requests_are_a_number_from_1_on(text: str) -> None:
    with pytest.raises(ValueError, match="is not a number from 1 to"):
        parse_requests(text)


@pytest.mark.parametrize(
    "text", ["-1", "-0.1", "1e400", "1e99999999999", "8Ei", "9" * 90, "9" * 200, "٣", "1_000", "nan"]
)
def test_a_quantity_fits_into_what_kubernetes_has(text: str) -> None:
    with pytest.raises(ValueError, match=r"out of range|not a quantity|negative"):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("text", "size"), [("0", 0), ("1Ki", 1024), ("1e3", 1000), ("7Ei", 7 << 60), (str(LARGEST), LARGEST)]
)
def test_a_quantity_within_is_exact(text: str, size: int) -> None:
    assert parse_bytes(text) == size
