"""What a person would see of a `World`: its objects, read as a command reads them, and drawn on so many columns.

`served` has a development API server hold them, for what talks to one.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType

from actors.errors import Failure
from actors.messages import Phase, RootReport
from coordinator.api import crds
from coordinator.dev.apiserver.server import ApiServer, write_kubeconfig
from coordinator.dev.trial.builders import (
    GIB,
    NOW,
    World,
    a_cache,
    a_group,
    a_namespace_cache,
    a_node,
    a_report,
    a_silent_agent,
    a_world,
)
from coordinator.kube.config import load_config
from coordinator.kube.http import HttpKube
from coordinator.kube.interface import NAMESPACES, Conflict, ResourceType
from coordinator.view.cluster import KINDS, ClusterView, read_view

_KINDS = {kind.kind: kind for kind in KINDS}
DOMAIN = ".eu-west-1.compute.internal"
FULL, SLOW, FAST, OTHER, GONE = (f"ip-10-0-3-{number}{DOMAIN}" for number in range(1, 6))
MIB = 1 << 20


def a_mixed_world() -> World:
    """`llama-70b` is full on one node, slow on one, fast on two, and one node is not ready, which `small` lacks only.

    `team-a/mistral` is refused by its source.
    """
    llama, small, team = a_cache("llama-70b"), a_cache("small"), a_namespace_cache("team-a", "mistral")
    world = a_world(a_group(), llama, small, team, *map(a_node, (FULL, SLOW, FAST, OTHER)), a_node(GONE).not_ready())
    world.resolved(llama, 15 * GIB).resolved(small, GIB)
    denied = Failure("SourceDenied", "hf://models/mistral answered 403: the token may not read it", retryable=False)
    world.unresolved(team, denied, NOW + 30)
    full = Failure("InsufficientStorage", "needs 15.3Gi in /models, and 3.1Gi are free of the 100Gi of group gpu")
    ready = replace(
        a_report(small),
        bytes_from_origin=GIB // 4,
        bytes_from_peers=3 * GIB // 4,
        bytes_from_other_zones=GIB // 8,
    )
    size = 15 * GIB
    of_llama = {
        FULL: a_report(llama, Phase.PENDING, total=size, failure=full, retry_at=NOW + 75, attempt=3),
        SLOW: a_report(llama, Phase.DOWNLOADING, total=size, done=9 * GIB, rate_bytes_per_s=80.0 * MIB, attempt=1),
    }
    quick = a_report(llama, Phase.DOWNLOADING, total=size, done=12 * GIB, rate_bytes_per_s=1100.0 * MIB, attempt=1)
    quick = replace(quick, bytes_from_origin=3 * GIB, bytes_from_peers=9 * GIB)
    for node in (FULL, SLOW, FAST, OTHER):
        roots = (RootReport("/models", 3 * GIB, 97 * GIB, GIB),)
        world.reporting(node, ready, of_llama.get(node, quick), roots=roots)
    world.agents[GONE] = a_silent_agent()
    world.settle()
    return world


def view_of(world: World, at: float = NOW) -> ClusterView:
    """Every kind may be listed."""
    by_kind: dict[ResourceType, list[Any]] = defaultdict(list)
    for each in world.objects:
        if each.json["kind"] in _KINDS:
            by_kind[_KINDS[each.json["kind"]]].append(each.json)
    return read_view({kind: by_kind[kind] for kind in KINDS}, at)


def drawn(block: RenderableType, columns: int) -> list[str]:
    """Its lines without colour."""
    console = Console(width=columns, color_system=None, highlight=False, markup=False, emoji=False)
    with console.capture() as capture:
        console.print(block)
    return [line.rstrip() for line in capture.get().splitlines()]


@contextlib.contextmanager
def served(world: World, home: Path) -> Iterator[tuple[Path, HttpKube]]:
    """A kubeconfig of a development API server that holds these objects, and a client of it."""
    with ApiServer(crds.load()) as server:
        kubeconfig = home / "kubeconfig"
        write_kubeconfig(kubeconfig, server.url)
        kube = HttpKube(load_config(str(kubeconfig)))
        try:
            put(world, kube)
            yield kubeconfig, kube
        finally:
            kube.close()


def put(world: World, kube: HttpKube) -> None:
    """The server holds every object of the world, with its status."""
    for each in world.objects:
        kind, metadata = _KINDS[each.json["kind"]], each.json["metadata"]
        namespace = metadata.get("namespace")
        if namespace:
            with contextlib.suppress(Conflict):
                kube.create(NAMESPACES, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})
        kept = {name: metadata[name] for name in ("name", "namespace", "labels", "annotations") if name in metadata}
        kube.create(kind, {**each.json, "metadata": kept}, namespace=namespace)
        if "status" in each.json and kind.plural != "localmodelnodegroups":
            body = {"status": each.json["status"]}
            kube.patch(kind, each.name, body, namespace=namespace, subresource="status")
