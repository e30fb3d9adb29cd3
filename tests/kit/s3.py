"""A small S3 that gives checksums, as rclone's does not: lists, describes and serves the objects a test puts there.

    GET  /bucket?list-type=2&prefix=…      every key that begins so
    HEAD /bucket/key                       size and headers; x-amz-checksum-… only with x-amz-checksum-mode: ENABLED
    GET  /bucket/key                       the bytes, or a range of them

Signatures are not looked at.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape


@dataclass(slots=True)
class Object:
    """So many answers have a `wrong` first byte; -1: all."""

    content: bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    wrong: int = 0


class S3:
    """Serves `objects`, by bucket/key, until the `with` block ends."""

    def __init__(self, objects: dict[str, Object]) -> None:
        self.objects = objects
        s3 = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self._answer(*s3.answer(self.path, dict(self.headers.items())))

            def do_HEAD(self) -> None:
                self._answer(*s3.answer(self.path, dict(self.headers.items())))

            def _answer(self, status: int, headers: Mapping[str, str], content: bytes) -> None:
                self.send_response(status)
                for name, value in {"Content-Length": str(len(content)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(content)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # the base class names it
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def answer(self, path: str, sent: Mapping[str, str]) -> tuple[int, dict[str, str], bytes]:
        url = urlsplit(path)
        name, query = unquote(url.path).strip("/"), parse_qs(url.query)
        if "list-type" in query:
            return 200, {"Content-Type": "application/xml"}, self._listing(name, query.get("prefix", [""])[0])
        found = self.objects.get(name)
        if found is None:
            return 404, {}, b""
        wants_checksum = sent.get("x-amz-checksum-mode") == "ENABLED"
        headers = {
            key: value
            for key, value in found.headers.items()
            if wants_checksum or not key.startswith("x-amz-checksum-")
        }
        content = found.content
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", sent.get("Range", ""))
        if wanted is None:
            return 200, headers, content
        start, stop = int(wanted[1]), min(int(wanted[2]) + 1, len(content))
        if found.wrong and start == 0:
            found.wrong -= 1
            content = bytes([content[0] ^ 1]) + content[1:]
        return 206, headers | {"Content-Range": f"bytes {start}-{stop - 1}/{len(content)}"}, content[start:stop]

    def _listing(self, bucket: str, prefix: str) -> bytes:
        keys = [name.removeprefix(f"{bucket}/") for name in self.objects if name.startswith(f"{bucket}/{prefix}")]
        entries = "".join(
            f"<Contents><Key>{escape(key)}</Key><Size>{len(self.objects[f'{bucket}/{key}'].content)}</Size>"
            f"<LastModified>2026-11-23T08:00:00.000Z</LastModified></Contents>"
            for key in sorted(keys)
        )
        return (
            f'<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>{bucket}</Name>'
            f"<IsTruncated>false</IsTruncated><KeyCount>{len(keys)}</KeyCount>{entries}</ListBucketResult>"
        ).encode()
