"""Bytes from one location: ranges over HTTP/1.1 keep-alive connections, read into a buffer that is used again.

    location ──► inline content │ http(s) range, redirects followed │ fsspec range ──► blocks, in order

What an answer must be, or it is refused before a byte of it is used:

    206   Content-Range starts where we asked, and names the size that the manifest has; else SourceChanged.
          The whole file although a part was asked for: ranges are ignored
    200   as a 206 if it has a Content-Range (rclone's `serve s3`); else only for the whole file, with its
          Content-Length, or ending with its last byte: for a part of one it means that ranges are ignored
    3xx   at most MAX_REDIRECTS; where to: see `actors.transport.redirects`; headers of a location stay with its host
    else  see `actors.transport.answers.translate_status`

A server of which no range has come yet, and that refuses one or answers it wrongly, is asked for the whole without:
what `curl` gets is to be had. Then the file comes in one piece. A refusal while other connections are served may mean
that there are too many of them: see `Crowded`. Bytes that are stored compressed are taken as they are.

A server that falls silent, or sends less than a trickle, has stalled: see `actors.transport.stall`.

The target of a redirect is remembered, so that the hub is asked once per file and not once per range; a target that
refuses is forgotten, and asked for again once.

`http.client` and not more: on loopback it costs half the CPU of any client library with features.
"""

from __future__ import annotations

import contextlib
import http.client
from collections.abc import Iterator, Mapping
from typing import Any

from actors.errors import SourceChanged, SourceDenied, SourceError
from actors.fill.origin_connections import Connections
from actors.fill.origin_connections import Crowded as Crowded
from actors.fill.origin_connections import Redirects as Redirects
from actors.fill.range_answers import RangesIgnored as RangesIgnored
from actors.fill.range_answers import changed_size, expected_bytes, may_be_the_range, unpacks_what_is_stored
from actors.manifest import Location
from actors.schemes import LOCAL
from actors.sources.resolve import read_range
from actors.transport.answers import redact, translate_status
from actors.transport.connections import AGENT
from actors.transport.refusals import MAX_BODY_BYTES
from actors.transport.stall import MinSpeed, TooSlow
from actors.trust import UNRESTRICTED, Trust

BLOCK_BYTES = 512 << 10
FSSPEC_BLOCK_BYTES = 4 << 20


class RangeReader:
    """One thread's connections and buffer. `abort` may be called by any thread; it ends what the reader waits for."""

    def __init__(
        self,
        *,
        stall_timeout_s: float,
        min_bytes_per_s: float = 0.0,
        private_redirects: bool = False,
        redirects: Redirects | None = None,
        agent: str = AGENT,
        trust: Trust = UNRESTRICTED,
    ) -> None:
        """`private_redirects`: an origin may redirect to addresses that are less public than its own.

        `trust`: what may be asked at all, whatever a location or a redirect says.
        """
        self._trust = trust
        self._timeout_s = stall_timeout_s
        self._redirects = redirects or Redirects()
        self._agent = agent
        self._buffer = bytearray(BLOCK_BYTES)
        self._connections = Connections(
            self._redirects,
            trust,
            timeout_s=stall_timeout_s,
            least=MinSpeed(min_bytes_per_s, stall_timeout_s),
            private_redirects=private_redirects,
        )

    @property
    def buffer(self) -> bytearray:
        """For the reader's own thread, between reads."""
        return self._buffer

    def blocks(
        self, location: Location, storage_options: Mapping[str, Any], size: int, start: int, stop: int
    ) -> Iterator[memoryview]:
        """Bytes `[start, stop)` of the file of `size` bytes at `location`, in order; at most what was asked for.

        A block is valid until the next one is asked for. Raises the SourceError family; blocks that came before the
        error are good. Ends early without an error for nobody: fewer bytes than asked for is a SourceError.
        """
        if location.content is not None:
            if len(location.content) != size:
                raise SourceChanged(f"{redact(location.url)} came with {len(location.content)} bytes, not {size}")
            yield memoryview(location.content)[start:stop]
        elif location.url.startswith(("http://", "https://")):
            yield from self._http_blocks(location, size, start, stop)
        else:
            local = location.url.partition("://")[0] in LOCAL
            for position in range(start, stop, FSSPEC_BLOCK_BYTES):
                end = min(stop, position + FSSPEC_BLOCK_BYTES)
                if local and position == start:
                    self._trust.schemes.scheme_of(location.url, listed=True)  # nothing is said of other files
                    self._redirects.reading.check(location.url, size)
                block = read_range(location.url, storage_options, position, end, self._trust)
                if local:
                    self._redirects.reading.check(location.url, size)
                yield memoryview(block)

    def close(self) -> None:
        self._connections.close()

    def abort(self) -> None:
        self._connections.abort()

    # --- http ---

    def _http_blocks(self, location: Location, size: int, start: int, stop: int) -> Iterator[memoryview]:
        with self._redirects.servers.request(location.url):
            yield from self._counted_blocks(location, size, start, stop)

    def _counted_blocks(self, location: Location, size: int, start: int, stop: int) -> Iterator[memoryview]:
        url, response, expected = self._open(location, size, start, stop)
        where = redact(url)
        complete = False
        try:
            endless = response.length is None and expected
            view = memoryview(self._buffer)
            position = start
            while position < start + expected:
                try:
                    count = response.readinto(view[: min(len(view), start + expected - position)])
                except TimeoutError as error:
                    how = str(error) if isinstance(error, TooSlow) else f"sent nothing for {self._timeout_s:g} s"
                    raise SourceError(f"{where} {how}", reason="SourceStalled") from error
                except (OSError, http.client.HTTPException, ValueError, AttributeError) as error:
                    # ValueError and AttributeError: the connection was closed under us by `abort`
                    raise SourceError(f"{where} broke off: {str(error) or type(error).__name__}") from error
                if not count:
                    raise SourceError(f"{where} broke off at byte {position}, before {stop}")
                position += count
                yield view[:count]
            if endless and response.status == 200 and not _ends(response):
                raise SourceChanged(f"{where} is longer than the {size} bytes it had when it was listed")
            complete = True
            self._redirects.servers.served(location.url)
            if position < stop:
                raise SourceError(f"{where} ended at byte {position}, before {stop}")
        finally:
            if complete and response.isclosed():
                response.close()
            else:
                self._connections.drop(url)
                response.close()

    def _open(self, location: Location, size: int, start: int, stop: int) -> tuple[str, http.client.HTTPResponse, int]:
        """The answer's final URL, the answer with its body unread, and how many bytes of that are to be read."""
        servers, whole = self._redirects.servers, (start, stop) == (0, size)
        known = servers.ranges(location.url)
        if known is False and not whole:
            raise RangesIgnored(f"{redact(location.url)} does not support ranges", reason="RangesIgnored")
        headers = {"Accept-Encoding": "identity", "User-Agent": self._agent}
        ranged = _range(location, start, stop) if known is not False else {}
        url, response = self._connections.follow(location, {**headers, **ranged})
        if unpacks_what_is_stored(response):
            self._connections.finish(url, response)
            headers["Accept-Encoding"] = "gzip"
            url, response = self._connections.follow(location, {**headers, **ranged})
        try:
            expected = self._checked(url, response, location, size, start, stop)
        except RangesIgnored:
            self._connections.finish(url, response)
            servers.learned(location.url, ranges=False)
            raise
        except SourceError as error:
            self._connections.finish(url, response)
            refused = error.refusal if isinstance(error, Crowded) else error
            if not ranged or known or not may_be_the_range(response.status, refused, location):
                raise
            return self._open_without_range(location, headers, size, error, whole=whole)
        if ranged and response.getheader("Content-Range") is not None and expected == stop - start:
            servers.learned(location.url, ranges=True)
        return url, response, expected

    def _open_without_range(
        self, location: Location, headers: Mapping[str, str], size: int, error: SourceError, *, whole: bool
    ) -> tuple[str, http.client.HTTPResponse, int]:
        """The whole, which a server may give that refused a range with `error`. Raises that where it does not."""
        url, response = "", None
        try:
            url, response = self._connections.follow(location, headers)
            expected = self._checked(url, response, location, size, 0, size)
        except SourceError:
            if response is not None:
                self._connections.finish(url, response)
            raise error from None
        self._redirects.servers.learned(location.url, ranges=False)
        if whole:
            return url, response, expected
        self._connections.finish(url, response)
        raise RangesIgnored(f"{redact(location.url)} refuses ranges: {error}", reason="RangesIgnored") from error

    def _checked(
        self, url: str, response: http.client.HTTPResponse, location: Location, size: int, start: int, stop: int
    ) -> int:
        """How many bytes of the answer are ours. Raises SourceError for the wrong answer."""
        if response.status in (200, 206):
            return expected_bytes(response, redact(url), location, size, start, stop)
        if (changed := changed_size(response, redact(url), size)) is not None:
            raise changed
        headers = dict(response.getheaders())
        body = b""
        with contextlib.suppress(OSError, http.client.HTTPException, ValueError):
            body = response.read(MAX_BODY_BYTES)
        error = translate_status(response.status, url, headers, body)
        alone = location.headers or not self._redirects.servers.crowded(location.url)
        if response.status == 403 and isinstance(error, SourceDenied) and not alone:
            raise Crowded(redact(url), error)
        raise error


def _range(location: Location, start: int, stop: int) -> dict[str, str]:
    """The headers that ask for a part of the file that was listed, and of no other."""
    ranged = {"Range": f"bytes={start}-{stop - 1}"}
    return {**ranged, "If-Range": location.etag} if location.etag else ranged


def _ends(response: http.client.HTTPResponse) -> bool:
    """Whether nothing more comes of a body of which nobody said how long it is; a break says so, too."""
    with contextlib.suppress(OSError, http.client.HTTPException, ValueError, AttributeError):
        return not response.read(1)
    return True
