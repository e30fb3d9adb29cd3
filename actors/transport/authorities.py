"""Which certificate authorities TLS accepts: those that Go's clients and `kubectl` accept, on every version of Python.

    a context of our own                              `as_go_does`
    urllib3, and so requests; aiohttp's own context   `accept_in_libraries`, for the whole process
    a context made by `ssl.SSLContext`                needs neither

From 3.13 on, Python and urllib3 also demand what RFC 5280 wants an authority to say of itself, such as a key usage, an
identifier of its key, and basic constraints that are critical (`VERIFY_X509_STRICT` in
https://docs.python.org/3/library/ssl.html). Private authorities and those of older clusters often do not say it.
Signatures, chains, names, dates and purposes are checked as before.

Libraries are set up for the whole process because they connect where they take no context from us: a token, say, is
asked for by a session that lives for one request.
"""

from __future__ import annotations

import ssl
import sys
import threading
from typing import Any

_setting_up = threading.Lock()


def as_go_does(context: ssl.SSLContext) -> ssl.SSLContext:
    """The same context, which no longer demands of an authority more than it needs in order to sign."""
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return context


def accept_in_libraries() -> None:
    """Connections for which urllib3 or aiohttp make the context are checked so. May be repeated, in any thread.

    aiohttp's only if it is imported by now. It makes one when it is, and has no setting for it.
    """
    from urllib3 import HTTPSConnectionPool

    with _setting_up:
        if not getattr(HTTPSConnectionPool.ConnectionCls, "checks_as_go_does", False):
            HTTPSConnectionPool.ConnectionCls = _checking(HTTPSConnectionPool.ConnectionCls)
    context = getattr(sys.modules.get("aiohttp.connector"), "_SSL_CONTEXT_VERIFIED", None)
    if isinstance(context, ssl.SSLContext):
        as_go_does(context)


def _checking(kind: Any) -> Any:
    """A class of urllib3's connections that makes the contexts it was not given, for every connection as urllib3 does.

    So files of authorities are read anew for each.
    """
    from urllib3.util.ssl_ import create_urllib3_context, resolve_cert_reqs, resolve_ssl_version

    class Connection(kind):  # type: ignore[misc]  # made at run time, because the library takes long to import
        checks_as_go_does = True
        ssl_context: ssl.SSLContext | None
        proxy_config: Any

        def connect(self) -> None:
            given, proxy = self.ssl_context, self.proxy_config
            if given is None:
                self.ssl_context = self._context()
            if proxy is not None and proxy.ssl_context is None and self.proxy.scheme == "https":
                context = self._context()
                if any(self._authorities()):  # for the origin urllib3 does that
                    context.load_verify_locations(*self._authorities())
                self.proxy_config = proxy._replace(ssl_context=context)
            try:
                super().connect()
            finally:
                self.ssl_context, self.proxy_config = given, proxy

        def _authorities(self) -> tuple[Any, ...]:
            return self.ca_certs, self.ca_cert_dir, self.ca_cert_data

        def _context(self) -> ssl.SSLContext:
            context = create_urllib3_context(
                resolve_ssl_version(self.ssl_version),
                resolve_cert_reqs(self.cert_reqs),
                ssl_minimum_version=self.ssl_minimum_version,
                ssl_maximum_version=self.ssl_maximum_version,
            )
            if not any(self._authorities()):
                context.load_default_certs()
            return as_go_does(context)

    return Connection
