"""Which login of a docker configuration is a registry's. Pure.

    {"auths": {"https://index.docker.io/v1/": {"auth": "dXNlcjpwYXNz"},      docker.io, by all of its names
               "ghcr.io/team": {"username": "u", "password": "p"},          only what is below team, before "ghcr.io"
               "https://registry:5000": {"identitytoken": "…"},
               "*.dkr.ecr.eu-west-1.amazonaws.com": {…}}}                   as the kubelet reads a pull secret

The most specific key wins, and of two that say the same the one that holds a login. The older form, without `auths`,
is understood as well. https://kubernetes.io/docs/concepts/containers/images/#config-json
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any
from urllib.parse import urlsplit

from actors.errors import SourceDenied

DOCKER_HUB = "docker.io"
_DOCKER_NAMES = frozenset({DOCKER_HUB, "index.docker.io", "registry-1.docker.io", "registry.hub.docker.com"})


@dataclass(frozen=True, slots=True)
class Login:
    """A user and a password, or a token that stands for them: to be exchanged (`identity`), or sent (`registry`)."""

    user: str = field(default="", repr=False)
    password: str = field(default="", repr=False)
    identity: str = field(default="", repr=False)
    registry: str = field(default="", repr=False)

    @property
    def basic(self) -> str | None:
        """The value of an Authorization header."""
        if not self.user and not self.password:
            return None
        return "Basic " + base64.b64encode(f"{self.user}:{self.password}".encode()).decode()

    def __bool__(self) -> bool:
        return bool(self.user or self.password or self.identity or self.registry)


def is_docker_hub(host: str) -> bool:
    return host.lower() in _DOCKER_NAMES


def login_for(config: Mapping[str, Any], host: str, name: str) -> Login | None:
    """The login for the repository `name` of `host` (`host`, `host:port` or `[address]:port`); None: there is none.

    Raises SourceDenied for an entry that is the registry's and cannot be understood.
    """
    auths = config.get("auths", config)
    auths = {} if auths is None else auths  # as Go writes an empty one
    if not isinstance(auths, Mapping):
        raise _invalid("its auths are not an object")
    wanted = (_canonical(host), *name.split("/"))
    keys = sorted(((_parts(key), key) for key in auths), key=lambda pair: (-len(pair[0]), "*" in pair[0][0], pair[1]))
    for parts, key in keys:
        if _matches(parts, wanted) and (login := _login(auths[key], key)):
            return login
    return None


def _parts(key: str) -> tuple[str, ...]:
    """The host, as it is compared, and the parts of a path, without the `v1` or `v2` of a registry's API."""
    rest = key.strip().partition("://")[2] if "://" in key else key.strip()
    host, *path = rest.split("/")
    path = [part for part in path if part]
    return (_canonical(host), *(path if path[:1] not in (["v1"], ["v2"]) or len(path) > 1 else []))


def _canonical(host: str) -> str:
    """In lower case, by its shortest name, without https's own port. An IPv6 address may come without brackets."""
    host = host.lower()
    if host.count(":") > 1 and not host.startswith("["):
        host = f"[{host}]"
    try:
        parts = urlsplit(f"//{host}")
        host = host.removesuffix(":443") if parts.port == 443 else host
    except ValueError:
        pass
    return DOCKER_HUB if host in _DOCKER_NAMES else host


def _matches(parts: tuple[str, ...], wanted: tuple[str, ...]) -> bool:
    if parts[1:] != wanted[1 : len(parts)]:
        return False
    if "*" not in parts[0]:
        return parts[0] == wanted[0]
    labels, given = parts[0].split("."), wanted[0].split(".")
    return len(labels) == len(given) and all(map(fnmatchcase, given, labels))


def _login(entry: object, key: str) -> Login | None:
    if entry is None:
        return None
    if not isinstance(entry, Mapping):
        raise _invalid(f"its entry for {key} is not an object")
    user, password = _text(entry, "username", key), _text(entry, "password", key)
    if auth := _text(entry, "auth", key):
        user, password = _decoded(auth, key)
    return Login(user, password, _text(entry, "identitytoken", key), _text(entry, "registrytoken", key))


def _text(entry: Mapping[str, Any], name: str, key: str) -> str:
    value = entry.get(name)
    if value is not None and not isinstance(value, str):
        raise _invalid(f"{name} of its entry for {key} is not text")
    return (value or "").strip("\r\n")


def _decoded(auth: str, key: str) -> tuple[str, str]:
    """Of base64, with or without padding, over one line or several, in either alphabet."""
    plain = "".join(auth.split()).rstrip("=").replace("-", "+").replace("_", "/")
    try:
        text = base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True).decode()
    except (binascii.Error, UnicodeDecodeError) as error:
        raise _invalid(f"auth of its entry for {key} is not base64 of user:password") from error
    user, colon, password = text.strip("\r\n\0").partition(":")
    if not colon:
        raise _invalid(f"auth of its entry for {key} is not base64 of user:password")
    return user, password


def _invalid(why: str) -> SourceDenied:
    return SourceDenied(f"the docker configuration cannot be used: {why}", reason="CredentialsInvalid")
