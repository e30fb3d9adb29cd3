"""One request to the sample origin, from its URL to the last byte: what `dev.origin.server` serves, and how.

    request ──► fault? ──► find: a `_Body`, or an `_Answer` (JSON, redirect, error) ──► send: counted, or spoiled

`Site` is what all connections share.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

from coordinator.dev.origin.faults import Fault, Faults
from coordinator.dev.origin.repository import Repository, Snapshot, UnknownRevision

_SEND_BYTES = 1 << 20
_RANGE = re.compile(r"bytes=(\d*)-(\d*)")
_SIBLING_HOST = {"127.0.0.1": "localhost", "localhost": "127.0.0.1"}


class Counts:
    """Payload bytes and requests that were served, per file; and how many requests were under way at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._files: dict[str, Counter[str]] = {}
        self._requests = 0
        self._arrivals: deque[float] = deque(maxlen=10_000)
        self._under_way = 0
        self._most = 0

    def began(self) -> None:
        with self._lock:
            self._requests += 1
            self._arrivals.append(time.monotonic())
            self._under_way += 1
            self._most = max(self._most, self._under_way)

    def ended(self) -> None:
        with self._lock:
            self._under_way -= 1

    def arrivals(self) -> list[float]:
        """When the last ten thousand requests came, on the monotonic clock."""
        with self._lock:
            return list(self._arrivals)

    def file(self, name: str, *, sent: int = 0, requests: int = 0) -> None:
        with self._lock:
            self._files.setdefault(name, Counter(bytes=0, requests=0)).update(bytes=sent, requests=requests)

    def summary(self, repos: Sequence[str]) -> dict[str, Any]:
        """See `Origin.stats`."""
        with self._lock:
            total = sum(counter["bytes"] for counter in self._files.values())
            per_repo = {repo: Counter(bytes=0, requests=0) for repo in repos}
            for name, counter in self._files.items():
                for repo in (repo for repo in repos if name.startswith(f"{repo}/")):
                    per_repo[repo].update(counter)
            return {
                "bytes": total,
                "requests": self._requests,
                "atATime": self._most,
                "repos": {repo: dict(counter) for repo, counter in per_repo.items()},
                "files": {name: dict(counter) for name, counter in sorted(self._files.items())},
            }


@dataclass(slots=True)
class Site:
    """Everything a request needs to know of its origin. `closing` ends whatever waits."""

    repos: Mapping[str, Repository]
    files: Path | None
    rate_bytes_per_s: float | None
    link_ttl_s: float
    faults: Faults = field(default_factory=Faults)
    counts: Counts = field(default_factory=Counts)
    closing: threading.Event = field(default_factory=threading.Event)
    key: bytes = field(default_factory=lambda: os.urandom(16))

    def stats(self) -> dict[str, Any]:
        return self.counts.summary(list(self.repos))

    def sign(self, path: str, expires: int) -> str:
        """What must stand behind `path` for its bytes to be given until `expires` (epoch seconds)."""
        return hmac.new(self.key, f"{path} {expires}".encode(), hashlib.sha256).hexdigest()


@dataclass(frozen=True, slots=True)
class _Body:
    """A file that may be sent: `name` is what it is counted as."""

    name: str
    path: Path
    size: int
    etag: str
    headers: Mapping[str, str]


class _Answer(Exception):  # not an error: the quickest way out of a request
    def __init__(self, status: int, document: object = None, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(status)
        self.status = status
        self.document = document
        self.headers = dict(headers or {})


class Handler(BaseHTTPRequestHandler):
    """One connection. A subclass sets `site`."""

    protocol_version = "HTTP/1.1"
    _under_way = False
    disable_nagle_algorithm = True
    site: Site

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # the base class names it
        pass

    def do_GET(self) -> None:
        self._handle()

    def do_HEAD(self) -> None:
        self._handle()

    def do_PUT(self) -> None:
        self._handle()

    def do_DELETE(self) -> None:
        self._handle()

    def _handle(self) -> None:
        url = urlsplit(self.path)
        self.query = {name: values[0] for name, values in parse_qs(url.query).items()}
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        try:
            if url.path == "/_stats":
                raise _Answer(200, self.site.stats())
            if url.path == "/_faults":
                self._set_faults(content)
            self.site.counts.began()
            self._under_way = True
            fault = self.site.faults.take(self.command, url.path) or Fault()
            self.site.closing.wait(fault.latency_s)
            if fault.status is not None:
                known = {"Retry-After": fault.retry_after, "Location": fault.location}
                headers = {name: value for name, value in known.items() if value is not None}
                raise _Answer(fault.status, {"error": "a fault was asked for"}, headers)
            self._send_file(self._find(unquote(url.path)), fault)
        except _Answer as answer:
            self._ended()
            self._send_document(answer)
        finally:
            self._ended()

    def _ended(self) -> None:
        """Before the last of the answer is sent: whoever has read it may ask again before we know."""
        if self._under_way:
            self._under_way = False
            self.site.counts.ended()

    def _set_faults(self, content: bytes) -> None:
        if self.command == "PUT":
            try:
                self.site.faults.load(json.loads(content))
            except (ValueError, TypeError) as error:
                raise _Answer(400, {"error": str(error)}) from error
        elif self.command == "DELETE":
            self.site.faults.clear()
        raise _Answer(200, self.site.faults.active())

    def _find(self, path: str) -> _Body:
        """What a URL path names: a file, or an `_Answer`."""
        parts = path.strip("/").split("/")
        match parts:
            case ["api", "models", owner, name, *rest]:
                raise _Answer(200, self._describe(f"{owner}/{name}", rest))
            case ["_cdn", owner, name, commit, *rest]:
                self._check_signature(path)
                return self._in_repo(self.site.repos[f"{owner}/{name}"], commit, "/".join(rest))
            case ["files", *rest]:
                return self._plain("/".join(rest))
            case [owner, name, "resolve", revision, *rest]:
                return self._resolve(self._repository(f"{owner}/{name}", contents=True), revision, "/".join(rest))
        raise _Answer(404, {"error": "no such page"})

    def _describe(self, name: str, rest: Sequence[str]) -> object:
        repo = self._repository(name)
        match rest:
            case [] | ["revision", *_]:
                snapshot = self._snapshot(repo, "/".join(rest[1:]) or "main")
                return repo.info(snapshot, blobs=self.query.get("blobs", "").lower() == "true")
            case ["tree", *revision]:
                snapshot = self._snapshot(repo, "/".join(revision) or "main")
                return snapshot.tree(recursive=self.query.get("recursive", "").lower() == "true")
        raise _Answer(404, {"error": "no such endpoint"})

    def _repository(self, name: str, *, contents: bool = False) -> Repository:
        """The repository, if the request may see it; its `contents` need the token where there is one."""
        repo = self.site.repos.get(name)
        sent = self.headers.get("Authorization", "")
        allowed = repo is not None and (repo.token is None or sent == f"Bearer {repo.token}")
        if repo is None or (repo.private and not allowed):
            raise _Answer(404 if sent else 401, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        if contents and not allowed:
            message = f"Access to model {name} is restricted."
            headers = {"X-Error-Code": "GatedRepo", "X-Error-Message": message}
            raise _Answer(403 if sent else 401, {"error": message}, headers)
        return repo

    def _snapshot(self, repo: Repository, revision: str) -> Snapshot:
        try:
            return repo.at(revision)
        except UnknownRevision:
            raise _Answer(404, {"error": "Invalid rev id"}, {"X-Error-Code": "RevisionNotFound"}) from None

    def _resolve(self, repo: Repository, revision: str, path: str) -> _Body:
        body = self._in_repo(repo, revision, path)
        snapshot = self._snapshot(repo, revision)
        file = snapshot.files[path]
        if file.sha256 is None:
            return body
        target = f"/_cdn/{repo.name}/{snapshot.commit}/{path}"
        expires = int(time.time() + self.site.link_ttl_s)
        host, _, port = self.headers.get("Host", "127.0.0.1").partition(":")
        link = f"http://{_SIBLING_HOST.get(host, host)}:{port or 80}{quote(target)}"
        link += f"?Expires={expires}&Signature={self.site.sign(target, expires)}"
        linked = {"Location": link, "X-Linked-Etag": file.etag, "X-Linked-Size": str(file.size), "ETag": file.etag}
        raise _Answer(302, None, {**body.headers, **linked})

    def _in_repo(self, repo: Repository, revision: str, path: str) -> _Body:
        snapshot = self._snapshot(repo, revision)
        file = snapshot.files.get(path)
        commit = {"X-Repo-Commit": snapshot.commit}
        if file is None:
            raise _Answer(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound", **commit})
        return _Body(f"{repo.name}/{path}", snapshot.folder / path, file.size, file.etag, commit)

    def _check_signature(self, path: str) -> None:
        expires = self.query.get("Expires", "0")
        valid = hmac.compare_digest(self.query.get("Signature", ""), self.site.sign(path, int(expires)))
        if not valid or int(expires) < time.time():
            raise _Answer(403, {"error": "the link has expired"})

    def _plain(self, path: str) -> _Body:
        folders = [(repo.name, repo.main.folder) for repo in self.site.repos.values()]
        roots = [(folder, path.removeprefix(f"{name}/")) for name, folder in folders if path.startswith(f"{name}/")]
        roots += [(self.site.files, path)] if self.site.files is not None else []
        for folder, relative in roots:
            found = (folder / relative).resolve()
            if found.is_file() and found.is_relative_to(folder.resolve()):
                status = found.stat()
                return _Body(path, found, status.st_size, f'"{status.st_mtime_ns:x}-{status.st_size:x}"', {})
        raise _Answer(404, {"error": "no such file"})

    def _send_document(self, answer: _Answer) -> None:
        content = b"" if answer.document is None else json.dumps(answer.document).encode()
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _send_file(self, body: _Body, fault: Fault) -> None:
        etag = fault.etag or body.etag
        if self.headers.get("If-Match", etag) not in (etag, "*"):
            raise _Answer(412, {"error": "the file changed"}, {"ETag": etag})
        start, stop, partial = self._range(body, etag)
        length = max(stop - start - fault.truncate_bytes, 0)
        self.send_response(206 if partial else 200)
        if partial:
            self.send_header("Content-Range", fault.content_range or f"bytes {start}-{stop - 1}/{body.size}")
        for name, value in {**body.headers, "ETag": etag, "Accept-Ranges": "bytes"}.items():
            self.send_header(name, value)
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Content-Length", str(length + fault.extra_bytes))
        self.end_headers()
        if self.command == "HEAD":
            return
        self.site.counts.file(body.name, requests=1)
        with body.path.open("rb") as file:
            self._send_bytes(body.name, file.fileno(), start, start + length, fault)
        self.wfile.write(bytes(fault.extra_bytes))

    def _range(self, body: _Body, etag: str) -> tuple[int, int, bool]:
        """`[start, stop)` of the request, and whether it asked for a part. Several ranges get the whole."""
        match = _RANGE.fullmatch(self.headers.get("Range", ""))
        if match is None or match[0] == "bytes=-" or self.headers.get("If-Range", etag) != etag:
            return 0, body.size, False
        first, last = match.groups()
        if first:
            start, stop = int(first), min(int(last) + 1, body.size) if last else body.size
        else:
            start, stop = max(body.size - int(last), 0), body.size
        if start >= stop:
            raise _Answer(416, {"error": "no such range"}, {"Content-Range": f"bytes */{body.size}"})
        return start, stop, True

    def _send_bytes(self, name: str, file: int, start: int, stop: int, fault: Fault) -> None:
        """Hand `[start, stop)` to the socket, as fast as the rate allows and as well as `fault` lets us."""
        position, rate = start, fault.trickle_bytes_per_s or self.site.rate_bytes_per_s
        marks: dict[int, Callable[[], None]] = {}
        if fault.stall_after_bytes is not None:
            marks[start + fault.stall_after_bytes] = lambda: self._stall(fault.stall_s)
        if fault.drop_after_bytes is not None:
            marks[start + fault.drop_after_bytes] = self._drop
        began, largest = time.monotonic(), _SEND_BYTES if rate is None else max(min(_SEND_BYTES, int(rate / 20)), 1)
        while True:
            if position in marks:
                marks.pop(position)()
            if position >= stop:
                return
            count = min([position + largest, stop, *(mark for mark in marks if mark > position)]) - position
            if position + count >= stop:
                self._ended()
            self.site.counts.file(name, sent=count)  # beforehand: whoever has read the bytes must find them counted
            sent = 0
            try:
                if position < start + fault.corrupt_bytes:
                    block = os.pread(file, min(count, start + fault.corrupt_bytes - position), position)
                    self.connection.sendall(bytes(byte ^ 0xFF for byte in block))
                    sent = len(block)
                else:
                    sent = os.sendfile(self.connection.fileno(), file, position, count)
            finally:
                self.site.counts.file(name, sent=sent - count)
            if sent == 0:
                raise ConnectionError("the file is shorter than it was")
            position += sent
            if rate is not None:
                self.site.closing.wait(max((position - start) / rate - (time.monotonic() - began), 0))

    def _drop(self) -> None:
        raise ConnectionAbortedError("a fault was asked for")  # ends the connection; see `_Server.handle_error`

    def _stall(self, seconds: float) -> None:
        if self.site.closing.wait(seconds):
            raise ConnectionAbortedError("the origin is closing")
