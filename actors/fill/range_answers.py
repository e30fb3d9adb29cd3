"""What an origin's answer to a request for a range means. Pure, but for the heads of responses that it looks at."""

from __future__ import annotations

import http.client
import re

from actors.errors import SourceChanged, SourceDenied, SourceError
from actors.manifest import Location

STORED_ENCODING = "x-goog-stored-content-encoding"
_CONTENT_RANGE = re.compile(r"bytes[ =] *([0-9]{1,19})-([0-9]{1,19}) */ *([0-9]{1,19}|\*)", re.IGNORECASE)
_UNSATISFIED = re.compile(r"bytes[ =] *\* */ *([0-9]{1,19})", re.IGNORECASE)
_NO_RANGES = frozenset({400, 403, 405, 406, 416, 501})
"""What servers that know no ranges answer to one."""
_PLAIN_REASONS = frozenset({"SourceError", "SourceDenied"})


class RangesIgnored(SourceError):
    """The server sends the whole file whatever it is asked: a part must be asked for as part of the whole."""


def expected_bytes(
    response: http.client.HTTPResponse, where: str, location: Location, size: int, start: int, stop: int
) -> int:
    """How many bytes of the answer are ours, at most `stop - start`. Raises SourceError for the wrong answer."""
    etag = response.getheader("ETag")
    if location.etag and etag and etag != location.etag:
        raise SourceChanged(f"{where} changed: its ETag is {etag}, it was {location.etag} when it was listed")
    if response.status == 200 and response.getheader("Content-Range") is None:
        _check_whole(response, where, size)
        if (start, stop) != (0, size):
            raise RangesIgnored(f"{where} does not support ranges", reason="RangesIgnored")
        return size
    return _expected_of_range(response, where, size, start, stop)


def _check_whole(response: http.client.HTTPResponse, where: str, size: int) -> None:
    """The whole file is as long as it was listed. Raises SourceError."""
    if response.length in (None, size):
        return
    if _is_encoded(response) or response.getheader(STORED_ENCODING):
        raise SourceError(f"{where} is sent in another encoding than it is stored in", reason="InvalidAnswer")
    raise SourceChanged(f"{where} has {response.length} bytes, it had {size} when it was listed")


def _expected_of_range(response: http.client.HTTPResponse, where: str, size: int, start: int, stop: int) -> int:
    answer = response.getheader("Content-Range")
    match = _CONTENT_RANGE.fullmatch(answer or "")
    if match is not None:
        first, end, total = int(match[1]), int(match[2]) + 1, match[3]
        if total not in ("*", str(size)):
            raise SourceChanged(f"{where} has {total} bytes, it had {size} when it was listed")
        if (first, end) == (0, size) != (start, stop):
            raise RangesIgnored(f"{where} sends the whole for every range", reason="RangesIgnored")
        if first == start and end <= stop and not (_is_encoded(response) and total == "*"):
            return end - start if response.length is None else min(end - start, response.length)
    raise SourceError(f"{where} answered {answer} when asked for bytes {start}-{stop - 1}", reason="InvalidAnswer")


def _is_encoded(response: http.client.HTTPResponse) -> bool:
    return bool(response.getheader("Content-Encoding", "identity") != "identity")


def unpacks_what_is_stored(response: http.client.HTTPResponse) -> bool:
    """Google unpacks what is stored with gzip, unless the request says that its sender could."""
    stored = response.getheader(STORED_ENCODING, "identity") != "identity"
    return stored and not response.getheader("Content-Encoding")


def changed_size(response: http.client.HTTPResponse, where: str, size: int) -> SourceChanged | None:
    """What a 416 says of the file, if it says that it has another size."""
    match = _UNSATISFIED.fullmatch(response.getheader("Content-Range", ""))
    if response.status != 416 or not match or int(match[1]) == size:
        return None
    return SourceChanged(f"{where} has {match[1]} bytes, it had {size} when it was listed")


def may_be_the_range(status: int, error: SourceError, location: Location) -> bool:
    """Whether a plain request may be answered although this was refused. A signature is not mistaken for that."""
    if status in (400, 403) and (type(error) not in (SourceError, SourceDenied) or error.reason not in _PLAIN_REASONS):
        return False  # a store has said what it is
    if status == 403 and location.headers:
        return False
    return status in _NO_RANGES or error.reason == "InvalidAnswer"
