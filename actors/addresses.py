"""Which addresses origins may have: those that everybody can reach, and what an operator names. Pure.

    global unicast                                   allowed
    private, CGNAT, loopback, multicast, reserved    only what is in the list: a host, `host:port`, an address, a CIDR
    link-local, and where clouds keep credentials    only an exact address in the list, never a CIDR or a name

An IPv6 address that stands for an IPv4 one (mapped, compatible, 6to4, NAT64, Teredo) is judged by that one, too. A name
in the list stands for the addresses that it has at the moment; whoever asks looks them up.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_PORTS = {"http": 80, "https": 443}
_CREDENTIALS = frozenset(
    map(
        ipaddress.ip_address,
        # AWS (IPv6: EC2 and EKS), Alibaba, Azure's wire server, Oracle's first
        ("fd00:ec2::254", "fd00:ec2::23", "100.100.100.200", "168.63.129.16", "192.0.0.192"),
    )
)
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_NAT64_LOCAL = ipaddress.ip_network("64:ff9b:1::/48")
_COMPATIBLE = ipaddress.ip_network("::/96")


@dataclass(frozen=True, slots=True)
class Place:
    """One entry of the list: a network, or a host by name. `port` None: all of them."""

    network: Network | None = None
    host: str | None = None
    port: int | None = None


IDENTITY = tuple(
    Place(network=ipaddress.ip_network(address), port=80)
    for address in ("169.254.169.254", "169.254.170.2", "169.254.170.23", "fd00:ec2::254", "fd00:ec2::23")
)
"""Where the clouds' own libraries ask who this process is."""

Lookup = Callable[[str], Collection[Address]]
"""The addresses that a name has now; none if it has none."""


@dataclass(frozen=True, slots=True)
class Origins:
    """What an operator allows. `anywhere`: everything, as for a person's own command."""

    places: tuple[Place, ...] = ()
    anywhere: bool = False

    @classmethod
    def parse(cls, listed: str) -> Origins:
        """Of entries by comma. Raises ValueError that names the one that cannot be understood."""
        return cls(tuple(_place(entry.strip()) for entry in listed.split(",") if entry.strip()))

    def beside(self, urls: Iterable[str | None]) -> Origins:
        """These, and the host and port of each of `urls`, which the operator's own settings name."""
        places = [place for url in urls if url and (place := _place_of(url)) is not None]
        return Origins(tuple(dict.fromkeys((*self.places, *places))), self.anywhere)

    def with_identity(self) -> Origins:
        """These, and where a process asks who it is. Only for asking stores that the operator names."""
        return Origins((*self.places, *IDENTITY), self.anywhere)

    def refusal(self, address: str, port: int | None, lookup: Lookup) -> str | None:
        """None if a server at `address` may be asked, else what is wrong with it."""
        if self.anywhere:
            return None
        try:
            there = ipaddress.ip_address(address.partition("%")[0])
        except ValueError:
            return "no address"
        for each in meanings(there):
            kind = kind_of(each)
            if kind is not None and not self._lists(each, kind, port, lookup):
                return kind
        return None

    def _lists(self, address: Address, kind: str, port: int | None, lookup: Lookup) -> bool:
        exact = kind in (LINK_LOCAL, METADATA)
        for place in self.places:
            if place.port not in (None, port):
                continue
            if place.network is not None:
                if address in place.network and (not exact or place.network.num_addresses == 1):
                    return True
            elif place.host is not None and not exact and address in lookup(place.host):
                return True
        return False


ANYWHERE = Origins(anywhere=True)

LINK_LOCAL = "a link-local address"
METADATA = "an address where a cloud keeps credentials"


def kind_of(address: Address) -> str | None:
    """What an address is that not everybody can reach; None if everybody can."""
    if address in _CREDENTIALS:
        return METADATA
    if address.is_link_local:
        return LINK_LOCAL
    if address.is_loopback:
        return "a loopback address"
    if address.is_unspecified:
        return "the unspecified address"
    if address.is_multicast:
        return "a multicast address"
    if isinstance(address, ipaddress.IPv6Address) and address.is_site_local:
        return "a private address"
    if address.is_reserved:
        return "a reserved address"
    return None if address.is_global else "a private address"


def meanings(address: Address) -> list[Address]:
    """The addresses that one may turn out to be: itself, unless it only stands for another, and what is inside."""
    if isinstance(address, ipaddress.IPv4Address):
        return [address]
    low = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    if address.ipv4_mapped is not None or address in _NAT64:
        return [low]
    if address in _COMPATIBLE and int(address) > 1:
        return [address, low]
    if address in _NAT64_LOCAL:
        return [address, low]
    if address.sixtofour is not None:
        return [address, address.sixtofour]
    if address.teredo is not None:
        return [address, *address.teredo]
    return [address]


def _place(entry: str) -> Place:
    bare = entry[1:-1] if entry.startswith("[") and entry.endswith("]") else entry
    try:
        return Place(network=ipaddress.ip_network(bare))
    except ValueError:
        if "/" in entry:
            raise ValueError(
                f"{entry!r} is neither a host, host:port, nor a network such as 10.0.0.0/8 without host bits"
            ) from None
    place = _place_of(f"//{entry}") if "@" not in entry else None
    if place is None:
        raise ValueError(f"{entry!r} is neither a host, host:port, nor a network such as 10.0.0.0/8")
    return place


def _place_of(url: str) -> Place | None:
    try:
        parts = urlsplit(url if "//" in url else f"//{url}")
        host, port = parts.hostname, parts.port
    except ValueError:
        return None
    if (
        not host
        or port == 0
        or (parts.path.strip("/") and not parts.scheme)
        or any(c.isspace() or c in "*,@" for c in host)
    ):
        return None
    port = port or _PORTS.get(parts.scheme)
    try:
        return Place(network=ipaddress.ip_network(host), port=port)
    except ValueError:
        return Place(host=host, port=port)


def own_endpoints(env: Mapping[str, str]) -> list[str]:
    """The endpoints that the settings of an operator's process name."""
    names = ("HF_ENDPOINT", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "STORAGE_EMULATOR_HOST")
    return [env[name] for name in names if env.get(name)]
