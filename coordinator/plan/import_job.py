"""The Job that fills a claim with the model of a cache (`spec.pvcRef`): how it is made, and what one says. Pure.

    name          <cache>-import in the cache's namespace, shortened with a hash where that has over 63 characters
    annotations   serving.kserve.io/import-pvc-uid, -storage-key, -spec-hash: what it was made for
    pod           the operator's PodTemplate (`jobs.TEMPLATE`), with the claim, the Secrets that the cache names, and
                  `localmodel import` as its command; no token of a ServiceAccount

Name, annotations and backoffLimit are later KServe's. The pod runs where the tenant's own pods run, and reaches what
they could: the claim and the Secrets of its own namespace, and nothing by which it could ask the API server.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from coordinator.kube.interface import Object
from coordinator.kube.parts import list_of, mapping_of
from coordinator.plan.bindings import MANAGED_BY, Claim, ClaimName
from coordinator.plan.jobs import CONTAINER, JOBS
from coordinator.plan.retries import name_for_source
from coordinator.plan.snapshot import Cache

CLAIM_UID = "serving.kserve.io/import-pvc-uid"
STORAGE_KEY = "serving.kserve.io/import-storage-key"
SPEC_HASH = "serving.kserve.io/import-spec-hash"
SELECTION = "localmodel.kserve.io/import-selection"
"""Names the files of the source that it fetches: beside KServe's own."""
BACKOFF_LIMIT = 2
_LONGEST = 63
_SECRET_KEY = re.compile(r"[-._a-zA-Z0-9]{1,253}")
_SECRET_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
MODELS, SECRETS_AT = "/mnt/models", "/var/run/localmodel/secrets"


def job_name(cache: Cache) -> ClaimName:
    """Namespace and name of the Job of a cache."""
    name = f"{cache.ref.name}-import"
    if len(name) > _LONGEST:
        digest = hashlib.sha256(cache.ref.name.encode()).hexdigest()[:8]
        name = f"{cache.ref.name[: _LONGEST - 16].rstrip('-.')}-{digest}-import"
    return cache.ref.namespace or "", name


def spec_hash(cache: Cache, template: Mapping[str, Any], secret_name: str) -> str:
    """Tells what the Job is to do from what another would: a Job that has not succeeded is replaced with it.

    A request to try again changes it, too.
    """
    parts = [cache.selection, cache.digest, cache.credentials.name, name_for_source(cache.retries), secret_name]
    return hashlib.sha256(json.dumps([*parts, template], sort_keys=True).encode()).hexdigest()[:16]


def made_for(cache: Cache, claim: Claim, template: Mapping[str, Any], secret_name: str) -> dict[str, str]:
    """The annotations of its Job."""
    return {
        CLAIM_UID: claim.ref.uid,
        STORAGE_KEY: cache.storage_key,
        SPEC_HASH: spec_hash(cache, template, secret_name),
        SELECTION: cache.selection,
    }


def job_of(cache: Cache, claim: Claim, template: Mapping[str, Any], secret_name: str) -> Object:
    """The whole Job, as it is created. `secret_name`: of the Secret whose keys `spec.storage.key` names."""
    namespace, name = job_name(cache)
    metadata = mapping_of(template.get("metadata"))
    labels = {**mapping_of(metadata.get("labels")), **MANAGED_BY}
    owner = {
        "apiVersion": cache.ref.resource.api_version,
        "kind": cache.ref.resource.kind,
        "name": cache.ref.name,
        "uid": cache.ref.uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }
    pod = {"metadata": {**metadata, "labels": labels}, "spec": _pod(cache, mapping_of(template["spec"]), secret_name)}
    return {
        "apiVersion": JOBS.api_version,
        "kind": JOBS.kind,
        "metadata": {
            "name": name,
            "namespace": namespace,
            "labels": dict(MANAGED_BY),
            "annotations": made_for(cache, claim, template, secret_name),
            "ownerReferences": [owner],
        },
        "spec": {"backoffLimit": BACKOFF_LIMIT, "template": pod},
    }


def _pod(cache: Cache, spec: Mapping[str, Any], secret_name: str) -> dict[str, Any]:
    secrets = _secrets(cache, secret_name)
    volumes = [{"name": "model", "persistentVolumeClaim": {"claimName": cache.pvc_ref}}]
    mounts: list[dict[str, Any]] = [{"name": "model", "mountPath": MODELS}]
    for number, (name, keys) in enumerate(secrets):
        source: dict[str, Any] = {"secretName": name, "optional": True, "defaultMode": 0o440}
        if keys:
            source["items"] = [{"key": key, "path": key} for key in keys]
        volumes.append({"name": f"secret-{number}", "secret": source})
        mounts.append({"name": f"secret-{number}", "mountPath": f"{SECRETS_AT}/{name}", "readOnly": True})
    containers = []
    for each in map(mapping_of, spec["containers"]):
        if each.get("name") == CONTAINER:
            more = {"command": ["/opt/localmodel/bin/localmodel", "import"], "args": _arguments(cache, secret_name)}
            each = {**each, **more, "volumeMounts": [*list_of(each.get("volumeMounts")), *mounts]}
        containers.append(each)
    return {
        **spec,
        "containers": containers,
        "volumes": [*list_of(spec.get("volumes")), *volumes],
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
    }


def _arguments(cache: Cache, secret_name: str) -> list[str]:
    """Each value is joined to its flag: none of them, which a tenant may have written, can be taken for a flag."""
    source, named = cache.source, cache.credentials
    found = [f"--namespace={cache.ref.namespace}", f"--secrets={SECRETS_AT}", f"--storage-secret={secret_name}"]
    found += [f"--revision={source.revision}"] if source.revision is not None else []
    found += [f"--include={each}" for each in source.include] + [f"--exclude={each}" for each in source.exclude]
    found += [f"--digest={cache.digest}"] if cache.digest is not None else []
    found += [f"--storage-key={named.storage_key}"] if named.storage_key is not None else []
    found += [f"--parameter={name}={value}" for name, value in named.parameters]
    return [*found, "--", source.uri, f"{MODELS}/models/{cache.storage_key}"]


def _secrets(cache: Cache, secret_name: str) -> Sequence[tuple[str, tuple[str, ...]]]:
    """The Secrets that its credentials may be in, with the keys of each that are meant; none: all."""
    key, kind = cache.credentials.storage_key, dict(cache.credentials.parameters).get("type")
    wanted = (key,) if key is not None else (f"default_{kind}", "default") if kind is not None else ()
    keys = tuple(each for each in wanted if _SECRET_KEY.fullmatch(each))
    found = [(secret_name, keys)] if keys else []
    whole = key is not None and key != secret_name and _SECRET_NAME.fullmatch(key)
    return [*found, (key, ())] if key is not None and whole else found
