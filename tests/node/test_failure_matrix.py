"""Every way an origin or a disk can fail: what is said about it, and that it ends without a person once the fault does.

Each row makes one thing go wrong for a real agent, waits until the agent says so (reason, message, when it tries
again), takes the fault away, and waits for the model. Nothing but the fault is taken away.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import random
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from actors.agent.agent import AgentSettings, NodeAgent
from actors.errors import SourceError
from actors.fill import files, origin_connections
from actors.manifest import Location, ModelSource, Resolved, storage_key
from actors.messages import DesiredModel, DesiredRoot, DesiredState, ModelReport, NodeName, Phase
from actors.sources.options import SourceOptions
from actors.sources.resolve import resolve
from actors.transport import redirects as reach
from actors.transport.redirects import Reach
from coordinator.dev.certificates import Authority
from coordinator.dev.origin.faults import Fault
from coordinator.dev.origin.server import Origin
from coordinator.dev.trial.waiting import eventually
from tests.kit.disks import somebody_else, tmpfs
from tests.kit.tls import TlsFront

KIB = 1 << 10
REPO = "lab/model"
URI = f"hf://{REPO}"
WEIGHTS = "weights.safetensors"
WEIGHTS_BYTES = 300 * KIB


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("matrix") / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / WEIGHTS).write_bytes(random.Random(3).randbytes(WEIGHTS_BYTES))
    return folder


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls") / "authority")


class World:
    """An origin, a node and its agent. `offset_s` is how wrong the node's clock is."""

    def __init__(self, folder: Path, tmp_path: Path, authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.tmp_path, self.authority, self.monkeypatch = folder, tmp_path, authority, monkeypatch
        self.closing = ExitStack()
        self.origin = self.closing.enter_context(Origin({REPO: folder}))
        self.host_root = tmp_path / "host"
        self.root = self.host_root / "models"
        self.root.mkdir(parents=True)
        self.offset_s = 0.0
        self.passed_s = 0.0
        self.resolved = self.resolve()
        self.agent: NodeAgent | None = None

    @property
    def published(self) -> Path:
        return self.root / "models" / storage_key(self.resolved.manifest.source.uri)

    def resolve(self, uri: str = URI) -> Resolved:
        return resolve(ModelSource(uri), SourceOptions({"HF_ENDPOINT": self.origin.hub_endpoint}))

    def move(self, url: str) -> None:
        """The files are to be read below `url`, from now on."""
        locations = tuple(Location(f"{url}/files/{REPO}/{file.path}") for file in self.resolved.manifest.files)
        self.resolved = replace(self.resolved, locations=locations)

    def desired(self) -> DesiredState:
        resolved = self.resolved
        uri = resolved.manifest.source.uri
        model = DesiredModel(storage_key(uri), "/models", resolved.manifest.source, resolved.name)
        return DesiredState("cluster-1", (DesiredRoot("/models"),), (model,), {resolved.name: resolved})

    def tick(self) -> ModelReport | None:
        """As the coordinator does it every few seconds."""
        if self.agent is None:
            self.agent = self._agent()
        return next(iter(self.agent.reconcile(self.desired()).models), None)

    def until(self, reached: Callable[[ModelReport], bool]) -> ModelReport:
        def look() -> ModelReport | None:
            report = self.tick()
            return report if report is not None and reached(report) else None

        report = eventually(look, timeout_s=30, every_s=0.01, seen=self.tick)
        assert report is not None
        return report

    def close(self) -> None:
        self.origin.faults.clear()
        if self.agent is not None:
            self.agent.close()
        self.closing.close()

    def _agent(self) -> NodeAgent:
        settings = AgentSettings(
            host_root=self.host_root,
            headroom_bytes=0,
            connections=2,
            chunk_bytes=64 * KIB,
            stall_timeout_s=0.3,
            min_speed_bytes_per_s=10 * KIB,
            chunk_tries=2,
            chunk_backoff_first_s=0.02,
            chunk_backoff_max_s=0.05,
            backoff_first_s=0.3,
            backoff_max_s=0.3,
        )
        return NodeAgent(NodeName("node-1"), settings, clock=self.clock, steady=self.steady, rng=random.Random(1))

    def clock(self) -> float:
        return time.time() + self.offset_s

    def steady(self) -> float:
        return time.monotonic() + self.passed_s


@pytest.fixture
def world(folder: Path, tmp_path: Path, authority: Authority, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    world = World(folder, tmp_path, authority, monkeypatch)
    yield world
    world.close()


@dataclass(frozen=True)
class Row:
    """While `fault` is entered, the model is in `phase` because of `reason`, and `message` is part of what is said."""

    fault: Callable[[World], AbstractContextManager[None]]
    reason: str
    message: str
    phase: Phase = Phase.FAILED
    timed: bool = True
    """It says when it tries again; not so where it looks with every tick whether it can start."""


def origin(**fault: object) -> Callable[[World], AbstractContextManager[None]]:
    """The origin fails so, wherever the bytes of the weights come from."""

    @contextmanager
    def entered(world: World) -> Iterator[None]:
        world.origin.faults.set(Fault(**{"path": f"*{WEIGHTS}", **fault}))  # type: ignore[arg-type]  # by name
        yield
        world.origin.faults.clear()

    return entered


@contextmanager
def unreachable(world: World) -> Iterator[None]:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    world.move(f"http://127.0.0.1:{port}")
    yield
    world.closing.enter_context(Origin({REPO: world.folder}, port=port))


@contextmanager
def a_head_in_drops(world: World) -> Iterator[None]:
    """A server that sends one byte of its answer's head after the other."""
    listener = socket.create_server(("127.0.0.1", 0))
    over = threading.Event()

    def serve() -> None:
        while not over.is_set():
            with contextlib.suppress(OSError):
                connection, _ = listener.accept()
                threading.Thread(target=drip, args=(connection,)).start()

    def drip(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            for letter in "HTTP/1.1 200 OK\r\nX-Long: " + "x" * 1000:
                connection.sendall(letter.encode())
                if over.wait(0.05):
                    return

    server = threading.Thread(target=serve)
    server.start()
    before = world.resolved
    world.move(f"http://127.0.0.1:{listener.getsockname()[1]}")
    yield
    over.set()
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    server.join()
    world.resolved = before


@contextmanager
def without_dns(world: World) -> Iterator[None]:
    def fail(*_: object, **__: object) -> object:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    world.move(world.origin.url.replace("127.0.0.1", "localhost"))
    with world.monkeypatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", fail)
        yield


@contextmanager
def untrusted(world: World) -> Iterator[None]:
    stranger = Authority(world.tmp_path / "stranger")
    with behind_tls(world, stranger.good()):
        yield


@contextmanager
def behind_tls(world: World, certificate: object) -> Iterator[None]:
    world.monkeypatch.setenv("SSL_CERT_FILE", str(world.authority.file))
    front = world.closing.enter_context(TlsFront(world.origin.url, certificate))  # type: ignore[arg-type]  # an SSLContext
    world.move(front.url)
    yield
    front.context = world.authority.good()


@contextmanager
def back_to_plain_http(world: World) -> Iterator[None]:
    with behind_tls(world, world.authority.good()):
        target = f"{world.origin.url}/files/{REPO}/{WEIGHTS}"
        world.origin.faults.set(Fault(path=f"/files/*{WEIGHTS}", status=302, location=target))
        yield
        world.origin.faults.clear()


@contextmanager
def from_the_internet_to(world: World, target: str) -> Iterator[None]:
    """The origin at 127.0.0.1 counts as one on the internet."""
    real = reach.reach_of
    world.monkeypatch.setattr(
        origin_connections, "reach_of", lambda host: Reach.INTERNET if host == "127.0.0.1" else real(host)
    )
    world.origin.faults.set(Fault(path=f"/files/*{WEIGHTS}", status=302, location=target))
    world.move(world.origin.url)
    yield
    world.origin.faults.clear()


def to_another_loopback(world: World) -> AbstractContextManager[None]:
    other = world.closing.enter_context(Origin({REPO: world.folder}, host="127.0.0.2"))
    return from_the_internet_to(world, f"{other.url}/files/{REPO}/{WEIGHTS}")


@contextmanager
def another_file(world: World) -> Iterator[None]:
    """The file is replaced between the listing and the reading; the coordinator lists it again when it hears of it."""
    shelf = world.tmp_path / "shelf"
    shelf.mkdir()
    (shelf / "m.bin").write_bytes(b"before" * 20_000)
    shop = world.closing.enter_context(Origin(files=shelf))
    world.resolved = world.resolve(f"{shop.url}/files/m.bin")
    (shelf / "m.bin").write_bytes(b"after" * 30_000)
    yield
    world.resolved = world.resolve(f"{shop.url}/files/m.bin")


@contextmanager
def a_mount(world: World, options: str) -> Iterator[None]:
    world.closing.enter_context(tmpfs(world.root, options))
    yield


@contextmanager
def full_disk(world: World) -> Iterator[None]:
    with a_mount(world, "size=256k"):
        world.monkeypatch.setattr(os, "statvfs", lambda path: _ROOMY)  # it fills up after it was measured
        yield
        subprocess.run(["mount", "-o", "remount,size=4m", str(world.root)], check=True)


_ROOMY = os.statvfs_result((4096, 4096, 1 << 20, 1 << 20, 1 << 20, 0, 0, 0, 0, 255))


@contextmanager
def failing_disk(world: World) -> Iterator[None]:
    """The block device below the root loses its end and gets it back: what is written there fails as on a bad disk.

    Only contents lie there: folders are kept within the inodes (`inline_data`), and those at the beginning.
    """
    image, mib = world.tmp_path / "disk", 1 << 20
    image.touch()
    os.truncate(image, 24 * mib)
    features = "^has_journal,inline_data"
    run = functools.partial(subprocess.run, capture_output=True, text=True, check=False)
    made = run(["mkfs.ext4", "-q", "-b", "4096", "-I", "512", "-O", features, "-E", "lazy_itable_init=0", str(image)])
    device = run(["losetup", "--find", "--show", str(image)]).stdout.strip() if made.returncode == 0 else ""
    if not device:
        pytest.skip("may not make a block device here")
    world.closing.callback(lambda: subprocess.run(["losetup", "--detach", device], check=True))
    if run(["mount", "-t", "ext4", "-o", "errors=continue", device, str(world.root)]).returncode != 0:
        pytest.skip("may not mount an ext4 here")
    world.closing.callback(lambda: subprocess.run(["umount", "-l", str(world.root)], check=True))
    world.agent = world._agent()
    with (world.root / "filler").open("wb") as filler, contextlib.suppress(OSError):  # until the disk is full
        while True:
            os.posix_fallocate(filler.fileno(), os.fstat(filler.fileno()).st_size, 64 * KIB)
    os.truncate(world.root / "filler", 12 * mib)  # what is free now lies behind that
    os.sync()

    def resize(size: int) -> None:
        os.truncate(image, size)
        subprocess.run(["losetup", "--set-capacity", device], check=True)

    resize(4 * mib)
    yield
    resize(24 * mib)


def failing_disk_under_a_large_file(world: World) -> AbstractContextManager[None]:
    world.monkeypatch.setattr(files, "SMALL_FILE_BYTES", 1)
    return failing_disk(world)


@contextmanager
def read_only_from_the_start(world: World) -> Iterator[None]:
    with a_mount(world, "size=4m,ro"):
        yield
        subprocess.run(["mount", "-o", "remount,rw", str(world.root)], check=True)


@contextmanager
def read_only_later(world: World) -> Iterator[None]:
    with a_mount(world, "size=4m"):
        world.agent = world._agent()
        subprocess.run(["mount", "-o", "remount,ro", str(world.root)], check=True)
        yield
        subprocess.run(["mount", "-o", "remount,rw", str(world.root)], check=True)


def permission_denied(world: World) -> AbstractContextManager[None]:
    return somebody_else(world.root)


def disk_call(name: str, number: int) -> Callable[[World], AbstractContextManager[None]]:
    """The kernel answers this call with this error. At the seam, because a disk that fails on demand is not at hand."""

    @contextmanager
    def entered(world: World) -> Iterator[None]:
        def fail(*_: object) -> int:
            raise OSError(number, os.strerror(number))

        with world.monkeypatch.context() as patch:
            patch.setattr(os, name, fail)
            yield

    return entered


ROWS = {
    "unreachable": Row(unreachable, "SourceUnreachable", "could not be reached: Connection refused"),
    "the name does not resolve": Row(without_dns, "SourceUnreachable", "its host name does not resolve: Name or"),
    "TLS: untrusted": Row(untrusted, "SourceUntrusted", "unable to get local issuer certificate"),
    "TLS: expired": Row(
        lambda world: behind_tls(world, world.authority.expired()), "SourceUntrusted", "certificate has expired"
    ),
    "TLS: wrong host": Row(
        lambda world: behind_tls(world, world.authority.elsewhere()), "SourceUntrusted", "IP address mismatch"
    ),
    "401": Row(origin(path="*/resolve/*", status=401), "SourceDenied", "answered HTTP 401: it wants credentials"),
    "403": Row(origin(path="*/resolve/*", status=403), "SourceDenied", "answered HTTP 403: it wants credentials"),
    "403 for a signed link": Row(origin(path="/_cdn/*", status=403), "SourceExpired", "it expired or was revoked"),
    "404": Row(origin(status=404), "SourceNotFound", "answered HTTP 404: there is no such file"),
    "408": Row(origin(status=408), "SourceError", "answered HTTP 408"),
    "429 with a time": Row(
        origin(status=429, retry_after="1"), "SourceThrottled", "too many requests, try again in 1s", Phase.DOWNLOADING
    ),
    "429 without a time": Row(origin(status=429), "SourceThrottled", "answered HTTP 429: too many requests"),
    "500": Row(origin(status=500), "SourceError", "answered HTTP 500"),
    "502": Row(origin(status=502), "SourceError", "answered HTTP 502"),
    "503": Row(origin(status=503), "SourceThrottled", "answered HTTP 503: too many requests"),
    "504": Row(origin(status=504), "SourceError", "answered HTTP 504"),
    "cut at once": Row(origin(drop_after_bytes=0), "SourceError", "broke off at byte"),
    "cut in the middle": Row(origin(drop_after_bytes=1000), "SourceError", "broke off at byte", Phase.DOWNLOADING),
    "silent before the answer": Row(origin(latency_s=30), "SourceStalled", "did not answer within 0.3 s"),
    "silent within the answer": Row(origin(stall_after_bytes=0), "SourceStalled", "sent nothing for 0.3 s"),
    "a trickle": Row(origin(trickle_bytes_per_s=50), "SourceStalled", "bytes in 0."),
    "a head in drops": Row(a_head_in_drops, "SourceStalled", "bytes in 0."),
    "too little": Row(origin(truncate_bytes=WEIGHTS_BYTES), "SourceError", "ended at byte"),
    # "too much" and "another range" are no failures: the whole is asked for (tests/sourcing/test_web_servers.py)
    "a range of another file": Row(
        origin(content_range="bytes 0-65535/99999999"), "SourceChanged", "has 99999999 bytes, it had 307200 when"
    ),
    "wrong bytes always": Row(origin(corrupt_bytes=1), "IntegrityError", f"{WEIGHTS}: expected sha256:"),
    "the file was replaced": Row(another_file, "SourceChanged", "changed: its ETag is"),
    "redirects in a circle": Row(
        origin(path="*/resolve/*", status=302, location=f"/{REPO}/resolve/main/{WEIGHTS}"),
        "RedirectLoop",
        "redirects more than 5 times",
    ),
    "a redirect to a file": Row(
        origin(status=302, location="file:///etc/passwd"), "RedirectRefused", "only http and https are followed"
    ),
    "a redirect to ftp": Row(
        origin(status=302, location="ftp://127.0.0.1/x"), "RedirectRefused", "only http and https are followed"
    ),
    "a redirect away from https": Row(back_to_plain_http, "RedirectRefused", "https is not given up"),
    "a redirect from the internet to this host": Row(
        to_another_loopback,
        "RedirectRefused",
        "it is less public than where it comes from (LOCALMODEL_PRIVATE_REDIRECTS=1",
    ),
    "disk full": Row(full_disk, "InsufficientStorage", "the disk is full: ", Phase.PENDING),
    "read-only when the agent starts": Row(
        read_only_from_the_start, "DiskReadOnly", "Read-only file system", timed=False
    ),
    "read-only when a fill starts": Row(read_only_later, "DiskReadOnly", "Read-only file system"),
    "permission denied": Row(permission_denied, "DiskPermissionDenied", "Permission denied", timed=False),
    "the disk fails": Row(failing_disk, "DiskFailing", "syncing 2 small files: Input/output error"),
    "the disk fails under a large file": Row(
        failing_disk_under_a_large_file, "DiskFailing", f"syncing {WEIGHTS}: Input/output error"
    ),
    "a write fails": Row(disk_call("pwrite", errno.EIO), "DiskFailing", ": Input/output error"),
    "reading back fails": Row(disk_call("preadv", errno.EIO), "DiskFailing", "reading back what was written: Input"),
    "a sync fails": Row(disk_call("fsync", errno.EIO), "DiskFailing", "Input/output error"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ROWS)
def test_what_fails_is_said_and_ends_by_itself(name: str, world: World) -> None:
    row = ROWS[name]
    with row.fault(world):
        failed = world.until(
            lambda report: (
                report.phase is row.phase and report.failure is not None and report.failure.reason == row.reason
            )
        )
        assert failed.failure is not None
        assert row.message in failed.failure.message
        assert (failed.retry_at is not None) == row.timed
        assert not os.path.lexists(world.published), "a model is absent, or complete"
    ready = world.until(lambda report: report.phase is Phase.READY)
    assert ready.failure is None
    for path in world.published.rglob("*.safetensors"):
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)  # the disk is asked, and not the page cache
        os.close(descriptor)
        assert path.read_bytes() == (world.folder / path.name).read_bytes()


def test_bytes_that_are_wrong_once_are_read_once_more_and_nobody_needs_to_know(world: World) -> None:
    world.origin.faults.set(Fault(path=f"/_cdn/*{WEIGHTS}", corrupt_bytes=1, times=1))
    ready = world.until(lambda report: report.phase is Phase.READY)
    assert ready.attempt == 0
    assert world.origin.stats()["bytes"] == 2 * WEIGHTS_BYTES + len("{}")


def test_a_hub_whose_fresh_links_are_refused_for_a_moment_is_asked_again_at_once(world: World) -> None:
    """The location does not expire: it redirects, and signs another link for everybody who asks."""
    world.origin.faults.set(Fault(path=f"/_cdn/*{WEIGHTS}", status=403, times=2))
    ready = world.until(lambda report: report.phase is Phase.READY)
    assert ready.attempt == 0


@pytest.mark.slow
def test_a_push_in_the_middle_of_a_fill_does_not_touch_what_was_asked_for(world: World, tmp_path: Path) -> None:
    world.origin.faults.set(Fault(path=f"/_cdn/*{WEIGHTS}", stall_after_bytes=0, times=2))
    world.until(lambda report: report.phase is Phase.DOWNLOADING)
    (tmp_path / "next").mkdir()
    (tmp_path / "next" / "config.json").write_text('{"next": true}')
    world.origin.repos[REPO].push(tmp_path / "next")
    ready = world.until(lambda report: report.phase is Phase.READY)
    assert ready.revision == world.resolved.manifest.revision
    assert (world.published / WEIGHTS).stat().st_size == WEIGHTS_BYTES


def test_an_origin_that_asks_for_an_hour_is_left_alone_for_an_hour(world: World) -> None:
    world.origin.faults.set(Fault(path=f"/_cdn/*{WEIGHTS}", status=429, retry_after="3600"))
    failed = world.until(lambda report: report.phase is Phase.FAILED)
    assert failed.retry_at is not None
    assert 3590 < failed.retry_at - world.clock() <= 3600
    world.origin.faults.clear()
    asked = world.origin.stats()["requests"]
    for _ in range(5):
        world.tick()
    assert world.origin.stats()["requests"] == asked
    world.offset_s = world.passed_s = 3600
    world.until(lambda report: report.phase is Phase.READY)


@pytest.mark.slow
@pytest.mark.parametrize("jump_s", [-86_400, 86_400], ids=["back", "forward"])
def test_a_clock_that_jumps_neither_ends_nor_stalls_a_fill(jump_s: float, world: World) -> None:
    world.origin.faults.set(Fault(path=f"*{WEIGHTS}", status=500))
    world.until(lambda report: report.phase is Phase.FAILED)
    world.offset_s += jump_s
    world.until(lambda report: report.attempt >= 2)
    world.origin.faults.set(Fault(path=f"/_cdn/*{WEIGHTS}", latency_s=0.1))
    world.until(lambda report: report.phase is Phase.DOWNLOADING and report.failure is None)
    world.offset_s -= jump_s
    ready = world.until(lambda report: report.phase is Phase.READY)
    assert ready.failure is None


@pytest.mark.parametrize(
    "name",
    [
        "../evil",
        "a/../../evil",
        "/etc/evil",
        "a//b",
        "./a",
        "a\0b",
        "..\\evil",
        "",
        "\ud800",
    ],
)
def test_a_name_that_could_leave_the_folder_is_refused_before_anything_is_written(name: str, world: World) -> None:
    snapshot = world.origin.repos[REPO].main
    snapshot.files[name] = replace(snapshot.files["config.json"], path=name)
    with pytest.raises(SourceError, match="refusing the unsafe file name") as caught:
        world.resolve()
    assert caught.value.reason == "InvalidManifest"
