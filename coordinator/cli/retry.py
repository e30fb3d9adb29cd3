"""`localmodel retry CACHE [NODE]`: what failed is tried again now, and not when its wait is over.

Writes an annotation (`coordinator.plan.retries`). Ends with 0 if it was written or nothing waits; with 1 if not.
"""

from __future__ import annotations

import argparse
from datetime import UTC, datetime

from actors.messages import NodeName
from coordinator.api.resources import StatusKey
from coordinator.cli.cluster import Unanswered, add_cluster_arguments, connect, key_of, look
from coordinator.cli.output import print_failure, print_json, printable, say, tell
from coordinator.kube.interface import Conflict, Denied, Kube, KubeError, NotFound
from coordinator.plan.retries import RETRY, asked, read_retries
from coordinator.view.rows import CacheRow, CopyRow, rows

TRIES = 5


def add_retry_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("cache", metavar="CACHE", help="NAME, or NAMESPACE/NAME")
    parser.add_argument("node", metavar="NODE", nargs="?", help="on this node alone; else wherever it failed")
    add_cluster_arguments(parser)
    parser.add_argument("--json", action="store_true", help="the last line of standard output says what was asked for")
    parser.epilog = "ends with 0 if it was asked for, or nothing waits; 1 if not; 2 for a wrong command"


def retry(args: argparse.Namespace) -> int:
    try:
        kube = connect(args)
        view = look(kube, args.namespace)
        key = key_of(view, args.cache, args.namespace)
        (row,) = rows(view, [key])
        node = None if args.node is None else NodeName(args.node)
        waiting = failed(row, node)
        name = datetime.now(UTC).isoformat(timespec="microseconds") if waiting else None
        if name is not None:
            ask(kube, key, node, name)
    except Unanswered as error:
        if args.json:
            print_failure(error.reason, str(error), retryable=error.reason == "Unreachable")
        tell(f"localmodel retry: {printable(str(error))}")
        return 1
    if args.json:
        nodes = [copy.node for copy in waiting]
        print_json({"ok": True, "cache": key, "asked": name is not None, "nodes": nodes})
    elif name is None:
        say(f"{printable(key)}: nothing waits for another try" + (f" on {node}" if node else ""))
    else:
        for copy in waiting:
            say(f"{printable(key)} on {printable(copy.node)}: tried again now ({printable(copy.reason or '')})")
    return 0


def failed(row: CacheRow, node: NodeName | None) -> list[CopyRow]:
    """The copies that wait for their next attempt. Raises Unanswered for a node that is not to hold one."""
    copies = [copy for copy in row.copies if node in (None, copy.node)]
    if node is not None and not copies:
        raise Unanswered(
            "NoSuchNode", f"{node} is not to hold {row.key}: `localmodel status {row.key}` names the nodes"
        )
    return [copy for copy in copies if copy.reason is not None and copy.phase != "Ready"]


def ask(kube: Kube, key: StatusKey, node: NodeName | None, name: str) -> None:
    """The annotation names one more request. Raises Unanswered."""
    from coordinator.plan.snapshot import CACHES, NAMESPACE_CACHES

    namespace, _, cache = key.rpartition("/")
    kind = NAMESPACE_CACHES if namespace else CACHES
    try:
        for _ in range(TRIES):
            metadata = kube.get(kind, cache, namespace=namespace or None)["metadata"]
            known = read_retries((metadata.get("annotations") or {}).get(RETRY))
            changed = {"resourceVersion": metadata["resourceVersion"], "annotations": {RETRY: asked(known, name, node)}}
            try:
                kube.patch(kind, cache, {"metadata": changed}, namespace=namespace or None)
            except Conflict:
                continue  # somebody else wrote it meanwhile: look again
            return
    except Denied as error:
        raise Unanswered("Denied", f"you may not patch {kind.plural}: {error}") from error
    except NotFound as error:
        raise Unanswered("NoSuchCache", f"{key} was deleted meanwhile") from error
    except KubeError as error:
        raise Unanswered("Unreachable", str(error)) from error
    raise Unanswered("Unreachable", f"{key} was changed {TRIES} times while it was to be annotated: try again")
