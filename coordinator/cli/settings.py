"""The flags and environment of `localmodel run`, as one frozen value.

KServe's controller's flags are accepted as they are (`-flag`, `--flag`, `--flag=value`, Go's booleans), so that its
Deployment needs a new image and nothing else. A flag beats the environment; the environment beats the default.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from actors.addresses import Origins
from actors.numbers import decimal
from actors.schemes import Schemes
from actors.sizes import parse_bytes
from actors.trust import Trust
from coordinator.cli.health import parse_address
from coordinator.logs import ENCODERS, LEVELS, TIME_ENCODINGS, LogSettings, parse_level
from coordinator.plan.eviction import Policy
from coordinator.plan.kserve_config import CONFIG_MAP, JOB_NAMESPACE
from coordinator.plan.origin_budget import Budget, Budgets, parse_overrides, parse_requests
from coordinator.plan.snapshot import ORPHAN_GRACE_S

CERTIFICATES = Path(tempfile.gettempdir()) / "k8s-webhook-server" / "serving-certs"
"""Where controller-runtime looks for them."""
BESIDE_KSERVE = ("refuse", "ignore")
EVICTION = ("off", "dry-run", "lru")
EVICTION_IDLE_S = 86400.0
T = TypeVar("T")
TLS_VERSIONS = ("VersionTLS12", "VersionTLS13")
_TRUE, _FALSE = ("1", "t", "T", "true", "TRUE", "True"), ("0", "f", "F", "false", "FALSE", "False")


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything `localmodel run` can be told. Addresses are Go's `host:port`; "0" means do not listen."""

    metrics_addr: str = ":8080"
    health_probe_addr: str = ":8081"
    beside_kserve: str = "refuse"
    webhook_port: int = 9443
    webhook_port_given: bool = field(default=False, compare=False)
    webhook_cert_dir: Path = CERTIFICATES
    tls_min_version: str = "VersionTLS12"
    tls_cipher_suites: tuple[str, ...] = ()
    leader_elect: bool = False
    kubeconfig: str | None = None
    context: str | None = None
    log: LogSettings = field(default_factory=LogSettings)
    namespace: str = "kserve"
    job_namespace: str = JOB_NAMESPACE
    job_namespace_given: bool = False
    kserve_namespace: str = "kserve"
    ray_address: str = "auto"
    tick_s: float = 1.0
    progress_interval_s: float = 3.0
    eviction: Policy | None = None
    orphan_grace_s: float | None = ORPHAN_GRACE_S
    storage_limit: str = "auto"
    mark_nodes: bool = False
    budgets: Budgets = field(default_factory=Budgets)
    schemes: Schemes = field(default_factory=Schemes)
    origins: Origins = field(default_factory=Origins)
    namespaced_own_credentials: bool = False

    def trust(self, env: Mapping[str, str]) -> Trust:
        """What the authors of caches may read. `env` is what this process reads sources with."""
        return Trust.of_operator(self.schemes, self.origins, env)


def parse(argv: Sequence[str], env: Mapping[str, str]) -> Settings:
    """Settings from a command line. Exits with code 2 and the usage for a bad one, as argparse does."""
    parser = argparse.ArgumentParser(prog="localmodel run", allow_abbrev=False)
    add_arguments(parser)
    return from_args(parser.parse_args(argv), env)


def from_args(args: argparse.Namespace, env: Mapping[str, str]) -> Settings:
    """Settings from what `add_arguments` parsed. Exits with code 2 where two flags contradict each other."""
    default = Settings()
    suites = tuple(name for each in args.tls_cipher_suites.split(",") if (name := each.strip()))
    if args.tls_cipher_suites and not suites:
        _usage_error("cipher suites flag was set but no valid suites were specified")
    if suites and args.tls_min_version == "VersionTLS13":
        # KServe's words (pkg/tls/tls_default.go), so that whoever searches for them finds the cause.
        _usage_error("cipher suites cannot be configured with TLS 1.3 (Go manages TLS 1.3 ciphers internally)")
    devel = args.zap_devel
    log = LogSettings(
        level=args.zap_log_level or LEVELS["debug" if devel else "info"],
        encoder=args.zap_encoder or ("console" if devel else "json"),
        stacktrace_level=args.zap_stacktrace_level or LEVELS["warn" if devel else "error"],
        time_encoding=args.zap_time_encoding,
    )
    return Settings(
        metrics_addr=args.metrics_addr,
        health_probe_addr=args.health_probe_addr,
        beside_kserve=args.beside_kserve,
        webhook_port=default.webhook_port if args.webhook_port is None else args.webhook_port,
        webhook_port_given=args.webhook_port is not None,
        webhook_cert_dir=args.webhook_cert_dir or default.webhook_cert_dir,
        tls_min_version=args.tls_min_version or default.tls_min_version,
        tls_cipher_suites=suites,
        leader_elect=args.leader_elect,
        kubeconfig=args.kubeconfig,
        context=args.context,
        log=log,
        namespace=args.namespace or env.get("POD_NAMESPACE") or default.namespace,
        job_namespace=args.job_namespace or default.job_namespace,
        job_namespace_given=args.job_namespace is not None,
        kserve_namespace=args.kserve_namespace or env.get("KSERVE_CONFIG_NAMESPACE") or default.kserve_namespace,
        ray_address=args.ray_address or env.get("RAY_ADDRESS") or default.ray_address,
        tick_s=args.tick_seconds,
        progress_interval_s=args.progress_interval_seconds,
        eviction=None if args.eviction == "off" else Policy(args.eviction_idle_seconds, args.eviction == "dry-run"),
        orphan_grace_s=args.orphan_grace_seconds or None,
        storage_limit=args.storage_limit,
        mark_nodes=args.mark_nodes,
        budgets=_budgets(args, env),
        schemes=_schemes(args, env),
        origins=_given(args.allow_origins, env, "LOCALMODEL_ALLOW_ORIGINS", Origins.parse, Origins()),
        namespaced_own_credentials=_given(
            args.namespaced_own_credentials, env, "LOCALMODEL_NAMESPACED_OWN_CREDENTIALS", _as_boolean, False
        ),
    )


def _given(flag: T | None, env: Mapping[str, str], name: str, parse: Callable[[str], T], default: T) -> T:
    """The flag, else what the variable says, else the default. Exits with code 2 for one that cannot be understood."""
    if flag is not None or not env.get(name):
        return default if flag is None else flag
    try:
        return parse(env[name])
    except ValueError as error:
        _usage_error(f"${name}: {error}")


def _schemes(args: argparse.Namespace, env: Mapping[str, str]) -> Schemes:
    names = _given(args.allow_schemes, env, "LOCALMODEL_ALLOW_SCHEMES", str, "")
    roots = _given(args.file_roots, env, "LOCALMODEL_FILE_ROOTS", str, "")
    try:
        return Schemes.parse(names, roots)
    except ValueError as error:
        _usage_error(f"--allow-schemes, --file-roots: {error}")


def _budgets(args: argparse.Namespace, env: Mapping[str, str]) -> Budgets:
    requests = _given(args.origin_requests, env, "LOCALMODEL_ORIGIN_REQUESTS", parse_requests, Budget().requests)
    rate = _given(args.origin_bandwidth, env, "LOCALMODEL_ORIGIN_BANDWIDTH", parse_bytes, 0)
    overrides = _given(args.origin_budgets, env, "LOCALMODEL_ORIGIN_BUDGETS", parse_overrides, {})
    return Budgets(Budget(requests, float(rate) or None), overrides)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `localmodel run`, each with its help."""
    default = Settings()

    serving = parser.add_argument_group("serving")
    _flag(serving, "metrics-addr", "where /metrics is served; 0: nowhere", default.metrics_addr, _address, "ADDR")
    _flag(
        serving,
        "health-probe-addr",
        "where /healthz and /readyz are served; 0: nowhere",
        default.health_probe_addr,
        _address,
        "ADDR",
    )
    _flag(
        serving,
        "webhook-port",
        f"where the webhooks of caches are served, over TLS; 0: nowhere (default {default.webhook_port})",
        None,
        _port,
        "PORT",
    )
    _flag(
        serving,
        "webhook-cert-dir",
        f"tls.crt and tls.key of the webhooks (default {CERTIFICATES}); without them they are in a Secret",
        None,
        Path,
        "FOLDER",
    )
    text = "of the webhooks; without it VersionTLS12"
    _flag(serving, "tls-min-version", text, "", str, choices=("", *TLS_VERSIONS))
    _flag(serving, "tls-cipher-suites", "of the webhooks in TLS 1.2, by comma; Go's names", "", str, "NAMES")

    cluster = parser.add_argument_group("cluster")
    _flag(
        cluster,
        "kubeconfig",
        "which cluster; else $KUBECONFIG, the pod's service account, ~/.kube/config",
        None,
        str,
        "FILE",
    )
    _flag(cluster, "context", "context of the kubeconfig; else its current one", None, str, "NAME")
    _switch(cluster, "leader-elect", "act only while holding the Lease; for more than one replica")
    _flag(
        cluster,
        "namespace",
        f"of the Lease and the configuration; else $POD_NAMESPACE, else {default.namespace}",
        None,
        _word,
        "NAME",
    )
    _flag(
        cluster,
        "job-namespace",
        "where download volumes are, and the Secrets and ServiceAccounts that models name are read; else "
        f"localModel.jobNamespace of KServe's {CONFIG_MAP}, else {default.job_namespace}",
        None,
        _word,
        "NAME",
    )
    _flag(
        cluster,
        "kserve-namespace",
        f"of KServe's {CONFIG_MAP}; else $KSERVE_CONFIG_NAMESPACE, else {default.kserve_namespace}",
        None,
        _word,
        "NAME",
    )
    _flag(
        cluster,
        "ray-address",
        f"the Ray cluster of the node agents; else $RAY_ADDRESS, else {default.ray_address}",
        None,
        _word,
        "ADDR",
    )

    _flag(
        cluster,
        "beside-kserve",
        "refuse: do nothing while KServe's own LocalModel controller or node agent runs; ignore: do not look for it",
        "refuse",
        str,
        choices=BESIDE_KSERVE,
    )

    pace = parser.add_argument_group("pace")
    _flag(pace, "tick-seconds", "longest time between two looks at everything", default.tick_s, _positive, "S")
    _flag(
        pace,
        "progress-interval-seconds",
        "shortest time between two progress writes to one object",
        default.progress_interval_s,
        _positive,
        "S",
    )

    removal = parser.add_argument_group("removal")
    _flag(
        removal,
        "orphan-grace-seconds",
        "how long a copy is kept whose node no group of its cache selects any more, by accident it seems; 0: for ever",
        ORPHAN_GRACE_S,
        partial(_positive, below=10 * 365 * 86400.0, zero=True),
        "S",
    )

    placement = parser.add_argument_group("placement")
    text = (
        "Nodes say which models they hold: a label per cache, and a condition for readiness rules; needs its own role"
    )
    _switch(placement, "mark-nodes", text)

    limits = parser.add_argument_group("capacity")
    _flag(
        limits,
        "storage-limit",
        "what a node group's storageLimit means: auto only warns where KServe is installed, which never reads it, and"
        " enforces elsewhere; an annotation of the group wins",
        "auto",
        str.lower,
        choices=("auto", "enforce", "warn"),
    )

    eviction = parser.add_argument_group("eviction")
    _flag(
        eviction,
        "eviction",
        "lru: copies that nobody uses make room for models that wait for space; dry-run: say which would",
        "off",
        str,
        choices=EVICTION,
    )
    _flag(
        eviction,
        "eviction-idle-seconds",
        "shortest time that nobody has used what is evicted",
        EVICTION_IDLE_S,
        partial(_positive, below=10 * 365 * 86400.0),
        "S",
    )

    origins = parser.add_argument_group("origins: what all nodes together ask of each")
    _flag(
        origins,
        "origin-requests",
        f"at most so many at a time; else $LOCALMODEL_ORIGIN_REQUESTS, else {Budget().requests}",
        None,
        _understood(parse_requests),
        "N",
    )
    _flag(
        origins,
        "origin-bandwidth",
        "at most so many bytes per second, such as 500M; 0: no limit; else $LOCALMODEL_ORIGIN_BANDWIDTH, else 0",
        None,
        _understood(parse_bytes),
        "BYTES",
    )
    _flag(
        origins,
        "origin-budgets",
        "other budgets for some, by comma: https://huggingface.co=16/200M; else $LOCALMODEL_ORIGIN_BUDGETS",
        None,
        _understood(parse_overrides),
        "ORIGIN=N[/BYTES]",
    )

    trust = parser.add_argument_group("trust: what the authors of caches may read, see k8s/README.md")
    _flag(
        trust,
        "allow-origins",
        "hosts, host:port, addresses and networks that may be read although they are not public, by comma; "
        "else $LOCALMODEL_ALLOW_ORIGINS",
        None,
        _understood(Origins.parse),
        "HOST[:PORT]|CIDR",
    )
    _flag(
        trust,
        "allow-schemes",
        "schemes beside the standard ones, by comma, such as sftp; else $LOCALMODEL_ALLOW_SCHEMES",
        None,
        str,
        "NAMES",
    )
    _flag(
        trust,
        "file-roots",
        "folders that file:// may read below, on the coordinator and on every node; else $LOCALMODEL_FILE_ROOTS",
        None,
        str,
        "PATHS",
    )
    _switch(
        trust,
        "namespaced-own-credentials",
        "caches of a namespace may use the coordinator's own credentials; else $LOCALMODEL_NAMESPACED_OWN_CREDENTIALS",
        default=None,
    )

    logs = parser.add_argument_group("logs")
    _switch(logs, "zap-devel", "console lines, debug level, stack traces from warn")
    _flag(logs, "zap-encoder", "json, or console", None, str.lower, choices=ENCODERS)
    _flag(logs, "zap-log-level", f"{', '.join(LEVELS)}, or a verbosity above 0", None, _level, "LEVEL")
    _flag(logs, "zap-stacktrace-level", "from which level errors carry stack traces", None, _level, "LEVEL")
    _flag(logs, "zap-time-encoding", "format of ts", "rfc3339", str.lower, choices=tuple(TIME_ENCODINGS))


def _flag(
    group: argparse._ArgumentGroup,
    name: str,
    text: str,
    default: object,
    type_: Callable[[str], Any],
    metavar: str | None = None,
    *,
    choices: Sequence[str] | None = None,
) -> None:
    """`--name` with its help, and Go's `-name` without."""
    if default:
        text += f" (default {default})"
    group.add_argument(f"--{name}", default=default, type=type_, metavar=metavar, choices=choices, help=text)
    hidden = argparse.SUPPRESS
    group.add_argument(f"-{name}", dest=_dest(name), default=hidden, type=type_, choices=choices, help=hidden)


def _switch(group: argparse._ArgumentGroup, name: str, text: str, default: bool | None = False) -> None:
    """A boolean as Go has them: `--name`, `--name=false`."""
    group.add_argument(f"--{name}", nargs="?", const=True, default=default, type=_boolean, metavar="BOOL", help=text)
    hidden = argparse.SUPPRESS
    group.add_argument(f"-{name}", dest=_dest(name), nargs="?", const=True, default=hidden, type=_boolean, help=hidden)


def _dest(name: str) -> str:
    return name.replace("-", "_")


def _boolean(text: str) -> bool:
    return _understood(_as_boolean)(text)


def _as_boolean(text: str) -> bool:
    if text not in _TRUE + _FALSE:
        raise ValueError(f"{text!r} is neither true nor false")
    return text in _TRUE


def _understood(parse: Callable[[str], T]) -> Callable[[str], T]:
    """`parse` for argparse: what it says of a text that it refuses is what the user reads."""

    def understood(text: str) -> T:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return understood


def _address(text: str) -> str:
    _understood(parse_address)(text)
    return text


def _level(text: str) -> int:
    return _understood(parse_level)(text)


def _port(text: str) -> int:
    port = decimal(text)
    if port is None or not 0 <= port < 65536:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a port")
    return port


def _positive(text: str, below: float = 86400.0, *, zero: bool = False) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 < seconds < below and not (zero and seconds == 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return seconds


def _word(text: str) -> str:
    if not text.strip():
        raise argparse.ArgumentTypeError("must not be empty")
    return text


def _usage_error(message: str) -> NoReturn:
    sys.stderr.write(f"localmodel run: error: {message}\n")
    raise SystemExit(2)
