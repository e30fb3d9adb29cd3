"""Where models come from: a URI becomes a `Resolved`, and a range of a file becomes bytes.

    hf://                    actors.hub      a commit; every file with its digest
    http:// https://         actors.web      one file
    s3://                    here            what is below a prefix, or one object; with what S3 knows of its digest
    anything fsspec knows    here            a folder or a file, as it is listed

What can be signed becomes http(s) URLs, the rest is read with `read_range`. The only module that knows fsspec; nothing
but the `SourceError` family leaves it.
"""

from __future__ import annotations

import base64
import errno
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from actors.errors import SourceChanged, SourceDenied, SourceError, SourceNotFound, SourceThrottled, SourceUnsupported
from actors.manifest import Digest, Location, ManifestFile, ModelSource, Resolved, make_manifest
from actors.origin import SourceOptions, expires_at, redact, select, translate_status

__all__ = ["SourceOptions", "read_range", "redact", "resolve", "translate_status"]

SIGNED_URL_TTL_S = 3600

_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)://.")
_EXTRAS = {"gs": "gcs", "gcs": "gcs", "az": "azure", "abfs": "azure", "abfss": "azure"}
_MD5_ETAG = re.compile(r'"?([0-9a-f]{32})"?')
_PARALLEL_REQUESTS = 8


def resolve(source: ModelSource, options: SourceOptions, *, pinned_revision: str | None = None) -> Resolved:
    """What `source` consists of now, and where to read it. Blocks for seconds; raises the SourceError family only.

    `pinned_revision` is a commit that an earlier resolution gave; it wins over what the source names. Only the hub has
    revisions. No credential is part of the result, unless the source can be read in no other way (see `Location` and
    `Resolved.storage_options`).
    """
    match = _SCHEME.match(source.uri)
    if match is None:
        raise SourceUnsupported(f"{redact(source.uri)} has no scheme such as hf:// or s3://", reason="InvalidURI")
    match match[1]:
        case "hf":
            # Imported here, because the hub's client takes longer to import than all the rest.
            from actors.hub import resolve_hub

            return resolve_hub(source, options, pinned_revision)
        case "http" | "https":
            from actors.web import resolve_file

            return resolve_file(source, options)
        case _:
            return _resolve_listing(source, options)


def read_range(url: str, storage_options: Mapping[str, Any], start: int, stop: int) -> bytes:
    """Bytes `[start, stop)` of a file behind any fsspec URL; exactly that many, so the caller bounds the memory.

    For locations that are not http(s). Raises SourceChanged when the file is shorter, else as `resolve` does.
    """
    import fsspec

    if start >= stop:
        return b""
    with _translated(url):
        filesystem, path = fsspec.core.url_to_fs(url, **storage_options)
        data: bytes = filesystem.cat_file(path, start=start, end=stop)
    if len(data) != stop - start:
        end = start + len(data)
        raise SourceChanged(f"{redact(url)} ends at byte {end}, before {stop}: it changed since it was listed")
    return data


def _resolve_listing(source: ModelSource, options: SourceOptions) -> Resolved:
    """What fsspec lists below the URI, or the one file it names."""
    import fsspec

    in_s3 = source.uri.startswith(("s3://", "s3a://"))
    storage_options: dict[str, Any] = _s3_options(options) if in_s3 else options.mapping("STORAGE_OPTIONS")
    # Agents do not share our trust store: what needs a special one is read with s3fs there, too.
    signable = not in_s3 or "verify" not in storage_options["client_kwargs"]
    with _translated(source.uri):
        # A fresh instance: nothing listed earlier, and no credentials that outlive this call.
        filesystem, root = fsspec.core.url_to_fs(source.uri, skip_instance_cache=True, **storage_options)
        names, files = _list(filesystem, root.rstrip("/"))
        wanted = select(source, files)
        etags: dict[str, str] = {}
        if in_s3:
            wanted, etags = _look_up(filesystem, names, wanted)
        manifest = make_manifest(source, None, wanted)
        urls = _sign(filesystem, [names[file.path] for file in manifest.files]) if signable else None
    kept_etags = [etags.get(file.path) for file in manifest.files]
    if urls is not None:
        expiries = [at for at in map(expires_at, urls) if at is not None]
        return Resolved(manifest, tuple(map(Location, urls, kept_etags)), min(expiries, default=None))
    base = source.uri.rstrip("/")
    is_file = list(names.values()) == [root.rstrip("/")]
    urls = [base if is_file else f"{base}/{file.path}" for file in manifest.files]
    return Resolved(manifest, tuple(map(Location, urls, kept_etags)), storage_options=storage_options)


def _list(filesystem: Any, root: str) -> tuple[dict[str, str], list[ManifestFile]]:
    """What is below `root`, or `root` itself: the filesystem's name of every relative path, and the files."""
    names, files = {}, []
    for name, info in filesystem.find(root, detail=True).items():
        if info["type"] == "file" and not name.endswith("/"):  # S3 consoles leave `folder/` objects behind
            path = name[len(root) + 1 :] or name.rpartition("/")[2]
            names[path] = name
            files.append(ManifestFile(path, int(info["size"])))
    return names, files


def _look_up(
    filesystem: Any, names: Mapping[str, str], files: Sequence[ManifestFile]
) -> tuple[list[ManifestFile], dict[str, str]]:
    """The files as S3 describes each of them, and their ETags."""
    with ThreadPoolExecutor(_PARALLEL_REQUESTS, thread_name_prefix="s3") as pool:
        heads = list(pool.map(lambda file: _head(filesystem, names[file.path]), files))
    described = [ManifestFile(file.path, head.size, head.digest) for file, head in zip(files, heads, strict=True)]
    return described, {file.path: head.etag for file, head in zip(files, heads, strict=True)}


def _sign(filesystem: Any, names: Sequence[str]) -> list[str] | None:
    """A URL for each that anybody can read for a while; None if the filesystem cannot do that with what it has."""
    try:
        urls = [str(filesystem.sign(name, expiration=SIGNED_URL_TTL_S)) for name in names]
    except Exception:  # noqa: BLE001  # NotImplementedError by contract; gcsfs and adlfs raise their own when keys are missing
        return None
    return urls if all(url.startswith(("http://", "https://")) for url in urls) else None


@dataclass(frozen=True, slots=True)
class _Head:
    size: int
    etag: str
    digest: Digest | None


def _head(filesystem: Any, name: str) -> _Head:
    """What S3 says of one object. https://docs.aws.amazon.com/AmazonS3/latest/API/API_HeadObject.html

    A sha256 if the object was uploaded with one. The ETag is an MD5 only of objects that were uploaded in one part and
    are not encrypted with a key of the customer's or of KMS.
    """
    bucket, _, key = name.partition("/")
    head = filesystem.call_s3("head_object", Bucket=bucket, Key=key, ChecksumMode="ENABLED")
    sha256, etag = head.get("ChecksumSHA256", ""), head["ETag"]
    digest = None
    if sha256 and "-" not in sha256:  # with one it is a checksum of the parts' checksums
        digest = Digest("sha256:" + base64.b64decode(sha256).hex())
    elif head.get("ServerSideEncryption", "AES256") == "AES256" and "SSECustomerAlgorithm" not in head:
        match = _MD5_ETAG.fullmatch(etag)
        digest = Digest(f"md5:{match[1]}") if match else None
    return _Head(int(head["ContentLength"]), etag, digest)


def _s3_options(options: SourceOptions) -> dict[str, Any]:
    """What KServe's environment names mean to `S3FileSystem`; plain values, as they may be sent to agents."""
    verify: bool | str | None = options.get("AWS_CA_BUNDLE")
    if not options.flag("S3_VERIFY_SSL", default=True):
        verify = False
    style = "virtual" if options.flag("S3_USER_VIRTUAL_BUCKET") else "auto"
    anonymous = options.flag("awsAnonymousCredential")
    client = {"region_name": options.get("AWS_DEFAULT_REGION"), "verify": verify}
    config = {
        "s3": {"addressing_style": style},
        "connect_timeout": options.timeout_s,
        "read_timeout": options.timeout_s,
        "retries": {"total_max_attempts": 1},  # s3fs repeats what it should, and the caller has a patience of its own
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


@contextmanager
def _translated(url: str) -> Iterator[None]:
    """Whatever fsspec and its filesystems raise inside becomes the SourceError it stands for.

    fsspec has no error contract, hence the last clause.
    """
    where = redact(url)
    scheme = url.partition("://")[0]
    try:
        yield
    except SourceError:
        raise
    except FileNotFoundError as error:
        raise SourceNotFound(f"{where} does not exist") from error
    except PermissionError as error:
        raise SourceDenied(f"{where} refused the credentials it was given, or wants some: {error}") from error
    except ImportError as error:
        extra = _EXTRAS.get(scheme)
        hint = f"pip install 'localmodel[{extra}]'" if extra else str(error)
        raise SourceUnsupported(f"{scheme}:// needs a package that is not installed: {hint}") from error
    except Exception as error:
        text = str(error) or type(error).__name__
        if isinstance(error, ValueError) and "Protocol not known" in text:
            raise SourceUnsupported(f"no reader for {scheme}:// ({where})") from error
        if type(error).__name__ in ("NoCredentialsError", "PartialCredentialsError"):  # botocore's, not worth an import
            raise SourceDenied(f"{where} wants credentials: {text}") from error
        if "InvalidRange" in text:  # s3fs hands S3's code on as the text of an OSError
            raise SourceChanged(f"{where} is shorter than it was when it was listed") from error
        if isinstance(error, OSError) and error.errno == errno.EBUSY:  # what s3fs makes of SlowDown and 503
            raise SourceThrottled(f"{where} asks to slow down: {text}") from error
        raise SourceError(f"{where} could not be read: {text}") from error
