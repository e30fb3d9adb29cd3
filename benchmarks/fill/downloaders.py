"""The downloaders that are measured: each as the command that a person would run, and as a process of its own.

Ours come twice: `localmodel fill`, from the start of the interpreter to the renamed folder; and the engine alone, as in
an agent that is up. The first is what to compare with other commands, the second what a fill costs a node.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.needs import VENVS, install_line

FILL = "localmodel fill"
ENGINE = "engine"
UNHASHED = "engine, no hash"
SNAPSHOT = "snapshot_download"
PLAIN = "urllib"

_SNAPSHOT = """
import sys
from huggingface_hub import snapshot_download
from huggingface_hub.utils import disable_progress_bars
disable_progress_bars()
snapshot_download(sys.argv[1], local_dir=sys.argv[2])
"""
_PLAIN = """
import json, os, shutil, sys
from pathlib import Path
from urllib.request import urlopen
hub, repo, folder = os.environ["HF_ENDPOINT"], sys.argv[1], Path(sys.argv[2])
for file in json.load(urlopen(f"{hub}/api/models/{repo}/revision/main"))["siblings"]:
    path = folder / file["rfilename"]
    path.parent.mkdir(parents=True, exist_ok=True)
    with urlopen(f"{hub}/{repo}/resolve/main/{file['rfilename']}") as body, path.open("wb") as into:
        shutil.copyfileobj(body, into, 1 << 20)
"""
_KSERVE = "import sys; from kserve_storage import Storage; Storage.download(sys.argv[1], sys.argv[2])"
_S3FS = """
import os, sys, s3fs
files = s3fs.S3FileSystem(client_kwargs={"endpoint_url": os.environ["AWS_ENDPOINT_URL"]})
files.get(sys.argv[1].removeprefix("s3://").rstrip("/") + "/", sys.argv[2] + "/", recursive=True)
"""
_SPLICE = """
import os, socket, sys
from urllib.parse import urlsplit
url, size, path = urlsplit(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
origin = socket.create_connection((url.hostname, url.port))
origin.sendall(f"GET {url.path} HTTP/1.1\\r\\nHost: {url.netloc}\\r\\n\\r\\n".encode())
head = b""
while not head.endswith(b"\\r\\n\\r\\n"):
    head += origin.recv(1)
into = os.open(path, os.O_WRONLY | os.O_CREAT)
out, back = os.pipe()
while size:
    size -= (count := os.splice(origin.fileno(), back, min(size, 1 << 20)))
    while count:
        count -= os.splice(out, into, count)
"""
_ROUTES = re.compile(r"_proxy$|_CA_BUNDLE$|^SSL_CERT_", re.IGNORECASE)
"""What this machine uses to reach the world, which is not where the servers are."""


@dataclass(frozen=True, slots=True)
class Downloader:
    """`hashes`: the digest it computes of what came. `reports`: its last line of output is JSON about itself.

    Over plain http the origin vouches for none, and ours is recorded only; a hub and a bucket do, and ours is compared.
    """

    name: str
    hashes: str
    command: list[str]
    env: Mapping[str, str] = field(default_factory=dict)
    reports: bool = False

    @property
    def verifies(self) -> str:
        """Against what a copy is checked before it counts. A plain web server vouches for a size alone."""
        return _VERIFIES.get(self.name) or _DIGESTS.get(self.hashes, "size")


_DIGESTS = {"the hub's": "the hub's digests", "md5": "the bucket's MD5"}
_VERIFIES = {UNHASHED: "nothing", "dd conv=fsync": "nothing", PLAIN: "nothing"}


class Absent(Exception):
    """This peer is not on this machine; the message says how it would be."""


def of_url(url: str, size: int, target: Path, ca: Path | None, kserve: str | None) -> list[Downloader | Absent]:
    """Those that can read one http(s) file of `size` bytes into the folder `target`, which exists."""
    trust = {"SSL_CERT_FILE": str(ca), "REQUESTS_CA_BUNDLE": str(ca)} if ca else {}
    curl = ["curl", "-sSf", *(["--cacert", str(ca)] if ca else []), "-o", str(target / "curl"), url]
    aria2c = ["aria2c", "-q", "-x16", "-s16", "-k1M", "--file-allocation=none", "-d", str(target), "-o", "aria2"]
    return [
        _engine(url, size, target, trust, "-", "--no-hash"),
        _engine(url, size, target, trust, "sha256"),
        _fill(url, target, trust, "sha256"),
        _program("curl", curl),
        _program("aria2c", [*aria2c, *([f"--ca-certificate={ca}"] if ca else []), url], name="aria2c -x16"),
        _kserve(url, target, trust, kserve),
    ]


def splice(url: str, size: int, target: Path) -> Downloader:
    """The floor: one connection whose bytes never leave the kernel."""
    command = [sys.executable, "-S", "-E", "-c", _SPLICE, url, str(size), str(target / "splice")]
    return Downloader("splice (the floor)", "-", command)


def of_s3(uri: str, size: int, target: Path, env: Mapping[str, str], kserve: str | None) -> list[Downloader | Absent]:
    s5cmd = ["s5cmd", "--endpoint-url", env["AWS_ENDPOINT_URL"], "cp", f"{uri}/*", f"{target}/"]
    return [
        _engine(uri, size, target, env, "md5"),
        _fill(uri, target, env, "md5"),
        Downloader("s3fs.get", "-", [sys.executable, "-c", _S3FS, uri, str(target / "s3fs")], env),
        _kserve(uri, target, env, kserve),
        _program("s5cmd", s5cmd, env),
    ]


def of_hub(repo: str, size: int, target: Path, env: Mapping[str, str], kserve: str | None) -> list[Downloader | Absent]:
    cache = {**env, "HF_HOME": str(target / "home")}
    snapshot = [sys.executable, "-c", _SNAPSHOT, repo, str(target / "hub")]
    return [
        _engine(f"hf://{repo}", size, target, env, "the hub's"),
        _fill(f"hf://{repo}", target, env, "the hub's"),
        Downloader(SNAPSHOT, "-", snapshot, cache),
        _kserve(f"hf://{repo}", target, cache, kserve),
    ]


def plain_of_hub(repo: str, target: Path, env: Mapping[str, str]) -> Downloader:
    """A loop over the files of a repository, with what Python brings."""
    return Downloader(PLAIN, "-", [sys.executable, "-c", _PLAIN, repo, str(target / "plain")], env)


def _engine(uri: str, size: int, target: Path, env: Mapping[str, str], hashes: str, *flags: str) -> Downloader:
    command = [sys.executable, "-m", "benchmarks.fill.engine", uri, str(size), str(target / "engine"), *flags]
    return Downloader(UNHASHED if flags else ENGINE, hashes, command, env, reports=True)


def _fill(uri: str, target: Path, env: Mapping[str, str], hashes: str) -> Downloader:
    command = [sys.executable, "-m", "coordinator.cli", "fill", uri, str(target / "fill")]
    return Downloader(FILL, hashes, command, env)


def _program(
    program: str, command: list[str], env: Mapping[str, str] | None = None, name: str = ""
) -> Downloader | Absent:
    if shutil.which(program) is None:
        return Absent(f"{program} is missing: {install_line(program)}")
    return Downloader(name or program, "-", command, env or {})


def _kserve(uri: str, target: Path, env: Mapping[str, str], python: str | None) -> Downloader | Absent:
    if python is None or not _imports(python, "kserve_storage"):
        return Absent(
            f"kserve-storage is missing: {install_line('kserve-storage')}; then --kserve {VENVS['kserve-storage']}"
        )
    return Downloader("kserve-storage", "-", [python, "-c", _KSERVE, uri, str(target / "kserve")], env)


def _imports(python: str, package: str) -> bool:
    found = subprocess.run([python, "-c", f"import {package}"], capture_output=True, check=False)
    return found.returncode == 0


def run(downloader: Downloader) -> dict[str, float]:
    """Wall and CPU seconds and peak memory of the process and its children. Raises SystemExit if it fails."""
    clean = {name: value for name, value in os.environ.items() if not _ROUTES.search(name)}
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        began = time.perf_counter()
        process = subprocess.Popen(downloader.command, env={**clean, **downloader.env}, stdout=out, stderr=err)
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:  # we are told to end, and it ends with us
            process.kill()
            process.wait()
            raise
        seconds = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        for stream in (out, err):
            stream.seek(0)
        if process.returncode:
            raise SystemExit(f"{downloader.name} failed with {process.returncode}: {err.read()[-2000:]}")
        if not downloader.reports:
            return {"wall_s": seconds, "cpu_s": usage.ru_utime + usage.ru_stime, "rss_bytes": usage.ru_maxrss << 10}
        own = json.loads(out.read().splitlines()[-1])
        return {
            "wall_s": own["seconds"],
            "cpu_s": own["cpuSeconds"],
            "rss_bytes": own["rssAboveIdleBytes"],
            "first_byte_s": own["firstByteSeconds"],
        }
