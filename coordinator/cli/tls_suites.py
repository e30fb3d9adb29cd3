"""What `--tls-min-version` and `--tls-cipher-suites` mean: Go's names for versions and suites, in OpenSSL's terms."""

from __future__ import annotations

import ssl
from collections.abc import Callable

_CIPHERS = """
    AES_128_GCM_SHA256=AES128-GCM-SHA256  AES_256_GCM_SHA384=AES256-GCM-SHA384
    CHACHA20_POLY1305_SHA256=CHACHA20-POLY1305
    AES_128_CBC_SHA=AES128-SHA  AES_256_CBC_SHA=AES256-SHA
"""
_SECURE_SUITES = {
    f"TLS_ECDHE_{kind}_WITH_{cipher}": f"ECDHE-{kind}-{openssl}"
    for kind in ("ECDSA", "RSA")
    for cipher, openssl in (each.split("=") for each in _CIPHERS.split())
}
"""Go's names of what it calls secure, in TLS 1.2, and OpenSSL's."""
_TLS13_SUITES = frozenset(f"TLS_{each.split('=')[0]}" for each in _CIPHERS.split() if "CBC" not in each)
"""Go has these in its list, too, and takes no notice: a client of TLS 1.3 may use any of them."""
_VERSIONS = {"VersionTLS12": ssl.TLSVersion.TLSv1_2, "VersionTLS13": ssl.TLSVersion.TLSv1_3}


def tls_settings(min_version: str, suites: tuple[str, ...]) -> Callable[[ssl.SSLContext], None]:
    """What the flags say, to be applied to a context. Suites of TLS 1.3 alone leave nothing to TLS 1.2.

    Raises ValueError, in KServe's words, for a name that is none of Go's.
    """
    unknown = [name for name in suites if name not in _SECURE_SUITES and name not in _TLS13_SUITES]
    if unknown:
        raise ValueError(f"unknown TLS cipher suite(s): {', '.join(unknown)}")
    old = [_SECURE_SUITES[name] for name in suites if name in _SECURE_SUITES]
    minimum = _VERSIONS[min_version]

    def apply(context: ssl.SSLContext) -> None:
        context.minimum_version = ssl.TLSVersion.TLSv1_3 if suites and not old else minimum
        if old:
            context.set_ciphers(":".join(old))

    return apply
