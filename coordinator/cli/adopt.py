"""`localmodel adopt --dry-run`: what a switch from KServe's LocalModel will do to every copy, before it is made.

Reads the cluster, what `localmodel inspect --json` said of the disks where it was run, and asks the sources with the
credentials that the caches name. Writes nothing. Ends with 0 if nothing is refused, 1 if something is or nothing
answers.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from actors.errors import LocalModelError, SourceError
from actors.messages import NodeName
from actors.schemes import Schemes
from actors.trust import Trust
from coordinator.api.resources import StatusKey
from coordinator.cli.arguments import folder
from coordinator.cli.cluster import Unanswered, add_cluster_arguments, connect
from coordinator.cli.output import printable, say, tell
from coordinator.kube.interface import (
    CONFIG_MAPS,
    NAMESPACES,
    NODES,
    Kube,
    KubeError,
    NotFound,
    Object,
)
from coordinator.plan.admission import Known
from coordinator.plan.kserve_config import CONFIG_MAP, KServeConfig, read_config
from coordinator.plan.reading import read_cache, read_local_node, read_namespace_cache, read_node, read_node_group
from coordinator.plan.snapshot import CACHES, LOCAL_NODES, NAMESPACE_CACHES, NODE_GROUPS, Cache
from coordinator.view.adoption import Answer, Outcome, notes, rows, summary
from coordinator.view.disks import Disks, read_disk

ASKED_AT_ONCE = 8


def add_adopt_arguments(parser: argparse.ArgumentParser) -> None:
    add_cluster_arguments(parser, namespaced=False)
    parser.add_argument(
        "--dry-run", action="store_true", help="say what would happen; it is the coordinator that adopts, when it runs"
    )
    parser.add_argument(
        "--kserve-namespace", metavar="NS", default="kserve", help="where KServe's configuration is (default: kserve)"
    )
    parser.add_argument(
        "--disks",
        type=folder,
        metavar="FOLDER",
        help="NODE.json for each node that was looked at: the output of `localmodel inspect --json /models` there",
    )
    parser.add_argument("--offline", action="store_true", help="do not ask the sources")
    parser.set_defaults(complain=parser.error)


def adopt(args: argparse.Namespace) -> int:
    if not args.dry_run:
        args.complain("--dry-run is needed: copies are adopted by the coordinator, as soon as it runs")
    try:
        kube = connect(args)
        known, owner = read(kube), kube.get(NAMESPACES, "kube-system")["metadata"]["uid"]
        disks = read_disks(args.disks) if args.disks is not None else {}
        answers = {} if args.offline else ask(kube, known, config_of(kube, args.kserve_namespace))
    except (Unanswered, KubeError, OSError, ValueError) as error:
        tell(f"!!  {printable(str(error))}")
        return 1
    found = rows(known, answers, disks, owner)
    width = max((len(row.cache) for row in found), default=0)
    across = max((len(row.node) for row in found), default=0)
    for row in found:
        say(printable(f"{row.node:<{across}}  {row.cache:<{width}}  {row.outcome.value:<6}  {row.why}"))
    for note in notes(known, answers):
        say(printable(f"note: {note}"))
    say(summary(found))
    return 1 if any(row.outcome is Outcome.REFUSE for row in found) else 0


def read(kube: Kube) -> Known:
    """Raises KubeError."""
    schemes = Schemes()
    caches = [read_cache(each, schemes) for each in kube.list(CACHES)[0]]
    caches += [read_namespace_cache(each, schemes) for each in kube.list(NAMESPACE_CACHES)[0]]
    nodes = [read_node(each) for each in kube.list(NODES)[0]]
    return Known(
        caches={cache.key: cache for cache in caches},
        groups={group.ref.name: group for group in map(read_node_group, kube.list(NODE_GROUPS)[0])},
        nodes={node.name: node for node in nodes},
        local_nodes={NodeName(each.ref.name): each for each in map(read_local_node, kube.list(LOCAL_NODES)[0])},
        schemes=schemes,
    )


def read_disks(directory: Path) -> Disks:
    """Raises OSError, and ValueError that names the file."""
    found = {}
    for path in sorted(directory.glob("*.json")):
        try:
            found[NodeName(path.stem)] = read_disk(path.read_text())
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}: {error}") from error
    if not found:
        raise ValueError(f"{directory} holds no file NODE.json")
    return found


def config_of(kube: Kube, namespace: str) -> KServeConfig:
    """Raises KubeError."""
    try:
        found: Object | None = kube.get(CONFIG_MAPS, CONFIG_MAP, namespace=namespace)
    except NotFound:
        found = None
    return read_config(found, KServeConfig())


def ask(kube: Kube, known: Known, config: KServeConfig) -> Mapping[StatusKey, Answer]:
    """What the sources of all caches say, several at a time."""
    wanted = [cache for cache in known.caches.values() if cache.problem is None and cache.deleted_at is None]
    with ThreadPoolExecutor(ASKED_AT_ONCE) as threads:
        return dict(threads.map(partial(_ask_one, kube, config), wanted))


def _ask_one(kube: Kube, config: KServeConfig, cache: Cache) -> tuple[StatusKey, Answer]:
    from actors.sources.options import SourceOptions
    from actors.sources.resolve import resolve  # here, because its clients take long to import
    from coordinator.control.credentials import load_options
    from coordinator.control.secret_keys import Defaults

    named, job = cache.credentials, config.job_namespace
    try:
        options = load_options(
            named,
            partial(_get, kube, job),
            namespace=job,
            own=SourceOptions.from_environ(os.environ, trust=Trust(Schemes())),
            secret_name=config.storage_secret,
            read_own=partial(_get, kube, named.namespace) if named.namespace is not None else None,
            defaults=Defaults.of(config.credentials),
        )
        manifest = resolve(cache.source, options).manifest
    except LocalModelError as error:
        return cache.key, Answer(failure=error.failure(), anonymous=error.reason == "CredentialsMissing")
    files = {file.path: file.size for file in manifest.files}
    undigested = 0 if manifest.packed else sum(file.digest is None for file in manifest.files)
    return cache.key, Answer(sum(files.values()), None if manifest.packed else files, undigested=undigested)


def _get(kube: Kube, namespace: str, kind: str, name: str) -> Object | None:
    from coordinator.control.credentials import READ  # here, as above

    try:
        return kube.get(READ[kind], name, namespace=namespace)
    except NotFound:
        return None
    except KubeError as error:
        message = f"cannot read {kind} {namespace}/{name}: {error}"
        raise SourceError(message, reason="CredentialsUnavailable") from error
