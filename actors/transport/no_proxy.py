"""Which hosts `NO_PROXY` names: those that are reached directly, although there is a proxy.

    *                        every host
    example.com              that host, and every one below it; so `.example.com` and `*.example.com`
    10.1.2.3  fd00::1        an address, however it is written; IPv6 with or without brackets
    10.0.0.0/8  fd00::/8     every address of a network; of a host that is named by its address only
    any of the above:8080    that port only; of an IPv6 address, or network, in brackets only: `[fd00::1]:8080`

Entries are separated by commas or blanks, in any case. An entry that cannot be understood names nobody. This is what
curl (https://curl.se/docs/manpage.html#--noproxy) and Go (https://pkg.go.dev/golang.org/x/net/http/httpproxy) read
alike; where they differ it is curl's way: a leading dot does not leave the domain itself out, and nothing is implied
for localhost. Pure, but for `no_proxy`.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Mapping

_SEPARATORS = re.compile(r"[,\s]+")
_PORT = re.compile(r":(\d{1,5})$")

_Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def no_proxy(environ: Mapping[str, str] = os.environ) -> str:
    """The list; the lower-case name wins, but for one that is empty, which is as good as none."""
    return environ.get("no_proxy") or environ.get("NO_PROXY") or ""


def is_direct(entries: str, host: str, port: int | None) -> bool:
    """Whether an entry names the host. `host` is a name or an address as in a URL, with or without brackets."""
    name = _name(host)
    address = _address(name)
    return any(_matches(entry, name, address, port) for entry in _SEPARATORS.split(entries) if entry)


def _matches(entry: str, name: str, address: _Address | None, port: int | None) -> bool:
    if entry == "*":
        return True
    where, wanted_port = _split_port(entry)
    if wanted_port is not None and wanted_port != port:
        return False
    network = _network(where.strip("[]"))
    if network is not None:
        return address is not None and address in network
    if address is not None:
        return False
    domain = _name(where.removeprefix("*").lstrip("."))
    return bool(domain) and (name == domain or name.endswith(f".{domain}"))


def _split_port(entry: str) -> tuple[str, int | None]:
    """The colons of an IPv6 address without brackets belong to the address."""
    match = _PORT.search(entry)
    if match is None or (entry.count(":") > 1 and not entry[: match.start()].endswith("]")):
        return entry, None
    return entry[: match.start()], int(match[1])


def _network(text: str) -> _Network | None:
    """`[fd00::]/8` is written, too, so that brackets may stand within."""
    try:
        network = ipaddress.ip_network(text.replace("]", ""), strict=False)
    except ValueError:
        return None
    if isinstance(network, ipaddress.IPv6Network) and network.network_address.ipv4_mapped and network.prefixlen >= 96:
        return ipaddress.ip_network((network.network_address.ipv4_mapped, network.prefixlen - 96), strict=False)
    return network


def _address(text: str) -> _Address | None:
    try:
        address = ipaddress.ip_address(text.partition("%")[0])  # a zone says how to reach it, not which it is
    except ValueError:
        return None
    return (address.ipv4_mapped or address) if isinstance(address, ipaddress.IPv6Address) else address


def _name(host: str) -> str:
    """As it is compared: without brackets and the root's dot, in lower case, in ASCII."""
    plain = host.strip("[]").rstrip(".").lower()
    try:
        return plain if plain.isascii() else plain.encode("idna").decode()
    except UnicodeError:
        return plain
