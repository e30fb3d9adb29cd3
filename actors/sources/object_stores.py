"""What object stores call things: KServe's names become their options, and what they know of an object.

    s3:// s3a://                           keys, endpoint, region, CA, anonymous, role; a digest by HEAD of each object
    gs:// gcs://                           a key file; md5, or crc32c, from the listing
    az:// abfs:// abfss://                 an account key, or a service principal; Content-MD5 and ETag from the listing
    https://ACCOUNT.blob.core.windows.net  the same: KServe's form of it
    hdfs://                                WebHDFS, as in KServe
    anything else                          as fsspec knows it, with STORAGE_OPTIONS

Knows no filesystem library: what is asked of one comes in as an argument.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import quote, urlsplit

from actors.errors import SourceDenied, SourceError, SourceUnsupported
from actors.sources.options import OTHER_STORES, S3, SourceOptions
from actors.transport.no_proxy import is_direct, no_proxy
from actors.transport.refusals import Refusal

ROLE_SESSION_S = 3600

_AZURE = re.compile(r"https://(([^/.]+)\.(?:blob\.core\.windows\.net|z\d+\.blob\.storage\.azure\.net))/([^?#]+)")
_AZURE_LOGINS = frozenset({"account_key", "sas_token", "connection_string", "client_id"})
_ACCOUNT = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_ACCOUNT_HOST = re.compile(r"([a-z0-9][a-z0-9-]{0,62})\.(?:dfs|blob)\.core\.windows\.net")
_REGION = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)")
"""botocore makes a host of it. https://github.com/boto/botocore/blob/develop/botocore/utils.py"""
_AZURE_NAMES = {
    "account_name": ("AZURE_STORAGE_ACCOUNT_NAME",),
    "account_key": ("AZURE_STORAGE_ACCESS_KEY",),
    "client_id": ("AZURE_CLIENT_ID", "AZ_CLIENT_ID"),
    "client_secret": ("AZURE_CLIENT_SECRET", "AZ_CLIENT_SECRET"),
    "tenant_id": ("AZURE_TENANT_ID", "AZ_TENANT_ID"),
}
_MOST_CAUSES = 8


@dataclass(frozen=True, slots=True)
class Dialect:
    """How a URI is opened. `public` is the URL of a name (`bucket/key`) for anybody, if the object is public."""

    url: str
    storage_options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    signable: bool = True
    public: Callable[[str], str] | None = None


_BUCKETS = frozenset({"s3", "s3a", "gs", "gcs"})


def dialect_of(uri: str, options: SourceOptions) -> Dialect:
    """Raises SourceDenied for options that cannot be understood."""
    scheme, _, rest = uri.partition("://")
    if scheme in _BUCKETS and not rest.partition("/")[0]:
        raise SourceUnsupported(f"{scheme}:/// names no bucket: write {scheme}://BUCKET/PREFIX", reason="InvalidURI")
    match scheme:
        case "s3" | "s3a":
            s3 = s3_options(in_role(options))
            # Agents trust by the same variables (`transport.connections`). What comes with credentials is
            # unknown to them: that is read with s3fs there, too.
            verify = s3["client_kwargs"].get("verify")
            signable = verify is None or verify == os.environ.get("AWS_CA_BUNDLE")
            return Dialect(uri, s3, signable=signable)
        case "gs" | "gcs":
            return Dialect(uri, _google_options(options), public=_public("https://storage.googleapis.com"))
        case "az" | "abfs" | "abfss":
            azure = azure_options(options, _account_in(uri))
            account = azure.get("account_name")
            public = _public(f"https://{account}.blob.core.windows.net") if account else None
            return Dialect(uri, azure, public=public)
        case "https" if match := _AZURE.fullmatch(uri):
            host, account, path = match.groups()
            azure = azure_options(options, account)
            return Dialect(f"abfs://{path}", azure, public=_public(f"https://{host}"))
        case "hdfs" | "webhdfs":
            return Dialect(f"webhdfs://{rest}", confined("webhdfs", options))
    return Dialect(uri, confined(scheme, options))


def wants_identity(scheme: str, storage_options: Mapping[str, Any]) -> bool:
    """Whether the library of a store looks for an identity of the process itself: the options name none, nor nobody.

    Those of a cache that is not the operator's always do (`SourceOptions.ambient`).
    """
    match scheme:
        case "s3" | "s3a":
            return not storage_options.get("anon") and storage_options.get("key") is None
        case "gs" | "gcs":
            return "token" not in storage_options
        case "az" | "abfs" | "abfss":
            return not storage_options.get("anon") and not storage_options.keys() & _AZURE_LOGINS
    return False


def in_azure(uri: str) -> bool:
    """Whether an https URL is KServe's form of a container in Azure, or of something in one; none with a signature."""
    return _AZURE.fullmatch(uri) is not None


def _public(base: str) -> Callable[[str], str]:
    return lambda name: f"{base}/{quote(name)}"


def code_in(error: BaseException) -> Refusal | None:
    """The code that a store gave, in what a library made of it: botocore's and Azure's errors, gcsfs's."""
    seen: BaseException | None = error
    for _ in range(_MOST_CAUSES):
        if seen is None:
            break
        response, code = getattr(seen, "response", None), getattr(seen, "error_code", None)
        if isinstance(response, Mapping) and isinstance(known := response.get("Error"), Mapping):
            headers = (response.get("ResponseMetadata") or {}).get("HTTPHeaders") or {}
            region = known.get("Region") or headers.get("x-amz-bucket-region")
            code, text = known.get("Code"), str(known.get("Message", ""))
            if isinstance(code, str) and not code.isdecimal():  # of a HEAD there is only a status
                return Refusal(code, text, str(region) if region else None)
        elif isinstance(code, str):
            return Refusal(code, str(getattr(seen, "message", "")))
        reason = getattr(seen, "reason", None)
        if isinstance(reason, str) and isinstance(getattr(seen, "code", None), int):
            return Refusal(reason)
        seen = seen.__cause__ or seen.__context__
    return None


# --- Azure ---


def _account_in(uri: str) -> str | None:
    """The account that `abfs://container@ACCOUNT.dfs.core.windows.net/…` names."""
    try:
        match = _ACCOUNT_HOST.fullmatch(urlsplit(uri).hostname or "")
    except ValueError:
        return None
    return match[1] if match else None


def azure_options(options: SourceOptions, account: str | None = None) -> dict[str, Any]:
    """What KServe's environment names mean to adlfs; anonymous when there is nothing, as there.

    `account` is the one that the URI names. Credentials of another are not used for it.
    """
    found: dict[str, Any] = {}
    for argument, names in _AZURE_NAMES.items():
        value = next(filter(None, map(options.get, names)), None)
        if value is not None:
            found[argument] = value
    found |= confined("az", options)
    if account is not None:
        found = found if found.get("account_name", account) == account else {}
        found["account_name"] = account
    if not _ACCOUNT.fullmatch(str(found.get("account_name", "x"))):
        raise SourceDenied(f"{found['account_name']!r} is no storage account's name", reason="CredentialsInvalid")
    if OTHER_STORES not in options.ambient and not found.keys() & _AZURE_LOGINS:
        return found | {"anon": True}  # or adlfs looks for an identity of the process
    return found if found.keys() - {"account_name"} else found | {"anon": True}


# --- options of fsspec, in the words of whoever wrote a Secret ---

_CONFINED = {
    "gs": frozenset({"token", "project", "endpoint_url", "requester_pays"}),
    "az": frozenset(
        {"account_name", "account_key", "sas_token", "connection_string", "client_id", "client_secret", "tenant_id"}
        | {"account_host", "location_mode"}
    ),
    "webhdfs": frozenset(["host", "port", "user", "password", "token", "proxy_to", "use_https"]),
}
"""What may come with a cache. Other options open files, take credentials of the process, or another filesystem."""


def confined(scheme: str, options: SourceOptions) -> dict[str, Any]:
    """STORAGE_OPTIONS for a store; those that a cache's credentials hold only as far as they say where and who.

    Raises SourceDenied, with the name of an option but not its value.
    """
    given = options.mapping("STORAGE_OPTIONS")
    if OTHER_STORES in options.ambient:
        return given
    known = _CONFINED.get(scheme, frozenset())
    for name, value in given.items():
        if name not in known:
            raise SourceDenied(
                f"STORAGE_OPTIONS in the credentials: {name!r} is not an option for {scheme}:// that a Secret may set"
                f" (allowed: {', '.join(sorted(known)) or 'none'})",
                reason="CredentialsInvalid",
            )
        if isinstance(value, (list, dict)) and (scheme, name) != ("gs", "token"):
            raise SourceDenied(
                f"STORAGE_OPTIONS in the credentials: {name!r} must be a plain value", reason="CredentialsInvalid"
            )
    return given


def _google_options(options: SourceOptions) -> dict[str, Any]:
    """A string as `token` would be a file of the coordinator, or the name of an identity of its own."""
    given = confined("gs", options)
    if OTHER_STORES in options.ambient:
        return given
    token = given.get("token", "anon")
    kind = token.get("type") if isinstance(token, dict) else None
    if token != "anon" and kind not in ("service_account", "authorized_user"):  # noqa: S105  # no token at all
        raise SourceDenied(
            "STORAGE_OPTIONS in the credentials: token must be the content of a key file of the type service_account "
            "or authorized_user",
            reason="CredentialsInvalid",
        )
    return {**given, "token": token}


# --- S3 ---


def s3_options(options: SourceOptions) -> dict[str, Any]:
    """What KServe's environment names mean to `S3FileSystem`; plain values, as they may be sent to agents."""
    verify: bool | str | None = options.get("AWS_CA_BUNDLE")
    if not options.flag("S3_VERIFY_SSL", default=True):
        verify = False
    style = "virtual" if options.flag("S3_USER_VIRTUAL_BUCKET") else "auto"
    anonymous = options.flag("awsAnonymousCredential")
    if S3 not in options.ambient and options.get("AWS_ACCESS_KEY_ID") is None:
        anonymous = True  # or botocore finds keys of its own
    region = options.get("AWS_DEFAULT_REGION")
    if region is not None and not _REGION.fullmatch(region):
        raise SourceDenied(
            "the region in the credentials is not the name of one, such as eu-central-1", reason="CredentialsInvalid"
        )
    client = {"region_name": region, "verify": verify}
    addressing: dict[str, Any] = {"addressing_style": style}
    if options.flag("S3_USE_ACCELERATE") and options.get("AWS_ENDPOINT_URL") is None:  # nobody but AWS has it
        addressing["use_accelerate_endpoint"] = True
    config = {
        "s3": addressing,
        "connect_timeout": options.timeout_s,
        "read_timeout": options.timeout_s,
        "retries": {"total_max_attempts": 1},  # s3fs repeats what it should, and the caller has a patience of its own
        **_proxies(options.get("AWS_ENDPOINT_URL") or f"https://s3.{region or 'us-east-1'}.amazonaws.com"),
    }
    return {
        "anon": anonymous,
        "key": options.get("AWS_ACCESS_KEY_ID"),
        "secret": options.get("AWS_SECRET_ACCESS_KEY"),
        "token": options.get("AWS_SESSION_TOKEN"),
        "endpoint_url": options.get("AWS_ENDPOINT_URL"),
        "client_kwargs": {name: value for name, value in client.items() if value is not None},
        "config_kwargs": config if anonymous else {**config, "signature_version": "s3v4"},
    }


def _proxies(endpoint: str) -> dict[str, Any]:
    """No proxies, where `NO_PROXY` names the endpoint: of networks and ports in it botocore knows nothing."""
    try:
        parts = urlsplit(endpoint)
        direct = is_direct(no_proxy(), parts.hostname or "", parts.port or (80 if parts.scheme == "http" else 443))
    except ValueError:
        return {}
    return {"proxies": {}} if direct else {}


def in_role(options: SourceOptions) -> SourceOptions:
    """The same with the keys of the role that they name, if they name one; good for an hour. Asks AWS's STS.

    Only for keys that are given: without, boto assumes what the environment of the process names by itself.
    """
    role, key = options.get("AWS_ROLE_ARN"), options.get("AWS_ACCESS_KEY_ID")
    if role is None or key is None:
        return options
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError
    from botocore.session import Session

    sts = Session().create_client(
        "sts",
        region_name=options.get("AWS_DEFAULT_REGION") or "us-east-1",
        aws_access_key_id=key,
        aws_secret_access_key=options.get("AWS_SECRET_ACCESS_KEY"),
        aws_session_token=options.get("AWS_SESSION_TOKEN"),
        config=Config(connect_timeout=options.timeout_s, read_timeout=options.timeout_s),
    )
    try:
        answer = sts.assume_role(RoleArn=role, RoleSessionName="localmodel", DurationSeconds=ROLE_SESSION_S)
    except ClientError as error:
        raise SourceDenied(f"the role {role} cannot be assumed: {error}") from error
    except BotoCoreError as error:
        raise SourceError(f"the role {role} cannot be assumed: {error}") from error
    finally:
        sts.close()
    found = answer["Credentials"]
    keys = {"AWS_ACCESS_KEY_ID": "AccessKeyId", "AWS_SECRET_ACCESS_KEY": "SecretAccessKey"}
    renamed = {name: str(found[field]) for name, field in {**keys, "AWS_SESSION_TOKEN": "SessionToken"}.items()}
    return replace(options, env={**options.env, **renamed})
