"""How a node agent is configured: by the environment of the process it runs in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from actors.fill.origin_reader import FillSettings
from actors.numbers import LARGEST, within
from actors.peers.server import RAY_PORTS
from actors.peers.tls import TlsFiles
from actors.retry import RetryPolicy
from actors.signatures import SignatureCheck, load_check
from actors.sizes import parse_plain_bytes, say_bytes
from actors.transport.answers import PRIVATE_REDIRECTS

MAX_CONNECTIONS = 1024
CHUNK_BYTES = 64 << 10, 1 << 30
"""The smallest and the largest chunk: smaller ones are more overhead than bytes, larger ones take long to repeat."""


@dataclass(frozen=True, slots=True)
class AgentSettings:
    """What a node agent may use. `roots` are named as in PersistentVolumes, and seen below `host_root`."""

    host_root: Path = Path("/")
    roots: tuple[str, ...] = ("/models",)
    headroom_bytes: int = 1 << 30
    """Stays free on every root: a full disk makes the kubelet evict pods."""
    connections: int = 32
    """The most that one model is read over; as many are used as make it faster."""
    chunk_bytes: int = 16 << 20
    rate_limit_bytes_per_s: float | None = None
    """Of the whole node. `LOCALMODEL_RATE_LIMIT=0`, or nothing: no limit."""
    stall_timeout_s: float = 30.0
    min_speed_bytes_per_s: int = 1024
    """An origin that sends less than this on a connection, over the stall timeout, has stalled."""
    private_redirects: bool = False
    """Origins may redirect to addresses that are less public than their own."""
    chunk_tries: int = 5
    chunk_backoff_first_s: float = 0.5
    chunk_backoff_max_s: float = 15.0
    backoff_first_s: float = 5.0
    backoff_max_s: float = 300.0
    """Between attempts at a model."""
    concurrent_models: int = 2
    aside_margin_s: float = 10.0
    """How much older than a list of this node's pods an old copy must be to be unlinked by it: clocks differ."""
    scrub_bytes_per_s: float | None = 64 << 20
    """How fast committed models are read again. None, `LOCALMODEL_SCRUB_RATE=0`: they are not."""
    scrub_interval_s: float = 24 * 3600.0
    """From the end of one reading of a model to the beginning of the next."""
    peer_host: str | None = None
    """The address of this node that others reach it at; None: nothing listens, and it fills alone."""
    peer_port: int = 0
    """0: a free one, outside of those that Ray uses."""
    peer_tls: TlsFiles | None = None
    """Peers speak TLS, and both ends show a certificate. None: they do not, and the token is all."""
    link_bytes_per_s: float | None = None
    """What the node's network carries, if somebody says so."""
    signature_check: SignatureCheck | None = None
    """A copy must pass it before it is committed. None: everything is accepted."""

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> Self:
        """Raises ValueError naming the variable that cannot be understood. Sizes are plain or `512Mi`, `10G`."""
        default = cls()
        rate = _bytes(env, "LOCALMODEL_RATE_LIMIT", 0)
        scrub = _bytes(env, "LOCALMODEL_SCRUB_RATE", int(default.scrub_bytes_per_s or 0))
        link = _bytes(env, "LOCALMODEL_LINK", 0)
        roots = tuple(root.rstrip("/") or "/" for root in env.get("LOCALMODEL_ROOTS", "").split(":") if root)
        settings = cls(
            host_root=Path(env.get("LOCALMODEL_HOST_ROOT") or default.host_root),
            roots=roots or default.roots,
            headroom_bytes=_bytes(env, "LOCALMODEL_HEADROOM", default.headroom_bytes),
            connections=_count(env, "LOCALMODEL_CONNECTIONS", default.connections, MAX_CONNECTIONS),
            chunk_bytes=_bytes(env, "LOCALMODEL_CHUNK", default.chunk_bytes, *CHUNK_BYTES),
            rate_limit_bytes_per_s=float(rate) if rate else None,
            stall_timeout_s=float(
                _count(env, "LOCALMODEL_STALL_TIMEOUT_SECONDS", int(default.stall_timeout_s), 86_400)
            ),
            min_speed_bytes_per_s=_bytes(env, "LOCALMODEL_MIN_SPEED", default.min_speed_bytes_per_s),
            private_redirects=env.get(PRIVATE_REDIRECTS) == "1",
            concurrent_models=_count(env, "LOCALMODEL_CONCURRENT_MODELS", default.concurrent_models, 1000),
            scrub_bytes_per_s=float(scrub) if scrub else None,
            scrub_interval_s=float(
                _count(env, "LOCALMODEL_SCRUB_INTERVAL_SECONDS", int(default.scrub_interval_s), 10 * 365 * 86_400)
            ),
            peer_host=env.get("LOCALMODEL_PEER_HOST", "").strip() or None,
            peer_port=_port(env, "LOCALMODEL_PEER_PORT"),
            peer_tls=_tls_files(env),
            link_bytes_per_s=float(link) if link else None,
            signature_check=load_check(env.get("LOCALMODEL_SIGNATURE_CHECK", "").strip()),
        )
        for root in settings.roots:
            if not root.startswith("/"):
                raise ValueError(f"LOCALMODEL_ROOTS: {root!r} is not an absolute path")
        return settings

    def path(self, root: str) -> Path:
        """Where this process sees `root`."""
        return self.host_root / root.lstrip("/")

    @property
    def fill(self) -> FillSettings:
        return FillSettings(
            connections=self.connections,
            chunk_bytes=self.chunk_bytes,
            stall_timeout_s=self.stall_timeout_s,
            min_speed_bytes_per_s=self.min_speed_bytes_per_s,
            private_redirects=self.private_redirects,
            tries=self.chunk_tries,
            retry=RetryPolicy(self.chunk_backoff_first_s, self.chunk_backoff_max_s),
        )


def _bytes(env: Mapping[str, str], name: str, default: int, least: int = 0, most: int = LARGEST) -> int:
    text = env.get(name, "").strip()
    if not text:
        return default
    try:
        size = parse_plain_bytes(text)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    if not least <= size <= most:
        raise ValueError(f"{name}: {text!r} is not a size from {say_bytes(least)} to {say_bytes(most)}")
    return size


def _count(env: Mapping[str, str], name: str, default: int, most: int) -> int:
    return within(name, env.get(name, "").strip() or str(default), 1, most)


def _tls_files(env: Mapping[str, str]) -> TlsFiles | None:
    """All of them or none: half a set must not mean that nothing is encrypted."""
    names = ("LOCALMODEL_PEER_TLS_CERT", "LOCALMODEL_PEER_TLS_KEY", "LOCALMODEL_PEER_TLS_CA")
    paths = [env.get(name, "").strip() for name in names]
    if not any(paths):
        return None
    for name, path in zip(names, paths, strict=True):
        if not path.startswith("/"):
            raise ValueError(f"{name}: {path!r} is not an absolute path; TLS between peers takes {', '.join(names)}")
    return TlsFiles(*map(Path, paths))


def _port(env: Mapping[str, str], name: str) -> int:
    text = env.get(name, "").strip() or "0"
    port = within(name, text, 0, 65535)
    if port in RAY_PORTS:
        raise ValueError(f"{name}: {text} is one of the ports that Ray gives to its workers")
    return port
