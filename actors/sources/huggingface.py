"""Hugging Face repositories: two questions to the hub, and a manifest pinned to a commit comes back.

    public, with or without a token     URLs of the hub itself; agents follow its redirects, nothing expires
    gated or private, with a token      LFS files: the signed URL the hub redirects to; expires
                                        small files: read here and carried along, since nobody else may read them
    gated, without a token              SourceDenied, before anything is tried

The token goes to the hub and nowhere else; it is never part of what is returned.
"""

from __future__ import annotations

import re
import ssl
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any
from urllib.parse import urlsplit

from huggingface_hub import (
    HfApi,
    constants,
    get_hf_file_metadata,
    get_session,
    hf_hub_url,
    set_client_factory,
)
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils._http import hf_raise_for_status

from actors.errors import SourceDenied, SourceError, SourceNotFound, SourceUnsupported
from actors.manifest import Location, Manifest, ManifestFile, ModelSource, Resolved, make_manifest
from actors.sizes import say_bytes
from actors.sources.bounds import decoded
from actors.sources.causes import cause_of
from actors.sources.huggingface_client import transport_for
from actors.sources.huggingface_tree import files_of_commit
from actors.sources.options import SourceOptions
from actors.sources.selection import select
from actors.transport.answers import expires_at, signed, translate_status
from actors.transport.connections import proxy_for, tls_context
from actors.transport.guard import carried, check_name
from actors.transport.redirects import check_link

DEFAULT_ENDPOINT = "https://huggingface.co"
LINK_TTL_S = 600.0
"""How long a redirect is taken to be good when its URL does not say."""
MAX_CARRIED_FILE_BYTES = 16 << 20
MAX_CARRIED_BYTES = 64 << 20
"""Bounds on what travels inside a message. The hub itself keeps everything from 10 MB on in LFS."""

_URI = re.compile(r"hf://(?P<repo>[^/:@]+/[^/:@]+?)/?(?:[:@](?P<revision>.+))?")
_COMMIT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", re.ASCII)
_PARALLEL_REQUESTS = 8

_trusted: list[ssl.SSLContext] = []
_trusting = threading.Lock()

# Otherwise the library asks the public hub, whatever the endpoint, for data its telemetry needs, and caches it on disk.
constants.HF_HUB_DISABLE_TELEMETRY = True


def resolve_hub(
    source: ModelSource, options: SourceOptions, pinned_revision: str | None = None, *, now: float | None = None
) -> Resolved:
    """The repository at `pinned_revision`, else at what the URI or `source.revision` names, else at its main branch.

    `now` (epoch seconds) dates links that do not say when they expire. Raises the SourceError family only.
    """
    repo, revision = parse_uri(source)
    endpoint = (options.get("HF_ENDPOINT") or DEFAULT_ENDPOINT).rstrip("/")
    proxy_for(urlsplit(endpoint))  # what cannot be used is said before the library says it in its own words
    _trust(tls_context())
    token = options.get("HF_TOKEN")
    page = f"{endpoint}/{repo}"
    api, timeout_s = HfApi(endpoint=endpoint, token=token or False), options.timeout_s
    with _translated(repo, pinned_revision or revision, page, token, timeout_s):
        info = api.model_info(repo, revision=pinned_revision or revision, timeout=timeout_s)
        if info.gated and token is None:
            raise SourceDenied(f"{page} is gated: ask for access there, and put a token that has it into HF_TOKEN")
        sha = _commit(info.sha, page, endpoint)
        own = {"Authorization": f"Bearer {token}"} if token else {}
        files = files_of_commit(
            source,
            endpoint,
            repo,
            sha,
            get=lambda url: get_session().get(url, headers=own, timeout=timeout_s),
            check=hf_raise_for_status,
            describe=lambda: api.model_info(repo, revision=sha, files_metadata=True, timeout=timeout_s).siblings,
        )
    manifest = make_manifest(source, sha, select(source, files))
    urls = [hf_hub_url(repo, file.path, revision=sha, endpoint=endpoint) for file in manifest.files]
    if token is None or not (info.gated or info.private):
        return Resolved(manifest, tuple(Location(url) for url in urls))
    with _translated(repo, sha, page, token, timeout_s):
        return _with_token(manifest, urls, token, options, time.time() if now is None else now)


def _commit(sha: str | None, page: str, endpoint: str) -> str:
    """The commit, which stands in the URL of every file. Raises SourceError where the hub has named none."""
    if sha is None:
        raise SourceError(f"{page} was described without its commit: {endpoint} is not a full hub")
    if not _COMMIT.fullmatch(str(sha)):
        raise SourceError(f"{page} was described with a commit that is none", reason="InvalidAnswer")
    return sha


def parse_uri(source: ModelSource) -> tuple[str, str | None]:
    """`owner/repo` and the revision asked for, of `hf://owner/repo[:revision]` (or `@revision`) and `spec.revision`."""
    match = _URI.fullmatch(source.uri)
    if match is None:
        raise SourceUnsupported(
            f"{source.uri} is not of the form hf://owner/repo[:revision] (a folder of it is named in spec.include, or"
            " by --include)",
            reason="InvalidURI",
        )
    if match["revision"] and source.revision and match["revision"] != source.revision:
        raise SourceUnsupported(
            f"{source.uri} names the revision {match['revision']!r}, but spec.revision says {source.revision!r}",
            reason="InvalidURI",
        )
    return match["repo"], match["revision"] or source.revision


def _trust(context: ssl.SSLContext) -> None:
    """The library's client trusts whom `context` does, and connects as we do.

    It is made by the class of the one it would use otherwise: another package's with every major version. It keeps no
    cookies, because all who ask share it, and is led by redirects only to names that are allowed.
    """
    with _trusting:
        if _trusted == [context]:
            return
        try:
            before = get_session()
        except Exception as error:  # the library reads all variables of proxies, whomever they are for
            what = f"the proxies of the environment cannot be used: {error}"
            raise SourceUnsupported(what, reason="InvalidProxy") from error
        client, hooks = type(before), before.event_hooks
        if _check_request not in hooks["request"]:
            hooks["request"].append(_check_request)
        if _bound not in hooks["response"]:
            hooks["response"].append(_bound)
        none = CookieJar(DefaultCookiePolicy(allowed_domains=[]))
        settings: dict[str, Any] = {
            "event_hooks": hooks,
            "follow_redirects": True,
            "timeout": None,
            "cookies": none,
            # A connection that another resolution made has other bounds. Only what `decoded` reads is asked for.
            "headers": {"Connection": "close", "Accept-Encoding": "gzip, deflate"},
        }
        set_client_factory(lambda: client(transport=transport_for(client, context), **settings))
        _trusted[:] = [context]


def _check_request(request: Any) -> None:
    """Behind a proxy the address of a connection says nothing."""
    if urllib.request.getproxies():
        check_name(str(request.url))


def _bound(response: Any) -> None:
    """Of any answer no more is taken into memory, and decompressed, than one document may have."""
    stream, encoding = response.stream, response.headers.pop("Content-Encoding", "")
    kind: Any = type(stream)
    response.stream = _bounded(kind)(stream, encoding)


@cache
def _bounded(kind: Any) -> Any:
    """Of a package that is another with every major version of the library, which looks at what a stream is."""

    class Bounded(kind):  # type: ignore[misc]  # so it has no type here
        def __init__(self, stream: Any, encoding: str) -> None:
            self._bounded, self._encoding = stream, encoding

        def __iter__(self) -> Iterator[bytes]:
            return decoded(self._bounded, self._encoding)

        def close(self) -> None:
            self._bounded.close()

        @property
        def elapsed(self) -> Any:
            return getattr(self._bounded, "elapsed", None)

    return Bounded


def _with_token(manifest: Manifest, urls: Sequence[str], token: str, options: SourceOptions, now: float) -> Resolved:
    """Locations that work without the token: signed links, and contents for what the hub serves itself."""
    timeout_s = options.timeout_s

    def link(number: int) -> str | None:
        file, url = manifest.files[number], urls[number]
        if not (file.digest or "").startswith("sha256:"):
            return None
        location = get_hf_file_metadata(url, token=token, timeout=timeout_s).location
        check_link(url, location, private=options.private_redirects)
        elsewhere = urlsplit(location).netloc != urlsplit(url).netloc
        return location if elsewhere or signed(location) else None

    def locate(number: int) -> Location:
        target = links[number]
        return Location(urls[number], content=contents[number]) if target is None else Location(target)

    with ThreadPoolExecutor(_PARALLEL_REQUESTS, thread_name_prefix="hub") as pool:
        numbers = range(len(urls))
        links = list(pool.map(carried(link), numbers))
        along = [number for number in numbers if links[number] is None]
        _check_bounds([manifest.files[number] for number in along], manifest.source)
        read = pool.map(carried(lambda n: _read(urls[n], token, manifest.files[n].size, timeout_s)), along)
        contents = dict(zip(along, read, strict=True))
    expiries = [expires_at(target) or now + LINK_TTL_S for target in links if target is not None]
    return Resolved(manifest, tuple(map(locate, numbers)), expires_at=min(expiries, default=None))


def _check_bounds(files: Sequence[ManifestFile], source: ModelSource) -> None:
    total = sum(file.size for file in files)
    largest = max(files, key=lambda file: file.size, default=None)
    if total > MAX_CARRIED_BYTES or (largest is not None and largest.size > MAX_CARRIED_FILE_BYTES):
        raise SourceDenied(
            f"{source.uri} has {say_bytes(total, up=True)} in {len(files)} files that only the token can read and the "
            f"hub does not sign (the largest: {largest.path if largest else '-'}); at most "
            f"{say_bytes(MAX_CARRIED_BYTES)}, and {say_bytes(MAX_CARRIED_FILE_BYTES)} each, can be passed on. Leave "
            "them out with spec.exclude",
            reason="NotSignable",
        )


def _read(url: str, token: str, size: int, timeout_s: float) -> bytes:
    """Exactly `size` bytes, whatever the server would like to send."""
    content = bytearray()
    headers = {"Authorization": f"Bearer {token}", "Accept-Encoding": "identity"}
    with get_session().stream("GET", url, headers=headers, timeout=timeout_s) as response:
        if response.status_code != 200:
            raise translate_status(response.status_code, url, response.headers)
        for block in response.iter_bytes():
            content += block
            if len(content) > size:
                break
    if len(content) != size:
        raise SourceError(
            f"{url} is listed with {size} bytes, but sent {'more' if len(content) > size else len(content)}"
        )
    return bytes(content)


@contextmanager
def _translated(repo: str, revision: str | None, page: str, token: str | None, timeout_s: float) -> Iterator[None]:
    """An exception of the library or its HTTP client inside becomes the SourceError it stands for.

    The client is another package with every major version of the library, hence the last clause.
    """
    try:
        yield
    except SourceError:
        raise
    except GatedRepoError as error:
        hint = "the token has not been granted access" if token else "HF_TOKEN is not set"
        raise SourceDenied(f"{page} is gated and {hint}: ask for access on that page") from error
    except RevisionNotFoundError as error:
        message = f"{page} has no revision {revision!r} (any more): correct spec.revision"
        raise SourceNotFound(message, reason="RevisionNotFound") from error
    except RepositoryNotFoundError as error:
        hint = "HF_TOKEN has no access to it" if token else "it is private and HF_TOKEN is not set"
        raise SourceNotFound(f"there is no repository {page}, or {hint}") from error
    except HFValidationError as error:
        raise SourceUnsupported(f"{repo!r} cannot be a repository's name: {error}", reason="InvalidURI") from error
    except HfHubHTTPError as error:
        raise translate_status(error.response.status_code, page, error.response.headers) from error
    except Exception as error:
        known = cause_of(page, error, timeout_s)
        raise known or SourceError(
            f"{page} answers with something else than a hub does: {error}", reason="InvalidAnswer"
        ) from error
