"""What `NO_PROXY` names."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from actors.transport.no_proxy import is_direct, no_proxy


@pytest.mark.parametrize(
    ("entries", "host", "port", "direct"),
    [
        pytest.param("", "a.example", 80, False, id="nothing names nobody"),
        pytest.param("*", "a.example", 80, True, id="a star names everybody"),
        pytest.param("b.example,*", "10.0.0.1", 80, True, id="so it does in a list"),
        pytest.param("example.com", "example.com", 443, True, id="a domain names itself"),
        pytest.param("example.com", "a.b.example.com", 443, True, id="and what is below it"),
        pytest.param("example.com", "badexample.com", 443, False, id="but not what ends alike"),
        pytest.param("a.example.com", "example.com", 443, False, id="nor what is above it"),
        pytest.param(".example.com", "a.example.com", 443, True, id="a leading dot names what is below"),
        pytest.param(".example.com", "example.com", 443, True, id="and the domain itself, as in curl"),
        pytest.param("*.example.com", "a.example.com", 443, True, id="a leading star is a leading dot"),
        pytest.param("ex*mple.com", "example.com", 443, False, id="a star elsewhere is no pattern"),
        pytest.param("svc", "hub.ns.svc", 80, True, id="one label is a domain"),
        pytest.param("Example.COM", "EXAMPLE.com", 80, True, id="case does not matter"),
        pytest.param("example.com.", "example.com", 80, True, id="the root's dot in the list"),
        pytest.param("example.com", "example.com.", 80, True, id="the root's dot in the URL"),
        pytest.param("bücher.example", "xn--bcher-kva.example", 80, True, id="a name that is not ASCII"),
        pytest.param(" a.example ,\tb.example  c.example", "b.example", 80, True, id="blanks around"),
        pytest.param("a.example b.example", "b.example", 80, True, id="blanks between"),
        pytest.param(",,a.example,", "b.example", 80, False, id="empty entries name nobody"),
        pytest.param("a.example:8080", "a.example", 8080, True, id="a port"),
        pytest.param("a.example:8080", "a.example", 80, False, id="another port"),
        pytest.param("example:8080", "a.example", 8080, True, id="a port of a domain"),
        pytest.param("a.example", "a.example", 8080, True, id="no port is every port"),
        pytest.param("10.1.2.3", "10.1.2.3", 80, True, id="an address"),
        pytest.param("10.1.2.3", "10.1.2.30", 80, False, id="an address that begins alike"),
        pytest.param("2.3", "10.1.2.3", 80, False, id="an address is no domain of its end"),
        pytest.param("10.1.2.3:81", "10.1.2.3", 80, False, id="an address at another port"),
        pytest.param("10.0.0.0/8", "10.200.1.1", 80, True, id="a network"),
        pytest.param("10.0.0.0/8", "11.0.0.1", 80, False, id="another network"),
        pytest.param("10.7.7.7/8", "10.200.1.1", 80, True, id="a network by one of its hosts"),
        pytest.param("10.0.0.0/99,a.example", "a.example", 80, True, id="a broken entry spoils no other"),
        pytest.param("0.0.0.0/0", "a.example", 80, False, id="a name is in no network"),
        pytest.param("::1", "::1", 80, True, id="IPv6"),
        pytest.param("[::1]", "::1", 80, True, id="IPv6 in brackets"),
        pytest.param("::1", "[::1]", 80, True, id="IPv6 as a URL has it"),
        pytest.param("0:0:0:0:0:0:0:1", "::1", 80, True, id="IPv6 written otherwise"),
        pytest.param("[::1]:8080", "::1", 8080, True, id="IPv6 with a port"),
        pytest.param("[::1]:8080", "::1", 80, False, id="IPv6 with another port"),
        pytest.param("fd00::/8", "fd12:3456::1", 80, True, id="a network of IPv6"),
        pytest.param("[fd00::]/8", "fd12:3456::1", 80, True, id="a network of IPv6 in brackets"),
        pytest.param("fe80::/10", "fe80::1%eth0", 80, True, id="IPv6 with a zone"),
        pytest.param("10.0.0.0/8", "::ffff:10.1.1.1", 80, True, id="IPv4 within IPv6"),
        pytest.param("::/0", "10.1.1.1", 80, False, id="a network of IPv6 holds no IPv4"),
        pytest.param("127.0.0.1", "localhost", 80, False, id="names are not looked up"),
        pytest.param("a.example", "localhost", 80, False, id="nothing is implied for this machine"),
    ],
)
def test_which_hosts_are_reached_directly(entries: str, host: str, port: int, direct: bool) -> None:
    assert is_direct(entries, host, port) == direct


@pytest.mark.parametrize(
    ("environ", "entries"),
    [
        ({}, ""),
        ({"NO_PROXY": "a"}, "a"),
        ({"no_proxy": "b"}, "b"),
        ({"NO_PROXY": "a", "no_proxy": "b"}, "b"),
        ({"NO_PROXY": "a", "no_proxy": ""}, "a"),
    ],
)
def test_the_lower_case_name_wins_unless_it_is_empty(environ: Mapping[str, str], entries: str) -> None:
    assert no_proxy(environ) == entries
