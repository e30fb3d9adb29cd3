"""How long a deployed cluster takes to fill cold nodes, from `apply` to Ready on the last, beside a Job on each node.

    python -m benchmarks.cluster URI --group GROUP [--image IMAGE] [--html FILE] [--plot FILE.svg|FILE.png]

Needs: a cluster
Takes: as long as the model, once or twice

Our way: a LocalModelCache is created, and the clock stops when it is Ready; nodes are filled through the coordinator,
Ray and the agents that are deployed there. KServe's way, with --image: a Job on each node of the group runs that image
with the arguments URI and /mnt/models, and the clock stops when the last is complete. Cache and Jobs are removed at the
end, also after Ctrl-C, so that the next run starts cold; nodes that hold the model already are refused.

The cluster is that of --kubeconfig, $KUBECONFIG or ~/.kube/config. Ends with 1 where something was not Ready in time,
or the nodes were not cold; with 2 where it cannot begin.
"""

from __future__ import annotations

import argparse
import json
import shlex
import signal
import statistics
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from secrets import token_hex

from actors.sizes import format_bytes
from benchmarks import report
from benchmarks.cluster import caches, jobs
from benchmarks.cluster.caches import Unmeasured
from benchmarks.result import Result
from coordinator.kube.config import NoClusterConfig, load_config
from coordinator.kube.http import HttpKube
from coordinator.kube.interface import Kube, KubeError
from coordinator.kube.quantity import parse_bytes

TIMEOUT_S = 15.0


def main() -> int:
    parser = arguments()
    args = parser.parse_args()
    if args.jobs_only and not args.image:
        parser.error("--jobs-only needs --image")
    report.check(args, "cluster")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what was made goes with us
    try:
        kube = HttpKube(load_config(args.kubeconfig, args.context), timeout_s=TIMEOUT_S)
        kube.server_version()
    except (NoClusterConfig, KubeError) as error:
        print(f"cluster: {error}; `localmodel dev` starts one on this machine", file=sys.stderr)
        return 2
    try:
        results = measure(kube, args, lambda line: print(line, file=sys.stderr, flush=True))
    except (Unmeasured, KubeError) as error:
        print(f"cluster: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    report.tell(f"{args.uri} on cold nodes", "cluster", results, args)
    return 0


def measure(kube: Kube, args: argparse.Namespace, say: Callable[[str], None]) -> list[Result]:
    """Each way in turn, on the same nodes. Raises Unmeasured, and KubeError, after what was made is removed."""
    results, nodes, size = list[Result](), list[str](), parse_bytes(args.model_size)
    name = f"benchmark-{token_hex(3)}"
    if not args.jobs_only:
        caches.refuse_warm(kube, args.uri)
        spec = {"serviceAccountName": args.service_account} if args.service_account else {}
        with ExitStack() as undo:
            if not args.keep:
                undo.callback(caches.remove, kube, name)
            say(f"LocalModelCache {name} is applied")
            cache = caches.manifest(name, args.uri, args.group, args.model_size, **spec)
            found = caches.fill(kube, cache, args.timeout, say)
        nodes, size = sorted(found.nodes), found.bytes
        if found.amplification < 0.995:
            read, whole = format_bytes(found.from_origin), format_bytes(size)
            raise Unmeasured(f"the nodes were not cold: the origin gave {read} of {whole}, the rest was there before")
        results.append(_ours(found))
    if args.image:
        nodes = nodes or args.node or jobs.nodes_of(kube, args.group)
        downloader = jobs.Downloader(
            args.image,
            args.uri,
            args.job_namespace,
            tuple(shlex.split(args.command)),
            tuple(shlex.split(args.arguments)),
            args.volume,
            args.env_from_secret,
        )
        with ExitStack() as undo:
            if not args.keep:
                undo.callback(jobs.remove, kube, name, args.job_namespace)
            say(f"a Job on each of {len(nodes)} nodes is created in namespace {args.job_namespace}")
            results.append(_theirs(jobs.fill(kube, name, downloader, nodes, args.timeout, say), size, args.image))
    return results


def _ours(found: caches.Fill) -> Result:
    """`from_origin` and `from_peers` are the agents' own count, as status has it."""
    return Result(
        _group(found.nodes, found.bytes),
        "localmodel",
        "chunks and files",
        found.seconds,
        found.bytes,
        found.amplification,
        f"From apply to Ready on the last node; {_spread(found.nodes)}. The origin was read {found.amplification:.2f}"
        f" times, {format_bytes(found.from_peers)} came from other nodes.",
        nodes=found.nodes,
    )


def _theirs(done: Mapping[str, float], size: int, image: str) -> Result:
    return Result(
        _group(done, size),
        "a Job per node",
        "as its image",
        max(done.values()),
        size,
        None,
        f"From the first Job to the last that is complete ({image}); {_spread(done)}. Nobody counted what the origin"
        f" gave: each Job reads it for itself, so {len(done)} times the model.",
        nodes=done,
    )


def _group(nodes: Mapping[str, float], size: int) -> str:
    return f"{len(nodes)} cold nodes, {format_bytes(size)}"


def _spread(nodes: Mapping[str, float]) -> str:
    first, median = min(nodes.values()), statistics.median(nodes.values())
    return f"the first was done after {first:.1f}s, the median after {median:.1f}s"


def _quantity(text: str) -> str:
    try:
        parse_bytes(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


def _volume(text: str) -> dict[str, object]:
    found = json.loads(text)
    if not isinstance(found, dict):
        raise ValueError(f"{text!r} is not a volume source")
    return found


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cluster",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("uri", metavar="URI", help="of a model that no node holds")
    parser.add_argument("--group", action="append", required=True, help="LocalModelNodeGroup; repeatable")
    parser.add_argument(
        "--model-size", type=_quantity, default="1Gi", help="an estimate, as in spec.modelSize (default: 1Gi)"
    )
    parser.add_argument("--service-account", metavar="NAME", help="spec.serviceAccountName of the cache")
    parser.add_argument("--timeout", type=float, default=3600.0, metavar="SECONDS", help="for each way (default: 3600)")
    parser.add_argument("--keep", action="store_true", help="what was made stays, to be looked at")
    parser.add_argument("--kubeconfig", metavar="FILE")
    parser.add_argument("--context", metavar="NAME")
    report.add_arguments(parser)
    theirs = parser.add_argument_group("a Job on each node")
    theirs.add_argument("--image", help="of the downloader, such as kserve/storage-initializer; without it: ours alone")
    theirs.add_argument("--jobs-only", action="store_true", help="without ours")
    theirs.add_argument("--node", action="append", metavar="NAME", help="with --jobs-only: these, not the group's")
    theirs.add_argument("--job-namespace", default="default", metavar="NS", help="where they run (default: default)")
    theirs.add_argument("--command", default="", help="in place of the image's own")
    theirs.add_argument("--arguments", default="{uri} {dir}", help="default: '{uri} {dir}'")
    theirs.add_argument("--env-from-secret", metavar="NAME", help="a Secret of that namespace, as environment")
    theirs.add_argument(
        "--volume",
        type=_volume,
        default={"emptyDir": {}},
        metavar="JSON",
        help='a volume source (default: {"emptyDir": {}})',
    )
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
