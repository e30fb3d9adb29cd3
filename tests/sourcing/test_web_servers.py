"""Web servers as they are: what `curl -L` gets from them, a fill gets, byte for byte."""

from __future__ import annotations

import gzip
import http.server
import random
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from actors.errors import SourceError, SourceUnsupported
from actors.fill.range_reader import RangeReader
from actors.manifest import Location, ModelSource
from actors.sources import web
from actors.sources.options import SourceOptions
from actors.sources.resolve import resolve
from actors.transport.redirects import target_of
from coordinator import cli

DATA = random.Random(1).randbytes(6 << 20)
STORED = gzip.compress(DATA[: 1 << 20])


class Handler(http.server.BaseHTTPRequestHandler):
    """The first part of the path says how it answers."""

    protocol_version = "HTTP/1.1"
    server: Server

    def send(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def ranged(self, data: bytes = DATA, **headers: str) -> None:
        wanted = self.headers.get("Range")
        if not wanted:
            self.send(200, data, **headers)
            return
        first, _, last = wanted.removeprefix("bytes=").partition("-")
        part = data[int(first) : int(last) + 1]
        span = f"bytes {first}-{int(first) + len(part) - 1}/{len(data)}"
        self.send(206, part, **{"Content_Range": span, **headers})

    def do_HEAD(self) -> None:
        self.send(405)

    def do_GET(self) -> None:
        kind, wanted = self.path.split("/")[1], self.headers.get("Range")
        with self.server.lock:
            self.server.count += 1
            self.server.busy += 1
            count, busy = self.server.count, self.server.busy
        try:
            self.answer(kind, wanted, count, busy)
        finally:
            with self.server.lock:
                self.server.busy -= 1

    def answer(self, kind: str, wanted: str | None, count: int, busy: int) -> None:  # noqa: C901 - a table: one case for each kind of server
        size = len(DATA)
        match kind:
            case _ if kind.startswith("no") and kind[2:].isdecimal():
                self.send(int(kind[2:])) if wanted else self.send(200, DATA)
            case _ if kind.startswith("to") and kind[2:].isdecimal():
                self.send(int(kind[2:]), Location="/plain/model.bin")
            case _ if kind.startswith("limit") and busy <= 2:
                time.sleep(0.1)
                self.ranged()
            case "limitrst":
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)
            case _ if kind.startswith("limit"):
                self.close_connection = True
                self.send(int(kind[5:]))
            case "whole206":
                self.send(206, DATA, Content_Range=f"bytes 0-{size - 1}/{size}")
            case "bare206":
                self.send(206, DATA[:1]) if wanted else self.send(200, DATA)
            case "total206":
                span = (wanted or "").removeprefix("bytes=")
                self.ranged(Content_Range=f"bytes {span}/*") if wanted else self.send(200, DATA)
            case "loose206":
                first, _, last = (wanted or "").removeprefix("bytes=").partition("-")
                stop = min(int(last or size), size - 1)
                self.ranged(Content_Range=f"Bytes={first}-{stop} / {size}") if wanted else self.send(500)
            case "multipart206":
                parts = b"--x\r\nContent-Range: bytes 0-0/9\r\n\r\n1\r\n--x--"
                media = "multipart/byteranges; boundary=x"
                self.send(206, parts, Content_Type=media) if wanted else self.send(200, DATA)
            case "wrong206":
                self.ranged(Content_Range=f"bytes 7-9/{size}") if wanted else self.send(200, DATA)
            case "ignored" | "none":
                self.send(200, DATA, Accept_Ranges="none")
            case "utf8":
                self.send_response(302)
                self.flush_headers()
                self.wfile.write("Location: /plain/modèle v1.bin\r\nContent-Length: 0\r\n\r\n".encode())
            case "space":
                self.send(302, Location="/plain/my model.bin")
            case "relative":
                self.send(302, Location="../plain/model.bin?x=1#part")
            case "query":
                self.ranged() if "?" in self.path else self.send(302, Location="?x=1")
            case "stored":
                self.ranged(STORED, Content_Encoding="gzip")
            case "stored200":
                self.send(200, STORED, Content_Encoding="gzip")
            case "transcoded" if self.headers["Accept-Encoding"] == "gzip":
                self.ranged(STORED, Content_Encoding="gzip", x_goog_stored_content_encoding="gzip")
            case "transcoded" if wanted == "bytes=0-0":
                self.ranged(STORED)
            case "transcoded":
                self.send(200, DATA[: 1 << 20], x_goog_stored_content_encoding="gzip")
            case "unknown":
                self.protocol_version = "HTTP/1.0"
                self.send_response(200)
                self.end_headers()
                self.wfile.write(DATA)
                self.close_connection = True
            case "chunked":
                self.send_response(200)
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                for start in range(0, size, 1 << 20):
                    self.wfile.write(b"%x\r\n%b\r\n" % (1 << 20, DATA[start : start + (1 << 20)]))
                self.wfile.write(b"0\r\n\r\n")
            case "etags":
                self.ranged(ETag=f'"{count}"')
            case "weak":
                self.ranged(ETag=f'W/"{count}"')
            case "empty":
                self.send(416, Content_Range="bytes */0") if wanted else self.send(200)
            case "empty200":
                self.send(200)
            case "html" | "page":
                self.ranged(DATA if kind == "html" else b"<html>log in</html>", Content_Type="text/html; charset=utf-8")
            case "picky":
                self.ranged() if self.headers.get("User-Agent") == "localmodel" else self.send(403)
            case "picky302":
                self.send(302 if self.headers.get("User-Agent") == "localmodel" else 403, Location="/picky/model.bin")
            case _ if kind.startswith("nowhere"):
                self.send(int(kind[7:]))
            case "noise":
                self.wfile.write(b"\x1b[2J\x07" * 1000)
                self.close_connection = True
            case "early":
                self.wfile.write(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n")
                self.ranged()
            case _:
                self.ranged()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the base class names it
        pass


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.lock, self.count, self.busy = threading.Lock(), 0, 0
        self.url = f"http://127.0.0.1:{self.server_port}"


@contextmanager
def running() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running() as server:
        yield server


KINDS = {
    **dict.fromkeys(["plain", "ignored", "none", "early", "etags", "weak", "html", "picky", "picky302"], DATA),
    **dict.fromkeys(["whole206", "bare206", "total206", "wrong206", "loose206", "multipart206"], DATA),
    **dict.fromkeys(["no400", "no403", "no405", "no406", "no416", "no501"], DATA),
    **dict.fromkeys(["to301", "to302", "to303", "to307", "to308", "utf8", "space", "relative", "query"], DATA),
    **dict.fromkeys(["limit403", "limit429", "limit503", "limitrst"], DATA),
    **dict.fromkeys(["unknown", "chunked"], DATA),
    **dict.fromkeys(["stored", "stored200", "transcoded"], STORED),
    **dict.fromkeys(["empty", "empty200"], b""),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_what_curl_gets_is_had(kind: str, server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "out"
    code = cli.main(["fill", f"{server.url}/{kind}/model.bin", str(target)])
    assert code == 0, capsys.readouterr().err
    assert (target / "model.bin").read_bytes() == KINDS[kind]


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("page", "is a web page, not a file to download"),
        ("nowhere302", "answered HTTP 302 and does not say where the file is"),
        ("nowhere300", "answered HTTP 300 and does not say where the file is"),
        ("nowhere304", "answered HTTP 304 and does not say where the file is"),
        ("noise", r"does not speak HTTP: \x1b[2J"),
    ],
)
def test_what_is_no_file_is_said(
    kind: str, said: str, server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["fill", f"{server.url}/{kind}/model.bin", str(tmp_path / "out")]) == 1
    err = capsys.readouterr().err
    assert said in err
    assert (len(err.splitlines()), len(err) < 300, err.rstrip("\n").isprintable()) == (1, True, True)
    assert list(tmp_path.iterdir()) == []


def test_a_small_file_of_a_server_without_ranges_comes_in_one_request(server: Server) -> None:
    reader = RangeReader(stall_timeout_s=5)
    location = Location(f"{server.url}/no416/model.bin")
    assert b"".join(map(bytes, reader.blocks(location, {}, len(DATA), 0, len(DATA)))) == DATA
    before = server.count
    assert b"".join(map(bytes, reader.blocks(location, {}, len(DATA), 0, len(DATA)))) == DATA
    assert server.count - before == 1, "it is known by now"
    reader.close()


@pytest.mark.parametrize(
    ("kind", "size", "said"),
    [
        ("plain", 10, "has 6291456 bytes, it had 10 when it was listed"),
        ("ignored", 10, "has 6291456 bytes, it had 10 when it was listed"),
        ("unknown", 10, "is longer than the 10 bytes it had"),
        ("chunked", 10, "is longer than the 10 bytes it had"),
        ("unknown", len(DATA) + 5, "broke off at byte 6291456"),
        ("stored200", 10, "is sent in another encoding than it is stored in"),
    ],
)
def test_a_file_of_another_length_is_not_taken(kind: str, size: int, said: str, server: Server) -> None:
    reader = RangeReader(stall_timeout_s=5)
    with pytest.raises(SourceError, match=said):
        list(reader.blocks(Location(f"{server.url}/{kind}/model.bin"), {}, size, 0, size))
    reader.close()


def test_a_file_that_is_read_only_to_be_counted_has_bounds(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "MAX_COUNTED_BYTES", 3 << 20)
    with pytest.raises(SourceUnsupported, match=r"sends more than can be read to find out \(3Mi in 100 s\)") as caught:
        resolve(ModelSource(f"{server.url}/chunked/model.bin"), SourceOptions())
    assert caught.value.reason == "SizeUnknown"


@pytest.mark.parametrize(
    ("url", "disposition", "name"),
    [
        ("/a/model.bin", "", "model.bin"),
        ("/a/model.bin", 'attachment; filename="other.bin"', "model.bin"),
        ("/a/model.bin?download=true", "", "model.bin"),
        ("/a/12345", 'attachment; filename="model.bin"', "model.bin"),
        ("/a/12345", "attachment; filename=model.bin", "model.bin"),
        ("/a/12345", "attachment; filename*=UTF-8''mod%C3%A8le.bin", "modèle.bin"),
        ("/a/12345", 'attachment; filename="mod\u00c3\u00a8le.bin"', "modèle.bin"),
        ("/a/12345", 'attachment; filename="../../etc/model.bin"', "model.bin"),
        ("/a/12345", r'attachment; filename="C:\\x\\model.bin"', "model.bin"),
        ("/a/12345", 'attachment; filename=".."', "12345"),
        ("/a/12345", "inline", "12345"),
        ("/a/12345?file=model.bin", "", "12345"),
        ("/?file=models/model.bin", "", "model.bin"),
        ("/?id=3", 'attachment; filename="model.bin"', "model.bin"),
        ("/?id=3", "", ""),
        ("/a%20b.bin", "", "a b.bin"),
    ],
)
def test_what_a_file_is_called(url: str, disposition: str, name: str) -> None:
    assert web._name(urlsplit(f"https://h{url}"), {"content-disposition": disposition}) == name


@pytest.mark.parametrize(
    ("url", "location", "target"),
    [
        ("https://h/a/b", "c d", "https://h/a/c%20d"),
        ("https://h/a/b", "/c%20d", "https://h/c%20d"),
        ("https://h/a/b", "?x=ü".encode().decode("iso-8859-1"), "https://h/a/b?x=%C3%BC"),
        ("https://h/a/b", "//g/c#d", "https://g/c"),
        ("https://h/a/b", " https://g:8443/c ", "https://g:8443/c"),
        (
            "https://h/a",
            "https://bücher.example:1/ü".encode().decode("iso-8859-1"),
            "https://xn--bcher-kva.example:1/%C3%BC",
        ),
        ("http://[::1]:5/a", "b", "http://[::1]:5/b"),
        ("https://h/a", "https://g/b?sig=a%2Bb%3D&x=a+b", "https://g/b?sig=a%2Bb%3D&x=a+b"),
    ],
)
def test_where_a_redirect_leads(url: str, location: str, target: str) -> None:
    assert target_of(url, location) == target
