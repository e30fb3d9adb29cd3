"""Which cluster to talk to, and who we are there: the flag, $KUBECONFIG, the pod's service account, ~/.kube/config."""

from __future__ import annotations

import http.client
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from kubernetes import config as kubeconfigs
from kubernetes.client import Configuration

from actors.transport.authorities import accept_in_libraries

POOL_SIZE = 32


class NoClusterConfig(Exception):
    """Nothing says which cluster to talk to, or what says so cannot be read. One sentence for the person."""


@dataclass(frozen=True, slots=True)
class ClusterConfig:
    """Where the API server is and who we are there. `source` says where that was found."""

    server: str
    source: str
    configuration: Any = field(repr=False)


def load_config(
    kubeconfig: str | None = None, context: str | None = None, *, environ: Mapping[str, str] = os.environ
) -> ClusterConfig:
    """The first of: the flag, $KUBECONFIG, the pod's service account, ~/.kube/config. Raises NoClusterConfig.

    The first that is named must be usable: a typing error never falls through to another cluster.
    """
    home = Path(environ.get("HOME") or "~").expanduser() / ".kube" / "config"
    configuration = Configuration()
    configuration.connection_pool_maxsize = POOL_SIZE
    if not kubeconfig and not environ.get("KUBECONFIG") and environ.get("KUBERNETES_SERVICE_HOST"):
        source = "the pod's service account"
        load = partial(kubeconfigs.load_incluster_config, client_configuration=configuration)
    else:
        file, source = (
            (kubeconfig, "--kubeconfig")
            if kubeconfig
            else (environ["KUBECONFIG"], "$KUBECONFIG")
            if environ.get("KUBECONFIG")
            else (str(home), str(home))
        )
        if not any(Path(part).expanduser().is_file() for part in file.split(os.pathsep) if part):
            if file == str(home):
                raise NoClusterConfig(
                    "no Kubernetes cluster is configured: give --kubeconfig, set KUBECONFIG, run in a pod with a"
                    f" service account, or create {home}"
                )
            raise NoClusterConfig(f"{source} names {file}, which is not a file")
        load = partial(
            kubeconfigs.load_kube_config,
            config_file=file,
            context=context,
            client_configuration=configuration,
            persist_config=False,
        )
    accept_in_libraries()  # an identity provider may be asked meanwhile
    try:
        load()
    except Exception as error:  # the loader raises whatever its YAML, files and exec plugins do
        raise NoClusterConfig(f"the cluster configuration from {source} cannot be used: {cause_of(error)}") from error
    return ClusterConfig(configuration.host, source, configuration)


def cause_of(error: BaseException) -> str:
    """The innermost reason of a chain of wrapped errors, in words."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, http.client.IncompleteRead):
            return "the connection ended in the middle of an answer"
        error, cause = cause, cause.__cause__ or cause.__context__
    words = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    return words[:1].lower() + words[1:]
