"""The stand-in hub: accepted by the hub's own client, exact in what it counts, and wrong only when asked to be."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from urllib.parse import urlsplit

import huggingface_hub
import pytest
from huggingface_hub import close_session
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.utils.tqdm import disable_progress_bars

from coordinator.dev.origin.faults import Fault
from coordinator.dev.origin.repository import Repository
from coordinator.dev.origin.sample import MIN_BYTES, REPO, write_sample
from coordinator.dev.origin.server import Origin

SAMPLE_BYTES = 200_000
SHARD = "model-00001-of-00004.safetensors"


@pytest.fixture(autouse=True)
def _quiet_hub_client(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY", True)  # it would ask the real hub
    disable_progress_bars()
    yield
    close_session()


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Message
    body: bytes


def ask(
    origin: Origin,
    path: str,
    headers: Mapping[str, str] | None = None,
    *,
    method: str = "GET",
    body: bytes | None = None,
) -> Answer:
    """One request on a connection of its own; redirects are not followed."""
    connection = http.client.HTTPConnection(urlsplit(origin.url).netloc, timeout=5)
    try:
        connection.request(method, path, body=body, headers=dict(headers or {}))
        response = connection.getresponse()
        return Answer(response.status, response.headers, response.read())
    finally:
        connection.close()


def files_below(folder: Path) -> dict[str, bytes]:
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {name: data for name, data in found.items() if not name.startswith(".cache/")}


def test_the_hubs_own_client_downloads_the_repository(origin: Origin, sample: Path, tmp_path: Path) -> None:
    huggingface_hub.snapshot_download(REPO, local_dir=tmp_path, endpoint=origin.hub_endpoint, token=False)
    assert files_below(tmp_path) == files_below(sample)
    assert origin.stats()["repos"][REPO]["bytes"] == SAMPLE_BYTES


@pytest.mark.slow
def test_a_gated_repository_is_described_to_all_and_given_to_the_token(sample: Path, tmp_path: Path) -> None:
    with Origin({"a/gated": Repository("a/gated", sample, token="let-me-in")}) as origin:
        assert huggingface_hub.HfApi(origin.hub_endpoint, token=False).model_info("a/gated").gated == "manual"
        with pytest.raises(GatedRepoError):
            huggingface_hub.snapshot_download("a/gated", local_dir=tmp_path, endpoint=origin.url, token=False)
        huggingface_hub.snapshot_download("a/gated", local_dir=tmp_path, endpoint=origin.url, token="let-me-in")
    assert files_below(tmp_path) == files_below(sample)


def test_a_private_repository_does_not_exist_without_the_token(sample: Path) -> None:
    with Origin({"a/private": Repository("a/private", sample, token="let-me-in", private=True)}) as origin:
        api = huggingface_hub.HfApi(origin.hub_endpoint)
        for token in (False, "wrong"):
            with pytest.raises(RepositoryNotFoundError):
                api.model_info("a/private", token=token)
        assert api.model_info("a/private", token="let-me-in").private


def test_an_old_commit_stays_readable_after_a_push(sample: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"version": 2}')
    with Origin({REPO: sample}) as origin:
        api = huggingface_hub.HfApi(origin.hub_endpoint, token=False)
        before = api.model_info(REPO).sha
        after = origin.repos[REPO].push(tmp_path)
        assert api.model_info(REPO).sha == after != before
        old = ask(origin, f"/{REPO}/resolve/{before}/config.json").body
        new = ask(origin, f"/{REPO}/resolve/main/config.json").body
        with pytest.raises(RevisionNotFoundError):
            api.model_info(REPO, revision="v9")
    assert (old, new) == ((sample / "config.json").read_bytes(), b'{"version": 2}')


def test_an_lfs_file_is_behind_a_link_to_another_host_that_needs_no_token_and_expires(sample: Path) -> None:
    repo = Repository("a/gated", sample, token="let-me-in")
    with Origin({"a/gated": repo}) as origin:
        headers = {"Authorization": "Bearer let-me-in"}
        redirect = ask(origin, f"/a/gated/resolve/main/{SHARD}", headers, method="HEAD")
        link = urlsplit(redirect.headers["Location"])
        assert (redirect.status, link.hostname) == (302, "localhost")
        assert redirect.headers["X-Linked-Etag"] == f'"{hashlib.sha256((sample / SHARD).read_bytes()).hexdigest()}"'
        target = f"{link.path}?{link.query}"
        assert ask(origin, target).body == (sample / SHARD).read_bytes()
        assert ask(origin, target.replace("Expires=", "Expires=9")).status == 403
        assert ask(origin, link.path).status == 403
    with Origin({REPO: sample}, link_ttl_s=-1) as origin:
        link = urlsplit(ask(origin, f"/{REPO}/resolve/main/{SHARD}").headers["Location"])
        assert ask(origin, f"{link.path}?{link.query}").status == 403


@pytest.mark.parametrize(
    ("header", "status", "start", "stop"),
    [
        pytest.param(None, 200, 0, 173, id="no range is the whole file"),
        pytest.param("bytes=0-9", 206, 0, 10, id="the last byte is included"),
        pytest.param("bytes=100-", 206, 100, 173, id="an open range goes to the end"),
        pytest.param("bytes=-3", 206, 170, 173, id="a suffix counts from the end"),
        pytest.param("bytes=170-999", 206, 170, 173, id="a range past the end is cut"),
        pytest.param("bytes=0-1,4-5", 200, 0, 173, id="several ranges are not understood"),
    ],
)
def test_a_range(origin: Origin, sample: Path, header: str | None, status: int, start: int, stop: int) -> None:
    content = (sample / "config.json").read_bytes()
    answer = ask(origin, f"/files/{REPO}/config.json", {"Range": header} if header else {})
    assert (answer.status, answer.body) == (status, content[start:stop])
    expected = f"bytes {start}-{stop - 1}/{len(content)}" if status == 206 else None
    assert answer.headers["Content-Range"] == expected


def test_a_range_behind_the_end_is_refused_with_the_size(origin: Origin) -> None:
    answer = ask(origin, f"/files/{REPO}/config.json", {"Range": "bytes=173-180"})
    assert (answer.status, answer.headers["Content-Range"]) == (416, "bytes */173")


def test_conditions_are_honoured(origin: Origin) -> None:
    path = f"/{REPO}/resolve/main/config.json"
    etag = ask(origin, path, method="HEAD").headers["ETag"]
    assert ask(origin, path, {"If-Match": etag}).status == 200
    assert ask(origin, path, {"If-Match": '"another"'}).status == 412
    assert ask(origin, path, {"Range": "bytes=0-3", "If-Range": '"another"'}).status == 200


@pytest.mark.parametrize("path", ["/files/../secret", f"/files/{REPO}/../../secret", "/files/nothing", "/nowhere"])
def test_nothing_outside_the_folders_is_served(origin: Origin, sample: Path, path: str) -> None:
    (sample.parent / "secret").write_text("secret")
    assert ask(origin, path).status == 404


def test_plain_files_are_served_from_their_folder(tmp_path: Path) -> None:
    (tmp_path / "model v1.gguf").write_bytes(b"weights")
    with Origin(files=tmp_path) as origin:
        assert ask(origin, "/files/model%20v1.gguf").body == b"weights"


CONFIG = f"/files/{REPO}/config.json"


def test_a_status_fault_lasts_as_often_as_it_says(origin: Origin) -> None:
    origin.faults.set(Fault(path="*/config.json", status=429, retry_after="2", times=2))
    answers = [ask(origin, CONFIG) for _ in range(3)]
    assert [answer.status for answer in answers] == [429, 429, 200]
    assert answers[0].headers["Retry-After"] == "2"
    assert ask(origin, f"/files/{REPO}/README.md").status == 200


def test_a_dropped_connection_has_sent_and_counted_exactly_what_was_asked(origin: Origin, sample: Path) -> None:
    origin.faults.set(Fault(drop_after_bytes=7))
    with pytest.raises(http.client.IncompleteRead) as caught:
        ask(origin, CONFIG, {"Range": "bytes=10-99"})
    assert caught.value.partial == (sample / "config.json").read_bytes()[10:17]
    assert origin.stats()["files"][f"{REPO}/config.json"] == {"bytes": 7, "requests": 1}


def test_corrupt_bytes_keep_the_length(origin: Origin, sample: Path) -> None:
    content = (sample / SHARD).read_bytes()
    origin.faults.set(Fault(corrupt_bytes=5))
    body = ask(origin, f"/files/{REPO}/{SHARD}").body
    assert len(body) == len(content)
    assert [number for number, (sent, true) in enumerate(zip(body, content, strict=True)) if sent != true] == [
        0,
        1,
        2,
        3,
        4,
    ]


def test_a_truncated_answer_is_shorter_and_says_so(origin: Origin, sample: Path) -> None:
    origin.faults.set(Fault(truncate_bytes=50))
    answer = ask(origin, CONFIG)
    assert answer.body == (sample / "config.json").read_bytes()[:-50]
    assert answer.headers["Content-Length"] == str(len(answer.body))


def test_a_wrong_etag_fails_the_condition_on_the_true_one(origin: Origin) -> None:
    etag = ask(origin, CONFIG).headers["ETag"]
    origin.faults.set(Fault(etag='"other"'))
    assert ask(origin, CONFIG).headers["ETag"] == '"other"'
    assert ask(origin, CONFIG, {"If-Match": etag}).status == 412


def test_a_stall_keeps_the_connection_open_and_ends_with_the_origin(sample: Path) -> None:
    before = set(threading.enumerate())
    with Origin({REPO: sample}) as origin:
        origin.faults.set(Fault(stall_after_bytes=3))
        connection = http.client.HTTPConnection(urlsplit(origin.url).netloc, timeout=0.2)
        connection.request("GET", CONFIG)
        response = connection.getresponse()
        assert response.read(3) == (sample / "config.json").read_bytes()[:3]
        with pytest.raises(TimeoutError):
            response.read(1)
        started = time.monotonic()
    connection.close()
    assert time.monotonic() - started < 5
    assert set(threading.enumerate()) <= before


def test_latency_comes_before_the_answer(origin: Origin) -> None:
    origin.faults.set(Fault(latency_s=0.1))
    started = time.monotonic()
    assert ask(origin, CONFIG).status == 200
    assert time.monotonic() - started >= 0.1


def test_faults_can_be_set_and_cleared_over_http(origin: Origin) -> None:
    document = json.dumps([{"path": "*.json", "status": 503, "times": 5}]).encode()
    assert ask(origin, "/_faults", method="PUT", body=document).status == 200
    assert ask(origin, CONFIG).status == 503
    assert [fault["times"] for fault in json.loads(ask(origin, "/_faults").body)] == [4]
    assert ask(origin, "/_faults", method="PUT", body=b'[{"no such": "field"}]').status == 400
    assert ask(origin, "/_faults", method="DELETE").status == 200
    assert ask(origin, CONFIG).status == 200


def test_every_connection_is_limited_to_the_rate(sample: Path) -> None:
    """Each by itself: sixteen together do not take sixteen times as long as one."""
    count, rate = 16, 200_000
    with Origin({REPO: sample}, rate_bytes_per_s=rate) as origin, ThreadPoolExecutor(count) as pool:
        started = time.monotonic()
        sizes = list(pool.map(lambda _: len(ask(origin, f"/files/{REPO}/{SHARD}").body), range(count)))
        took_s = time.monotonic() - started
    alone_s = sizes[0] / rate
    assert 0.8 * alone_s <= took_s < 0.8 * count * alone_s


def test_dozens_of_connections_at_once_are_all_served(origin: Origin, sample: Path) -> None:
    size = (sample / SHARD).stat().st_size
    with ThreadPoolExecutor(64) as pool:
        sizes = list(pool.map(lambda _: len(ask(origin, f"/files/{REPO}/{SHARD}").body), range(64)))
    assert sizes == [size] * 64
    assert json.loads(ask(origin, "/_stats").body)["bytes"] == 64 * size


@pytest.mark.parametrize("total_bytes", [MIN_BYTES, 100_001, 3_000_000])
def test_the_sample_has_its_size_and_is_the_same_every_time(tmp_path: Path, total_bytes: int) -> None:
    for name in ("one", "two", "two"):
        write_sample(tmp_path / name, total_bytes)
    one = files_below(tmp_path / "one")
    assert sum(map(len, one.values())) == total_bytes
    assert one == files_below(tmp_path / "two")
    assert one["special_tokens.empty"] == b""


def test_the_samples_shards_are_valid_safetensors_that_the_index_names(sample: Path) -> None:
    index = json.loads((sample / "model.safetensors.index.json").read_text())
    weights_bytes = 0
    tensors: dict[str, str] = {}
    for shard in sample.glob("*.safetensors"):
        data = shard.read_bytes()
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        ends = [header[name]["data_offsets"][1] for name in header if name != "__metadata__"]
        assert max(ends) == len(data) - 8 - length
        weights_bytes += max(ends)
        tensors |= {name: shard.name for name in header if name != "__metadata__"}
    assert index == {"metadata": {"total_size": weights_bytes}, "weight_map": dict(sorted(tensors.items()))}


def test_a_sample_that_is_too_small_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least 65536 bytes"):
        write_sample(tmp_path / "sample", 1000)


@pytest.mark.e2e
def test_the_process_says_when_it_serves_and_ends_on_sigterm(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "config.json").write_text("{}")
    command = [sys.executable, "-m", "coordinator.dev.origin", "--size", "1MiB", "--directory", str(tmp_path)]
    command += ["--repo", f"owner/real={tmp_path / 'real'}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, "PYTHONUNBUFFERED": "1"}) as process:
        assert process.stdout is not None
        ready = json.loads(process.stdout.readline())
        api = huggingface_hub.HfApi(ready["url"], token=False)
        assert api.model_info("owner/real").sha == ready["repos"]["owner/real"]["commit"]
        assert ready["repos"][REPO]["bytes"] == 1 << 20
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
