"""Where models come from: a URI becomes a `Resolved`, and a range of a file becomes bytes.

    hf://                    actors.sources.huggingface      a commit; every file with its digest
    http:// https://         actors.sources.web      one file
    s3://                    here            what is below a prefix, or one object; with what S3 knows of its digest
    oci://                   actors.sources.oci      an artifact's files, or an image's layers, by their digests
    gs:// az:// hdfs:// …    here            a folder or a file, as fsspec lists it; files where that is allowed

Objects that can be signed become http(s) URLs, the rest is read with `read_range`. Nothing but the
`SourceError` family leaves it. No string of a cache's author chooses what fsspec opens: the scheme comes from an
allow-list, one class is made for it, and what connects is guarded (`actors.trust`).
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any
from urllib.parse import urlsplit

from actors.errors import (
    LocalModelError,
    SourceChanged,
    SourceDenied,
    SourceError,
    SourceExpired,
    SourceNotFound,
    SourceThrottled,
    SourceUnsupported,
)
from actors.manifest import Location, ManifestFile, ModelSource, Resolved, make_manifest
from actors.schemes import LOCAL
from actors.sources.bounds import Limits, bounded, current
from actors.sources.causes import cause_of
from actors.sources.entries import files_of
from actors.sources.filesystems import endpoints, listing
from actors.sources.filesystems import opened as open_filesystem
from actors.sources.listings import watched
from actors.sources.local_files import local_listing
from actors.sources.object_digests import s3_head
from actors.sources.object_stores import code_in, dialect_of, in_azure, wants_identity
from actors.sources.options import OTHER_STORES, SourceOptions
from actors.sources.parts import part_of
from actors.sources.selection import select
from actors.transport import redirects as reach
from actors.transport.answers import PRIVATE_REDIRECTS, expires_at, not_allowed, redact, translate_status
from actors.transport.guard import carried, check_name, guarded, refusal_in, with_identity
from actors.transport.redirects import Reach, keeps_credentials, reach_of_url
from actors.transport.refusals import error_of
from actors.trust import UNRESTRICTED, Trust

__all__ = ["SourceOptions", "read_range", "redact", "resolve", "translate_status"]

SIGNED_URL_TTL_S = 3600

_EXTRAS = {"gs": "gcs", "gcs": "gcs", "az": "azure", "abfs": "azure", "abfss": "azure"}
_DENIED = frozenset({"NoCredentialsError", "PartialCredentialsError", "ClientAuthenticationError"})
"""Of botocore and Azure, by name: not worth an import."""
_PARALLEL_REQUESTS = 8
_ENDPOINTS = {"hf": "HF_ENDPOINT", "s3": "AWS_ENDPOINT_URL", "s3a": "AWS_ENDPOINT_URL"}


def resolve(
    source: ModelSource, options: SourceOptions, *, pinned_revision: str | None = None, limits: Limits | None = None
) -> Resolved:
    """What `source` consists of now, and where to read it. Blocks for seconds; raises the SourceError family only.

    `pinned_revision` is a commit that an earlier resolution gave; it wins over what the source names. Only the hub and
    registries have revisions. No credential is part of the result, unless the source can be read in no other way (see
    `Location` and `Resolved.storage_options`). It ends within `limits` (`sources.bounds`), whatever the origin does.
    """
    scheme = options.trust.schemes.scheme_of(source.uri)
    uri = redact(source.uri)
    if scheme in _ENDPOINTS:
        options.check_endpoint(_ENDPOINTS[scheme])
    with bounded(uri, limits) as bounds:
        try:
            with _guarded(source.uri, options.trust, _origin(scheme, source.uri, options), options.private_redirects):
                resolved = _resolve(scheme, source, options, pinned_revision)
        except (LocalModelError, MemoryError):
            raise
        except Exception as error:  # what an origin answered, in a shape that its reader did not think of
            what = f"{uri}: the answer cannot be understood: {type(error).__name__}: {error}"
            raise SourceError(what, reason="InvalidAnswer") from error
        bounds.holds(len(resolved.manifest.files))
    return resolved


def _origin(scheme: str, uri: str, options: SourceOptions) -> str:
    """A URL of the origin that may redirect; empty where that is not known."""
    origins = {"hf": options.get("HF_ENDPOINT") or "https://huggingface.co", "oci": uri, "http": uri, "https": uri}
    origins |= dict.fromkeys(("s3", "s3a"), options.get("AWS_ENDPOINT_URL") or "")
    return origins.get(scheme, "")


def _resolve(scheme: str, source: ModelSource, options: SourceOptions, pinned_revision: str | None) -> Resolved:
    match scheme:
        case "hf":
            # Imported here, because the hub's client takes longer to import than all the rest.
            from actors.sources.huggingface import resolve_hub

            return resolve_hub(source, options, pinned_revision)
        case "http" | "https":
            return _resolve_web(source, options)
        case "oci":  # which fsspec would take for Oracle's object store
            from actors.sources.oci import resolve_image

            return resolve_image(source, options, pinned_revision)
        case _:
            return _resolve_listing(source, options)


def read_range(
    url: str, storage_options: Mapping[str, Any], start: int, stop: int, trust: Trust = UNRESTRICTED
) -> bytes:
    """Bytes `[start, stop)` of a file behind any fsspec URL; exactly that many, so the caller bounds the memory.

    For locations that are not http(s). Raises SourceChanged when the file is shorter, else as `resolve` does.
    """
    if start >= stop:
        return b""
    trust.schemes.scheme_of(url, listed=True)
    with _guarded(url, trust), _asking(url, storage_options), _translated(url):
        _check_endpoints(storage_options)
        filesystem, path = open_filesystem(url, storage_options)
        data = part_of(filesystem, path, start, stop)
    if len(data) > stop - start:
        raise SourceError(f"{redact(url)} sends more than the bytes {start} to {stop} that it was asked for")
    if len(data) != stop - start:
        end = start + len(data)
        raise SourceChanged(f"{redact(url)} ends at byte {end}, before {stop}: it changed since it was listed")
    return data


def _resolve_web(source: ModelSource, options: SourceOptions) -> Resolved:
    """One file, or, in Azure, what is below a prefix: told apart by asking, unless there are credentials for Azure."""
    from actors.sources.web import resolve_file

    if not in_azure(source.uri):
        return resolve_file(source, options)
    if "anon" not in dialect_of(source.uri, options).storage_options:
        return _resolve_listing(source, options)
    try:
        return resolve_file(source, options)
    except SourceError as error:
        if error.retryable:
            raise
        return _resolve_listing(source, options)


def _resolve_listing(source: ModelSource, options: SourceOptions) -> Resolved:
    """What fsspec lists below the URI, or the one file it names."""
    dialect = dialect_of(source.uri, options)
    with _asking(dialect.url, dialect.storage_options), _translated(source.uri, dialect.url, options.timeout_s):
        _check_endpoints(dialect.storage_options)
        # A fresh instance: nothing listed earlier, and no credentials that outlive this call.
        ambient = OTHER_STORES in options.ambient
        filesystem, root = open_filesystem(dialect.url, dialect.storage_options, fresh=True, ambient=ambient)
        root, local = root.rstrip("/"), dialect.url.partition("://")[0] in LOCAL
        with watched(filesystem, root, current(), options.timeout_s):
            listed = files_of(source, local_listing(source, root) if local else listing(filesystem, root), root)
        names, etags = listed.names, listed.etags
        if local:
            for name in names.values():
                options.trust.schemes.check_path(name)
        wanted = select(source, listed.files)
        if dialect.url.startswith(("s3://", "s3a://")):
            wanted, etags = _look_up(filesystem, names, wanted)
        manifest = make_manifest(source, None, wanted)
        in_order = [names[file.path] for file in manifest.files]
        urls = _sign(filesystem, in_order) if dialect.signable else None
    if urls is None and dialect.public is not None:
        urls = _for_anybody([dialect.public(name) for name in in_order], options)
    kept_etags = [etags.get(file.path) for file in manifest.files]
    if urls is not None:
        return Resolved(manifest, tuple(map(Location, urls, kept_etags)), _first_expiry(urls))
    base = dialect.url.rstrip("/")
    urls = [f"{base}{name[len(root) :]}" for name in in_order]
    locations = tuple(
        Location(url, etag, version=listed.versions.get(file.path))
        for url, etag, file in zip(urls, kept_etags, manifest.files, strict=True)
    )
    return Resolved(manifest, locations, storage_options=dialect.storage_options)


def _first_expiry(urls: Iterable[str]) -> float | None:
    """When the first of them ends, in epoch seconds; None: none says that it does."""
    return min((at for at in map(expires_at, urls) if at is not None), default=None)


def _look_up(
    filesystem: Any, names: Mapping[str, str], files: Sequence[ManifestFile]
) -> tuple[list[ManifestFile], dict[str, str]]:
    """The files as S3 describes each of them, and their ETags."""
    from concurrent.futures import ThreadPoolExecutor  # here, because most sources take none

    with ThreadPoolExecutor(_PARALLEL_REQUESTS, thread_name_prefix="s3") as pool:
        heads = list(pool.map(carried(lambda file: s3_head(filesystem, names[file.path])), files))
    pairs = list(zip(files, heads, strict=True))
    described = [ManifestFile(file.path, head.size, head.digest, head.checksum) for file, head in pairs]
    return described, {file.path: head.etag for file, head in pairs}


def _sign(filesystem: Any, names: Sequence[str]) -> list[str] | None:
    """A URL for each that anybody can read for a while; None if the filesystem cannot do that with what it has."""
    try:
        urls = [str(filesystem.sign(name, expiration=SIGNED_URL_TTL_S)) for name in names]
    except Exception:  # noqa: BLE001  # NotImplementedError by contract; gcsfs and adlfs raise their own when keys are missing
        return None
    return urls if all(url.startswith(("http://", "https://")) for url in urls) else None


def _for_anybody(urls: list[str], options: SourceOptions) -> list[str] | None:
    """The URLs, if anybody may read the first of them."""
    from actors.sources.web import is_public

    return urls if is_public(urls[0], options) else None


def _asking(url: str, storage_options: Mapping[str, Any]) -> AbstractContextManager[None]:
    """Inside, a cloud may be asked who this process is, if that is what the store is to be asked as."""
    return with_identity() if wants_identity(url.partition("://")[0], storage_options) else nullcontext()


def _check_endpoints(storage_options: Mapping[str, Any]) -> None:
    """Before anything is asked, and tried again and again: behind a proxy nobody else looks."""
    for url in endpoints(storage_options):
        check_name(url)


@contextmanager
def _guarded(url: str, trust: Trust, origin: str = "", private: bool = True) -> Iterator[None]:
    """Connections are guarded; an error that is about one that was not made becomes what it is about.

    Nobody leads to an address that is less public than `origin`, unless `private` may be, nor, but for an origin that
    is there, to where a cloud keeps credentials.
    """
    floor = Reach.HOST if private or not origin else reach_of_url(origin)
    there = not origin or keeps_credentials(urlsplit(origin).hostname or "")

    def inwards(address: str) -> str | None:
        if not there and keeps_credentials(address):
            return "where a cloud keeps credentials"
        less = f"which is less public than where it comes from ({PRIVATE_REDIRECTS}=1 allows that)"
        return less if reach.reach_of(address) < floor else None

    with guarded(trust.origins, inwards):
        try:
            yield
        except SourceError as error:
            refused = refusal_in(error)
            if refused is None or error.reason == refused.reason:
                raise
            raise not_allowed(url, refused) from error


@contextmanager
def _translated(url: str, opened: str = "", timeout_s: float = 30.0) -> Iterator[None]:
    """An exception of fsspec or its filesystems inside becomes the SourceError it stands for.

    `opened` is what fsspec is asked to open for `url`. It has no error contract, hence the last clause.
    """
    where = redact(url)
    scheme = (opened or url).partition("://")[0]
    try:
        yield
    except SourceError:
        raise
    except Exception as error:
        said = _said(where, error) or _meant(where, scheme, error)
        raise said or cause_of(where, error, timeout_s) or _unknown(where, error) from error


def _said(where: str, error: Exception) -> SourceError | None:
    """What the code of an object store stands for, of which libraries make something less. None: there is none."""
    refusal = code_in(error)
    found = error_of(where, "answered", refusal) if refusal is not None else None
    if isinstance(found, SourceExpired):  # not a link of ours, then, but the credentials
        return SourceDenied(f"{found}: renew the credentials (of S3: the session token)", reason="CredentialsExpired")
    return found


def _meant(where: str, scheme: str, error: Exception) -> SourceError | None:
    """What a class of Python's, or a text, stands for where libraries keep to nothing else."""
    text = _first_line(error)
    match error:
        case FileNotFoundError():
            return SourceNotFound(f"{where} does not exist")
        case PermissionError():
            return SourceDenied(f"{where} refused the credentials it was given, or wants some: {error}")
        case ImportError():
            extra = _EXTRAS.get(scheme)
            hint = f"pip install 'localmodel[{extra}]'" if extra else str(error)
            return SourceUnsupported(
                f"{scheme}:// needs a package that is not installed: {hint}", reason="PackageMissing"
            )
        case ValueError() if "Protocol not known" in text:
            return SourceUnsupported(f"no reader for {scheme}:// ({where})", reason="InvalidURI")
        case OSError(errno=errno.EBUSY):  # what s3fs makes of SlowDown and 503
            return SourceThrottled(f"{where} asks to slow down: {text}")
    if type(error).__name__ in _DENIED or text.startswith("Forbidden: "):  # which is gcsfs's OSError for 403
        return SourceDenied(f"{where} wants credentials: {text}")
    if "InvalidRange" in text:  # s3fs hands S3's code on as the text of an OSError
        return SourceChanged(f"{where} is shorter than it was when it was listed")
    return None


def _unknown(where: str, error: Exception) -> SourceError:
    return SourceError(f"{where} could not be read: {_first_line(error)}")


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]  # what follows may be new every time
