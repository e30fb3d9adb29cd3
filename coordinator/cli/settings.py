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
from pathlib import Path
from typing import NoReturn, TypeVar

from actors.addresses import Origins
from actors.schemes import Schemes
from actors.sizes import parse_bytes
from actors.trust import Trust
from coordinator.kube.leader import JITTER, Timing
from coordinator.logs import LEVELS, LogSettings
from coordinator.plan.eviction import Policy
from coordinator.plan.kserve_config import JOB_NAMESPACE
from coordinator.plan.origin_budget import Budget, Budgets, parse_overrides, parse_requests
from coordinator.plan.snapshot import ORPHAN_GRACE_S

CERTIFICATES = Path(tempfile.gettempdir()) / "k8s-webhook-server" / "serving-certs"
"""Where controller-runtime looks for them."""
BESIDE_KSERVE = ("refuse", "nodes", "ignore")
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
    leader_timing: Timing = field(default_factory=Timing)
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

    @property
    def follows(self) -> bool:
        """Whether KServe's controller decides what nodes hold."""
        return self.beside_kserve == "nodes"

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
    follows = args.beside_kserve == "nodes"
    if follows and args.eviction != "off":
        _usage_error(
            "--eviction needs the caches' own status, which KServe's controller writes (--beside-kserve=nodes)"
        )
    if follows and args.webhook_port:
        _usage_error("--webhook-port: KServe's controller serves the webhooks (--beside-kserve=nodes)")
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
        webhook_port=(0 if follows else default.webhook_port) if args.webhook_port is None else args.webhook_port,
        webhook_port_given=args.webhook_port is not None,
        webhook_cert_dir=args.webhook_cert_dir or default.webhook_cert_dir,
        tls_min_version=args.tls_min_version or default.tls_min_version,
        tls_cipher_suites=suites,
        leader_elect=args.leader_elect,
        leader_timing=_timing(args),
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
            args.namespaced_own_credentials, env, "LOCALMODEL_NAMESPACED_OWN_CREDENTIALS", as_boolean, False
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


def _timing(args: argparse.Namespace) -> Timing:
    """As client-go has it: a leader stops before another may take over, and can try more than once before it stops."""
    lease_s, renew_deadline_s = args.leader_elect_lease_duration, args.leader_elect_renew_deadline
    retry_s = args.leader_elect_retry_period
    if lease_s <= renew_deadline_s:
        _usage_error(
            f"--leader-elect-lease-duration ({lease_s:g} s) must be more than --leader-elect-renew-deadline"
            f" ({renew_deadline_s:g} s)"
        )
    if renew_deadline_s <= JITTER * retry_s:
        _usage_error(
            f"--leader-elect-renew-deadline ({renew_deadline_s:g} s) must be more than {JITTER:g} times"
            f" --leader-elect-retry-period ({retry_s:g} s)"
        )
    return Timing(lease_s, renew_deadline_s, retry_s)


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


def as_boolean(text: str) -> bool:
    if text not in _TRUE + _FALSE:
        raise ValueError(f"{text!r} is neither true nor false")
    return text in _TRUE


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from coordinator.cli import flags  # here, because they have defaults of these settings

    flags.add_arguments(parser)


def _usage_error(message: str) -> NoReturn:
    sys.stderr.write(f"localmodel run: error: {message}\n")
    raise SystemExit(2)
