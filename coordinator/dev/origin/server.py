"""The sample origin: a real HTTP/1.1 server that imitates the Hugging Face Hub, counts what it serves, and can fail.

    GET  /api/models/{repo}[/revision/{rev}][?blobs=true]     what `huggingface_hub` asks; so does /tree/{rev}
    GET  /{repo}/resolve/{rev}/{path}                         a small file; for an LFS file a 302 to its bytes,
    GET  /_cdn/{repo}/{commit}/{path}?Expires=…&Signature=…   under another host name and without the token, as there
    GET  /files/{path}                                        plain files: of `files`, and `{repo}/{path}` of any repo
    GET  /_stats            payload bytes and requests, in total, per repository, per file: counted where they are sent
    GET | PUT | DELETE /_faults                               see `coordinator.dev.origin.faults`

`python -m coordinator.dev.origin` runs it as a process. For laptops, tests and benchmarks: there is no TLS.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import socket
import socketserver
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from actors.sizes import parse_bytes
from coordinator.dev.laptop.runfolder import run_folder
from coordinator.dev.origin.repository import Repository
from coordinator.dev.origin.requests import Handler, Site
from coordinator.dev.origin.sample import REPO, write_sample


class Origin:
    """A running origin; a context manager, or `close` it. Serves from construction on, from its own threads.

    `repos` and `files` are folders that must not change; `Repository` for one that takes a token. `rate_bytes_per_s`
    limits every connection. `link_ttl_s`: how long a redirect to the bytes of an LFS file stays valid.
    """

    def __init__(
        self,
        repos: Mapping[str, Path | Repository] | None = None,
        *,
        files: Path | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
        rate_bytes_per_s: float | None = None,
        link_ttl_s: float = 3600.0,
    ) -> None:
        self.repos = {
            name: repo if isinstance(repo, Repository) else Repository(name, repo)
            for name, repo in (repos or {}).items()
        }
        self._site = Site(self.repos, files, rate_bytes_per_s, link_ttl_s)
        self.faults = self._site.faults
        self._server = _Server((host, port), self._site)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), name="origin", daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        host, port = self._server.server_address[:2]
        return f"http://{host!s}:{port}"

    @property
    def hub_endpoint(self) -> str:
        """What `HF_ENDPOINT` must be for this to be the hub."""
        return self.url

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """No connection is left open, and no thread; requests under way are cut."""
        self._site.closing.set()
        self._server.shutdown()
        self._server.cut_connections()
        self._server.server_close()
        self._thread.join()

    def stats(self) -> dict[str, Any]:
        """`{"bytes", "requests", "atATime", "repos": {repo: {"bytes", "requests"}}, "files": {"repo/path": …}}`.

        Bytes are payload handed to the socket. The requests at the top are all, the others those for files. `atATime`
        is the most that were ever under way, from the arrival of a request until the last of its answer is sent.
        """
        return self._site.stats()

    def arrivals(self) -> list[float]:
        """When requests came, on the monotonic clock: the last ten thousand."""
        return self._site.counts.arrivals()


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = False  # joined by server_close, so that nothing outlives `Origin.close`
    request_queue_size = 512

    def __init__(self, address: tuple[str, int], site: Site) -> None:
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        super().__init__(address, type("SiteHandler", (Handler,), {"site": site}))

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._open.discard(request)
        super().shutdown_request(request)

    def cut_connections(self) -> None:
        with self._lock:
            for connection in self._open:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):  # a client that goes away is no news
            super().handle_error(request, client_address)


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT. The first line on standard output is JSON, printed when it serves."""
    parser = argparse.ArgumentParser(
        prog="python -m coordinator.dev.origin", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="default: a free one")
    parser.add_argument("--size", type=_size, default=256 << 20, help=f"of the sample {REPO}; 0: none (default: 256Mi)")
    parser.add_argument(
        "--directory", type=Path, help="where the sample is written and reused (default: a temporary one)"
    )
    parser.add_argument(
        "--repo", action="append", default=[], metavar="OWNER/NAME=FOLDER", help="serve a real folder too"
    )
    parser.add_argument("--token", help="all repositories are gated and take this token")
    parser.add_argument("--rate", type=_size, metavar="BYTES/S", help="limit every connection")
    options = parser.parse_args(arguments)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    with contextlib.ExitStack() as stack:
        folders = {}
        if options.size:
            home = options.directory or stack.enter_context(run_folder(Path(tempfile.gettempdir()), "localmodel-"))
            folders[REPO] = home / f"sample-{options.size}"
            write_sample(folders[REPO], options.size)
        for repo in options.repo:
            name, separator, folder = repo.partition("=")
            if not separator or name.count("/") != 1 or not Path(folder).is_dir():
                parser.error(f"--repo {repo}: expected OWNER/NAME=FOLDER with an existing folder")
            folders[name] = Path(folder)
        repos = {name: Repository(name, folder, token=options.token) for name, folder in folders.items()}
        with Origin(repos, host=options.host, port=options.port, rate_bytes_per_s=options.rate) as origin:
            described = {
                repo.name: {"commit": repo.main.commit, "bytes": repo.main.total_bytes} for repo in repos.values()
            }
            print(json.dumps({"ready": True, "url": origin.url, "repos": described}), flush=True)  # noqa: T201  # its output
            stop.wait()
    return 0


def _size(text: str) -> int:
    return parse_bytes(text.removesuffix("B") if text.endswith("iB") else text)
