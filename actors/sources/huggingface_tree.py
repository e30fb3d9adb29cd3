"""Every file of a commit of the hub, from its tree, page by page: what a repository's description names is cut short.

    GET /api/models/{repo}/tree/{commit}?recursive=true ──► files, folders, Link: <…>; rel="next" ──► … ──► the last

The description of a repository (`siblings`) leaves files out from about a thousand on, and at times names none. It is
taken only from a server that has no tree, as some mirrors do not, and only where it cannot have been cut.
https://huggingface.co/docs/hub/api
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote, urljoin, urlsplit, urlunsplit

from actors.errors import SourceError, SourceUnsupported
from actors.manifest import Digest, ManifestFile, ModelSource
from actors.redaction import redacted
from actors.sources.bounds import current
from actors.sources.entries import refused
from actors.sources.selection import wanted

WHOLE_DESCRIPTION = 1_000
"""Fewer files than this in a description are all there are."""

_ABSENT = frozenset({400, 404, 405, 410, 501})
_KNOWN_ERRORS = frozenset({"RepoNotFound", "RevisionNotFound", "GatedRepo"})
_SHA256, _SHA1 = re.compile(r"[0-9a-f]{64}"), re.compile(r"[0-9a-f]{40}")

Get = Callable[[str], Any]
"""A response of the library's client, whatever its status."""
Describe = Callable[[], Sequence[Any] | None]
"""`siblings` with their sizes and digests."""


def files_of_commit(
    source: ModelSource,
    endpoint: str,
    repo: str,
    commit: str,
    get: Get,
    check: Callable[[Any], object],
    describe: Describe,
) -> list[ManifestFile]:
    """All files. `check` raises for an answer that is an error. Raises SourceError where the listing is not whole."""
    found: dict[str, ManifestFile] = {}
    for entry in _entries(endpoint, repo, commit, get, check):
        if entry is None:
            return _described(endpoint, repo, describe)
        path, kind = entry.get("path"), entry.get("type")
        if kind == "directory":
            continue
        if not isinstance(path, str):
            raise _not_a_hub(endpoint, repo)
        if kind != "file":
            if wanted(source, path):
                raise refused(source, path, f"it is neither a file nor a folder ({redacted(str(kind))[:40]!r})")
            continue
        found[path] = _file(endpoint, repo, path, entry)
    return list(found.values())


def _entries(
    endpoint: str, repo: str, commit: str, get: Get, check: Callable[[Any], object]
) -> Iterator[Mapping[str, Any] | None]:
    """Of all pages; None if there is no tree here. No page is asked of another host, because the token goes along."""
    url: str | None = f"{endpoint}/api/models/{repo}/tree/{quote(commit, safe='')}?recursive=true"
    first, bounds = url, current()
    bounds.page(url)
    while url is not None:
        response = get(url)
        known = response.headers.get("X-Error-Code") in _KNOWN_ERRORS
        if url == first and response.status_code in _ABSENT and not known:
            yield None
            return
        check(response)
        page = response.json()
        if not isinstance(page, list) or not all(isinstance(entry, Mapping) for entry in page):
            raise _not_a_hub(endpoint, repo)
        bounds.files(len(page))
        yield from page
        following = response.links.get("next", {}).get("url")
        url = _next(endpoint, repo, url, following) if following else None
        bounds.page(url)


def _next(endpoint: str, repo: str, url: str, following: str) -> str:
    """The next page, at the endpoint: a mirror may hand on the links of whom it mirrors."""
    parts, here = urlsplit(urljoin(url, following)), urlsplit(endpoint)
    if parts[:2] == here[:2]:
        return urlunsplit(parts)
    if not parts.path.startswith(f"/api/models/{repo}/tree/"):
        raise SourceError(f"{endpoint}/{repo}: its list of files goes on at another host", reason="InvalidAnswer")
    return urlunsplit((here.scheme, here.netloc, here.path + parts.path, parts.query, ""))


def _file(endpoint: str, repo: str, path: str, entry: Mapping[str, Any]) -> ManifestFile:
    """Of a file in LFS the entry is about the pointer, but for its `lfs`."""
    lfs = entry.get("lfs")
    size, oid, algorithm, form = entry.get("size"), entry.get("oid"), "git-sha1", _SHA1
    if isinstance(lfs, Mapping):
        size, oid, algorithm, form = lfs.get("size", size), lfs.get("oid"), "sha256", _SHA256
    plain = str(oid).removeprefix("sha256:")
    if type(size) is not int or size < 0 or not form.fullmatch(plain):
        raise SourceError(
            f"{endpoint}/{repo}: {path!r} is listed without its size or its digest: {endpoint} is not a full hub",
            reason="InvalidAnswer",
        )
    return ManifestFile(path, size, Digest(f"{algorithm}:{plain}"))


def _described(endpoint: str, repo: str, describe: Describe) -> list[ManifestFile]:
    siblings = describe() or ()
    if not 0 < len(siblings) < WHOLE_DESCRIPTION:
        raise SourceUnsupported(
            f"{endpoint} has no list of the files of {repo}, and describes {len(siblings)} of them, which need "
            "not be all: ask another mirror, or the hub itself",
            reason="ListingIncomplete",
        )
    if any(sibling.size is None for sibling in siblings):
        raise _not_a_hub(endpoint, repo)
    return [
        ManifestFile(
            sibling.rfilename,
            sibling.size,
            Digest(f"sha256:{sibling.lfs.sha256}" if sibling.lfs else f"git-sha1:{sibling.blob_id}"),
        )
        for sibling in siblings
    ]


def _not_a_hub(endpoint: str, repo: str) -> SourceError:
    return SourceError(
        f"{endpoint}/{repo} was described without its commit or its file sizes: {endpoint} is not a full hub"
    )
