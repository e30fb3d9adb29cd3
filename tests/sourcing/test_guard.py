"""Every client that reads a source, over real sockets: 127.0.0.2 is allowed, 127.0.0.3 is not, whoever leads there."""

from __future__ import annotations

import asyncio
import hashlib
import json
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import aiohttp
import pytest
import requests
from huggingface_hub import close_session

from actors.addresses import ANYWHERE, Origins
from actors.errors import SourceDenied, SourceError
from actors.fill.range_reader import RangeReader
from actors.manifest import Location, ModelSource, Resolved
from actors.sources.filesystems import endpoints
from actors.sources.options import SourceOptions
from actors.sources.resolve import read_range, resolve
from actors.transport import guard
from actors.transport import redirects as reach
from actors.transport.guard import Refused, carried, check_name, guarded, refusal_in
from actors.transport.redirects import Reach
from actors.trust import STRICT, Trust
from tests.kit.witness import Answer, Witness

GOOD, BAD = "127.0.0.2", "127.0.0.3"
TRUST = Trust(STRICT.schemes, Origins.parse(GOOD))
FILE: Answer = (200, {"Content-Type": "application/octet-stream", "Accept-Ranges": "bytes"}, b"weights")
COMMIT = "a" * 40


@pytest.fixture(autouse=True)
def _nothing_kept() -> Iterator[None]:
    guard._known.clear()
    yield
    close_session()


@pytest.fixture
def good() -> Iterator[Witness]:
    with Witness(GOOD) as witness:
        yield witness


@pytest.fixture
def bad() -> Iterator[Witness]:
    with Witness(BAD) as witness:
        yield witness
        assert witness.asked == [], "not even a request"


def options(**env: str) -> SourceOptions:
    return SourceOptions(env, timeout_s=2.0, trust=TRUST)


def refused(attempt: Callable[[], object], reason: str = "OriginNotAllowed") -> str:
    with pytest.raises(SourceDenied) as caught:
        attempt()
    assert (caught.value.reason, caught.value.retryable) == (reason, False)
    return str(caught.value)


def moved(to: str) -> Answer:
    return 302, {"Location": to}, b""


# --- what is named ---

S3 = {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s", "AWS_DEFAULT_REGION": "us-east-1"}
NAMED: dict[str, Callable[[str, int], tuple[str, dict[str, str]]]] = {
    "web": lambda host, port: (f"http://{host}:{port}/m.bin", {}),
    "hub": lambda host, port: ("hf://a/b", {"HF_ENDPOINT": f"http://{host}:{port}"}),
    "registry": lambda host, port: (f"oci://{host}:{port}/a/b", {}),
    "s3": lambda host, port: ("s3://bucket/m", {**S3, "AWS_ENDPOINT_URL": f"http://{host}:{port}"}),
    "s3, anonymous": lambda host, port: (
        "s3://bucket/m",
        {"awsAnonymousCredential": "1", "AWS_ENDPOINT_URL": f"http://{host}:{port}"},
    ),
    "hdfs": lambda host, port: ("hdfs://m/x", {"STORAGE_OPTIONS": json.dumps({"host": host, "port": port})}),
    "hdfs, by the URI": lambda host, port: (f"webhdfs://{host}:{port}/x", {}),
}


@pytest.mark.parametrize("client", NAMED)
def test_an_origin_at_an_address_that_is_not_allowed_is_not_asked(client: str, bad: Witness) -> None:
    uri, env = NAMED[client](BAD, bad.port)
    message = refused(lambda: resolve(ModelSource(uri), options(**env)))
    assert BAD in message
    assert "--allow-origins" in message


@pytest.mark.slow
@pytest.mark.parametrize("client", NAMED)
def test_one_at_an_address_that_is_allowed_is(client: str, good: Witness) -> None:
    uri, env = NAMED[client](GOOD, good.port)
    with pytest.raises(SourceError) as caught:
        resolve(ModelSource(uri), options(**env))
    assert caught.value.reason != "OriginNotAllowed", "it answers 404"
    assert good.asked


@pytest.mark.parametrize("host", ["localhost", "0x7f.3", "2130706435", "127.3", "0177.0.0.3", "::ffff:127.0.0.3"])
def test_other_ways_to_write_an_address_lead_to_the_same(host: str, bad: Witness) -> None:
    place = f"[{host}]" if "::" in host else host
    refused(lambda: resolve(ModelSource(f"http://{place}:{bad.port}/m.bin"), options()))
    with pytest.raises(SourceError):  # some the hub's client does not understand
        resolve(ModelSource("hf://a/b"), options(HF_ENDPOINT=f"http://{place}:{bad.port}"))


# --- where an origin that is allowed leads ---


def test_a_web_server_leads_nowhere_else(good: Witness, bad: Witness) -> None:
    good.answer = lambda path: moved(f"{bad.url}/secret")
    refused(lambda: resolve(ModelSource(f"{good.url}/m.bin"), options()))


def test_nor_does_it_lead_a_node(good: Witness, bad: Witness) -> None:
    good.answer = lambda path: moved(f"{bad.url}/secret")
    reader = RangeReader(stall_timeout_s=2, trust=TRUST)
    refused(lambda: list(reader.blocks(Location(f"{good.url}/m.bin"), {}, 7, 0, 7)))
    refused(lambda: list(reader.blocks(Location(f"{bad.url}/m.bin"), {}, 7, 0, 7)))
    good.answer = lambda path: (206, {"Content-Range": "bytes 0-6/7"}, b"weights")
    assert b"".join(map(bytes, reader.blocks(Location(f"{good.url}/m.bin"), {}, 7, 0, 7))) == b"weights"
    reader.close()


def described(repo: object) -> Answer:
    return 200, {"Content-Type": "application/json"}, json.dumps(repo).encode()


REPO = {
    "id": "a/b",
    "sha": COMMIT,
    "private": True,
    "gated": False,
    "siblings": [{"rfilename": "config.json", "size": 2, "blobId": "b" * 40}],
}


def test_a_hubs_listing_leads_nowhere_else(good: Witness, bad: Witness) -> None:
    good.answer = lambda path: moved(f"{bad.url}/secret")
    refused(lambda: resolve(ModelSource("hf://a/b"), options(HF_ENDPOINT=good.url)))


def test_nor_does_a_small_file_that_is_carried_along(good: Witness, bad: Witness) -> None:
    tree = [{"type": "file", "path": "config.json", "size": 2, "oid": "b" * 40}]

    def answer(path: str) -> Answer:
        if path.startswith("/api/"):
            return described(tree if "/tree/" in path else REPO)
        return moved(f"{bad.url}/secret")

    good.answer = answer
    env = {"HF_ENDPOINT": good.url, "HF_TOKEN": "hf_x"}
    refused(lambda: resolve(ModelSource("hf://a/b"), options(**env)))


def test_a_registry_sends_no_login_elsewhere(good: Witness, bad: Witness) -> None:
    challenge = {"WWW-Authenticate": f'Bearer realm="{bad.url}/token",service="x"'}
    good.answer = lambda path: (401, challenge, b"")
    refused(lambda: resolve(ModelSource(f"oci://{GOOD}:{good.port}/a/b"), options()))


def test_nor_to_a_blob(good: Witness, bad: Witness) -> None:
    digest = f"sha256:{hashlib.sha256(b'weights').hexdigest()}"
    layer = {"mediaType": "x", "digest": digest, "size": 7, "annotations": {"org.opencontainers.image.title": "w"}}
    manifest = json.dumps({"schemaVersion": 2, "layers": [layer]}).encode()

    def answer(path: str) -> Answer:
        if "/blobs/" in path:
            return moved(f"{bad.url}/secret")
        return 200, {"Content-Type": "application/vnd.oci.image.manifest.v1+json"}, manifest

    good.answer = answer
    resolved = resolve(ModelSource(f"oci://{GOOD}:{good.port}/a/b"), options())
    reader = RangeReader(stall_timeout_s=2, trust=TRUST)
    refused(lambda: list(reader.blocks(resolved.locations[0], {}, 7, 0, 7)))
    reader.close()


@pytest.mark.slow
def test_a_bucket_leads_nowhere_at_all(good: Witness, bad: Witness) -> None:
    """As with boto: a redirect to another region is one that it makes by itself, with a signature for it."""
    good.answer = lambda path: (307, {"Location": f"{bad.url}/secret"}, b"")
    env = {**S3, "AWS_SESSION_TOKEN": "theirs", "AWS_ENDPOINT_URL": good.url}
    arguments = {"key": "k", "secret": "s", "token": "theirs", "endpoint_url": good.url}
    for attempt in (
        lambda: resolve(ModelSource("s3://bucket/m"), SourceOptions(env, 2.0)),
        lambda: read_range("s3://bucket/m", arguments, 0, 4),
    ):
        with pytest.raises(SourceError):
            attempt()
    assert {headers.get("x-amz-security-token") for _, _, headers in good.asked} == {"theirs"}


def test_a_name_node_leads_to_no_other_data_node(good: Witness, bad: Witness) -> None:
    good.answer = lambda path: moved(f"{bad.url}/secret")
    arguments = {"host": GOOD, "port": good.port}
    refused(lambda: read_range("webhdfs:///x", arguments, 0, 4, TRUST))


def test_nor_behind_a_proxy(bad: Witness, monkeypatch: pytest.MonkeyPatch) -> None:
    with Witness("127.0.0.4", lambda path: moved(f"{bad.url}/secret")) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        refused(lambda: read_range("webhdfs:///x", {"host": "only-the-proxy-knows.invalid", "port": 80}, 0, 4, TRUST))
        assert [path for path in proxy.paths if "secret" in path] == []
        assert proxy.asked


@pytest.mark.slow
def test_a_role_is_asked_for_only_where_that_is_allowed(bad: Witness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", bad.url)
    env = {**S3, "AWS_ROLE_ARN": "arn:aws:iam::123456789012:role/x"}
    refused(lambda: resolve(ModelSource("s3://bucket/m"), options(**env)))


def test_a_node_that_reads_a_bucket_itself_asks_nobody_else(bad: Witness) -> None:
    arguments = {"anon": True, "endpoint_url": bad.url, "config_kwargs": {"retries": {"total_max_attempts": 1}}}
    refused(lambda: read_range("s3://bucket/m", arguments, 0, 4, TRUST))


@pytest.mark.slow
@pytest.mark.parametrize("own", [True, False])
def test_the_clouds_identity_is_asked_for_only_by_whom_it_is_of(own: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """botocore asks 169.254.169.254 where it has no keys: not for a cache that is not the operator's."""
    asked: dict[str, str | None] = {}

    def note(watch: Any, address: Any) -> None:
        asked[address[0]] = watch.origins.refusal(address[0], address[1], lambda host: [])
        raise ConnectionRefusedError

    monkeypatch.setattr(guard._Watch, "check", note)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "false")
    monkeypatch.setenv("AWS_METADATA_SERVICE_NUM_ATTEMPTS", "1")
    monkeypatch.setenv("HOME", "/nonexistent")
    env = {"AWS_ENDPOINT_URL": f"http://{GOOD}:9", "AWS_DEFAULT_REGION": "us-east-1"}
    with pytest.raises(SourceError):
        resolve(
            ModelSource("s3://bucket/m"), SourceOptions(env, 1.0, TRUST, **({} if own else {"ambient": frozenset()}))
        )
    assert asked == ({"169.254.169.254": None} if own else {GOOD: None})


def test_who_is_public_leads_to_nobody_who_is_less_so_even_where_all_is_allowed(
    good: Witness, bad: Witness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in `localmodel fill`. The address decides, also where a name would not have told."""
    monkeypatch.setattr(reach, "reach_of", lambda host: Reach.HOST if host == BAD else Reach.INTERNET)
    good.answer = lambda path: moved(f"http://rebound.example:{bad.port}/secret")
    looks = {"hf://a/b": [BAD], f"{good.url}/m.bin": [GOOD, BAD]}
    settings: list[dict[str, str]] = [{"HF_ENDPOINT": good.url}, {}]
    for (uri, answers), env in zip(looks.items(), settings, strict=True):
        rebinding(monkeypatch, "rebound.example", *answers)
        refused(lambda: resolve(ModelSource(uri), SourceOptions(env, 2.0)), "RedirectRefused")  # noqa: B023  asked at once


def test_nobody_leads_to_where_a_cloud_keeps_credentials_even_where_all_is_allowed(
    good: Witness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket.socket, "connect", only(GOOD))
    for address in ("169.254.169.254", "fd00:ec2::254", "100.100.100.200", "168.63.129.16"):
        place = f"[{address}]" if ":" in address else address
        for target in (f"http://{place}/latest", "http://metadata.example/latest"):
            rebinding(monkeypatch, "metadata.example", address)
            good.answer = lambda path: moved(target)  # noqa: B023  asked at once
            for uri, env in (("hf://a/b", {"HF_ENDPOINT": good.url}), (f"{good.url}/m.bin", {})):
                env["LOCALMODEL_PRIVATE_REDIRECTS"] = "1"
                refused(lambda: resolve(ModelSource(uri), SourceOptions(env, 2.0)), "RedirectRefused")  # noqa: B023  asked at once


def only(host: str) -> Callable[..., None]:
    """`connect` for one address; the test does not depend on what this machine can reach beside it."""
    real = socket.socket.connect

    def connect(sock: socket.socket, address: Any) -> None:
        if isinstance(address, tuple) and address[0] != host:
            sys.audit("socket.connect", sock, address)
            raise OSError(101, "Network is unreachable")
        real(sock, address)

    return connect


# --- by name ---


def rebinding(monkeypatch: pytest.MonkeyPatch, name: str, *answers: str) -> None:
    """`name` has the first address when it is first asked for, and the last one ever after."""
    left, real = list(answers), socket.getaddrinfo

    def getaddrinfo(host: Any, port: Any, *arguments: Any, **more: Any) -> Any:
        if host == name:
            return real(left.pop(0) if len(left) > 1 else left[0], port, *arguments, **more)
        return real(host, port, *arguments, **more)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


@pytest.mark.parametrize("client", NAMED)
def test_a_name_that_changes_its_address_is_judged_by_the_one_it_is_connected_to(
    client: str, bad: Witness, monkeypatch: pytest.MonkeyPatch
) -> None:
    rebinding(monkeypatch, "rebound.example", "8.8.8.8", BAD)
    socket.getaddrinfo("rebound.example", 80)  # whoever looks first sees a public address
    uri, env = NAMED[client]("rebound.example", bad.port)
    assert "127.0.0.3" in refused(lambda: resolve(ModelSource(uri), options(**env)))


def test_a_name_that_is_allowed_stands_for_its_address(good: Witness, monkeypatch: pytest.MonkeyPatch) -> None:
    rebinding(monkeypatch, "minio.minio.svc", GOOD)
    good.answer = lambda path: FILE
    source = ModelSource(f"http://minio.minio.svc:{good.port}/m.bin")

    def asked(listed: str) -> Resolved:
        return resolve(source, SourceOptions({}, 2.0, Trust(STRICT.schemes, Origins.parse(listed))))

    assert asked(f"minio.minio.svc:{good.port}").manifest.total_bytes == 7
    refused(lambda: asked("minio.minio.svc:1"))


def test_of_several_addresses_the_allowed_one_is_taken(good: Witness, monkeypatch: pytest.MonkeyPatch) -> None:
    real = socket.getaddrinfo

    def both(host: Any, port: Any, *arguments: Any, **more: Any) -> Any:
        found = [real(each, port, *arguments, **more) for each in ((BAD, GOOD) if host == "two.example" else (host,))]
        return [each for answers in found for each in answers]

    monkeypatch.setattr(socket, "getaddrinfo", both)
    good.answer = lambda path: FILE
    resolve(ModelSource(f"http://two.example:{good.port}/m.bin"), options())
    good.answer = lambda path: (404, {}, b"")
    with pytest.raises(SourceError, match="404"):
        resolve(ModelSource(f"http://two.example:{good.port}/m.bin"), options())


def test_behind_a_proxy_the_name_is_judged(good: Witness, bad: Witness, monkeypatch: pytest.MonkeyPatch) -> None:
    """The proxy itself is the operator's, wherever it is."""
    with Witness("127.0.0.4", lambda path: FILE) as proxy:
        for name in ("http_proxy", "HTTP_PROXY"):
            monkeypatch.setenv(name, proxy.url)
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        refused(lambda: resolve(ModelSource(f"{bad.url}/m.bin"), options()))
        refused(lambda: resolve(ModelSource("hf://a/b"), options(HF_ENDPOINT=bad.url)))
        refused(lambda: list(RangeReader(stall_timeout_s=2, trust=TRUST).blocks(Location(bad.url + "/x"), {}, 7, 0, 7)))
        assert proxy.asked == []
        resolve(ModelSource(f"{good.url}/m.bin"), options())
        resolve(ModelSource("http://only-the-proxy-knows.invalid/m.bin"), options())
        assert len(proxy.asked) == 2


@pytest.mark.parametrize(
    "arguments",
    [
        {"endpoint_url": "http://127.0.0.3:1"},
        {"host": "127.0.0.3", "port": 1},
        {"account_host": "127.0.0.3:1"},
        {"connection_string": "AccountName=a;AccountKey=a2V5;BlobEndpoint=http://127.0.0.3:1/a"},
        {"connection_string": "blobsecondaryendpoint = https://127.0.0.3/a"},
        {"account_name": "acct"},
    ],
)
def test_an_endpoint_in_options_is_judged_before_a_library_tries_it_again_and_again(
    arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    rebinding(monkeypatch, "acct.blob.core.windows.net", BAD)
    (url,) = endpoints(arguments)
    with guarded(TRUST.origins), pytest.raises(Refused, match=BAD):
        check_name(url)


# --- the hook itself ---


def test_libraries_that_gcsfs_and_adlfs_use_are_stopped_too(good: Witness, bad: Witness) -> None:
    async def get(url: str) -> int:
        async with aiohttp.ClientSession() as session, session.get(url) as answer:
            return answer.status

    with guarded(TRUST.origins):
        assert asyncio.run(get(good.url)) == 404
        assert requests.get(good.url, timeout=2).status_code == 404
        with pytest.raises(aiohttp.ClientError) as of_aiohttp:
            asyncio.run(get(bad.url))
        with pytest.raises(requests.ConnectionError) as of_requests:
            requests.get(bad.url, timeout=2)
        assert refusal_in(of_aiohttp.value) is not None
        assert refusal_in(of_requests.value) is not None


def test_a_guard_is_of_its_thread_and_is_carried_to_others(good: Witness) -> None:
    outcomes: list[object] = []

    def connect(host: str) -> None:
        try:
            socket.create_connection((host, good.port), timeout=2).close()
            outcomes.append(None)
        except OSError as error:
            outcomes.append(type(error))

    with guarded(Origins()):
        threads = [
            threading.Thread(target=connect, args=(GOOD,)),
            threading.Thread(target=carried(connect), args=(GOOD,)),
        ]
        for thread in threads:
            thread.start()
            thread.join()
        connect(GOOD)
    connect(GOOD)
    assert outcomes == [None, Refused, Refused, None]


def test_a_guard_that_allows_everything_lets_through_what_is_not_guarded() -> None:
    with guarded(ANYWHERE):
        check_name("http://127.0.0.3/")
        with pytest.raises(OSError) as caught:
            socket.create_connection((BAD, 1), timeout=1)
    assert not isinstance(caught.value, Refused)


def test_it_costs_next_to_nothing() -> None:
    """A hook hears of all audited events of the process: most are of no concern to it."""
    began = time.perf_counter()
    for _ in range(20_000):
        sys.audit("tests.nothing")
    assert time.perf_counter() - began < 1.0
