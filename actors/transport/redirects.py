"""Where a redirect may lead: nowhere that is less public than where it came from.

    INTERNET ──► NETWORK ──► HOST       against the arrows: allowed; along them: refused

An origin on the internet must not be able to make a node read what only its own network or the node itself can see: a
metadata service, a kubelet, an admin page. A mirror in the cluster may send us anywhere but to the node. Asked of the
address that a connection has come to, so that a name cannot say one thing when it is checked and another when it is
used. Behind a proxy that address is the proxy's, which is whoever set it up's to answer for and says nothing of where
it leads; then the name is asked, as far as it resolves here.
"""

from __future__ import annotations

import ipaddress
import socket
import string
from enum import IntEnum
from urllib.parse import quote, unquote, urljoin, urlsplit, urlunsplit

from actors.addresses import LINK_LOCAL, METADATA, Address, kind_of, meanings
from actors.errors import SourceDenied
from actors.transport.answers import PRIVATE_REDIRECTS, redact


class Reach(IntEnum):
    """How far an address can be seen: by this machine (and what is plugged into it), its network, everybody."""

    HOST = 0
    NETWORK = 1
    INTERNET = 2


def reach_of(host: str) -> Reach:
    """Of an address, or of a name; a name that gives nothing away counts as INTERNET."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return Reach.HOST if host == "localhost" or host.endswith(".localhost") else Reach.INTERNET
    return min(map(_reach_of, meanings(address)))


def _reach_of(address: Address) -> Reach:
    if address.is_loopback or address.is_link_local or address.is_unspecified:
        return Reach.HOST
    return Reach.INTERNET if address.is_global and not address.is_multicast else Reach.NETWORK


def keeps_credentials(host: str) -> bool:
    """Whether it is an address where a cloud tells a machine who it is, for which no redirect is ever followed."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return any(kind_of(each) in (LINK_LOCAL, METADATA) for each in meanings(address))


def reach_of_url(url: str) -> Reach:
    """Of its host, asked by name before there is a connection. A name that does not resolve gives nothing away."""
    return min(map(reach_of, _names_of(url)))


def _names_of(url: str) -> set[str]:
    """Its host, and the addresses that it has now."""
    host = urlsplit(url).hostname or ""
    try:
        return {host, *(str(found[4][0]) for found in socket.getaddrinfo(host, None))}
    except (OSError, ValueError):
        return {host}


def target_of(url: str, location: str) -> str:
    """The URL that a `Location`, as `http.client` gives it, leads to from `url`. Escaped, if the server did not do so.

    Bytes that are not ASCII are taken as they came: servers send UTF-8. A host is in ASCII.
    """
    return escaped(urljoin(url, quote(location.strip(), encoding="iso-8859-1", safe=string.punctuation)))


def escaped(url: str) -> str:
    """`url` as it may be sent: no blank, nothing but ASCII, no fragment."""
    parts = urlsplit(quote(url.partition("#")[0], safe=string.punctuation))
    host = unquote(parts.hostname or "")
    if host.isascii():
        return urlunsplit(parts)
    try:
        ascii_host = host.encode("idna").decode()
    except UnicodeError:
        return urlunsplit(parts)
    return urlunsplit(parts._replace(netloc=ascii_host if parts.port is None else f"{ascii_host}:{parts.port}"))


def check_target(url: str, target: str) -> None:
    """Returns if `url` may redirect to `target` as far as the URLs tell. Raises SourceDenied."""
    before, after = urlsplit(url).scheme, urlsplit(target).scheme
    if after not in ("http", "https"):
        raise refused(url, target, "only http and https are followed")
    if before == "https" and after != "https":
        raise refused(url, target, "https is not given up")
    _check_credentials(url, target, {urlsplit(target).hostname or ""})


def check_link(url: str, target: str, *, private: bool) -> None:
    """As `check_target`, and its host must be no less public, going by the names, unless `private` may be."""
    check_target(url, target)
    _check_credentials(url, target, _names_of(target))
    if not private and reach_of_url(target) < reach_of_url(url):
        raise inwards(url, target)


def _check_credentials(url: str, target: str, names: set[str]) -> None:
    if any(map(keeps_credentials, names)) and urlsplit(url).hostname != urlsplit(target).hostname:
        raise refused(url, target, "clouds keep credentials at such addresses")


def inwards(url: str, target: str) -> SourceDenied:
    return refused(url, target, f"it is less public than where it comes from ({PRIVATE_REDIRECTS}=1 allows that)")


def refused(url: str, target: str, why: str) -> SourceDenied:
    return SourceDenied(f"{redact(url)} redirects to {redact(target)}, refused: {why}", reason="RedirectRefused")
