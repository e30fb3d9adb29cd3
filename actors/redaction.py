"""Texts without secrets: whatever a library says is passed through here before it can reach a person.

    known     values that came in as credentials (`remember`), in every form in which a library may print them
    by form   what looks like one: user info and queries of URLs, headers of logins, signatures, keys, tokens

An error's message is redacted when the error is made (`actors.errors`), and so are log lines, with their stack traces,
and what the interpreter prints of an exception that nobody caught (`coordinator.logs`). So a place that translates
foreign errors need not think of it, and one that forgets to translate leaks nothing.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from itertools import islice
from urllib.parse import quote, quote_plus

MARK = "…"
"""What stands where something was taken out."""

MAX_TEXT = 16_384
"""The most that is looked at, and kept, of one text. A longer text is some document, not a message."""

MAX_KNOWN = 8192
"""So many forms of secrets are remembered, the latest: credentials are read again and again, and rotate."""

MAX_AT_ONCE = 1024
"""Of these, what one set of credentials adds: it must not make others forgotten."""

MAX_SECRET = 4096
"""Of a longer one its beginning is known. Keys and tokens are shorter; a Secret may hold a megabyte of anything."""

_MIN_LENGTH = 3
_MIN_WITHIN_A_WORD = 8
"""A shorter secret is only recognised as a word of its own: `test` is no secret in `latest`."""

_URL = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]*://)([^\s'\"<>`{}\\|]+)")
_QUERY = re.compile(r"\?(?=[^\s'\"<>?]{0,256}[=&%])[^\s'\"<>)]*")
_HEADER = re.compile(
    r"""(?ix) \b( (?:proxy-)?authorization | (?:set-)?cookie | x-(?:auth|amz-security|access|api|goog-iam)[a-z-]{0,40}
        | x-ms-[a-z-]{1,40} | (?:api|private)-(?:key|token) )
        ( \\?['"]? \s* [:=,] \s* \(? ) (?: b? (?P<quote>\\?['"]) .*? (?P=quote) | [^\r\n]+ )"""
)
_SCHEME = re.compile(
    r"""(?x) \b(?: ([Bb]earer|BEARER|Basic|BASIC|Negotiate|SharedKey(?:Lite)?|AWS4-HMAC-SHA256)
        \s+ [^\s'",;]*[^\s'",;.:]
        | ([Tt]oken|basic) \s+ [\w.~+/=-]{16,} )"""
)
_FIELD = re.compile(
    r"""(?ix) \b( [a-z0-9_.-]{0,40} (?: accountkey | account_key | accesskey | access_key(?:_id)?
        | sharedaccesssignature | signature
        | secret | secretaccesskey | secret_access_key | session_?token | sas_token | password | passwd
        | credential | api_?key | private_key | id_?token | access_?token | refresh_?token | hf_token
        | key-pair-id | policy ) | sig | token | auth | x-(?:amz|goog)-[a-z-]{1,40} )
        ( \\?['"] \s* : \s* | \s? = \s? )
        (?: b? (?P<quote>\\?['"]) (?: (?!(?P=quote)) (?: \\. | . ) )* (?: (?P=quote) | $ ) | [^\s'"&,;)}\]]+ )"""
)
_TOKEN = re.compile(
    r"""(?x) \b(?: hf_[A-Za-z0-9]{6,} | gh[opsur]_[A-Za-z0-9]{16,} | github_pat_\w+ | (?:AKIA|ASIA)[A-Z0-9]{12,}
        | ya29\.[\w.-]+ | eyJ[\w-]{8,}\.[\w-]+(?:\.[\w-]*)? )"""
)
_PEM = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL)
_BYTES = re.compile(r"""\bb(['"])(?:\\.|(?!\1).)+\1""")
"""Libraries print what they refuse to send, such as a header's value, as bytes."""
_OBEYED = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
"""Terminals obey control characters, and show text in another order after others. A name may have them in it."""

_known: dict[str, None] = {}
_changes = [0]
"""Grows after every change of `_known`. No lock: every message of the process passes here, and planning knows none."""
_compiled: list[tuple[int, tuple[tuple[str, ...], re.Pattern[str]]]] = [(-1, ((), re.compile(r"(?!)")))]
"""After which change; then what is known: long ones, the longest first, and a pattern of short ones."""


def redacted(text: str) -> str:
    """`text` without what may be secret in it, and without what a terminal obeys; unchanged when there is nothing.

    Never raises, bounded in time.
    """
    change, known = _compiled[0]
    if change != _changes[0]:
        known = _compile()
    # More than is kept, so that no secret is cut in two before it is looked for.
    return _redacted(text[: MAX_TEXT + MAX_SECRET], known)


@lru_cache(maxsize=256)  # the same failure is told at every tick
def _redacted(text: str, known: tuple[tuple[str, ...], re.Pattern[str]]) -> str:
    long, short = known
    for secret in long:
        text = text.replace(secret, MARK)
    text = short.sub(MARK, text)
    if len(text) > MAX_TEXT:
        text = text[:MAX_TEXT] + MARK
    text = _PEM.sub(MARK, text)
    text = _URL.sub(_bare, text)
    text = _QUERY.sub("", text)
    text = _HEADER.sub(rf"\1\2{MARK}", text)
    text = _SCHEME.sub(lambda found: f"{found[1] or found[2]} {MARK}", text)
    text = _FIELD.sub(rf"\1\2{MARK}", text)
    text = _TOKEN.sub(MARK, text)
    text = _BYTES.sub(MARK, text)
    return _OBEYED.sub(lambda found: repr(found[0])[1:-1], text)


def _bare(match: re.Match[str]) -> str:
    """Of a URL the scheme, the host and the path."""
    scheme, rest = match.groups()
    where = re.split(r"[?#]", rest, maxsplit=1)[0]
    tail = rest[len(rest.rstrip(")].,;:!")) :] if where != rest else ""
    place, slash, path = where.partition("/")
    return scheme + place.rpartition("@")[2] + slash + path + tail


def remember(values: Iterable[object]) -> None:
    """From now on these, and the strings inside of mappings and lists among them, are secrets of this process."""
    found = list(
        islice((form for value in values for secret in _strings(value) for form in forms(secret)), MAX_AT_ONCE)
    )
    if all(each in _known for each in found):
        return
    for each in found:
        _known.pop(each, None)
        _known[each] = None
    for each in list(_known)[: max(0, len(_known) - MAX_KNOWN)]:
        _known.pop(each, None)
    _changes[0] += 1


def forget() -> None:
    """Nothing is known to be a secret any more. For tests, which share a process."""
    _known.clear()
    _changes[0] += 1


def forms(secret: str) -> Iterator[str]:
    """How a library may print it: as it is, cut at line ends, quoted for a URL, escaped, in base64."""
    secret = secret[:MAX_SECRET]
    pieces = {secret, secret.strip(), *(piece.strip() for piece in re.split(r"[\r\n\0]+", secret))}
    if re.match(r"(?i)(bearer|basic|token|aws4-hmac-sha256)\s", secret.strip()):
        pieces |= set(secret.split()[1:])
    for piece in pieces:
        if len(piece) < _MIN_LENGTH:
            continue
        raw = piece.encode(errors="surrogatepass")
        latin = piece.encode("latin-1", errors="replace")
        coded = base64.b64encode(raw).decode()
        yield from {
            piece,
            repr(piece)[1:-1],
            json.dumps(piece)[1:-1],
            repr(raw)[2:-1],
            repr(latin)[2:-1],
            raw.decode("latin-1"),
            quote(piece, safe="", errors="replace"),
            quote(piece, errors="replace"),
            quote_plus(piece, errors="replace"),
            coded,
            coded.rstrip("="),
            base64.urlsafe_b64encode(raw).decode().rstrip("="),
        }
        if (pair := _decoded(piece)) is not None:  # the form in which a docker config has `user:password`
            yield from (pair, pair.partition(":")[2])


def stack_of(error: BaseException) -> str:
    """The stack trace with all that led to it, redacted line by line: a trace is longer than a message may be."""
    import traceback  # here, because most processes end without

    return "".join(redacted(line) for line in traceback.format_exception(error))


def _compile() -> tuple[tuple[str, ...], re.Pattern[str]]:
    """Longer ones first: one may be part of another. The number is read first: a later change compiles again."""
    change = _changes[0]
    ordered = sorted(_known, key=len, reverse=True)
    words = [rf"(?<!\w){re.escape(each)}(?!\w)" for each in ordered if len(each) < _MIN_WITHIN_A_WORD]
    long = tuple(each for each in ordered if len(each) >= _MIN_WITHIN_A_WORD)
    made = (long, re.compile("|".join(words) or r"(?!)"))
    _compiled[0] = (change, made)
    return made


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, bytes):
        yield value.decode(errors="replace")
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _strings(each)
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from _strings(each)


def _decoded(text: str) -> str | None:
    try:
        pair = base64.b64decode(text, validate=True).decode()
    except (binascii.Error, ValueError):
        return None
    return pair if ":" in pair and len(pair.partition(":")[2]) >= _MIN_LENGTH else None
