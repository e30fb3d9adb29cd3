"""What the keys and annotations of a Secret mean, as KServe means them. Pure.

    awsAccessKeyID, awsSecretAccessKey    or as `inferenceservice-config` calls them; S3_ENDPOINT, S3_USE_HTTPS, …
    gcloud-application-credentials.json   likewise
    AZURE_*, HF_TOKEN, HDFS_NAMENODE, https-host with headers, .dockerconfigjson, and every name of an environment

Of S3 the annotations win, then come the keys, then what KServe's configuration says of every Secret with S3 keys.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from actors.errors import SourceDenied
from actors.sources.filesystems import PEM
from actors.sources.options import SourceOptions
from actors.transport.answers import PRIVATE_REDIRECTS

_SECRET_KEYS = {"awsAccessKeyID": "AWS_ACCESS_KEY_ID", "awsSecretAccessKey": "AWS_SECRET_ACCESS_KEY"}
_ANNOTATIONS = {
    "serving.kserve.io/s3-region": "AWS_DEFAULT_REGION",
    "serving.kserve.io/s3-verifyssl": "S3_VERIFY_SSL",
    "serving.kserve.io/s3-usevirtualbucket": "S3_USER_VIRTUAL_BUCKET",
    "serving.kserve.io/s3-useaccelerate": "S3_USE_ACCELERATE",
    "serving.kserve.io/s3-useanoncredential": "awsAnonymousCredential",
    "serving.kserve.io/s3-cabundle": "AWS_CA_BUNDLE",
    "serving.kserve.io/s3-cabundle-configmap": "AWS_CA_BUNDLE_CONFIGMAP",
}
BUNDLE, BUNDLE_CONFIG_MAP = "AWS_CA_BUNDLE", "AWS_CA_BUNDLE_CONFIGMAP"
_BUNDLE_KEY = "cabundle.crt"
_DOCKER_CONFIG = ".dockerconfigjson"
_GCS_KEY_FILE = "gcloud-application-credentials.json"

_HOST, _HTTPS = "serving.kserve.io/s3-endpoint", "serving.kserve.io/s3-usehttps"
_CONFIGURED = {
    "s3Region": "AWS_DEFAULT_REGION",
    "s3VerifySSL": "S3_VERIFY_SSL",
    "s3UseVirtualBucket": "S3_USER_VIRTUAL_BUCKET",
    "s3UseAccelerate": "S3_USE_ACCELERATE",
    "s3UseAnonymousCredential": "awsAnonymousCredential",
    "s3CABundleConfigMap": BUNDLE_CONFIG_MAP,
}


@dataclass(frozen=True, slots=True)
class Defaults:
    """The key `credentials` of KServe's configuration. `keys` are the names that it gives to keys of Secrets.

    Its paths of certificates are those of another container, and mean nothing here; ConfigMaps of them do.
    """

    keys: Mapping[str, str] = field(default_factory=dict)
    gcs_key_file: str = _GCS_KEY_FILE
    endpoint: str = ""
    use_https: str = ""
    s3: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, configured: Mapping[str, Any]) -> Defaults:
        """Values that are not as KServe writes them are left out."""
        s3, gcs = (_texts(configured.get(name)) for name in ("s3", "gcs"))
        keys = {"s3AccessKeyIDName": "AWS_ACCESS_KEY_ID", "s3SecretAccessKeyName": "AWS_SECRET_ACCESS_KEY"}
        return cls(
            keys={s3[name]: variable for name, variable in keys.items() if name in s3},
            gcs_key_file=gcs.get("gcsCredentialFileName", _GCS_KEY_FILE),
            endpoint=s3.get("s3Endpoint", ""),
            use_https=s3.get("s3UseHttps", ""),
            s3={variable: s3[name] for name, variable in _CONFIGURED.items() if name in s3},
        )


NO_DEFAULTS = Defaults()


def _texts(value: object) -> dict[str, str]:
    """Those that are set."""
    found = value if isinstance(value, Mapping) else {}
    return {str(name): text for name, text in found.items() if isinstance(text, str) and text}


def from_secret(secret: Mapping[str, Any], where: str, defaults: Defaults = NO_DEFAULTS) -> dict[str, str]:
    """What one Secret says: KServe's keys, and environment names as they are. Annotations win, then come its keys.

    `where` names it in messages. Raises SourceDenied (CredentialsInvalid).
    """
    data = data_of(secret)
    found = dict(SourceOptions.from_environ(data).env) | from_annotations(secret)
    found.pop(PRIVATE_REDIRECTS, None)  # for an operator to say
    if BUNDLE_CONFIG_MAP in data:
        found.setdefault(BUNDLE_CONFIG_MAP, data[BUNDLE_CONFIG_MAP])
    found |= {name: data[key] for key, name in _SECRET_KEYS.items() if key in data}
    found |= {name: data[key] for key, name in defaults.keys.items() if key in data}
    endpoint = _endpoint(secret, data, defaults if "AWS_SECRET_ACCESS_KEY" in found else NO_DEFAULTS)
    if endpoint is not None:
        found["AWS_ENDPOINT_URL"] = endpoint
    if "AWS_SECRET_ACCESS_KEY" in found:
        found = {**defaults.s3, **found}
    for name in {_GCS_KEY_FILE, defaults.gcs_key_file} & data.keys():
        key_file = object_of(data[name], f"key {name!r} of {where}")
        found["STORAGE_OPTIONS"] = json.dumps({"token": key_file})
    if _DOCKER_CONFIG in data:
        found["DOCKER_CONFIG_JSON"] = data[_DOCKER_CONFIG]
    if "https-host" in data and "headers" in data:
        found[f"{data['https-host'].strip()}-headers"] = data["headers"]
    if "HDFS_NAMENODE" in data:
        found |= hdfs(data, where)
    return found


def from_annotations(owner: Mapping[str, Any]) -> dict[str, str]:
    """The S3 settings that KServe reads from the annotations of a Secret or ServiceAccount."""
    annotations = _annotations(owner)
    found = {name: annotations[key] for key, name in _ANNOTATIONS.items() if key in annotations}
    if endpoint := _endpoint(owner, {}, NO_DEFAULTS):
        found["AWS_ENDPOINT_URL"] = endpoint
    return found


def _endpoint(owner: Mapping[str, Any], data: Mapping[str, str], defaults: Defaults) -> str | None:
    """Host and scheme each from the first that names it: an annotation, a key, KServe's configuration."""
    annotations = _annotations(owner)
    host = annotations.get(_HOST) or data.get("S3_ENDPOINT") or defaults.endpoint
    https = annotations.get(_HTTPS) or data.get("S3_USE_HTTPS") or defaults.use_https
    return f"{'http' if https == '0' else 'https'}://{host}" if host else None


def _annotations(owner: Mapping[str, Any]) -> Mapping[str, Any]:
    return (owner.get("metadata") or {}).get("annotations") or {}


def certificates(config_map: Mapping[str, Any], where: str, path: str = "") -> str:
    """The certificates in a ConfigMap, under the key that KServe's downloader reads, or the name of the file at `path`.

    Raises SourceDenied (CredentialsInvalid).
    """
    data = _texts(config_map.get("data"))
    text = data.get(PurePosixPath(path).name) or data.get(_BUNDLE_KEY, "")
    if not text.lstrip().startswith(PEM):
        raise invalid(f"{where} has no certificates under {_BUNDLE_KEY!r} (as PEM)")
    return text


def hdfs(fields: Mapping[str, Any], where: str) -> dict[str, str]:
    """KServe speaks WebHDFS for both types; these are the arguments of fsspec's `webhdfs`."""
    try:
        namenode = urlsplit(str(fields.get("HDFS_NAMENODE", "")))
        host, port = namenode.hostname, namenode.port or 9870
    except ValueError:
        host = None
    if not host:
        raise invalid(f"{where} has no usable HDFS_NAMENODE (expected http[s]://host:port)")
    arguments = {
        "host": host,
        "port": port,
        "use_https": namenode.scheme == "https",
        "proxy_to": fields.get("USER_PROXY"),
    }
    if "KERBEROS_PRINCIPAL" in fields:
        raise invalid(f"{where} wants Kerberos, for which the coordinator has a ticket of its own at best")
    return {"STORAGE_OPTIONS": json.dumps({name: value for name, value in arguments.items() if value is not None})}


def data_of(secret: Mapping[str, Any] | None) -> dict[str, str]:
    """`data` of a Secret, decoded. Bytes that are no text are garbled: they may be a file that nobody needs."""
    encoded = (secret or {}).get("data") or {}
    return {key: base64.b64decode(value).decode(errors="replace") for key, value in encoded.items()}


def object_of(text: str, where: str) -> dict[str, Any]:
    """A JSON object. Errors do not quote it: it is a secret."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise invalid(f"{where} is not a JSON object")
    return value


def invalid(message: str) -> SourceDenied:
    return SourceDenied(message, reason="CredentialsInvalid")
