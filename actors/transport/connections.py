"""How a connection to an origin is made: whom TLS trusts, and which proxy stands between, as the environment says.

    SSL_CERT_FILE, SSL_CERT_DIR          instead of the system's certificates, as OpenSSL has it
    REQUESTS_CA_BUNDLE, AWS_CA_BUNDLE    a file or a folder of certificates, in addition
    HTTP_PROXY, HTTPS_PROXY, ALL_PROXY   a proxy for http, for https (by CONNECT), for both; it is sent user:password
    NO_PROXY                             hosts, domains and networks that are reached directly (`transport.no_proxy`)

The lower-case names win, as everywhere else. A context takes tens of milliseconds to make, so that there is one per
process; it is made anew when a file it was made from changes, because certificates are renewed under running agents.

So it is for all that is read in ranges, and for web servers, registries and the hub when they are asked what there is.
What s3fs lists or reads goes by botocore's rules, but for NO_PROXY: AWS_CA_BUNDLE,
else REQUESTS_CA_BUNDLE, a file, instead of all others.
"""

from __future__ import annotations

import base64
import http.client
import os
import ssl
import threading
import urllib.request
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit

from actors.errors import SourceUnsupported
from actors.transport.authorities import as_go_does
from actors.transport.guard import check_name
from actors.transport.no_proxy import is_direct, no_proxy

AGENT = "localmodel"
"""What every client calls itself: many servers refuse who says nothing, and Python's own name."""
_BUNDLES = ("REQUESTS_CA_BUNDLE", "AWS_CA_BUNDLE")
_REPLACING = ("SSL_CERT_FILE", "SSL_CERT_DIR")
_making = threading.Lock()


def connection_to(parts: SplitResult, timeout_s: float) -> http.client.HTTPConnection:
    """Not yet connected. Raises SourceUnsupported for what is no http(s) URL, and for settings that cannot be used.

    Raises `Refused` for an origin behind a proxy whose name is one of an address that is not allowed.
    """
    host, port = _host_and_port(parts)
    if not host or parts.scheme not in ("http", "https"):
        raise SourceUnsupported(f"no reader for {parts.scheme}://{host or ''}", reason="InvalidURI")
    proxy = proxy_for(parts)
    if proxy is not None:
        check_name(parts.geturl())
    if parts.scheme == "http":
        if proxy is None:
            return http.client.HTTPConnection(host, port, timeout=timeout_s)
        return _Forwarded(parts, proxy, timeout_s)
    if proxy is None:
        return http.client.HTTPSConnection(host, port, timeout=timeout_s, context=tls_context())
    tunnel = _Tunnelled(*_host_and_port(proxy), timeout=timeout_s, context=tls_context())
    tunnel.set_tunnel(host, port, headers=_credentials(proxy))
    return tunnel


def is_proxied(connection: http.client.HTTPConnection) -> bool:
    """Whether what it is connected to is not the origin, so that its address says nothing of the origin's."""
    return isinstance(connection, _Forwarded | _Tunnelled)


def opener(redirects: urllib.request.HTTPRedirectHandler) -> urllib.request.OpenerDirector:
    """For http(s) and nothing else, over such connections. Raises a status that is neither followed nor a success."""
    director = urllib.request.OpenerDirector()
    director.addheaders = [("User-agent", AGENT)]
    errors = (urllib.request.HTTPErrorProcessor(), urllib.request.HTTPDefaultErrorHandler())
    for handler in (_Http(), redirects, *errors, urllib.request.UnknownHandler()):
        director.add_handler(handler)
    return director


class _Http(urllib.request.AbstractHTTPHandler):
    def http_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        parts = urlsplit(request.full_url)

        def connect(host: str, /, **settings: Any) -> http.client.HTTPConnection:
            connection = connection_to(parts, settings["timeout"])
            connection.response_class = FinalResponse
            return connection

        return self.do_open(connect, request)

    https_open = http_open
    http_request = https_request = urllib.request.AbstractHTTPHandler.do_request_


def tls_context() -> ssl.SSLContext:
    """The process's own, shared by all connections: certificates and host names are checked."""
    named = {name: os.environ.get(name) or "" for name in _REPLACING}
    for name in _BUNDLES:
        path = os.environ.get(name) or ""
        named[name] = "" if path in named.values() else path  # often all of them name the same file
    with _making:  # the workers of a fill begin at the same moment
        return _tls_context(tuple((name, path, _changed_at(path)) for name, path in named.items()))


@lru_cache(maxsize=4)
def _tls_context(trusted: tuple[tuple[str, str, int], ...]) -> ssl.SSLContext:
    context = as_go_does(ssl.create_default_context())
    for name, path, _ in trusted:
        if path and name != "SSL_CERT_DIR":  # OpenSSL says nothing of an SSL_CERT_FILE that it cannot read
            try:
                if Path(path).is_dir():
                    context.load_verify_locations(capath=path)
                else:
                    context.load_verify_locations(cafile=path)
            except OSError as error:  # ssl.SSLError is one
                raise SourceUnsupported(
                    f"{name}={path} holds no certificates that can be read: {error.strerror or error}",
                    reason="InvalidCABundle",
                ) from error
    return context


def _changed_at(path: str) -> int:
    try:
        return Path(path).stat().st_mtime_ns if path else 0
    except OSError:
        return 0


class FinalResponse(http.client.HTTPResponse):
    """The final answer: `http.client` takes any 1xx but 100 (so 103, Early Hints) for that."""

    def _read_status(self) -> tuple[str, int, str]:
        while True:
            version, status, reason = super()._read_status()  # type: ignore[misc]  # not declared
            if not 100 < status < 200 or status == http.HTTPStatus.SWITCHING_PROTOCOLS:
                return version, status, reason
            http.client.parse_headers(self.fp)


class _Tunnelled(http.client.HTTPSConnection):
    """A connection to an origin, through one to an http proxy."""


class _Forwarded(http.client.HTTPConnection):
    """A connection to an http proxy, which is asked for whole URLs."""

    def __init__(self, origin: SplitResult, proxy: SplitResult, timeout_s: float) -> None:
        super().__init__(*_host_and_port(proxy), timeout=timeout_s)
        self._origin = origin
        self._credentials = _credentials(proxy)

    def putrequest(self, method: str, url: str, skip_host: bool = False, skip_accept_encoding: bool = False) -> None:
        where = self._origin.netloc.rpartition("@")[2]
        super().putrequest(method, f"http://{where}{url}", skip_host, skip_accept_encoding)
        for name, value in self._credentials.items():
            self.putheader(name, value)


def proxy_for(origin: SplitResult) -> SplitResult | None:
    """The http proxy that stands before an origin; None: there is none. Raises SourceUnsupported for another kind."""
    proxies = urllib.request.getproxies()
    named = proxies.get(origin.scheme) or proxies.get("all")
    port = _host_and_port(origin)[1] or 443
    if not named or is_direct(no_proxy(), origin.hostname or "", port):
        return None
    proxy = urlsplit(named if "://" in named else f"http://{named}")
    try:
        _ = proxy.port
    except ValueError as error:
        where = proxy.netloc.rpartition("@")[2]
        raise SourceUnsupported(f"the proxy for {origin.scheme} is {where}: {error}", reason="InvalidProxy") from error
    if proxy.scheme != "http" or not proxy.hostname:
        what = f"{proxy.scheme}://{proxy.hostname or ''}"
        raise SourceUnsupported(
            f"the proxy for {origin.scheme} is {what}: only http:// proxies can be used", reason="InvalidProxy"
        )
    return proxy


def _host_and_port(parts: SplitResult) -> tuple[str, int | None]:
    try:
        return parts.hostname or "", parts.port or (80 if parts.scheme == "http" else None)
    except ValueError as error:
        raise SourceUnsupported(f"not a URL: {error}", reason="InvalidURI") from error


def _credentials(proxy: SplitResult) -> dict[str, str]:
    if proxy.username is None:
        return {}
    pair = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
    return {"Proxy-Authorization": "Basic " + base64.b64encode(pair.encode()).decode()}
