"""What a server asks for with `WWW-Authenticate`: any number of challenges, in one header or in several. Pure.

    Basic realm="a, b", Bearer realm="https://auth/token?x=1",service="reg"

Names are compared without regard to case. A value may be quoted, with escapes, or bare; servers write bare URLs, too,
although the grammar does not allow them. https://www.rfc-editor.org/rfc/rfc9110#name-www-authenticate
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

_SEPARATOR = re.compile(r"[\s,]+")
_TOKEN = re.compile(r"[\w!#$%&'*+.^`|~-]+")
_TOKEN68 = re.compile(r"[ \t]+[A-Za-z0-9._~+/-]+=*[ \t]*(?=,|$)")
_VALUE = re.compile(r'[ \t]*=[ \t]*(?:"(?P<quoted>(?:[^"\\]|\\.)*)"?|(?P<bare>[^\s,"]*))', re.DOTALL)
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Challenge:
    """`scheme` and the names of the parameters are in lower case."""

    scheme: str
    parameters: Mapping[str, str]


def challenges(headers: Iterable[str]) -> list[Challenge]:
    """All of the header's lines, in order. A part that is not of the form is skipped."""
    return [challenge for header in headers for challenge in _of_one(header)]


def _of_one(header: str) -> list[Challenge]:
    found: list[tuple[str, dict[str, str]]] = []
    position = 0
    while position < len(header):
        if separator := _SEPARATOR.match(header, position):
            position = separator.end()
            continue
        name = _TOKEN.match(header, position)
        if name is None:
            position += 1
            continue
        position = name.end()
        value = _VALUE.match(header, position)
        if value is None:
            found.append((name[0].lower(), {}))
            if token68 := _TOKEN68.match(header, position):
                position = token68.end()
            continue
        position = value.end()
        if found:
            text = _ESCAPE.sub(r"\1", value["quoted"]) if value["quoted"] is not None else value["bare"]
            found[-1][1].setdefault(name[0].lower(), text)
    return [Challenge(scheme, parameters) for scheme, parameters in found]
