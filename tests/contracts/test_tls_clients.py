"""Every client that speaks TLS checks certificates alike, whatever version of Python it runs on. Real handshakes.

From Python 3.13 on, `ssl` and urllib3 make contexts that demand of an authority what RFC 5280 wants it to say. So that
the suite shows what becomes of it on older ones, too, `trust(strict=True)` has them do the same.
"""

from __future__ import annotations

import asyncio
import base64
import json
import pkgutil
import ssl
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import urllib3
from huggingface_hub import close_session

from actors.errors import SourceError, SourceNotFound
from actors.fill.range_reader import RangeReader
from actors.manifest import Location, ModelSource
from actors.peers.tls import TlsFiles
from actors.sources.filesystems import opened
from actors.sources.options import SourceOptions
from actors.sources.resolve import resolve
from actors.transport.authorities import accept_in_libraries
from coordinator.cli.doctor import _ask_ray
from coordinator.dev.apiserver.webhooks import _trusting
from coordinator.dev.certificates import AUTHORITIES, Authority
from coordinator.kube.config import load_config
from coordinator.kube.http import HttpKube
from coordinator.kube.interface import CONFIG_MAPS, NotFound, Unreachable
from tests.kit.tls import TlsFront
from tests.sourcing.test_bounds import asked, server
from tests.sourcing.test_connections import Server
from tests.sourcing.test_reasons import status

NOTHING_SAID = "with none of these"
LITTLE_SAID = [kind for kind in AUTHORITIES if kind != "complete"]
BAD = ("expired", "for another host", "of an unknown authority")
MADE_BY = (
    "ssl.create_default_context",
    "ssl._create_default_https_context",
    "urllib3.util.ssl_.create_urllib3_context",
    "urllib3.connection.create_urllib3_context",
    "aiobotocore.httpsession.create_urllib3_context",
)
"""What makes contexts for clients. That of botocore does not demand more yet."""


@dataclass(frozen=True, slots=True)
class Place:
    """A server that has nothing (404), the same where a certificate is asked for, and what a client is given."""

    url: str
    asks: str
    good: TlsFiles

    @property
    def authority(self) -> Path:
        return self.good.authority


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Place]]:
    """By the kind of the authority, or what is bad about the certificate."""
    folder = tmp_path_factory.mktemp("authorities")
    made = {kind: Authority(folder / kind.replace(" ", "-"), extensions) for kind, extensions in AUTHORITIES.items()}
    good = {kind: authority.issue("good") for kind, authority in made.items()}
    bad = {
        "expired": made["complete"].issue("expired", days=-1),
        "for another host": made["complete"].issue("elsewhere", "subjectAltName=DNS:elsewhere.example"),
        "of an unknown authority": Authority(folder / "unknown").issue("good"),
    }
    with ExitStack() as running:
        behind = "http://" + running.enter_context(server(status(404)))

        def front(shown: TlsFiles, trusted: Path | None = None) -> str:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(shown.certificate, shown.key)
            if trusted is not None:
                context.verify_mode = ssl.CERT_REQUIRED
                context.load_verify_locations(trusted)
            return running.enter_context(TlsFront(behind, context)).url

        yield {
            name: Place(front(shown), front(shown, mine.authority), mine)
            for name, shown in {**good, **bad}.items()
            for mine in [good.get(name, good["complete"])]
        }
    close_session()


def trust(place: Place, patch: pytest.MonkeyPatch, *, strict: bool) -> None:
    """What is set for the process: the authority; where `strict`, what a Python of 3.13 demands of it by itself."""
    file = str(place.authority)
    for name in ("REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"):
        patch.setenv(name, file)
    patch.setattr("s3fs.S3FileSystem.retries", 1)
    patch.setattr(urllib3.HTTPSConnectionPool, "ConnectionCls", urllib3.connection.HTTPSConnection)
    if strict:
        for name in MADE_BY:
            patch.setattr(name, _demanding(pkgutil.resolve_name(name)))
    patch.setattr("aiohttp.connector._SSL_CONTEXT_VERIFIED", ssl.create_default_context(cafile=file))


def _demanding(make: Callable[..., ssl.SSLContext]) -> Callable[..., ssl.SSLContext]:
    def demanding(*arguments: Any, **options: Any) -> ssl.SSLContext:
        context = make(*arguments, **options)
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        return context

    return demanding


# --- the clients: each raises Refused where it does not accept the certificate, and hears "404" where it does ---


class Refused(Exception):
    """The client did not accept the certificate."""


def source(kind: str) -> Callable[[Place, Path], None]:
    def ask(place: Place, folder: Path) -> None:
        uri, env = asked(kind, place.url.removeprefix("https://"))
        uri = uri.replace("http://", "https://")
        env = {name: value.replace("http://", "https://") for name, value in env.items()}
        if kind == "hdfs":
            env["STORAGE_OPTIONS"] = json.dumps({**json.loads(env["STORAGE_OPTIONS"]), "use_https": True})
        try:
            resolve(ModelSource(uri), SourceOptions({**env, "AWS_CA_BUNDLE": str(place.authority)}))
        except SourceNotFound:
            return
        except SourceError as error:
            if error.reason == "SourceUntrusted":
                raise Refused from error
            raise
        raise AssertionError("there is nothing")

    return ask


def ranges(place: Place, folder: Path) -> None:
    reader = RangeReader(stall_timeout_s=5)
    try:
        with pytest.raises(SourceError) as caught:
            list(reader.blocks(Location(f"{place.url}/model"), {}, 3, 0, 3))
    finally:
        reader.close()
    if caught.value.reason == "SourceUntrusted":
        raise Refused
    assert isinstance(caught.value, SourceNotFound)


def of_fsspec(place: Place, folder: Path) -> None:
    """A class that connects with aiohttp's own context, as those of Google and Azure do."""
    filesystem, name = opened(f"{place.url}/model", {}, fresh=True)
    try:
        filesystem.cat_file(name)
    except FileNotFoundError:
        return
    except aiohttp.ClientConnectorCertificateError as error:
        raise Refused from error
    raise AssertionError("there is nothing")


def kube(
    user: str = "token", *, watch: bool = False, in_file: bool = True, proxied: bool = False
) -> Callable[[Place, Path], None]:
    def ask(place: Place, folder: Path) -> None:
        good, file = place.good, place.authority
        users = {
            "token": {"token": "t"},
            "certificate": {"client-certificate": str(good.certificate), "client-key": str(good.key)},
        }
        server = place.asks if user == "certificate" else place.url
        cluster = {"server": server, "certificate-authority": str(file)}
        if not in_file:
            cluster = {"server": server, "certificate-authority-data": base64.b64encode(file.read_bytes()).decode()}
        with ExitStack() as running:
            if proxied:
                proxy = Server(good)
                running.callback(proxy.thread.join)
                running.callback(proxy.server_close)
                running.callback(proxy.shutdown)
                cluster["proxy-url"] = proxy.url("https")
            config = {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "it",
                "contexts": [{"name": "it", "context": {"cluster": "it", "user": "it"}}],
                "clusters": [{"name": "it", "cluster": cluster}],
                "users": [{"name": "it", "user": users[user]}],
            }
            (folder / "config").write_text(json.dumps(config))
            client = HttpKube(load_config(str(folder / "config")))
            running.callback(client.close)
            try:
                list(client.watch(CONFIG_MAPS, "1", timeout_s=5)) if watch else client.list(CONFIG_MAPS)
            except NotFound:
                return
            except Unreachable as error:
                if "certificate verify failed" in str(error):
                    raise Refused from error
                raise
            raise AssertionError("there is nothing")

    return ask


def doctor(place: Place, folder: Path) -> None:
    version, why = _ask_ray(place.url)
    assert version is None
    if "certificate verify failed" in str(why):
        raise Refused
    assert "HTTP Error 404" in str(why)


def development_server(place: Place, folder: Path) -> None:
    """As the development API server asks a webhook."""
    bundle = base64.b64encode(place.authority.read_bytes()).decode()

    async def ask() -> int:
        trusting = _trusting({"caBundle": bundle})
        async with aiohttp.ClientSession() as session, session.get(place.url, ssl=trusting) as answer:
            return answer.status

    try:
        assert asyncio.run(ask()) == 404
    except aiohttp.ClientConnectorCertificateError as error:
        raise Refused from error


CLIENTS: dict[str, Callable[[Place, Path], None]] = {
    "the API server, with a token": kube(),
    "the API server, with a client certificate": kube("certificate"),
    "the API server, its authority in the kubeconfig": kube(in_file=False),
    "the API server, a watch": kube(watch=True),
    "the API server, behind a proxy that speaks TLS": kube(proxied=True),
    "ranges": ranges,
    "the hub": source("hf"),
    "a web server": source("http"),
    "a bucket, with s3fs": source("s3"),
    "WebHDFS, with requests": source("hdfs"),
    "a class of fsspec, with aiohttp": of_fsspec,
    "doctor": doctor,
    "the development API server": development_server,
}


@pytest.mark.parametrize(
    ("client", "authority"),
    [(client, NOTHING_SAID) for client in CLIENTS]
    + [(client, kind) for client in ("the API server, with a token", "ranges") for kind in LITTLE_SAID[:-1]],
)
def test_an_authority_that_says_little_of_itself_is_accepted(
    client: str, authority: str, places: dict[str, Place], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trust(places[authority], monkeypatch, strict=True)
    CLIENTS[client](places[authority], tmp_path)


@pytest.mark.parametrize(
    "client", [pytest.param(client, marks=[pytest.mark.slow] if "s3fs" in client else []) for client in CLIENTS]
)
def test_a_bad_certificate_is_refused_as_ever(
    client: str, places: dict[str, Place], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trust(places["complete"], monkeypatch, strict=False)
    for certificate in BAD:
        with pytest.raises(Refused):
            CLIENTS[client](places[certificate], tmp_path)


@pytest.mark.parametrize("authority", LITTLE_SAID)
def test_a_context_that_demands_more_would_refuse_it(authority: str, places: dict[str, Place]) -> None:
    """So the tests above can fail."""
    place = places[authority]
    context = ssl.create_default_context(cafile=place.authority)
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    with pytest.raises(urllib3.exceptions.SSLError):
        urllib3.PoolManager(ssl_context=context, retries=False).request("GET", place.url)


def test_a_context_that_a_caller_made_is_its_own(places: dict[str, Place], monkeypatch: pytest.MonkeyPatch) -> None:
    trust(places[NOTHING_SAID], monkeypatch, strict=True)
    accept_in_libraries()
    own = ssl.create_default_context(cafile=places[NOTHING_SAID].authority)
    with pytest.raises(urllib3.exceptions.SSLError):
        urllib3.PoolManager(ssl_context=own, retries=False).request("GET", places[NOTHING_SAID].url)


def test_libraries_are_set_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(urllib3.HTTPSConnectionPool, "ConnectionCls", urllib3.connection.HTTPSConnection)
    accept_in_libraries()
    first = urllib3.HTTPSConnectionPool.ConnectionCls
    accept_in_libraries()
    assert urllib3.HTTPSConnectionPool.ConnectionCls is first
    assert first is not urllib3.connection.HTTPSConnection


def test_a_renewed_file_of_an_authority_counts_for_the_next_connection(
    places: dict[str, Place], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trust(places["complete"], monkeypatch, strict=True)
    accept_in_libraries()
    file, place = tmp_path / "ca.pem", places[NOTHING_SAID]
    file.write_bytes(places["complete"].authority.read_bytes())
    pool = urllib3.PoolManager(ca_certs=str(file), retries=False)
    with pytest.raises(urllib3.exceptions.SSLError):
        pool.request("GET", place.url)
    file.write_bytes(place.authority.read_bytes())
    assert pool.request("GET", place.url).status == 404
    pool.clear()
    file.write_bytes(places["complete"].authority.read_bytes())
    with pytest.raises(urllib3.exceptions.SSLError):
        pool.request("GET", place.url)
    pool.clear()
