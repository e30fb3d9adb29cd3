"""Which credentials a cache names, turned into what a source is asked with. Pure: objects come in through `read`.

    spec.storage.key         a key of the Secret `storage-config`: a JSON object with `type`, over which
                             `spec.storage.parameters` win; else a Secret of that name, understood by its keys
    spec.serviceAccountName  every Secret the ServiceAccount lists, each understood by its keys (`secret_keys`)
    parameters alone         with a `type`: the key `default_{type}` or `default`, if there is one, with them over it;
                             without: nothing but the ServiceAccount `default`, as KServe has it
    none of these            what the coordinator itself was started with; of namespaced caches not who it is

A namespaced cache's Secrets and ServiceAccounts are those of its namespace, and where there is none of that name those
of the job namespace, which is where KServe looks alone.

As KServe does it, with four differences: a missing Secret is an error (KServe goes on without credentials), `type: hf`
works, a credential goes only where the same Secret, or the operator, says (`coordinator.control.provenance`), and the
annotation NAMESPACES says whose caches may use it, because anybody may name any Secret of the job namespace.
What the names mean is in `actors.sources.options.SourceOptions` and `actors.sources.resolve`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from actors.errors import SourceDenied
from actors.sources.filesystems import PEM
from actors.sources.options import SourceOptions
from coordinator.control.provenance import FIELDS, Env, check_endpoint, completed, joined, placed
from coordinator.control.secret_keys import (
    BUNDLE,
    BUNDLE_CONFIG_MAP,
    NO_DEFAULTS,
    Defaults,
    certificates,
    data_of,
    from_annotations,
    from_secret,
    hdfs,
    invalid,
    object_of,
)
from coordinator.kube.interface import CONFIG_MAPS, SECRETS, SERVICE_ACCOUNTS
from coordinator.plan.snapshot import Credentials

STORAGE_CONFIG_SECRET = "storage-config"  # noqa: S105  # the name of the Secret, as KServe has it

NAMESPACES = "localmodel.kserve.io/namespaces"
"""Annotation of a Secret or ServiceAccount: the namespaces, with commas, whose caches may use it. Without it: all."""

READ = {"Secret": SECRETS, "ServiceAccount": SERVICE_ACCOUNTS, "ConfigMap": CONFIG_MAPS}
Read = Callable[[str, str], Mapping[str, Any] | None]
"""`read(KIND, name)`, of a kind of `READ`: the object as JSON, from one namespace; None if absent."""


@dataclass(frozen=True, slots=True)
class _Place:
    """A namespace in which credentials are looked for."""

    namespace: str
    read: Read


_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
"""Of a Secret; a key may be none."""
_STORAGE_FIELDS: Mapping[str, Mapping[str, str]] = {
    "s3": {
        "endpoint_url": "AWS_ENDPOINT_URL",
        "access_key_id": "AWS_ACCESS_KEY_ID",
        "secret_access_key": "AWS_SECRET_ACCESS_KEY",
        "session_token": "AWS_SESSION_TOKEN",
        "region": "AWS_DEFAULT_REGION",
        "ca_bundle": "AWS_CA_BUNDLE",
        "verify_ssl": "S3_VERIFY_SSL",
        "anonymous": "awsAnonymousCredential",
        "use_accelerate": "S3_USE_ACCELERATE",
    },
    "hf": {"token": "HF_TOKEN", "endpoint_url": "HF_ENDPOINT"},
    "hdfs": {},
    "webhdfs": {},
}


def load_options(
    credentials: Credentials,
    read: Read,
    *,
    namespace: str,
    own: SourceOptions,
    secret_name: str = STORAGE_CONFIG_SECRET,
    namespaced_own: bool = False,
    read_own: Read | None = None,
    defaults: Defaults = NO_DEFAULTS,
) -> SourceOptions:
    """What to ask the source with: what `credentials` name, and what of `own` may go with it.

    `read` is of the job namespace, `namespace`, and `read_own` of the cache's, where it has one. `namespaced_own`:
    caches of a namespace may use the coordinator's own identity. `defaults` are KServe's, from its configuration.
    Raises SourceDenied, with the reason CredentialsMissing or CredentialsInvalid, and whatever `read` raises.
    """
    places = [_Place(namespace, _allowed(read, credentials.namespace, namespace))]
    if credentials.namespace is not None and read_own is not None:
        places.insert(0, _Place(credentials.namespace, read_own))
    with_type = any(name == "type" for name, _ in credentials.parameters)
    if credentials.storage_key is not None:
        found = _from_key(credentials.storage_key, dict(credentials.parameters), places, secret_name, own.env, defaults)
    elif credentials.service_account is not None:
        found = _from_service_account(credentials.service_account, places, defaults, needed=True)
    elif with_type:
        found = _from_parameters(dict(credentials.parameters), places, secret_name, own.env)
    elif credentials.parameters:
        found = _from_service_account("default", places, defaults, needed=False)
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
        raise invalid(
            f"{kind} {namespace}/{name} is not for caches of namespace {of_cache}: name another, or have its annotation"
            f" {NAMESPACES} name {of_cache}"
        )

    return read_allowed


def _check_bundle(given: str | None, own: str | None) -> None:
    """A path would be one on the coordinator's disk, and its content end in a message or be trusted."""
    if given is not None and given != own and not given.lstrip().startswith(PEM):
        raise invalid(
            "ca_bundle (AWS_CA_BUNDLE, serving.kserve.io/s3-cabundle) is a path in the coordinator's pod: put the "
            "certificates themselves there, as PEM, or have AWS_CA_BUNDLE set for the coordinator"
        )


def _from_key(
    key: str, parameters: Env, places: Sequence[_Place], secret_name: str, own: Env, defaults: Defaults
) -> dict[str, str]:
    """The first namespace that has the key in its Secret of keys, or a Secret of that name."""
    for place in places:
        found = _from_entry(place, secret_name, key, parameters, own)
        if found is not None:
            return found
        secret = place.read("Secret", key) if _NAME.fullmatch(key) else None
        if secret is not None:
            where = f"Secret {place.namespace}/{key}"
            return placed(_trusting(from_secret(secret, where, defaults), place, where), _named(parameters), own, where)
    job = places[-1]
    where = f"Secret {job.namespace}/{secret_name}"
    also = f"; nor is it in namespace {places[0].namespace}" if len(places) > 1 else ""
    if job.read("Secret", secret_name) is None:
        raise _missing(f"{where} does not exist; spec.storage.key wants its key {key!r}{also}")
    raise _missing(f"{where} has no key {key!r}, which spec.storage.key names{also}")


def _from_parameters(parameters: Env, places: Sequence[_Place], secret_name: str, own: Env) -> dict[str, str]:
    """The key `default_{type}`, or `default`, which may be absent."""
    for key in (f"default_{parameters['type']}", "default"):
        for place in places:
            found = _from_entry(place, secret_name, key, parameters, own)
            if found is not None:
                return found
    where = f"Secret {places[-1].namespace}/{secret_name}"
    return _with_parameters({}, parameters, f"default_{parameters['type']}", where, own)


def _from_entry(place: _Place, secret_name: str, key: str, parameters: Env, own: Env) -> dict[str, str] | None:
    """None: the Secret of keys in that namespace does not have this one."""
    where = f"Secret {place.namespace}/{secret_name}"
    text = data_of(place.read("Secret", secret_name)).get(key)
    if text is None:
        return None
    held = _with_bundle(object_of(text, f"key {key!r} of {where}"), place, where)
    return _with_parameters(held, parameters, key, where, own)


def _with_parameters(held: Mapping[str, Any], parameters: Env, key: str, where: str, own: Env) -> dict[str, str]:
    """What a key of the Secret holds, with what the author says beside it."""
    fields = {**held, **parameters}
    kind = str(fields.get("type", ""))
    if held.get("type", kind) != kind:
        raise invalid(
            f"spec.storage.parameters says type {kind!r}, and key {key!r} of {where} {held['type']!r}: leave it out"
        )
    if kind not in _STORAGE_FIELDS:
        known = ", ".join(_STORAGE_FIELDS)
        raise invalid(f"key {key!r} of {where}, with spec.storage.parameters: type {kind!r} is not one of {known}")
    if kind in ("hdfs", "webhdfs"):
        for name in parameters.keys() & held.keys() - {"type"}:
            if parameters[name] != held[name]:
                raise invalid(
                    f"spec.storage.parameters names another {name} than key {key!r} of {where}: leave it out, "
                    "or put it there"
                )
        if "HDFS_NAMENODE" in parameters and held.keys() - {"type"} and "HDFS_NAMENODE" not in held:
            raise invalid(f"spec.storage.parameters names HDFS_NAMENODE: put it into key {key!r} of {where}")
        return hdfs(fields, where)
    names = _STORAGE_FIELDS[kind]
    in_secret = {names[field]: str(value) for field, value in held.items() if field in names}
    beside = {names[field]: str(value) for field, value in parameters.items() if field in names}
    return placed(in_secret, beside, own, f"key {key!r} of {where}")


def _named(parameters: Env) -> dict[str, str]:
    """Parameters beside a Secret of its own keys, by the names of their type; those of s3 where they name none."""
    names = _STORAGE_FIELDS.get(parameters.get("type", "s3"), {})
    return {names[field]: value for field, value in parameters.items() if field in names}


def _from_service_account(name: str, places: Sequence[_Place], defaults: Defaults, *, needed: bool) -> dict[str, str]:
    """The first namespace that has the ServiceAccount; its Secrets are of the same."""
    for place in places:
        account = place.read("ServiceAccount", name)
        if account is not None:
            break
    else:
        if not needed:
            return {}
        also = f", nor in namespace {places[0].namespace}" if len(places) > 1 else ""
        raise _missing(
            f"ServiceAccount {place.namespace}/{name} does not exist{also}; spec.serviceAccountName names it"
        )
    said = f"ServiceAccount {place.namespace}/{name}"
    found = {said: _trusting(from_annotations(account), place, said)}
    for reference in account.get("secrets") or ():
        secret_name = reference.get("name", "")
        secret = place.read("Secret", secret_name)
        if secret is None:
            raise _missing(f"Secret {place.namespace}/{secret_name} does not exist; ServiceAccount {name} lists it")
        where = f"Secret {place.namespace}/{secret_name}"
        found[where] = _trusting(from_secret(secret, where, defaults), place, where)
    return joined(found)


def _with_bundle(held: dict[str, Any], place: _Place, where: str) -> dict[str, Any]:
    """The fields of a key, with the certificates that its `cabundle_configmap` names."""
    name = held.pop("cabundle_configmap", None)
    if not isinstance(name, str) or not name:
        return held
    return {**held, "ca_bundle": _bundle(name, place, where, str(held.get("ca_bundle") or ""))}


def _trusting(found: dict[str, str], place: _Place, where: str) -> dict[str, str]:
    """The same with certificates in place of the name of a ConfigMap that holds them."""
    name = found.pop(BUNDLE_CONFIG_MAP, "").strip()
    return found | ({BUNDLE: _bundle(name, place, where, found.get(BUNDLE, ""))} if name else {})


def _bundle(name: str, place: _Place, where: str, path: str) -> str:
    """The certificates of a ConfigMap in the namespace of whoever names it, as in KServe."""
    config_map = place.read("ConfigMap", name) if _NAME.fullmatch(name) else None
    if config_map is None:
        raise _missing(f"ConfigMap {place.namespace}/{name} does not exist; {where} names it for certificates")
    return certificates(config_map, f"ConfigMap {place.namespace}/{name}", path)


def trusting(own: SourceOptions, initializer: Mapping[str, Any], namespaces: Mapping[str, Read]) -> SourceOptions:
    """`own` with the certificates that KServe's configuration names for every source, unless it has some.

    `initializer` is the key `storageInitializer` of that, and `namespaces` are those that may have the ConfigMap.
    """
    name = initializer.get("caBundleConfigMapName")
    if not isinstance(name, str) or not name or own.get(BUNDLE) is not None:
        return own
    for namespace, read in namespaces.items():
        if (found := read("ConfigMap", name)) is not None:
            where = f"ConfigMap {namespace}/{name}, which storageInitializer.caBundleConfigMapName names,"
            return replace(own, env={**own.env, BUNDLE: certificates(found, where)})
    raise _missing(
        f"ConfigMap {' or '.join(f'{each}/{name}' for each in namespaces)} does not exist, or may not be read;"
        " storageInitializer.caBundleConfigMapName of KServe's configuration names it for certificates"
    )


def _missing(message: str) -> SourceDenied:
    return SourceDenied(message, reason="CredentialsMissing")
