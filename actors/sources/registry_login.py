"""How a registry is logged in to, as docker, ORAS and go-containerregistry do it.

    401, WWW-Authenticate ──► Bearer   a token from the realm: for the login, for an identity token, or for anybody
                          └─► Basic    the login itself, if there is one

Bearer comes first where both are offered. The realm may have parameters of its own; `service` and `scope` are those of
the challenge, if it names any. https://distribution.github.io/distribution/spec/auth/token/ and, for identity tokens,
https://distribution.github.io/distribution/spec/auth/oauth/.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, urlencode, urljoin, urlsplit, urlunsplit

from actors.errors import SourceDenied, SourceError
from actors.sources.docker_config import Login
from actors.sources.registry_challenge import Challenge
from actors.transport.answers import translate_status

SHORTEST_TOKEN_S = 60.0
"""How long a token is taken to be good that does not say, or says less: docker's rule. A refusal tells sooner."""
LONGEST_TOKEN_S = 24 * 3600.0
BASIC_TTL_S = 600.0
"""After so long it is looked at again whether the login is still the same."""

CLIENT = "localmodel"

Ask = Callable[[str, Mapping[str, str], bytes | None], tuple[int, Mapping[str, str], bytes]]
"""`ask(url, headers, form)`: status, headers and content of the answer; with a form it is posted."""


@dataclass(frozen=True, slots=True)
class Authorization:
    """The value of the header, and until when it is good, in epoch seconds."""

    value: str = field(repr=False)
    expires_at: float


def authorize(
    base: str, name: str, offered: Sequence[Challenge], login: Login | None, ask: Ask, check: Callable[[str], None]
) -> Authorization:
    """What reads from the repository `name`. `check` raises for a realm that must not be asked.

    Raises SourceDenied if nothing that is offered can be done with what is at hand, and whatever `ask` raises.
    """
    if login is not None and login.registry:
        return Authorization(f"Bearer {login.registry}", time.time() + BASIC_TTL_S)
    by_scheme = {challenge.scheme: challenge for challenge in reversed(offered)}
    bearer, basic = by_scheme.get("bearer"), login.basic if login is not None and "basic" in by_scheme else None
    if bearer is not None and bearer.parameters.get("realm"):
        try:
            return _token(base, name, bearer.parameters, login, ask, check)
        except SourceDenied:
            if basic is None:
                raise
    if basic is None:
        schemes = ", ".join(by_scheme) or "nothing that is named"
        has = "has none for it" if login is None else "has one that does not do"
        raise SourceDenied(f"{base} wants a login ({schemes}), and a Secret of the kind dockerconfigjson {has}")
    return Authorization(basic, time.time() + BASIC_TTL_S)


def _token(
    base: str, name: str, wants: Mapping[str, str], login: Login | None, ask: Ask, check: Callable[[str], None]
) -> Authorization:
    realm = urljoin(base, wants["realm"])
    check(realm)
    own, other = f"repository:{name}:pull", wants.get("scope", "")
    scopes = [own, *([other] if other and not other.startswith(f"repository:{name}:") else [])]
    pairs = (
        [("service", wants["service"]), *(("scope", scope) for scope in scopes)]
        if wants.get("service")
        else [("scope", scope) for scope in scopes]
    )
    if login is not None and login.identity:
        form = {"grant_type": "refresh_token", "refresh_token": login.identity, "client_id": CLIENT}
        body = urlencode([*form.items(), *pairs[: len(pairs) - len(scopes)], ("scope", " ".join(scopes))])
        answer = ask(realm, {"Content-Type": "application/x-www-form-urlencoded"}, body.encode())
    else:
        basic = login.basic if login is not None else None
        answer = ask(_with(realm, pairs), {"Authorization": basic} if basic else {}, None)
    status, headers, content = answer
    if status != 200:
        raise translate_status(status, realm, headers, content)
    try:
        document = json.loads(content)
        token = document.get("token") or document.get("access_token")
    except (ValueError, AttributeError) as error:
        raise SourceError(f"{base}: its token server answered no JSON object", reason="InvalidAnswer") from error
    if not isinstance(token, str) or not token:
        raise SourceError(f"{base}: its token server gave no token", reason="InvalidAnswer")
    return Authorization(f"Bearer {token}", time.time() + _life_s(document.get("expires_in")))


def _with(realm: str, pairs: Sequence[tuple[str, str]]) -> str:
    """The realm's own parameters stay, but for those that are given."""
    parts = urlsplit(realm)
    given = {name for name, _ in pairs}
    kept = [(name, value) for name, value in parse_qsl(parts.query, keep_blank_values=True) if name not in given]
    return urlunsplit(parts._replace(query=urlencode([*kept, *pairs]), fragment=""))


def _life_s(expires_in: object) -> float:
    try:
        seconds = float(str(expires_in))
    except ValueError:
        return SHORTEST_TOKEN_S
    return min(max(seconds, SHORTEST_TOKEN_S), LONGEST_TOKEN_S) if math.isfinite(seconds) else SHORTEST_TOKEN_S
