"""Which credentials a cache names, turned into what a source is asked with. Pure: objects come in through `read`.

    spec.storage             one key of the Secret `storage-config`: a JSON object with `type`; `parameters` win over it
    spec.serviceAccountName  every Secret the ServiceAccount lists, each understood by its keys and annotations
    neither                  what the coordinator itself was started with; of namespaced caches not who it is

As KServe does it, with four differences: a missing Secret is an error (KServe goes on without credentials), `type: hf`
works, a credential goes only where the same Secret, or the operator, says (`coordinator.control.provenance`), and the
annotation NAMESPACES says whose caches may use it, because anybody may name any Secret of the one namespace.
What the names mean is in `actors.transport.answers.SourceOptions` and `actors.sources.resolve`.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

from actors.errors import SourceDenied
from actors.sources.filesystems import PEM
from actors.transport.answers import PRIVATE_REDIRECTS, SourceOptions
from coordinator.control.provenance import FIELDS, check_endpoint, completed, joined, placed
from coordinator.plan.snapshot import Credentials

STORAGE_CONFIG_SECRET = "storage-config"  # noqa: S105  # the name of the Secret, as KServe has it

NAMESPACES = "localmodel.kserve.io/namespaces"
"""Annotation of a Secret or ServiceAccount: the namespaces, with commas, whose caches may use it. Without it: all."""

Read = Callable[[str, str], Mapping[str, Any] | None]
"""`read("Secret" or "ServiceAccount", name)`: the object as JSON, from the credentials' namespace; None if absent."""

_STORAGE_FIELDS = {
    "s3": {
        "endpoint_url": "AWS_ENDPOINT_URL",
        "access_key_id": "AWS_ACCESS_KEY_ID",
        "secret_access_key": "AWS_SECRET_ACCESS_KEY",
        "session_token": "AWS_SESSION_TOKEN",
        "region": "AWS_DEFAULT_REGION",
        "ca_bundle": "AWS_CA_BUNDLE",
        "verify_ssl": "S3_VERIFY_SSL",
        "anonymous": "awsAnonymousCredential",
    },
    "hf": {"token": "HF_TOKEN", "endpoint_url": "HF_ENDPOINT"},
    "hdfs": {},
    "webhdfs": {},
}
_SECRET_KEYS = {"awsAccessKeyID": "AWS_ACCESS_KEY_ID", "awsSecretAccessKey": "AWS_SECRET_ACCESS_KEY"}
_ANNOTATIONS = {
    "serving.kserve.io/s3-region": "AWS_DEFAULT_REGION",
    "serving.kserve.io/s3-verifyssl": "S3_VERIFY_SSL",
    "serving.kserve.io/s3-usevirtualbucket": "S3_USER_VIRTUAL_BUCKET",
    "serving.kserve.io/s3-useanoncredential": "awsAnonymousCredential",
    "serving.kserve.io/s3-cabundle": "AWS_CA_BUNDLE",
}
_DOCKER_CONFIG = ".dockerconfigjson"
_GCS_KEY_FILE = "gcloud-application-credentials.json"


def load_options(
    credentials: Credentials,
    read: Read,
    *,
    namespace: str,
    own: SourceOptions,
    secret_name: str = STORAGE_CONFIG_SECRET,
    namespaced_own: bool = False,
) -> SourceOptions:
    """What to ask the source with: what `credentials` name, and what of `own` may go with it.

    `namespace` is only for messages. `namespaced_own`: caches of a namespace may use the coordinator's own identity.
    Raises SourceDenied, with the reason CredentialsMissing or CredentialsInvalid, and whatever `read` raises.
    """
    read = _allowed(read, credentials.namespace, namespace)
    if credentials.storage_key is not None or credentials.parameters:
        found = _from_storage(credentials, read, f"Secret {namespace}/{secret_name}", secret_name, own.env)
    elif credentials.service_account is not None:
        found = _from_service_account(credentials.service_account, read, namespace)
    else:
        found = {}
    own_identity = namespaced_own or not credentials.namespaced
    if not found and own_identity:
        return own
    for name, value in found.items():
        if name in ("HF_ENDPOINT", "AWS_ENDPOINT_URL"):
            found[name] = check_endpoint(value, f"{FIELDS[name]} ({name}) in the credentials")
    _check_bundle(found.get("AWS_CA_BUNDLE"), own.get("AWS_CA_BUNDLE"))
    env, ambient = completed(found, own.env, own_identity=own_identity)
    return replace(own, env=env, ambient=own.ambient & ambient)


def _allowed(read: Read, of_cache: str | None, namespace: str) -> Read:
    """`read`, of what a cache in `of_cache` may use. A cluster cache may use all."""

    def read_allowed(kind: str, name: str) -> Mapping[str, Any] | None:
        found = read(kind, name)
        annotations = ((found or {}).get("metadata") or {}).get("annotations") or {}
        allowed = annotations.get(NAMESPACES)
        if of_cache is None or allowed is None or of_cache in {each.strip() for each in str(allowed).split(",")}:
            return found
        raise _invalid(
            f"{kind} {namespace}/{name} is not for caches of namespace {of_cache}: name another, or have its annotation"
            f" {NAMESPACES} name {of_cache}"
        )

    return read_allowed


def _check_bundle(given: str | None, own: str | None) -> None:
    """A path would be one on the coordinator's disk, and its content end in a message or be trusted."""
    if given is not None and given != own and not given.lstrip().startswith(PEM):
        raise _invalid(
            "ca_bundle (AWS_CA_BUNDLE, serving.kserve.io/s3-cabundle) is a path in the coordinator's pod: put the "
            "certificates themselves there, as PEM, or have AWS_CA_BUNDLE set for the coordinator"
        )


def _from_storage(
    credentials: Credentials, read: Read, where: str, secret_name: str, own: Mapping[str, str]
) -> dict[str, str]:
    """One key of the Secret; the key `default`, or `default_{type}`, may be absent. Parameters win over its fields."""
    parameters = dict(credentials.parameters)
    secret = read("Secret", secret_name)
    kind = parameters.get("type", "")
    key = credentials.storage_key or (f"default_{kind}" if kind else "default")
    if secret is None and credentials.storage_key is not None:
        raise _missing(f"{where} does not exist; spec.storage.key wants its key {key!r}")
    text = _data(secret).get(key)
    if text is None and credentials.storage_key is not None:
        raise _missing(f"{where} has no key {key!r}, which spec.storage.key names")
    held = _object(text or "{}", f"key {key!r} of {where}")
    fields = {**held, **parameters}
    kind = str(fields.get("type", ""))
    if held.get("type", kind) != kind:
        raise _invalid(
            f"spec.storage.parameters says type {kind!r}, and key {key!r} of {where} {held['type']!r}: leave it out"
        )
    if kind not in _STORAGE_FIELDS:
        known = ", ".join(_STORAGE_FIELDS)
        raise _invalid(f"key {key!r} of {where}, with spec.storage.parameters: type {kind!r} is not one of {known}")
    if kind in ("hdfs", "webhdfs"):
        for name in parameters.keys() & held.keys() - {"type"}:
            if parameters[name] != held[name]:
                raise _invalid(
                    f"spec.storage.parameters names another {name} than key {key!r} of {where}: leave it out, "
                    "or put it there"
                )
        if "HDFS_NAMENODE" in parameters and held.keys() - {"type"} and "HDFS_NAMENODE" not in held:
            raise _invalid(f"spec.storage.parameters names HDFS_NAMENODE: put it into key {key!r} of {where}")
        return _hdfs(fields, where)
    names = _STORAGE_FIELDS[kind]
    in_secret = {names[field]: str(value) for field, value in held.items() if field in names}
    beside = {names[field]: str(value) for field, value in parameters.items() if field in names}
    return placed(in_secret, beside, own, f"key {key!r} of {where}")


def _from_service_account(name: str, read: Read, namespace: str) -> dict[str, str]:
    account = read("ServiceAccount", name)
    if account is None:
        raise _missing(f"ServiceAccount {namespace}/{name} does not exist; spec.serviceAccountName names it")
    found = {f"ServiceAccount {namespace}/{name}": _from_annotations(account)}
    for reference in account.get("secrets") or ():
        secret_name = reference.get("name", "")
        secret = read("Secret", secret_name)
        if secret is None:
            raise _missing(f"Secret {namespace}/{secret_name} does not exist; ServiceAccount {name} lists it")
        found[f"Secret {namespace}/{secret_name}"] = _from_secret(secret, f"Secret {namespace}/{secret_name}")
    return joined(found)


def _from_secret(secret: Mapping[str, Any], where: str) -> dict[str, str]:
    """A Secret of a ServiceAccount: KServe's keys, and environment names as they are."""
    data = _data(secret)
    found = dict(SourceOptions.from_environ(data).env) | _from_annotations(secret)
    found.pop(PRIVATE_REDIRECTS, None)  # for an operator to say
    found |= {name: data[key] for key, name in _SECRET_KEYS.items() if key in data}
    if _GCS_KEY_FILE in data:
        key_file = _object(data[_GCS_KEY_FILE], f"key {_GCS_KEY_FILE!r} of {where}")
        found["STORAGE_OPTIONS"] = json.dumps({"token": key_file})
    if _DOCKER_CONFIG in data:
        found["DOCKER_CONFIG_JSON"] = data[_DOCKER_CONFIG]
    if "https-host" in data and "headers" in data:
        found[f"{data['https-host'].strip()}-headers"] = data["headers"]
    if "HDFS_NAMENODE" in data:
        found |= _hdfs(data, where)
    return found


def _from_annotations(owner: Mapping[str, Any]) -> dict[str, str]:
    """The S3 settings that KServe reads from the annotations of a Secret or ServiceAccount."""
    annotations = (owner.get("metadata") or {}).get("annotations") or {}
    found = {name: annotations[key] for key, name in _ANNOTATIONS.items() if key in annotations}
    if endpoint := annotations.get("serving.kserve.io/s3-endpoint"):
        scheme = "http" if annotations.get("serving.kserve.io/s3-usehttps") == "0" else "https"
        found["AWS_ENDPOINT_URL"] = f"{scheme}://{endpoint}"
    return found


def _hdfs(fields: Mapping[str, Any], where: str) -> dict[str, str]:
    """KServe speaks WebHDFS for both types; these are the arguments of fsspec's `webhdfs`."""
    try:
        namenode = urlsplit(str(fields.get("HDFS_NAMENODE", "")))
        host, port = namenode.hostname, namenode.port or 9870
    except ValueError:
        host = None
    if not host:
        raise _invalid(f"{where} has no usable HDFS_NAMENODE (expected http[s]://host:port)")
    arguments = {
        "host": host,
        "port": port,
        "use_https": namenode.scheme == "https",
        "proxy_to": fields.get("USER_PROXY"),
    }
    if "KERBEROS_PRINCIPAL" in fields:
        raise _invalid(f"{where} wants Kerberos, for which the coordinator has a ticket of its own at best")
    return {"STORAGE_OPTIONS": json.dumps({name: value for name, value in arguments.items() if value is not None})}


def _data(secret: Mapping[str, Any] | None) -> dict[str, str]:
    """`data` of a Secret, decoded. What is not text is garbled, not refused: it may be a file we do not need."""
    encoded = (secret or {}).get("data") or {}
    return {key: base64.b64decode(value).decode(errors="replace") for key, value in encoded.items()}


def _object(text: str, where: str) -> dict[str, Any]:
    """A JSON object. Errors do not quote it: it is a secret."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise _invalid(f"{where} is not a JSON object")
    return value


def _missing(message: str) -> SourceDenied:
    return SourceDenied(message, reason="CredentialsMissing")


def _invalid(message: str) -> SourceDenied:
    return SourceDenied(message, reason="CredentialsInvalid")
