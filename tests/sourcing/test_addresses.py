"""Which addresses an origin may have: the table, and what an operator's list changes."""

from __future__ import annotations

import ipaddress

import pytest

from actors.addresses import ANYWHERE, LINK_LOCAL, METADATA, Address, Origins, own_endpoints

PRIVATE, LOOPBACK = "a private address", "a loopback address"
NAMES = {
    "minio.minio.svc": ["10.1.2.3", "fd00::3"],
    "rebound.example": ["169.254.169.254"],
    "localhost": ["127.0.0.1", "::1"],
}


def lookup(host: str) -> list[Address]:
    return [ipaddress.ip_address(each) for each in NAMES.get(host, [])]


@pytest.mark.parametrize(
    ("address", "kind"),
    [
        ("8.8.8.8", None),
        ("2606:4700::1111", None),
        ("::ffff:8.8.8.8", None),
        ("64:ff9b::8.8.8.8", None),
        ("10.0.0.1", PRIVATE),
        ("172.16.0.1", PRIVATE),
        ("172.31.255.255", PRIVATE),
        ("192.168.1.1", PRIVATE),
        ("100.64.0.1", PRIVATE),
        ("198.18.0.1", PRIVATE),
        ("192.0.2.1", PRIVATE),
        ("fd00::1", PRIVATE),
        ("fc00::1", PRIVATE),
        ("fec0::1", PRIVATE),
        ("2001:db8::1", PRIVATE),
        ("127.0.0.1", LOOPBACK),
        ("127.255.0.1", LOOPBACK),
        ("::1", LOOPBACK),
        ("169.254.169.254", LINK_LOCAL),
        ("169.254.170.2", LINK_LOCAL),
        ("fe80::1", LINK_LOCAL),
        ("fe80::1%eth0", LINK_LOCAL),
        ("fd00:ec2::254", METADATA),
        ("100.100.100.200", METADATA),
        ("168.63.129.16", METADATA),
        ("0.0.0.0", "the unspecified address"),
        ("::", "the unspecified address"),
        ("224.0.0.1", "a multicast address"),
        ("ff02::1", "a multicast address"),
        ("240.0.0.1", "a reserved address"),
        ("255.255.255.255", "a reserved address"),
        ("::ffff:10.0.0.1", PRIVATE),
        ("::ffff:127.0.0.1", LOOPBACK),
        ("::ffff:169.254.169.254", LINK_LOCAL),
        ("::ffff:0:0", "the unspecified address"),
        ("::127.0.0.1", "a reserved address"),
        ("64:ff9b::10.0.0.1", PRIVATE),
        ("64:ff9b::169.254.169.254", LINK_LOCAL),
        ("64:ff9b:1::8.8.8.8", "a reserved address"),
        ("2002:0a00:0001::1", PRIVATE),
        ("2002:a9fe:a9fe::1", LINK_LOCAL),
        ("2001:0:4136:e378:8000:63bf:3fff:fdd2", PRIVATE),
        ("models.example", "no address"),
        ("0x7f.1", "no address"),
    ],
)
def test_what_an_address_is(address: str, kind: str | None) -> None:
    assert Origins().refusal(address, 443, lookup) == kind
    assert ANYWHERE.refusal(address, 443, lookup) is None


@pytest.mark.parametrize(
    ("listed", "address", "port", "allowed"),
    [
        pytest.param("10.0.0.0/8", "10.9.9.9", 80, True, id="a network"),
        pytest.param("10.0.0.0/8", "11.9.9.9", 80, True, id="what is public needs no entry"),
        pytest.param("10.0.0.0/8", "192.168.0.1", 80, False, id="another network"),
        pytest.param("10.0.0.0/8", "::ffff:10.9.9.9", 80, True, id="the same address, as IPv6"),
        pytest.param("10.0.0.0/8", "64:ff9b::10.9.9.9", 80, True, id="the same address, by NAT64"),
        pytest.param("10.0.0.0/8", "2002:0a09:0909::1", 80, True, id="6to4 of it, which is public but for that"),
        pytest.param("192.168.1.5", "192.168.1.5", 80, True, id="an address"),
        pytest.param("192.168.1.5:9000", "192.168.1.5", 9000, True, id="its port"),
        pytest.param("192.168.1.5:9000", "192.168.1.5", 9001, False, id="another port"),
        pytest.param("[fd00::5]:9000", "fd00::5", 9000, True, id="an IPv6 address with its port"),
        pytest.param("[fd00::5]:9000", "fd00::5", 9001, False, id="an IPv6 address, another port"),
        pytest.param("[::1]", "::1", 80, True, id="an IPv6 address in brackets"),
        pytest.param("fd00::/8", "fd00::5", 80, True, id="an IPv6 network"),
        pytest.param("minio.minio.svc", "10.1.2.3", 80, True, id="what a name stands for"),
        pytest.param("minio.minio.svc", "fd00::3", 80, True, id="all of what it stands for"),
        pytest.param("minio.minio.svc", "10.1.2.4", 80, False, id="its neighbour"),
        pytest.param("minio.minio.svc:9000", "10.1.2.3", 9000, True, id="a name with a port"),
        pytest.param("minio.minio.svc:9000", "10.1.2.3", 22, False, id="a name, another port"),
        pytest.param("a.example, minio.minio.svc ,", "10.1.2.3", 80, True, id="several"),
        pytest.param("gone.example", "10.1.2.3", 80, False, id="a name without an address"),
        pytest.param("0.0.0.0/0", "10.1.2.3", 80, True, id="everything"),
        pytest.param("0.0.0.0/0,::/0", "169.254.169.254", 80, False, id="everything but where credentials are"),
        pytest.param("169.254.0.0/16", "169.254.169.254", 80, False, id="not by a network"),
        pytest.param("169.254.169.254", "169.254.169.254", 80, True, id="by the address"),
        pytest.param("169.254.169.254/32", "169.254.169.254", 80, True, id="by a network of one"),
        pytest.param("169.254.169.254", "::ffff:169.254.169.254", 80, True, id="by the address, as IPv6"),
        pytest.param("rebound.example", "169.254.169.254", 80, False, id="not by a name"),
        pytest.param("fd00::/8", "fd00:ec2::254", 80, False, id="nor those that look private"),
        pytest.param("100.64.0.0/10", "100.100.100.200", 80, False, id="nor Alibaba's"),
        pytest.param("127.0.0.0/8", "0.0.0.0", 80, False, id="not what only leads there"),
    ],
)
def test_what_an_operators_list_allows(listed: str, address: str, port: int, allowed: bool) -> None:
    assert (Origins.parse(listed).refusal(address, port, lookup) is None) is allowed


@pytest.mark.parametrize(
    "listed",
    ["10.0.0.1/8", "10.0.0.0/33", "host:99999", "host:x", "*.example", "a b", "user@host", "host/path", "host:0"],
)
def test_an_entry_that_cannot_be_understood_is_named(listed: str) -> None:
    with pytest.raises(ValueError, match="is neither") as caught:
        Origins.parse(f"ok.example,{listed}")
    assert repr(listed) in str(caught.value)


def test_what_the_operators_own_settings_name_is_allowed_at_its_port() -> None:
    env = {"HF_ENDPOINT": "http://127.0.0.1:8000/", "AWS_ENDPOINT_URL": "https://minio.minio.svc", "HF_TOKEN": "x"}
    allowed = Origins().beside(own_endpoints(env))
    assert allowed.refusal("127.0.0.1", 8000, lookup) is None
    assert allowed.refusal("127.0.0.1", 8001, lookup) == LOOPBACK
    assert allowed.refusal("10.1.2.3", 443, lookup) is None
    assert allowed.refusal("10.1.2.3", 80, lookup) == PRIVATE


def test_names_are_looked_up_only_for_what_is_not_public() -> None:
    def fail(host: str) -> list[Address]:
        raise AssertionError(host)

    assert Origins.parse("minio.minio.svc").refusal("8.8.8.8", 443, fail) is None
