"""Models in a registry: an artifact whose layers are files, or an image with a model below /models (KServe's modelcar).

    tag ──► manifest, pinned by its digest ──► layers, each with size and sha256 ──► blobs, read in ranges like any file

    every layer names a file      the files                                        ORAS, ModelPack
    layers of an image            unpacked one over the other: `actors.archive`    docker, buildah

Blobs of a registry without tokens are read at its own URLs. With a token it is asked where each blob is: a signed link
elsewhere, or the token goes along, and both are renewed before they end. https, but for a registry on this machine.
https://github.com/opencontainers/distribution-spec/blob/main/spec.md
"""

from __future__ import annotations

import hashlib
import http.client
import json
import re
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlencode, urljoin

from actors.connections import opener
from actors.errors import SourceDenied, SourceError, SourceUnsupported
from actors.manifest import Digest, Location, ManifestFile, ModelSource, Resolved, layer_name, make_manifest
from actors.origin import SourceOptions, expires_at, select, translate_status, unanswered
from actors.reach import Reach, check_link, reach_of

LINK_TTL_S = 600.0
TOKEN_TTL_S = 60.0
"""How long a link, or a token, is taken to be good when it does not say. The latter is the registries' convention."""
MAX_DOCUMENT_BYTES = 4 << 20

_REFERENCE = re.compile(
    r"oci://(?P<host>[^/@]+)/(?P<name>[a-z0-9][a-z0-9._/-]*?)"
    r"(?::(?P<tag>\w[\w.-]{0,127}))?(?:@(?P<digest>sha256:[0-9a-f]{64}))?"
)
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_PARAMETER = re.compile(r'(\w+)="([^"]*)"')
_KINDS = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
_TITLES = ("org.opencontainers.image.title", "org.cncf.model.filepath")
_PARALLEL_REQUESTS = 8


def resolve_image(source: ModelSource, options: SourceOptions, pinned_revision: str | None = None) -> Resolved:
    """What `pinned_revision` (a digest), else the URI or `source.revision`, else `latest` stands for.

    Raises the SourceError family only.
    """
    match = _REFERENCE.fullmatch(source.uri)
    if match is None:
        raise SourceUnsupported(f"{source.uri} is not of the form oci://registry/name[:tag]", reason="InvalidURI")
    named = match["digest"] or match["tag"]
    if named and source.revision not in (None, match["digest"], match["tag"]):
        raise SourceUnsupported(
            f"{source.uri} names {named!r}, but spec.revision says {source.revision!r}", reason="InvalidURI"
        )
    try:
        registry = _Registry(match["host"], match["name"], options)
        revision, document = registry.manifest(pinned_revision or named or source.revision or "latest")
        if document.get("manifests"):
            _, document = registry.manifest(_for_linux(document["manifests"]))
        files = _files(document.get("layers") or [], source.uri)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        message = f"{source.uri}: the registry's answer cannot be understood: {type(error).__name__}: {error}"
        raise SourceError(message, reason="InvalidManifest") from error
    manifest = make_manifest(source, revision, select(source, files))
    with ThreadPoolExecutor(_PARALLEL_REQUESTS, thread_name_prefix="oci") as pool:
        found = list(pool.map(lambda file: registry.locate(str(file.digest)), manifest.files))
    expiries = [at for _, at in found if at is not None]
    return Resolved(manifest, tuple(location for location, _ in found), min(expiries, default=None))


def _for_linux(manifests: Sequence[Mapping[str, Any]]) -> str:
    """The digest of one of an index: models do not depend on the platform, but attestations stand beside them."""

    def rank(entry: Mapping[str, Any]) -> int:
        platform = entry.get("platform") or {}
        known = ("linux", "amd64"), ("linux", platform.get("architecture"))
        pair = (platform.get("os"), platform.get("architecture"))
        return known.index(pair) if pair in known else len(known) + (platform.get("os") == "unknown")

    return str(min(manifests, key=rank)["digest"])


def _files(layers: Sequence[Mapping[str, Any]], uri: str) -> list[ManifestFile]:
    titles = [_title(layer) for layer in layers]
    if any(titles) and not all(titles):
        raise SourceUnsupported(f"{uri}: some of its layers name a file, and some do not")
    files = []
    for number, (layer, title) in enumerate(zip(layers, titles, strict=True)):
        kind, digest, size = str(layer.get("mediaType", "")), str(layer.get("digest")), layer.get("size")
        annotations = layer.get("annotations") or {}
        packed = "tar" in re.split(r"[.+]", kind)
        if title:  # ORAS calls every file a tar, and says so if it is one
            packed = annotations.get("io.deis.oras.content.unpack") == "true" or (packed and "cncf" in kind)
        if not _DIGEST.fullmatch(digest) or not isinstance(size, int):
            raise SourceError(f"{uri}: layer {number} has no sha256 or no size", reason="InvalidManifest")
        if (title and packed) or (not title and (not packed or "zstd" in kind)):
            raise SourceUnsupported(f"{uri}: layer {number} is of the kind {kind}, which cannot be unpacked")
        zipped = kind.endswith("gzip")
        files.append(ManifestFile(title or layer_name(number, zipped=zipped), size, Digest(digest)))
    return files


def _title(layer: Mapping[str, Any]) -> str | None:
    annotations = layer.get("annotations") or {}
    return next((str(annotations[name]) for name in _TITLES if annotations.get(name)), None)


class _Registry:
    """One repository of a registry. `manifest` comes first: it learns whether a token is needed. Then any thread."""

    def __init__(self, host: str, name: str, options: SourceOptions) -> None:
        docker = host in ("docker.io", "index.docker.io")
        self._host = "registry-1.docker.io" if docker else host
        self._name = f"library/{name}" if docker and "/" not in name else name
        here = reach_of(host.rpartition(":")[0] or host) is Reach.HOST
        self._base = f"{'http' if here else 'https'}://{self._host}/v2/{self._name}/"
        self._options = options
        self._authorization: str | None = None
        self._expires_at = 0.0
        auths = options.mapping("DOCKER_CONFIG_JSON").get("auths") or {}
        names = [host, f"https://{host}", *(["https://index.docker.io/v1/"] if docker else [])]
        self._login = next((str(auths[name]["auth"]) for name in names if (auths.get(name) or {}).get("auth")), None)

    def manifest(self, reference: str) -> tuple[str, Mapping[str, Any]]:
        """Its digest, checked where it is known, and what it says, whatever that is."""
        url = urljoin(self._base, f"manifests/{reference}")
        status, headers, content = self._get(url, {"Accept": ", ".join(_KINDS)})
        if status == 401 and self._authorization is None:
            self._log_in(headers.get("www-authenticate", ""))
            status, headers, content = self._get(url, {"Accept": ", ".join(_KINDS)})
        if status != 200:
            raise translate_status(status, url, headers)
        digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
        expected = reference if _DIGEST.fullmatch(reference) else headers.get("docker-content-digest", digest)
        if digest != expected:
            raise SourceError(f"{url} came with the digest {digest}, not {expected}", reason="InvalidManifest")
        document: Mapping[str, Any] = json.loads(content)
        return digest, document

    def locate(self, digest: str) -> tuple[Location, float | None]:
        """Where a blob can be read, and until when."""
        url = urljoin(self._base, f"blobs/{digest}")
        if self._authorization is None:
            return Location(url), None
        status, headers, _ = self._get(url, {"Range": "bytes=0-0"})
        target = urljoin(url, headers.get("location", ""))
        if 300 <= status < 400 and target != url:
            check_link(url, target, private=self._options.private_redirects)
            return Location(target), expires_at(target) or time.time() + LINK_TTL_S
        if status not in (200, 206, 416):
            raise translate_status(status, url, headers)
        mark = hashlib.sha256(self._authorization.encode()).hexdigest()[:8]  # another token is another location
        return Location(f"{url}#{mark}", headers={"Authorization": self._authorization}), self._expires_at

    def _log_in(self, challenge: str) -> None:
        """https://distribution.github.io/distribution/spec/auth/token/"""
        scheme, _, rest = challenge.partition(" ")
        wants = dict(_PARAMETER.findall(rest))
        basic = {"Authorization": f"Basic {self._login}"} if self._login else {}
        if scheme.lower() == "basic" and basic:
            self._authorization, self._expires_at = basic["Authorization"], time.time() + LINK_TTL_S
            return
        if scheme.lower() != "bearer" or not wants.get("realm"):
            raise SourceDenied(f"{self._base} wants a login, and a Secret of the kind dockerconfigjson has none for it")
        realm, scope = wants["realm"], f"repository:{self._name}:pull"
        check_link(self._base, realm, private=self._options.private_redirects)
        url = f"{realm}?{urlencode({'service': wants.get('service', ''), 'scope': scope})}"
        status, headers, content = self._get(url, basic)
        if status != 200:
            raise translate_status(status, realm, headers)
        answer = json.loads(content)
        self._authorization = f"Bearer {answer.get('token') or answer['access_token']}"
        self._expires_at = time.time() + float(answer.get("expires_in") or TOKEN_TTL_S)

    def _get(self, url: str, headers: Mapping[str, str]) -> tuple[int, Mapping[str, str], bytes]:
        """The answer whatever it is, redirects too. The login goes to the registry only."""
        own = {"Authorization": self._authorization} if self._authorization and url.startswith(self._base) else {}
        request = urllib.request.Request(url, headers={**own, **headers})
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
            raise SourceError(f"{url} is larger than {MAX_DOCUMENT_BYTES} bytes", reason="InvalidManifest")
        return status, {name.lower(): value for name, value in answer.headers.items()}, content


class _Stay(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: object) -> None:
        return None
