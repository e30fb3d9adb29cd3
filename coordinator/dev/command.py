"""`localmodel dev`: the laptop cluster with a sample cache applied, shown live until Ready.

Standard output carries the table and what to do next; with `--json` its last line is one JSON object and the rest goes
to standard error.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from coordinator.api import LocalModelCache, LocalModelNode, ModelStatus, NodeStatus
from coordinator.dev.cluster import SAMPLE_REPO, SAMPLE_URI, LaptopCluster, LaptopOptions
from coordinator.dev.processes import ChildFailed
from coordinator.kube import HttpKube, KubeError
from coordinator.quantity import format_bytes, parse_bytes
from coordinator.snapshot import CACHES, LOCAL_NODES

_PHASE_STYLE = {"Ready": "green", "Failed": "red", "Downloading": "cyan", "Verifying": "cyan"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--nodes", type=_positive, default=3, help="Kubernetes nodes to imitate (default: 3)")
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
    parser.add_argument(
        "--size", type=_bytes, default=256 * 1024**2, help="size of the built-in sample (default: 256MiB)"
    )
    parser.add_argument("--once", action="store_true", help="exit when all caches are Ready (0) or one has failed (1)")
    parser.add_argument(
        "--json", action="store_true", help="print a summary as JSON, as the last line of standard output"
    )
    parser.add_argument("--port", type=int, default=0, help="port of the API server (default: a free one)")
    parser.add_argument(
        "--timeout",
        type=float,
        default=900.0,
        metavar="SECONDS",
        help="with --once: give up after this long (default: 900)",
    )


def run(args: argparse.Namespace) -> int:
    """The exit code: 0 Ready (or stopped by Ctrl-C afterwards), 1 failed, 130 interrupted before Ready."""
    console = Console(stderr=args.json)
    interrupted = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: interrupted.set())
    models = args.model or [SAMPLE_URI]
    repos = {name: Path(folder).resolve() for name, _, folder in (each.partition("=") for each in args.repo)}
    options = LaptopOptions(
        nodes=args.nodes,
        api_port=args.port,
        sample_bytes=args.size if SAMPLE_REPO in map(_repo, models) else 0,
        repos=repos,
        real_hub=any(model.startswith("hf://") and _repo(model) not in {SAMPLE_REPO, *repos} for model in models),
    )
    directory = Path(tempfile.mkdtemp(prefix="localmodel-"))

    def say(line: str) -> None:
        console.print(f"[dim]{line}[/dim]")

    cluster = LaptopCluster(directory, options, say=say, interrupted=interrupted.is_set)
    try:
        cluster.start()
        outcome = _watch(cluster, models, console, interrupted, args.timeout if args.once else None)
        _explain(console, cluster, outcome, stays=not args.once and not interrupted.is_set())
        if args.json:
            _print_json(outcome.summary(cluster))
        if not args.once:
            interrupted.wait()
            console.print("[dim]stopping[/dim]")
        if outcome.interrupted:
            return 130
        return 0 if outcome.ready else 1
    except (ChildFailed, KubeError) as error:
        console.print(f"[red]the laptop cluster failed:[/red] {error}", highlight=False)
        if args.json:
            _print_json({"ready": False, "seconds": None, "kubeconfig": None, "caches": [], "error": str(error)})
        return 1
    finally:
        cluster.stop()
        shutil.rmtree(directory, ignore_errors=True)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How the sample caches ended. `seconds` from apply to the end of waiting."""

    caches: tuple[LocalModelCache, ...]
    nodes: tuple[LocalModelNode, ...]
    seconds: float
    interrupted: bool

    @property
    def ready(self) -> bool:
        return all(ready_condition(cache)[0] for cache in self.caches)

    def summary(self, cluster: LaptopCluster) -> dict[str, Any]:
        """The JSON object of `--json`."""
        served = (cluster.origin_stats() or {}).get("repos", {})
        return {
            "ready": self.ready,
            "seconds": round(self.seconds, 2),
            "kubeconfig": str(cluster.kubeconfig),
            "caches": [_cache_summary(cache, self.nodes, served) for cache in self.caches],
        }


def ready_condition(cache: LocalModelCache) -> tuple[bool, str, str]:
    """(ready, reason, message) of the Ready condition."""
    for condition in cache.status.conditions:
        if condition.type == "Ready":
            return condition.status == "True", condition.reason, condition.message
    return False, "", ""


def has_failed(cache: LocalModelCache) -> bool:
    """Whether every node has either finished or failed, and at least one failed."""
    states = set(cache.status.node_status.values())
    return NodeStatus.ERROR in states and not states & {NodeStatus.PENDING, NodeStatus.DOWNLOADING, NodeStatus.EMPTY}


def _is_told(cache: LocalModelCache, nodes: list[LocalModelNode]) -> bool:
    """Whether it is Ready, and every node's own status says so too: the two are written one after the other."""
    key = cache.status_key
    told = {node.metadata.name for node in nodes if node.status.model_status.get(key) == ModelStatus.DOWNLOADED}
    return ready_condition(cache)[0] and told >= set(cache.status.node_status)


def table(caches: list[LocalModelCache], nodes: list[LocalModelNode]) -> Table:
    """Node, phase, bytes, rate, ETA: one row per node and model."""
    grid = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("NODE", "MODEL", "PHASE"):
        grid.add_column(heading, no_wrap=True)
    for heading in ("BYTES", "RATE", "ETA"):
        grid.add_column(heading, justify="right", no_wrap=True)
    grid.add_column("REASON", overflow="fold")
    for node in sorted(nodes, key=lambda each: each.metadata.name):
        for model in node.status.models:
            done, total = model.bytes_done or 0, model.bytes_total or 0
            grid.add_row(
                node.metadata.name,
                model.name,
                f"[{_PHASE_STYLE.get(model.phase, 'default')}]{model.phase}[/]",
                f"{format_bytes(done)} / {format_bytes(total)}" if total else "-",
                f"{format_bytes(model.rate_bytes_per_second)}/s" if model.rate_bytes_per_second else "-",
                model.eta or "-",
                f"{model.reason}: {model.message}" if model.reason else "",
            )
    for cache in caches:
        _, reason, message = ready_condition(cache)
        if not cache.status.node_status and reason:
            grid.add_row("-", cache.metadata.name, "-", "-", "-", "-", f"{reason}: {message}")
    return grid


def _watch(
    cluster: LaptopCluster, models: list[str], console: Console, interrupted: threading.Event, timeout_s: float | None
) -> Outcome:
    kube = cluster.kube()
    names = cache_names(models)
    for name, uri in names.items():
        cluster.create_cache(name, uri)
    started = time.monotonic()
    caches: list[LocalModelCache] = []
    nodes: list[LocalModelNode] = []
    with Live(console=console, refresh_per_second=8, transient=not console.is_terminal) as live:
        while not interrupted.is_set():
            caches, nodes = _observe(kube, names)
            if console.is_terminal:
                live.update(table(caches, nodes))
            elapsed = time.monotonic() - started
            if all(_is_told(cache, nodes) or has_failed(cache) for cache in caches):
                break
            if timeout_s is not None and elapsed > timeout_s:
                break
            interrupted.wait(0.2)
    if not console.is_terminal:
        console.print(table(*_observe(kube, names)))
    return Outcome(tuple(caches), tuple(nodes), time.monotonic() - started, interrupted.is_set())


def _observe(kube: HttpKube, names: dict[str, str]) -> tuple[list[LocalModelCache], list[LocalModelNode]]:
    caches = [LocalModelCache.model_validate(each) for each in kube.list(CACHES)[0]]
    nodes = [LocalModelNode.model_validate(each) for each in kube.list(LOCAL_NODES)[0]]
    return [cache for cache in caches if cache.metadata.name in names], nodes


def _explain(console: Console, cluster: LaptopCluster, outcome: Outcome, *, stays: bool) -> None:
    console.print()
    for cache in outcome.caches:
        ready, reason, message = ready_condition(cache)
        verdict = (
            f"[green]Ready[/green] after {outcome.seconds:.1f} s" if ready else f"[red]{reason or 'not Ready'}[/red]"
        )
        console.print(
            f"[bold]{cache.metadata.name}[/bold] {cache.spec.source_model_uri}: {verdict}. {message}", highlight=False
        )
    if not stays:
        return
    name = outcome.caches[0].metadata.name
    console.print("\nThe cluster stays up until Ctrl-C. In another terminal:\n", highlight=False)
    for line in (
        f"export KUBECONFIG={cluster.kubeconfig}",
        "kubectl get localmodelcaches",
        f"kubectl describe lmc {name}",
        "kubectl get localmodelnodes -o wide",
        f"kubectl delete lmc {name}",
    ):
        console.print(f"  {line}", style="cyan", highlight=False, soft_wrap=True)
    console.print(
        f"\nLogs are in {cluster.logs}, models in {cluster.directory / 'nodes'}.", highlight=False, soft_wrap=True
    )


def _cache_summary(cache: LocalModelCache, nodes: Iterable[LocalModelNode], served: dict[str, Any]) -> dict[str, Any]:
    ready, reason, _ = ready_condition(cache)
    amounts = cache.status.bytes
    total = amounts.total if amounts else None
    by_origin = served.get(_repo(cache.spec.source_model_uri), {}).get("bytes")
    return {
        "name": cache.metadata.name,
        "ready": ready,
        "reason": reason,
        "nodes": cache.status.copies.available if cache.status.copies else 0,
        "bytesTotal": total,
        "bytesFromOrigin": amounts.from_origin if amounts else None,
        "bytesFromPeers": amounts.from_peers if amounts else None,
        "bytesFromOtherZones": amounts.from_other_zones if amounts else None,
        "perNode": {
            node.metadata.name: {
                "bytesFromOrigin": model.bytes_from_origin,
                "bytesFromPeers": model.bytes_from_peers,
                "bytesFromOtherZones": model.bytes_from_other_zones,
            }
            for node in nodes
            for model in node.status.models
            if model.name == cache.status_key
        },
        "originServedBytes": by_origin,
        "amplification": round(by_origin / total, 4) if by_origin is not None and total else None,
        "manifestDigest": cache.status.manifest_digest,
    }


def cache_names(uris: list[str]) -> dict[str, str]:
    """A name for each URI; those that would get the same are numbered."""
    names: dict[str, str] = {}
    for uri in uris:
        name = first = cache_name(uri)
        number = 2
        while name in names:
            name, number = f"{first}-{number}", number + 1
        names[name] = uri
    return names


def cache_name(uri: str) -> str:
    """A valid object name from the last part of a URI: `hf://Qwen/Qwen2.5-0.5B:main` → `qwen2.5-0.5b`."""
    last = re.split(r"[/]", uri.rstrip("/"))[-1].split(":")[0].split("@")[0].split("?")[0]
    return re.sub(r"[^a-z0-9.-]+", "-", last.lower()).strip("-.")[:63] or "model"


def _repo(uri: str) -> str:
    """`owner/name` of a Hugging Face URI; of any other, nothing that names a repository."""
    return re.sub(r"^hf://([^:@]+).*$", r"\1", uri)


def _print_json(document: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(document) + "\n")
    sys.stdout.flush()


def _positive(text: str) -> int:
    value = int(text)
    if not 1 <= value <= 32:
        raise argparse.ArgumentTypeError("between 1 and 32 nodes fit a laptop")
    return value


def _bytes(text: str) -> int:
    try:
        return parse_bytes(text.removesuffix("B") if text.endswith("iB") else text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
