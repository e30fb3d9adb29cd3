"""KServe's own configuration, as far as a cache depends on it: the ConfigMap `inferenceservice-config`, read live.

    data.localModel          jobNamespace, disableVolumeManagement   (enabled gates KServe's mutators, and nothing here)
    data.credentials         storageSpecSecretName, s3, gcs
    data.storageInitializer  the container of KServe's download Jobs

Each key is a JSON object by itself. One that cannot be read is said to be, and its last good form holds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from coordinator.kube.interface import Object

CONFIG_MAP = "inferenceservice-config"
JOB_NAMESPACE = "kserve-localmodel-jobs"
STORAGE_SECRET = "storage-config"  # noqa: S105  # the name of the Secret, as KServe has it
_KEYS = ("localModel", "credentials", "storageInitializer")


@dataclass(frozen=True, slots=True)
class KServeConfig:
    """`found`: there is such a ConfigMap. `problems` are for people; what they are about is as it was before.

    `job_namespace` is where download volumes are, and the credentials that cluster caches name.
    """

    found: bool = False
    job_namespace: str = JOB_NAMESPACE
    disable_volume_management: bool = False
    credentials: Mapping[str, Any] = field(default_factory=dict)
    storage_initializer: Mapping[str, Any] = field(default_factory=dict)
    problems: tuple[str, ...] = ()

    @property
    def storage_secret(self) -> str:
        """The Secret whose keys `spec.storage.key` names."""
        name = self.credentials.get("storageSpecSecretName")
        return name if isinstance(name, str) and name else STORAGE_SECRET


def read_config(raw: Object | None, before: KServeConfig, job_namespace: str | None = None) -> KServeConfig:
    """What the ConfigMap says now. `raw` None: there is none. `job_namespace`: an operator's own word, which wins."""
    standard = job_namespace or JOB_NAMESPACE
    if raw is None:
        return KServeConfig(job_namespace=standard)
    data = raw.get("data")
    texts = data if isinstance(data, Mapping) else {}
    parsed: dict[str, Mapping[str, Any]] = {}
    problems = []
    for key in _KEYS:
        try:
            value = json.loads(texts.get(key) or "{}")
        except (ValueError, RecursionError, TypeError):
            value = None
        if isinstance(value, dict):
            parsed[key] = value
        else:
            problems.append(f"key {key} is not a JSON object")
    config = replace(before, found=True)
    if "localModel" in parsed:
        told = parsed["localModel"]
        namespace, disabled = told.get("jobNamespace"), told.get("disableVolumeManagement", False)
        if namespace is not None and not isinstance(namespace, str):
            problems.append("localModel.jobNamespace is not a string")
        elif not isinstance(disabled, bool):
            problems.append("localModel.disableVolumeManagement is neither true nor false")
        else:
            config = replace(
                config,
                job_namespace=job_namespace or namespace or standard,
                disable_volume_management=disabled,
            )
    config = replace(
        config,
        credentials=parsed.get("credentials", before.credentials),
        storage_initializer=parsed.get("storageInitializer", before.storage_initializer),
    )
    return replace(config, problems=tuple(problems))
