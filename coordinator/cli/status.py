"""`localmodel status`: how far every cache is on every node, what is wrong first; why; and what was saved.

Ends with 0 if there is an answer, whatever it is; with 1 if there is none; with 130 when it was interrupted.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from typing import Any

from actors.messages import NodeName
from actors.times import rfc3339
from coordinator.api.resources import StatusKey
from coordinator.cli.cluster import Unanswered, add_cluster_arguments, connect, key_of, look
from coordinator.cli.output import print_failure, print_json, printable, say, tell
from coordinator.kube.interface import Kube
from coordinator.view.causes import Cause, causes
from coordinator.view.cluster import ClusterView
from coordinator.view.documents import causes_document, savings_document, status_document
from coordinator.view.rows import CacheRow, rows
from coordinator.view.savings import savings

OUTPUTS = ("table", "wide", "json", "yaml", "name")
WATCH_S = 2.0


def add_status_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("cache", metavar="CACHE", nargs="?", help="NAME, or NAMESPACE/NAME; else all")
    parser.add_argument("node", metavar="NODE", nargs="?", help="on this node alone")
    add_cluster_arguments(parser)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--why", action="store_true", help="why CACHE is not Ready, or NODE is slow, and what to do")
    what.add_argument("--saved", action="store_true", help="bytes from the origin, from peers and across zones")
    what.add_argument(
        "-w", "--watch", action="store_true", help="drawn anew until Ctrl-C; a pipe gets a line or object"
    )
    parser.add_argument("-o", "--output", choices=OUTPUTS, default="table", help="wide: every copy, and more columns")
    parser.add_argument("--json", dest="output", action="store_const", const="json", help="the same as -o json")
    parser.epilog = "ends with 0 if there is an answer, 1 if not, 2 for a wrong command, 130 when it was interrupted"
    parser.set_defaults(complain=parser.error)


def status(args: argparse.Namespace) -> int:
    if args.why and args.cache is None:
        args.complain("--why CACHE [NODE]: which cache?")
    try:
        kube = connect(args)
        if args.watch:
            return _watch(args, kube)
        view = look(kube, args.namespace)
        if args.why:
            return _why(args, view)
        if args.saved:
            return _saved(args, view)
        _show(args, view)
    except Unanswered as error:
        if args.output == "json":
            print_failure(error.reason, str(error), retryable=error.reason == "Unreachable")
        tell(f"localmodel status: {printable(str(error))}")
        return 1
    return 0


def chosen(args: argparse.Namespace, view: ClusterView) -> list[CacheRow]:
    """The rows that are asked for. Raises Unanswered."""
    keys = None if args.cache is None else [key_of(view, args.cache, args.namespace)]
    return rows(view, keys, None if args.node is None else NodeName(args.node))


def _show(args: argparse.Namespace, view: ClusterView) -> None:
    found = chosen(args, view)
    document = status_document(found, view.notes, rfc3339(view.at))
    if _said_as_data(args, document, [row.key for row in found]):
        return
    if not found and args.namespace is not None:
        say(f"no caches in namespace {printable(args.namespace)}; without -n all are shown")
        return
    from coordinator.cli.drawing import Drawing

    Drawing(sys.stdout).keep_status(found, view.notes, every_copy=args.cache is not None, wide=args.output == "wide")


def _why(args: argparse.Namespace, view: ClusterView) -> int:
    key = key_of(view, args.cache, args.namespace)
    found = causes(view, key, None if args.node is None else NodeName(args.node))
    (row,) = rows(view, [key])
    document = causes_document(key, row.ready, found, rfc3339(view.at))
    if not _said_as_data(args, document, [key]):
        _say_causes(found, view)
    return 0


def _say_causes(found: list[Cause], view: ClusterView) -> None:
    from coordinator.cli.drawing import Drawing

    Drawing(sys.stdout).keep_causes(found, view.notes)


def _saved(args: argparse.Namespace, view: ClusterView) -> int:
    each, whole = savings(chosen(args, view))
    if not _said_as_data(args, savings_document(each, whole, rfc3339(view.at)), [one.key for one in each]):
        from coordinator.cli.drawing import Drawing

        Drawing(sys.stdout).keep_savings(each, whole)
    return 0


def _said_as_data(args: argparse.Namespace, document: dict[str, Any], names: list[StatusKey] | list[str]) -> bool:
    """Whether it was asked for as something that programs read, and is said."""
    if args.output == "json":
        print_json(document)
    elif args.output == "yaml":
        import yaml

        say(yaml.safe_dump(document, sort_keys=False, allow_unicode=True).rstrip())
    elif args.output == "name":
        for name in names:
            say(printable(name))
    else:
        return False
    return True


def _watch(
    args: argparse.Namespace,
    kube: Kube,
    sleep: Callable[[float], None] = time.sleep,
) -> int:
    """Until Ctrl-C, or until nobody reads any more. A look that failed is said, and made again."""
    from coordinator.cli.drawing import Drawing

    drawing = Drawing(sys.stdout)
    before: dict[str, Any] = {}
    while not drawing.gone:
        try:
            view = look(kube, args.namespace)
            found = chosen(args, view)
        except Unanswered as error:
            if error.reason != "Unreachable":
                raise
            tell(f"localmodel status: {printable(str(error))}; asked again in {WATCH_S:g} s")
            sleep(WATCH_S)
            continue
        document = status_document(found, view.notes, rfc3339(view.at))
        if args.output in ("json", "yaml", "name"):
            if {**document, "at": ""} != before:
                _said_as_data(args, document, [row.key for row in found])
                before = {**document, "at": ""}
        else:
            drawing.show_status(found, view.notes, every_copy=args.cache is not None, wide=args.output == "wide")
        sleep(WATCH_S)
    return 0
