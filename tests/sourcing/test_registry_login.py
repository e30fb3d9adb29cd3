"""What a registry asks for, and which login of a docker configuration it is given."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from actors.errors import SourceDenied
from actors.sources.docker_config import Login, login_for
from actors.sources.registry_challenge import Challenge, challenges

BEARER = 'Bearer realm="https://auth/token",service="reg",scope="repository:m/x:pull"'
PARAMETERS = {"realm": "https://auth/token", "service": "reg", "scope": "repository:m/x:pull"}


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        pytest.param([], [], id="nothing"),
        pytest.param([""], [], id="an empty header"),
        pytest.param([BEARER], [("bearer", PARAMETERS)], id="one"),
        pytest.param(
            [BEARER, 'Basic realm="r"'], [("bearer", PARAMETERS), ("basic", {"realm": "r"})], id="in two headers"
        ),
        pytest.param([f'{BEARER}, Basic realm="r"'], [("bearer", PARAMETERS), ("basic", {"realm": "r"})], id="in one"),
        pytest.param(
            [f'Basic realm="r", {BEARER}'], [("basic", {"realm": "r"}), ("bearer", PARAMETERS)], id="reversed"
        ),
        pytest.param(["Negotiate, NTLM", BEARER], [("negotiate", {}), ("ntlm", {}), ("bearer", PARAMETERS)], id="bare"),
        pytest.param(["Negotiate YII=, Basic"], [("negotiate", {}), ("basic", {})], id="with a token"),
        pytest.param(["Negotiate YIIG==", BEARER], [("negotiate", {}), ("bearer", PARAMETERS)], id="with a padded one"),
        pytest.param(['bEARER REALM="r"'], [("bearer", {"realm": "r"})], id="in any case"),
        pytest.param(['Basic realm="a, b=c, Bearer"'], [("basic", {"realm": "a, b=c, Bearer"})], id="commas in quotes"),
        pytest.param([r'Basic realm="say \"hi\" \\"'], [("basic", {"realm": 'say "hi" \\'})], id="escapes"),
        pytest.param(
            ["Bearer realm=https://a/t?x=1,service=reg"],
            [("bearer", {"realm": "https://a/t?x=1", "service": "reg"})],
            id="no quotes",
        ),
        pytest.param(['Bearer realm = "r" , service = "s"'], [("bearer", {"realm": "r", "service": "s"})], id="blanks"),
        pytest.param(['Bearer realm="r",,service="s",'], [("bearer", {"realm": "r", "service": "s"})], id="empty ones"),
        pytest.param(['Bearer realm="r" service="s"'], [("bearer", {"realm": "r", "service": "s"})], id="no commas"),
        pytest.param(
            ['Bearer realm="https://a/t?a=b&c=d"'], [("bearer", {"realm": "https://a/t?a=b&c=d"})], id="a query"
        ),
        pytest.param(['Bearer realm="r'], [("bearer", {"realm": "r"})], id="a quote that does not end"),
        pytest.param(['Bearer realm="1",realm="2"'], [("bearer", {"realm": "1"})], id="twice: the first"),
        pytest.param(['realm="r", Basic'], [("basic", {})], id="a parameter of nothing"),
        pytest.param(["\x01 Basic"], [("basic", {})], id="rubbish before"),
    ],
)
def test_what_a_header_asks_for(headers: list[str], expected: list[tuple[str, dict[str, str]]]) -> None:
    assert challenges(headers) == [Challenge(scheme, parameters) for scheme, parameters in expected]


AUTH = base64.b64encode(b"u:p").decode()
MINE, OTHER = {"auth": AUTH}, {"auth": base64.b64encode(b"other:o").decode()}


@pytest.mark.parametrize(
    ("auths", "host", "name", "found"),
    [
        pytest.param({"reg.io": MINE}, "reg.io", "m/x", True, id="the host"),
        pytest.param({"reg.io": MINE}, "other.io", "m/x", False, id="another host"),
        pytest.param({"reg.io": MINE}, "a.reg.io", "m/x", False, id="a host below"),
        pytest.param({"reg.io:5000": MINE}, "reg.io:5000", "m/x", True, id="with a port"),
        pytest.param({"reg.io": MINE}, "reg.io:5000", "m/x", False, id="without the port"),
        pytest.param({"reg.io:5000": MINE}, "reg.io", "m/x", False, id="another port"),
        pytest.param({"reg.io:443": MINE}, "reg.io", "m/x", True, id="https's own port"),
        pytest.param({"https://reg.io": MINE}, "reg.io", "m/x", True, id="a URL"),
        pytest.param({"https://reg.io/": MINE}, "reg.io", "m/x", True, id="a URL that ends in a slash"),
        pytest.param({"http://reg.io:5000/v2/": MINE}, "reg.io:5000", "m/x", True, id="a URL of the API"),
        pytest.param({"https://reg.io/v1/": MINE}, "reg.io", "m/x", True, id="a URL of the old API"),
        pytest.param({"REG.io": MINE}, "reg.IO", "m/x", True, id="in any case"),
        pytest.param({"https://index.docker.io/v1/": MINE}, "docker.io", "m/x", True, id="docker.io as docker has it"),
        pytest.param({"docker.io": MINE}, "index.docker.io", "m/x", True, id="docker.io by another name"),
        pytest.param({"registry-1.docker.io": MINE}, "docker.io", "m/x", True, id="docker.io by its server's name"),
        pytest.param({"reg.io": OTHER, "reg.io/m": MINE}, "reg.io", "m/x", True, id="a prefix before the host"),
        pytest.param({"reg.io/m": OTHER, "reg.io/m/x": MINE}, "reg.io", "m/x", True, id="the longest prefix"),
        pytest.param({"reg.io/n": OTHER, "reg.io": MINE}, "reg.io", "m/x", True, id="another prefix"),
        pytest.param({"reg.io/m": MINE}, "reg.io", "mm/x", False, id="what only begins alike"),
        pytest.param({"reg.io/m/x/y": MINE}, "reg.io", "m/x", False, id="something below"),
        pytest.param({"[::1]:5000": MINE}, "[::1]:5000", "m/x", True, id="IPv6"),
        pytest.param({"http://[::1]:5000/": MINE}, "[::1]:5000", "m/x", True, id="IPv6 in a URL"),
        pytest.param({"::1": MINE}, "[::1]", "m/x", True, id="IPv6 without brackets"),
        pytest.param({"*.reg.io": MINE}, "a.reg.io", "m/x", True, id="a star for a label"),
        pytest.param({"*.reg.io": MINE}, "a.b.reg.io", "m/x", False, id="a star is one label"),
        pytest.param({"*.reg.io": OTHER, "a.reg.io": MINE}, "a.reg.io", "m/x", True, id="a name before a star"),
        pytest.param({"reg.io": {}, "https://reg.io": MINE}, "reg.io", "m/x", True, id="an empty entry is none"),
        pytest.param({"reg.io": None, "https://reg.io": MINE}, "reg.io", "m/x", True, id="nor is null"),
        pytest.param({}, "reg.io", "m/x", False, id="none"),
    ],
)
def test_whose_login_an_entry_is(auths: dict[str, Any], host: str, name: str, found: bool) -> None:
    for config in ({"auths": auths}, auths):
        assert login_for(config, host, name) == (Login("u", "p") if found else None)


@pytest.mark.parametrize(
    ("entry", "login"),
    [
        ({"auth": AUTH}, Login("u", "p")),
        ({"username": "u", "password": "p"}, Login("u", "p")),
        ({"auth": AUTH, "username": "x", "password": "y"}, Login("u", "p")),
        ({"auth": "", "username": "u", "password": "p"}, Login("u", "p")),
        ({"username": "u\n", "password": "p\r\n"}, Login("u", "p")),
        ({"auth": AUTH.rstrip("=")}, Login("u", "p")),
        ({"auth": f"{AUTH[:2]}\n {AUTH[2:]}\n"}, Login("u", "p")),
        ({"auth": base64.b64encode(b"u:p\n").decode()}, Login("u", "p")),
        ({"auth": base64.b64encode(b"u:a:b").decode()}, Login("u", "a:b")),
        ({"auth": base64.urlsafe_b64encode("ü:~~~???".encode()).decode()}, Login("ü", "~~~???")),
        ({"identitytoken": "t"}, Login(identity="t")),
        ({"auth": base64.b64encode(b"<token>:").decode(), "identitytoken": "t"}, Login("<token>", "", "t")),
        ({"registrytoken": "t"}, Login(registry="t")),
    ],
)
def test_what_an_entry_says(entry: dict[str, Any], login: Login) -> None:
    assert login_for({"auths": {"reg.io": entry}}, "reg.io", "m/x") == login
    assert "p" not in repr(login).replace("Login()", "")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"auths": []}, "its auths are not an object"),
        ({"auths": {"reg.io": "s3cret"}}, "its entry for reg.io is not an object"),
        ({"auths": {"reg.io": {"auth": "s3cret!"}}}, "auth of its entry for reg.io is not base64"),
        ({"auths": {"reg.io": {"auth": "czNjcmV0"}}}, "auth of its entry for reg.io is not base64 of user:password"),
        ({"auths": {"reg.io": {"username": 3}}}, "username of its entry for reg.io is not text"),
    ],
)
def test_an_entry_that_cannot_be_understood_is_named_and_not_shown(config: dict[str, Any], message: str) -> None:
    with pytest.raises(SourceDenied, match=message) as caught:
        login_for(config, "reg.io", "m/x")
    assert caught.value.reason == "CredentialsInvalid"
    assert "s3cret" not in str(caught.value)


def test_an_entry_of_somebody_else_does_no_harm() -> None:
    assert login_for({"auths": {"other.io": "rubbish", "reg.io": MINE}}, "reg.io", "m/x") == Login("u", "p")
