"""The flags of `localmodel run`, each with its help; Go's spelling of them, too, as KServe's controller has them."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from actors.addresses import Origins
from actors.numbers import decimal
from actors.sizes import parse_bytes
from coordinator.cli.arguments import duration, seconds, understood
from coordinator.cli.health import parse_address
from coordinator.cli.settings import (
    BESIDE_KSERVE,
    CERTIFICATES,
    EVICTION,
    EVICTION_IDLE_S,
    TLS_VERSIONS,
    Settings,
    as_boolean,
)
from coordinator.logs import ENCODERS, LEVELS, TIME_ENCODINGS, parse_level
from coordinator.plan.kserve_config import CONFIG_MAP
from coordinator.plan.origin_budget import Budget, parse_overrides, parse_requests
from coordinator.plan.snapshot import ORPHAN_GRACE_S


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
    lease = "with --leader-elect: "
    text = "how long others wait after the last change of the Lease that they saw, until one takes it"
    _flag(cluster, "leader-elect-lease-duration", lease + text, "15s", duration, "DURATION")
    text = "how long the leader goes on acting while it cannot renew the Lease; less than its duration"
    _flag(cluster, "leader-elect-renew-deadline", lease + text, "10s", duration, "DURATION")
    text = "time between two attempts to take or renew the Lease; less than the deadline"
    _flag(cluster, "leader-elect-retry-period", lease + text, "2s", duration, "DURATION")
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
        "refuse: do nothing while KServe's own LocalModel controller or node agent runs; nodes: its controller stays"
        " and decides, and only what it lists in LocalModelNodes is done and reported; ignore: do not look for either",
        "refuse",
        str,
        choices=BESIDE_KSERVE,
    )

    below_a_day = partial(seconds, below=86400.0)
    pace = parser.add_argument_group("pace")
    _flag(
        pace,
        "tick-seconds",
        "longest time between two looks at everything",
        default.tick_s,
        below_a_day,
        "S",
    )
    _flag(
        pace,
        "progress-interval-seconds",
        "shortest time between two progress writes to one object",
        default.progress_interval_s,
        below_a_day,
        "S",
    )

    removal = parser.add_argument_group("removal")
    _flag(
        removal,
        "orphan-grace-seconds",
        "how long a copy is kept whose node no group of its cache selects any more, by accident it seems; 0: for ever",
        ORPHAN_GRACE_S,
        partial(seconds, zero=True),
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
        seconds,
        "S",
    )

    origins = parser.add_argument_group("origins: what all nodes together ask of each")
    _flag(
        origins,
        "origin-requests",
        f"at most so many at a time; else $LOCALMODEL_ORIGIN_REQUESTS, else {Budget().requests}",
        None,
        understood(parse_requests),
        "N",
    )
    _flag(
        origins,
        "origin-bandwidth",
        "at most so many bytes per second, such as 500M; 0: no limit; else $LOCALMODEL_ORIGIN_BANDWIDTH, else 0",
        None,
        understood(parse_bytes),
        "BYTES",
    )
    _flag(
        origins,
        "origin-budgets",
        "other budgets for some, by comma: https://huggingface.co=16/200M; else $LOCALMODEL_ORIGIN_BUDGETS",
        None,
        understood(parse_overrides),
        "ORIGIN=N[/BYTES]",
    )

    trust = parser.add_argument_group("trust: what the authors of caches may read, see k8s/README.md")
    _flag(
        trust,
        "allow-origins",
        "hosts, host:port, addresses and networks that may be read although they are not public, by comma; "
        "else $LOCALMODEL_ALLOW_ORIGINS",
        None,
        understood(Origins.parse),
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
    return understood(as_boolean)(text)


def _address(text: str) -> str:
    understood(parse_address)(text)
    return text


def _level(text: str) -> int:
    return understood(parse_level)(text)


def _port(text: str) -> int:
    port = decimal(text)
    if port is None or not 0 <= port < 65536:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a port")
    return port


def _word(text: str) -> str:
    if not text.strip():
        raise argparse.ArgumentTypeError("must not be empty")
    return text
