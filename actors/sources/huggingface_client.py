"""How the hub's library connects: through the proxies that `transport.connections` finds, or directly where it would.

The library's client reads the same variables in its own way: of `NO_PROXY` it knows neither networks nor ports, and
cannot be made at all where an IPv6 address stands in brackets. It is another package with every major version of the
library, hence by the class of the client.
"""

from __future__ import annotations

import ssl
import sys
import threading
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from actors.transport.connections import proxy_for


def transport_for(client: type, context: ssl.SSLContext) -> Any:
    """A transport for a client of this class, which trusts whom `context` does."""
    package: Any = sys.modules[client.__module__.partition(".")[0]]
    base: Any = package.BaseTransport

    class Routed(base):  # type: ignore[misc]  # so it has no type here
        def __init__(self) -> None:
            self._by_proxy: dict[str, Any] = {}
            self._making = threading.Lock()

        def handle_request(self, request: Any) -> Any:
            """Raises SourceUnsupported for a proxy that cannot be used."""
            proxy = proxy_for(urlsplit(str(request.url)))
            return self._through(urlunsplit(proxy) if proxy is not None else "").handle_request(request)

        def _through(self, proxy: str) -> Any:
            with self._making:
                if proxy not in self._by_proxy:
                    settings = {"proxy": package.Proxy(proxy)} if proxy else {}
                    self._by_proxy[proxy] = package.HTTPTransport(verify=context, trust_env=False, **settings)
                return self._by_proxy[proxy]

        def close(self) -> None:
            for each in self._by_proxy.values():
                each.close()

    return Routed()
