"""A bucket of S3 in a thread: ListObjectsV2 in pages, HEAD, GET in ranges. Whatever is signed is good."""

from __future__ import annotations

import hashlib
import http.server
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

BUCKET = "bucket"
Refuse = Callable[[str, str], tuple[int, str, str] | None]
"""`refuse(method, key)`: status, code and text; the key of a listing is ""."""


class S3(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(
        self, objects: Mapping[str, bytes], page: int = 1000, *, address: tuple[str, int] = ("127.0.0.1", 0)
    ) -> None:
        super().__init__(address, Handler)
        self.objects, self.page = dict(objects), page
        self.refuse: Refuse = lambda method, key: None
        self.headers: dict[str, dict[str, str]] = {}
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.env = {
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": self.url,
        }


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: S3

    def send(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        key = unquote(parts.path).removeprefix(f"/{BUCKET}").removeprefix("/")
        refused = self.server.refuse(self.command, key)
        if refused is None and key and key not in self.server.objects:
            refused = 404, "NoSuchKey", "The specified key does not exist."
        if refused is not None:
            status, code, text = refused
            body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{escape(text)}</Message></Error>"
            self.send(status, body.encode(), {"Content-Type": "application/xml", **self.server.headers.get("", {})})
        elif not key:
            self.send(200, self.listed(parse_qs(parts.query, keep_blank_values=True)), {})
        else:
            self.give(key)

    def do_HEAD(self) -> None:
        self.do_GET()

    def give(self, key: str) -> None:
        content = self.server.objects[key]
        headers = {"ETag": f'"{hashlib.md5(content).hexdigest()}"', **self.server.headers.get(key, {})}
        wanted = self.headers.get("Range")
        if self.command == "HEAD" or not wanted or not content:
            self.send(200, content, headers)
            return
        first, _, last = wanted.removeprefix("bytes=").partition("-")
        part = content[int(first) : int(last) + 1]
        span = f"bytes {first}-{int(first) + len(part) - 1}/{len(content)}"
        self.send(206, part, {**headers, "Content-Range": span})

    def listed(self, query: Mapping[str, list[str]]) -> bytes:
        prefix, after = query.get("prefix", [""])[0], query.get("continuation-token", [""])[0]
        delimiter = query.get("delimiter", [""])[0]
        rows: dict[str, str] = {}
        for key, content in sorted(self.server.objects.items()):
            if not key.startswith(prefix):
                continue
            head, found, _ = key[len(prefix) :].partition(delimiter) if delimiter else (key, "", "")
            if found:
                folder = escape(f"{prefix}{head}{delimiter}")
                rows[folder] = f"<CommonPrefixes><Prefix>{folder}</Prefix></CommonPrefixes>"
            else:
                tag = hashlib.md5(content).hexdigest()
                rows[key] = (
                    f"<Contents><Key>{escape(key)}</Key><Size>{len(content)}</Size><ETag>&quot;{tag}&quot;</ETag>"
                    "<LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>"
                )
        left = [name for name in sorted(rows) if name > after]
        page, more = left[: self.server.page], len(left) > self.server.page
        token = f"<NextContinuationToken>{escape(page[-1])}</NextContinuationToken>" if more else ""
        return (
            "<?xml version='1.0'?><ListBucketResult xmlns='http://s3.amazonaws.com/doc/2006-03-01/'>"
            f"<Name>{BUCKET}</Name><Prefix>{escape(prefix)}</Prefix><KeyCount>{len(page)}</KeyCount>"
            f"<IsTruncated>{str(more).lower()}</IsTruncated>{token}{''.join(map(rows.__getitem__, page))}"
            "</ListBucketResult>"
        ).encode()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # the base class names it
        pass


@contextmanager
def s3(objects: Mapping[str, bytes], page: int = 1000) -> Iterator[S3]:
    server = S3(objects, page)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
