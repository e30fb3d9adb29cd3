"""The flags of `localmodel dev`, and all that can be wrong with them before anything is started.

Every mistake is one line that names the flag, what it was given and what it takes; the exit code is 2.
"""

from __future__ import annotations

import argparse
import errno
import math
import os
import re
import socket
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from actors.sizes import format_bytes, parse_bytes
from coordinator.dev.laptop.cluster import SAMPLE_REPO, SAMPLE_URI, LaptopOptions
from coordinator.dev.origin.sample import MIN_BYTES

MAX_NODES = 32
MAX_FOLDER_BYTES = 3000
"""Of a path in which models are kept: what is below it must fit into the 4096 bytes of any path."""
DEFAULT_BYTES = 256 * 1024**2
DEFAULT_TIMEOUT_S = 900.0

_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s/][^\s]*")
_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


class WrongFlags(Exception):
    """The message is the one line."""


@dataclass(frozen=True, slots=True)
class Request:
    """The flags, understood. `parent` is where the run keeps its files, in a folder of its own."""

    models: tuple[str, ...]
    options: LaptopOptions
    parent: Path
    once: bool
    as_json: bool
    timeout_s: float

    @property
    def model_bytes(self) -> int:
        """Of the models that are on this machine already; the others are not known yet."""
        named = {repo_of(uri) for uri in self.models}
        folders = [folder for repo, folder in (self.options.repos or {}).items() if repo in named]
        return self.options.sample_bytes + sum(map(_size_of, folders))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(complain=parser.error)
    parser.add_argument("--nodes", type=_nodes, default=3, help="Kubernetes nodes to imitate (default: 3)")
    parser.add_argument(
        "--model",
        action="append",
        metavar="URI",
        help=f"cache this instead of the sample {SAMPLE_URI}; may be repeated. The real hub needs the internet",
    )
    parser.add_argument(
        "--repo",
        action="append",
        default=[],
        metavar="OWNER/NAME=FOLDER",
        help="serve FOLDER as hf://OWNER/NAME from the built-in hub",
    )
    parser.add_argument("--size", type=_sample_size, help="size of the built-in sample (default: 256Mi)")
    parser.add_argument("--once", action="store_true", help="exit when all caches are Ready (0) or one has failed (1)")
    parser.add_argument(
        "--json", action="store_true", help="print a summary as JSON, as the last line of standard output"
    )
    parser.add_argument("--port", type=_port, default=0, help="port of the API server (default: a free one)")
    parser.add_argument(
        "--dir", type=Path, metavar="FOLDER", help="keep the run's files in a new folder in FOLDER (default: $TMPDIR)"
    )
    parser.add_argument(
        "--timeout",
        type=_timeout,
        metavar="SECONDS",
        help="with --once: give up this long after the caches were applied (default: 900)",
    )


def request(args: argparse.Namespace, environ: Mapping[str, str] = os.environ) -> Request:
    """Raises WrongFlags for what the flags, taken together and on this machine, cannot mean."""
    models, repos = tuple(args.model or [SAMPLE_URI]), _repos(args.repo)
    for uri in models:
        if not _URI.fullmatch(uri):
            raise WrongFlags(f"--model {uri!r}: expected a URI such as {SAMPLE_URI} or s3://bucket/model")
        if models.count(uri) > 1:
            raise WrongFlags(f"--model {uri}: given {models.count(uri)} times")
    built_in = {SAMPLE_REPO, *repos}
    elsewhere = [uri for uri in models if uri.startswith("hf://") and repo_of(uri) not in built_in]
    ours = [uri for uri in models if repo_of(uri) in built_in]
    if elsewhere and ours:
        raise WrongFlags(
            f"--model {elsewhere[0]} is on the real hub and {ours[0]} on the built-in one: take one of them"
        )
    with_sample = SAMPLE_REPO in map(repo_of, models)
    if args.size is not None and not with_sample:
        raise WrongFlags(f"--size is that of the sample, and no --model is {SAMPLE_URI}")
    if args.timeout is not None and not args.once:
        raise WrongFlags("--timeout ends --once, which is not given")
    _check_port(args.port)
    options = LaptopOptions(
        nodes=args.nodes,
        api_port=args.port,
        sample_bytes=(args.size or DEFAULT_BYTES) if with_sample else 0,
        repos=repos,
        real_hub=bool(elsewhere),
    )
    timeout_s = DEFAULT_TIMEOUT_S if args.timeout is None else args.timeout
    return Request(models, options, _parent(args.dir, environ), args.once, args.json, timeout_s)


def repo_of(uri: str) -> str:
    """`owner/name` of a Hugging Face URI; of any other, nothing that names a repository."""
    return re.sub(r"^hf://([^:@]+).*$", r"\1", uri)


def _repos(given: Sequence[str]) -> dict[str, Path]:
    repos: dict[str, Path] = {}
    for each in given:
        name, separator, text = each.partition("=")
        if not separator or not _REPO.fullmatch(name) or not text:
            raise WrongFlags(f"--repo {each}: expected OWNER/NAME=FOLDER, such as acme/llama=./llama")
        if name == SAMPLE_REPO:
            raise WrongFlags(f"--repo {each}: {SAMPLE_REPO} is the built-in sample")
        if name in repos:
            raise WrongFlags(f"--repo {name}: given twice")
        folder = Path(text).expanduser() if text.startswith("~") else Path(text)
        if not folder.is_dir():
            raise WrongFlags(f"--repo {each}: {folder} is {'not a folder' if folder.exists() else 'not there'}")
        if not os.access(folder, os.R_OK | os.X_OK):
            raise WrongFlags(f"--repo {each}: {folder} cannot be read")
        if not any(path.is_file() for path in folder.rglob("*")):
            raise WrongFlags(f"--repo {each}: {folder} holds no files")
        repos[name] = folder.resolve()
    return repos


def _check_port(port: int) -> None:
    if not port:
        return
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # what the server does: one that has ended is free
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            why = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be had: {error.strerror}"
            raise WrongFlags(f"--port {port} {why}; without --port a free one is taken") from error


def _parent(given: Path | None, environ: Mapping[str, str]) -> Path:
    """The folder in which the run makes its own."""
    named = next((name for name in ("TMPDIR", "TEMP", "TMP") if environ.get(name)), None)
    if given is not None:
        what, folder = "--dir", given
    elif named is not None:
        what, folder = f"${named}", Path(environ[named])
    else:
        what, folder = "the temporary folder", Path(tempfile.gettempdir())
    folder = folder.absolute()
    if len(os.fsencode(folder)) > MAX_FOLDER_BYTES:
        raise WrongFlags(
            f"{what}: a path of {len(os.fsencode(folder))} bytes is too long; at most {MAX_FOLDER_BYTES} fit"
        )
    if os.pathsep in str(folder):
        raise WrongFlags(
            f"{what} {folder}: the path of a kubeconfig cannot hold {os.pathsep!r}, which separates several"
        )
    try:
        if not folder.is_dir():
            raise WrongFlags(
                f"{what} {folder} is {'not a folder' if folder.exists() else 'not there: create it first'}"
            )
    except OSError as error:
        raise WrongFlags(f"{what} {folder}: {error.strerror}") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise WrongFlags(f"{what} {folder} is not writable; give another with --dir")
    return folder


def _size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _nodes(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or not 1 <= int(text) <= MAX_NODES:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to {MAX_NODES}, which a laptop bears")
    return int(text)


def _sample_size(text: str) -> int:
    try:
        size = parse_bytes(text.removesuffix("B") if text.endswith("iB") else text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    if size < MIN_BYTES:
        raise argparse.ArgumentTypeError(f"{text} is too small: the sample takes at least {format_bytes(MIN_BYTES)}")
    if size >= 2**63:
        raise argparse.ArgumentTypeError(f"{text} is out of range")
    return size


def _port(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port from 1 to 65535, or 0 for a free one")
    return int(text)


def _timeout(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return seconds
