"""Models in a registry: an artifact whose layers are files, or an image with a model below /models (KServe's modelcar).

    tag ──► manifest, pinned by its digest ──► layers, each with size and sha256 ──► blobs, read in ranges like any file

    every layer names a file      the files                                        ORAS, ModelPack
    every layer is a tar of some  unpacked one over the other: `actors.fill.unpack`    KitOps, ModelPack
    layers of an image            the same, of what is below /models               docker, buildah

Blobs of a registry without tokens are read at its own URLs. With a token it is asked where each blob is: a signed link
elsewhere, or the token goes along, and both are renewed before they end. https, but for a registry on this machine.
How a registry is logged in to: see `actors.sources.registry_login`.
https://github.com/opencontainers/distribution-spec/blob/main/spec.md
"""

from __future__ import annotations

import hashlib
import http.client
import json
import re
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from enum import Enum, auto
from typing import Any
from urllib.parse import urljoin, urlsplit

from actors.errors import SourceError, SourceUnsupported
from actors.manifest import Digest, Location, ManifestFile, ModelSource, Resolved, layer_name, make_manifest
from actors.numbers import count
from actors.sources.bounds import current
from actors.sources.docker_config import is_docker_hub, login_for
from actors.sources.options import SourceOptions
from actors.sources.registry_challenge import challenges
from actors.sources.registry_login import Authorization, authorize
from actors.sources.selection import select
from actors.transport.answers import expires_at, translate_status, unanswered
from actors.transport.connections import opener
from actors.transport.guard import carried
from actors.transport.redirects import Reach, check_link, reach_of, target_of

LINK_TTL_S = 600.0
"""How long a link is taken to be good when it does not say."""
MAX_DOCUMENT_BYTES = 4 << 20
MAX_REDIRECTS = 5
MAX_LOGINS = 2
"""For one request: a token may be about to end."""
MAX_INDEX_DEPTH = 3
"""Of indices within indices."""

_REFERENCE = re.compile(
    r"oci://(?P<host>[^/@]+)/(?P<name>[a-z0-9][a-z0-9._/-]*?)"
    r"(?::(?P<tag>\w[\w.-]{0,127}))?(?:@(?P<digest>sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}))?"
)
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}")
_KINDS = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
_PARTS = ("application/vnd.kitops.modelkit.", "application/vnd.cncf.model.", "application/vnd.cnai.model.")
"""Of media types of tars that hold files by their paths in the model."""
_TITLES = ("org.opencontainers.image.title", "org.cncf.model.filepath")
_PARALLEL_REQUESTS = 8


def resolve_image(source: ModelSource, options: SourceOptions, pinned_revision: str | None = None) -> Resolved:
    """What `pinned_revision` (a digest), else the URI or `source.revision`, else `latest` stands for.

    Raises the SourceError family only.
    """
    host, name, named = _reference(source)
    try:
        registry = _Registry(host, name, options)
        revision, document = registry.manifest(pinned_revision or named)
        for _ in range(MAX_INDEX_DEPTH):
            if document.get("manifests"):
                _, document = registry.manifest(_for_linux(document["manifests"]))
        if document.get("schemaVersion") == 1:
            raise SourceUnsupported(f"{source.uri} is an image of docker's first schema, which has no digests of files")
        files = _files(document.get("layers") or [], source.uri)
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
        message = f"{source.uri}: the registry's answer cannot be understood: {type(error).__name__}: {error}"
        raise SourceError(message, reason="InvalidAnswer") from error
    manifest = make_manifest(source, revision, select(source, files))
    with ThreadPoolExecutor(_PARALLEL_REQUESTS, thread_name_prefix="oci") as pool:
        found = list(pool.map(carried(lambda file: registry.locate(str(file.digest))), manifest.files))
    expiries = [at for _, at in found if at is not None]
    return Resolved(manifest, tuple(location for location, _ in found), min(expiries, default=None))


def _reference(source: ModelSource) -> tuple[str, str, str]:
    """Registry, repository, and the tag or digest that is asked for. Raises SourceUnsupported."""
    match = _REFERENCE.fullmatch(source.uri)
    if match is None:
        raise SourceUnsupported(f"{source.uri} is not of the form oci://registry/name[:tag]", reason="InvalidURI")
    named = match["digest"] or match["tag"]
    if named and source.revision not in (None, match["digest"], match["tag"]):
        raise SourceUnsupported(
            f"{source.uri} names {named!r}, but spec.revision says {source.revision!r}", reason="InvalidURI"
        )
    return match["host"], match["name"], named or source.revision or "latest"


def _for_linux(manifests: Sequence[Mapping[str, Any]]) -> str:
    """The digest of one of an index: models do not depend on the platform, but attestations stand beside them."""

    def rank(entry: Mapping[str, Any]) -> int:
        platform = entry.get("platform") or {}
        known = ("linux", "amd64"), ("linux", platform.get("architecture"))
        pair = (platform.get("os"), platform.get("architecture"))
        return known.index(pair) if pair in known else len(known) + (platform.get("os") == "unknown")

    return str(min(manifests, key=rank)["digest"])


def _files(layers: Sequence[Mapping[str, Any]], uri: str) -> list[ManifestFile]:
    kinds = [_kind_of(layer) for layer in layers]
    if len(set(kinds)) > 1:
        named = ", ".join(sorted({str(layer.get("mediaType")) for layer in layers}))
        raise SourceUnsupported(f"{uri}: some of its layers name a file, and some do not, or are archives ({named})")
    files = []
    for number, (layer, kind) in enumerate(zip(layers, kinds, strict=True)):
        media, digest, size = str(layer.get("mediaType", "")), str(layer.get("digest")), layer.get("size")
        try:
            size = count(size)
        except ValueError as error:
            raise SourceError(f"{uri}: the size of layer {number}: {error}", reason="InvalidManifest") from error
        if not _DIGEST.fullmatch(digest):
            raise SourceError(f"{uri}: layer {number} has no sha256", reason="InvalidManifest")
        if kind is _Kind.OTHER or (kind is not _Kind.FILE and "zstd" in media):
            raise SourceUnsupported(f"{uri}: layer {number} is of the kind {media}, which cannot be unpacked")
        if kind is _Kind.FILE:
            path = _title(layer) or ""
        else:
            path = layer_name(number, zipped=media.endswith("gzip"), image=kind is _Kind.LAYER)
        files.append(ManifestFile(path, size, Digest(digest)))
    return files


class _Kind(Enum):
    """What a layer is: a file, a tar of files, a layer of an image, or a folder in a way that is not unpacked."""

    FILE = auto()
    PART = auto()
    LAYER = auto()
    OTHER = auto()


def _kind_of(layer: Mapping[str, Any]) -> _Kind:
    media = str(layer.get("mediaType", ""))
    packed = "tar" in re.split(r"[.+]", media)
    if packed and media.startswith(_PARTS):
        return _Kind.PART
    if not _title(layer):
        return _Kind.LAYER if packed else _Kind.OTHER
    # ORAS calls every file a tar, and says so if it is one.
    folder = (layer.get("annotations") or {}).get("io.deis.oras.content.unpack") == "true"
    return _Kind.OTHER if folder else _Kind.FILE


def _title(layer: Mapping[str, Any]) -> str | None:
    annotations = layer.get("annotations") or {}
    return next((str(annotations[name]) for name in _TITLES if annotations.get(name)), None)


class _Registry:
    """One repository of a registry. `manifest` comes first: it learns whether a token is needed. Then any thread."""

    def __init__(self, host: str, name: str, options: SourceOptions) -> None:
        docker = is_docker_hub(host)
        self._host = "registry-1.docker.io" if docker else host
        self._name = f"library/{name}" if docker and "/" not in name else name
        here = reach_of(urlsplit(f"//{host}").hostname or "") is Reach.HOST
        self._base = f"{'http' if here else 'https'}://{self._host}/v2/{self._name}/"
        self._options = options
        self._authorization: Authorization | None = None
        self._logging_in = threading.Lock()
        self._login = login_for(options.mapping("DOCKER_CONFIG_JSON"), host, self._name)

    def manifest(self, reference: str) -> tuple[str, Mapping[str, Any]]:
        """Its digest, checked where it is known, and what it says, whatever that is."""
        url = urljoin(self._base, f"manifests/{reference}")
        accept = {"Accept": ", ".join(_KINDS)}
        status, headers, content = self._read_from(url, accept)
        for _ in range(MAX_REDIRECTS):
            if 300 <= status < 400 and headers.get("location"):
                target = target_of(url, headers["location"])
                check_link(url, target, private=self._options.private_redirects)
                status, headers, content = self._get(target, accept)
                url = target
        if status != 200:
            raise translate_status(status, url, headers, content)
        named = headers.get("docker-content-digest", "")
        expected = reference if _DIGEST.fullmatch(reference) else named if _DIGEST.fullmatch(named) else ""
        algorithm = expected.partition(":")[0] or "sha256"
        digest = f"{algorithm}:{hashlib.new(algorithm, content).hexdigest()}"
        expected = expected or digest
        if digest != expected:
            raise SourceError(f"{url} came with the digest {digest}, not {expected}", reason="InvalidManifest")
        document: Mapping[str, Any] = json.loads(content)
        return digest, document

    def locate(self, digest: str) -> tuple[Location, float | None]:
        """Where a blob can be read, and until when."""
        url = urljoin(self._base, f"blobs/{digest}")
        if self._authorization is None:
            return Location(url), None
        status, headers, content = self._read_from(url, {"Range": "bytes=0-0"})
        target = target_of(url, headers.get("location", ""))
        if 300 <= status < 400 and target != url:
            check_link(url, target, private=self._options.private_redirects)
            return Location(target), expires_at(target) or time.time() + LINK_TTL_S
        if status not in (200, 206, 416):
            raise translate_status(status, url, headers, content)
        authorization = self._authorization
        mark = hashlib.sha256(authorization.value.encode()).hexdigest()[:8]  # another token is another location
        return Location(f"{url}#{mark}", headers={"Authorization": authorization.value}), authorization.expires_at

    def _read_from(self, url: str, headers: Mapping[str, str]) -> tuple[int, Mapping[str, str], bytes]:
        """The answer, whatever it is; once logged in, or logged in again, if that is what it takes."""
        before, answer = self._authorization, self._get(url, headers)
        for _ in range(MAX_LOGINS):
            if answer[0] != 401:
                break
            with self._logging_in:
                if self._authorization is before:  # another thread may have been sooner
                    self._authorization = self._authorize(answer[1].get("www-authenticate", ""))
            before, answer = self._authorization, self._get(url, headers)
        return answer

    def _authorize(self, header: str) -> Authorization:
        def check(realm: str) -> None:
            check_link(self._base, realm, private=self._options.private_redirects)

        return authorize(self._base, self._name, challenges([header]), self._login, self._get, check)

    def _get(
        self, url: str, headers: Mapping[str, str], form: bytes | None = None
    ) -> tuple[int, Mapping[str, str], bytes]:
        """The answer whatever it is, redirects too; with a form, to that. The login goes to the registry only."""
        login = self._authorization
        own = {"Authorization": login.value} if login is not None and url.startswith(self._base) else {}
        request = urllib.request.Request(url, form, {**own, **headers})
        try:
            with opener(_Stay()).open(request, timeout=self._options.timeout_s) as response:
                return self._read(url, response.status, response)
        except urllib.error.HTTPError as error:
            with error:
                return self._read(url, error.code, error)
        except (OSError, http.client.HTTPException, ValueError) as error:
            cause = getattr(error, "reason", None)
            known = cause if isinstance(cause, Exception) else error
            raise unanswered(url, known, self._options.timeout_s) from error

    def _read(self, url: str, status: int, answer: Any) -> tuple[int, Mapping[str, str], bytes]:
        content = answer.read(MAX_DOCUMENT_BYTES + 1)
        if len(content) > MAX_DOCUMENT_BYTES:
            if "/blobs/" in url:  # a registry that knows no ranges
                return status, {}, b""
            current().document(len(content), len(content), MAX_DOCUMENT_BYTES)
        if getattr(answer, "length", None):
            raise http.client.IncompleteRead(content, answer.length)
        found: dict[str, str] = {}
        for name, value in answer.headers.items():  # what comes in several lines is one list
            found[name.lower()] = f"{found[name.lower()]}, {value}" if name.lower() in found else value
        return status, found, content


class _Stay(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: object) -> None:
        return None
