"""Locations that expire while they are read are renewed for as long as something comes of it."""

from __future__ import annotations

import http.server
import itertools
import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from actors.agent.agent import AgentSettings, NodeAgent
from actors.disk.store import open_ingest
from actors.errors import SourceChanged, SourceDenied, SourceExpired, SourceThrottled
from actors.fill.fill import Fill
from actors.fill.origin_reader import RENEWALS_IN_VAIN, FillSettings
from actors.manifest import Location, Manifest, ManifestFile, ModelSource, Resolved, storage_key
from actors.messages import DesiredModel, DesiredRoot, DesiredState, NodeName, Phase
from actors.retry import RetryPolicy
from actors.sources.options import SourceOptions
from coordinator.api.resources import StatusKey
from coordinator.control.resolver import Resolver
from coordinator.dev.trial.waiting import eventually
from coordinator.plan.plan import Want
from coordinator.plan.snapshot import Credentials

CONTENT = random.Random(3).randbytes(400_000)
CHUNK = 64 << 10


class Links:
    """A file behind links, each of which is good for `uses` requests; another after that many is `status`."""

    def __init__(self, uses: int, status: int = 403) -> None:
        self.uses, self.status = uses, status
        self.left: dict[str, int] = {}
        self.handed_out = 0
        links, lock = self, threading.Lock()

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                with lock:
                    links.left[self.path] = links.left.get(self.path, links.uses) - 1
                    good = links.left[self.path] >= 0
                wanted = self.headers.get("Range") or f"bytes=0-{len(CONTENT) - 1}"
                start, _, last = wanted.removeprefix("bytes=").partition("-")
                part = CONTENT[int(start) : int(last) + 1] if good else b""
                self.send_response(206 if good else links.status)
                self.send_header("Content-Length", str(len(part)))
                if good:
                    self.send_header("Content-Range", f"bytes {start}-{last}/{len(CONTENT)}")
                self.end_headers()
                self.wfile.write(part)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # the base class names it
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    def resolved(self, signed: bool = True) -> Resolved:
        self.handed_out += 1
        query = "X-Amz-Signature" if signed else "number"
        url = f"http://127.0.0.1:{self.server.server_port}/w.bin?{query}={self.handed_out}"
        manifest = Manifest(ModelSource("s3://b/m"), None, (ManifestFile("w.bin", len(CONTENT)),))
        return Resolved(manifest, (Location(url),), expires_at=4e9)


@pytest.fixture
def links() -> Iterator[Callable[..., Links]]:
    running: list[tuple[Links, threading.Thread]] = []

    def start(uses: int, status: int = 403) -> Links:
        links = Links(uses, status)
        thread = threading.Thread(target=links.server.serve_forever, args=(0.05,))
        thread.start()
        running.append((links, thread))
        return links

    yield start
    for each, thread in running:
        each.server.shutdown()
        each.server.server_close()
        thread.join()


def fill(folder: Path, resolved: Resolved, renew: Callable[[], Resolved] | None, connections: int = 2) -> bytes:
    ingest = open_ingest(folder / "ingest", resolved.manifest, "c")
    ingest.allocate()
    settings = FillSettings(connections=connections, chunk_bytes=CHUNK, retry=RetryPolicy(0.01, 0.02))
    try:
        Fill(ingest, resolved, settings, renew=renew).run()
    finally:
        ingest.close()
    return (ingest.data / "w.bin").read_bytes()


@pytest.mark.parametrize("connections", [1, 4])
@pytest.mark.parametrize(("status", "signed"), [(403, True), (400, True), (401, False), (403, False)])
def test_links_that_end_again_and_again_are_renewed(
    status: int, signed: bool, connections: int, links: Callable[..., Links], tmp_path: Path
) -> None:
    origin = links(2, status)
    assert fill(tmp_path, origin.resolved(signed), lambda: origin.resolved(signed), connections) == CONTENT
    assert origin.handed_out >= 3


@pytest.mark.parametrize("signed", [True, False])
def test_links_that_are_refused_at_once_are_denied_and_not_renewed_for_ever(
    signed: bool, links: Callable[..., Links], tmp_path: Path
) -> None:
    origin = links(0)
    with pytest.raises(SourceDenied, match=r"HTTP 403.* So were fresh locations: a policy"):
        fill(tmp_path, origin.resolved(signed), lambda: origin.resolved(signed), connections=1)
    assert origin.handed_out == 1 + RENEWALS_IN_VAIN


def test_an_origin_in_trouble_when_links_are_renewed_is_asked_again(
    links: Callable[..., Links], tmp_path: Path
) -> None:
    origin, calls = links(3), itertools.count()

    def renew() -> Resolved:
        if next(calls) % 2 == 0:
            raise SourceThrottled("asks to slow down")
        return origin.resolved()

    assert fill(tmp_path, origin.resolved(), renew, connections=1) == CONTENT
    assert next(calls) >= 4


def test_what_does_not_expire_is_denied_at_once(links: Callable[..., Links], tmp_path: Path) -> None:
    origin = links(0)
    lasting = replace(origin.resolved(signed=False), expires_at=None)
    with pytest.raises(SourceDenied):
        fill(tmp_path, lasting, origin.resolved)
    assert origin.handed_out == 1


def test_without_somebody_to_renew_an_expired_link_ends_the_fill(links: Callable[..., Links], tmp_path: Path) -> None:
    with pytest.raises(SourceExpired) as caught:
        fill(tmp_path, links(2).resolved(), None)
    assert caught.value.failure().reason == "SourceExpired"
    assert "changed" not in str(caught.value)


def test_other_files_behind_the_renewed_links_end_it(links: Callable[..., Links], tmp_path: Path) -> None:
    origin = links(1)

    def renew() -> Resolved:
        fresh = origin.resolved()
        return replace(fresh, manifest=replace(fresh.manifest, files=(ManifestFile("w.bin", 7),)))

    with pytest.raises(SourceChanged, match="s3://b/m consists of other files") as caught:
        fill(tmp_path, origin.resolved(), renew)
    assert not isinstance(caught.value, SourceExpired)


@pytest.mark.parametrize(("status", "signed"), [(403, True), (401, False)])
def test_for_an_agent_the_coordinator_renews_as_often_as_it_takes(
    status: int, signed: bool, links: Callable[..., Links], tmp_path: Path
) -> None:
    """The links of one resolution are good for two of seven requests."""
    origin, source = links(2, status), ModelSource("s3://b/m")
    (tmp_path / "host" / "models").mkdir(parents=True)
    settings = AgentSettings(
        host_root=tmp_path / "host", headroom_bytes=0, connections=1, chunk_bytes=CHUNK, backoff_first_s=60
    )
    agent = NodeAgent(NodeName("n"), settings)
    resolver = Resolver(lambda source, options, *, pinned_revision=None: origin.resolved(signed), workers=1)
    key, rejected = StatusKey("m"), set[str]()

    def tick() -> bool:
        """What the coordinator does, without Kubernetes."""
        resolver.want({key: Want(source, Credentials(), reject=frozenset(rejected))}, lambda _: SourceOptions())
        resolved = resolver.resolutions()[key].resolved
        desired = DesiredState("c", (DesiredRoot("/models"),))
        if resolved is not None:
            model = DesiredModel(storage_key(source.uri), "/models", source, resolved.name)
            desired = replace(desired, models=(model,), resolved={resolved.name: resolved})
        (*reports,) = agent.reconcile(desired).models
        for report in reports:
            if report.failure is not None and report.resolved and report.phase is Phase.FAILED:
                assert report.failure.reason in ("SourceExpired", "SourceDenied")
                rejected.add(report.resolved)
        return any(report.phase is Phase.READY for report in reports)

    try:
        eventually(tick, every_s=0.02, seen=agent.report)
    finally:
        agent.close()
        resolver.close(5)
    assert origin.handed_out >= 3
    assert (tmp_path / "host" / "models" / "models" / storage_key(source.uri) / "w.bin").read_bytes() == CONTENT
