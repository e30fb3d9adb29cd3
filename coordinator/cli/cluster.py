"""The cluster that a command asks: the flags that name it, and what may be read of it."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

from coordinator.api.resources import StatusKey
from coordinator.kube.interface import Denied, Kube, KubeError, NotFound, Object, ResourceType
from coordinator.plan.snapshot import CACHES, NAMESPACE_CACHES
from coordinator.view.cluster import KINDS, ClusterView, read_view

TIMEOUT_S = 15.0


class Unanswered(Exception):
    """There is no answer. `reason` is CamelCase; the message says why and what to do."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def add_cluster_arguments(parser: argparse.ArgumentParser, *, namespaced: bool = True) -> None:
    parser.add_argument("--kubeconfig", metavar="FILE", help="which cluster; else $KUBECONFIG, ~/.kube/config")
    parser.add_argument("--context", metavar="NAME", help="context of the kubeconfig; else its current one")
    if namespaced:
        parser.add_argument(
            "-n", "--namespace", metavar="NS", help="namespaced caches of NS alone; else all that may be seen"
        )


def connect(args: argparse.Namespace) -> Kube:
    """Raises Unanswered."""
    from coordinator.kube.config import NoClusterConfig, load_config  # here, because the client takes long to import
    from coordinator.kube.http import HttpKube

    try:
        return HttpKube(load_config(args.kubeconfig, args.context), timeout_s=TIMEOUT_S)
    except NoClusterConfig as error:
        raise Unanswered("NoClusterConfig", str(error)) from error


def look(kube: Kube, namespace: str | None, clock: Callable[[], float] = time.time) -> ClusterView:
    """Everything that may be read, at this moment. Raises Unanswered if no cache may."""
    objects: dict[ResourceType, list[Object]] = {}
    notes, missing = [], []
    for kind in KINDS:
        if kind is CACHES and namespace is not None:
            continue
        try:
            objects[kind], _ = kube.list(kind, namespace=namespace if kind.namespaced else None)
        except Denied:
            where = f" in namespace {namespace}" if kind.namespaced and namespace else ""
            notes.append(f"you may not list {kind.plural}{where}: what they say is missing here")
        except NotFound:
            missing.append(kind)
        except KubeError as error:
            raise Unanswered("Unreachable", str(error)) from error
    if not objects.keys() & {CACHES, NAMESPACE_CACHES}:
        if missing:
            raise Unanswered("NotInstalled", "the cluster does not know LocalModelCache: `kubectl apply -k k8s/base`")
        hint = "" if namespace else ", or name a namespace with -n"
        raise Unanswered("Denied", f"you may not list localmodelcaches: ask for the role, see k8s/README.md{hint}")
    return read_view(objects, clock(), notes)


def key_of(view: ClusterView, name: str, namespace: str | None) -> StatusKey:
    """The cache that NAME, or NS/NAME, means. Raises Unanswered, with those that it may have meant."""
    exact = StatusKey(f"{namespace}/{name}" if namespace and "/" not in name else name)
    if exact in view.caches:
        return exact
    near = sorted(key for key in view.caches if key.rpartition("/")[2] == name.rpartition("/")[2])
    if len(near) == 1 and namespace is None and "/" not in name:
        return near[0]
    others = near or sorted(view.caches)[:5]
    hint = f": there is {', '.join(others)}" if others else ": there is none"
    raise Unanswered("NoSuchCache", f"there is no cache {exact}{hint}")
