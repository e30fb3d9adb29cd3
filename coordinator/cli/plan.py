"""`localmodel plan -f FILE…`: what would happen if these were applied. Nothing is written.

Ends with 0 if everything fits and no copy is lost; with 3 if something does not fit, is evicted or removed; with 1 if
there is no answer.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import yaml

from coordinator.cli.arguments import seconds, size
from coordinator.cli.cluster import Unanswered, add_cluster_arguments, connect
from coordinator.cli.output import print_failure, print_json, printable, say, tell
from coordinator.collector import paused
from coordinator.kube.interface import PODS, Denied, Kube, KubeError, NotFound, Object
from coordinator.plan.applied import KINDS, NotApplicable, applied, by_kind, snapshot_of
from coordinator.plan.forecast import Assumed, forecast
from coordinator.view import forecasts

LIVE = "live"
MOST_BYTES = 512 << 20
WOULD_LOSE = 3


def add_plan_arguments(parser: argparse.ArgumentParser) -> None:
    default = Assumed()
    parser.add_argument(
        "-f", "--filename", metavar="FILE", action="append", required=True, help="manifests; -: standard input"
    )
    add_cluster_arguments(parser, namespaced=False)
    parser.add_argument(
        "--cluster", metavar="DUMP", default=LIVE, help="a file of objects instead of a cluster (default: live)"
    )
    parser.add_argument(
        "--eviction-idle-seconds", metavar="S", type=seconds, help="as the coordinator has it with --eviction=lru"
    )
    parser.add_argument("--headroom", metavar="BYTES", type=size, default=default.headroom_bytes, help="of agents")
    parser.add_argument("--link", metavar="BYTES", type=size, help="per second, where none was measured")
    parser.add_argument("--origin", metavar="BYTES", type=size, help="per second that the origin gives in all")
    parser.add_argument("--every-node", action="store_true", help="a line for each node")
    parser.add_argument("--json", action="store_true", help="the last line of standard output says all of it")
    parser.epilog = (
        "ends with 0 if all fits and nothing is lost, 3 if not, 1 if there is no answer, 2 for a wrong command"
    )


def plan(args: argparse.Namespace) -> int:
    default = Assumed()
    assumed = Assumed(args.headroom, args.link or default.link_bytes_per_s, args.origin)
    now = time.time()
    try:
        manifests = [each for name in args.filename for each in _documents(name) if each is not None]
        if not manifests:
            raise NotApplicable(f"no object in {', '.join(args.filename)}")
        before = by_kind(_documents(args.cluster)) if args.cluster != LIVE else _live(connect(args))
        after = applied(before, manifests, now)
        with paused():
            found = forecast(snapshot_of(before, after, now, args.eviction_idle_seconds), now, assumed)
    except (NotApplicable, Unanswered) as error:
        reason = error.reason if isinstance(error, Unanswered) else "InvalidObject"
        if args.json:
            print_failure(reason, str(error), retryable=reason == "Unreachable")
        tell(f"localmodel plan: {printable(str(error))}")
        return 1
    if args.json:
        print_json(forecasts.document(found, assumed))
    else:
        for line in forecasts.lines(found, assumed, every=args.every_node):
            say(printable(line))
    return 0 if found.harmless else WOULD_LOSE


def _documents(name: str) -> list[Any]:
    """Every object of a file of YAML or JSON. Raises NotApplicable."""
    try:
        text = sys.stdin.read(MOST_BYTES) if name == "-" else Path(name).read_text()
        return list(yaml.load_all(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)))
    except OSError as error:
        raise NotApplicable(f"{name} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise NotApplicable(f"{name} is neither YAML nor JSON: {' '.join(str(error).split())[:200]}") from error


def _live(kube: Kube) -> dict[str, list[Object]]:
    """The objects of the cluster; pods only if they may be listed. Raises Unanswered."""
    found: dict[str, list[Object]] = {}
    for kind in KINDS.values():
        try:
            found[kind.kind], _ = kube.list(kind)
        except Denied as error:
            if kind is PODS:
                continue
            raise Unanswered("Denied", f"you may not list {kind.plural}: {error}") from error
        except NotFound as error:
            raise Unanswered("NotInstalled", f"the cluster does not know {kind.plural}") from error
        except KubeError as error:
            raise Unanswered("Unreachable", str(error)) from error
    return found
