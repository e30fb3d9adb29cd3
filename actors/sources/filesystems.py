"""What fsspec opens, and with what: one filesystem of one scheme, never a chain, nothing of the process's surroundings.

    URL, options ──► one class, made with these options ──► filesystem, and the path in it

The only module that knows fsspec. Surroundings that it would use by itself are left out: its configuration in the
environment and in the home folder, other filesystems inside of a URL or of the options, and logins for other hosts in
`~/.netrc`.
"""

from __future__ import annotations

import atexit
import hashlib
import itertools
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from actors.errors import SourceDenied, SourceNotFound
from actors.transport.authorities import accept_in_libraries, as_go_does
from actors.transport.guard import check_name

PEM = "-----BEGIN "
MAX_REDIRECTS = 20
"""Of one client of S3: a bucket in another region redirects once for each of the requests that are under way."""

_ADLFS = ["CONNECTION_STRING", "ACCOUNT_KEY", "SAS_TOKEN", "CLIENT_ID", "CLIENT_SECRET", "TENANT_ID"]
_BLOB_ENDPOINT = re.compile(r"(?i)(?:^|;)\s*(?:Blob(?:Secondary)?Endpoint|HttpProxy|HttpsProxy)\s*=\s*([^;]+)")
_writing = threading.Lock()


def opened(
    url: str, storage_options: Mapping[str, Any], *, fresh: bool = False, ambient: bool = True
) -> tuple[Any, str]:
    """The filesystem for the scheme of `url`, and what `url` names in it. `fresh`: an instance that nobody else has.

    Not `fsspec.core.url_to_fs`, which finds further filesystems in the URL (`::`) and in options (`target_protocol`).
    Not `ambient`: raises SourceDenied where a library would add what it finds in the environment of the process.
    """
    import fsspec

    protocol = url.partition("://")[0]
    fsspec.config.conf.clear()
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # gRPC, which no guard sees
    kind = fsspec.get_filesystem_class(protocol)
    accept_in_libraries()  # by now the class has imported those it uses
    named = {name: value for name, value in kind._get_kwargs_from_urls(url).items() if name not in storage_options}
    if named.get("host") and storage_options:
        raise SourceDenied(
            f"the credentials for {protocol}:// do not say which host they are for, and are not sent to the one that "
            "the source names: put `host` into STORAGE_OPTIONS beside them",
            reason="CredentialsInvalid",
        )
    if not ambient and protocol in ("az", "abfs", "abfss"):
        check_environment()
    more = _with_files(storage_options)
    if protocol in ("s3", "s3a"):
        more["config_kwargs"] = {**(more.get("config_kwargs") or {}), "http_session_cls": s3_session()}
    filesystem = kind(**named, **more, skip_instance_cache=fresh)
    if protocol == "webhdfs":
        _confine(filesystem.session)
    return filesystem, str(kind._strip_protocol(url))


def listing(filesystem: Any, root: str) -> Mapping[str, Mapping[str, Any]]:
    """By name, what fsspec knows of everything below `root`, or of `root` itself.

    Where fsspec walks by itself it would leave out, without a word, every folder that it may not read.
    """
    from fsspec import AbstractFileSystem  # here, as everywhere: most commands read nothing with it

    walks = type(filesystem).find is AbstractFileSystem.find and not getattr(filesystem, "async_impl", False)
    if walks:
        return {root: filesystem.info(root)} if filesystem.isfile(root) else dict(_walk(filesystem, root))
    found = filesystem.find(root, detail=True)
    if not isinstance(found, Mapping) or found.get(root) == {}:  # adlfs answers for one file with a list
        return {root: filesystem.info(root)}
    return found


def _walk(filesystem: Any, root: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    folders = [root]
    while folders:
        folder = folders.pop()
        for entry in filesystem.ls(folder, detail=True):
            name = entry["name"]
            if entry["type"] != "directory":
                yield name, entry
            elif name.rstrip("/") != folder.rstrip("/"):  # some list the folder itself, too
                folders.append(name)


@cache
def s3_session() -> type:
    """A client for botocore that follows no redirect: as botocore's own, which asks another region by itself.

    aiohttp would show what is left of the signature, such as a session token, to whoever it is sent to.
    """
    from aiobotocore.httpsession import AIOHTTPSession

    class StayingSession(AIOHTTPSession):  # type: ignore[misc]  # has no types
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            self._redirects = itertools.count(1)

        def _get_ssl_context(self) -> Any:
            return as_go_does(super()._get_ssl_context())

        async def _get_session(self, proxy_url: Any) -> Any:
            return _Staying(await super()._get_session(proxy_url), self._redirects)

    return StayingSession


class _Staying:
    """An `aiohttp.ClientSession` but for that. `redirects` counts those that the whole client was answered with.

    botocore asks for the bucket's region on every one, and on the redirect that comes of that again.
    """

    def __init__(self, session: Any, redirects: Iterator[int]) -> None:
        self._session = session
        self._redirects = redirects

    async def request(self, *arguments: Any, **options: Any) -> Any:
        answer = await self._session.request(*arguments, **{**options, "allow_redirects": False})
        if answer.status in (301, 302, 303, 307, 308) and next(self._redirects) > MAX_REDIRECTS:
            answer.close()
            raise SourceNotFound(f"{answer.url.host} redirects more than {MAX_REDIRECTS} times", reason="RedirectLoop")
        return answer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)


def endpoints(storage_options: Mapping[str, Any]) -> list[str]:
    """The URLs of who will be asked, as far as options name them."""
    connection = str(storage_options.get("connection_string", ""))
    hosts = [storage_options.get(name) for name in ("host", "account_host")]
    if (account := storage_options.get("account_name")) and "account_host" not in storage_options:
        hosts.append(f"{account}.blob.core.windows.net")
    named = [storage_options.get("endpoint_url"), *(f"https://{host}" for host in hosts if host)]
    return [str(url) for url in (*named, *_BLOB_ENDPOINT.findall(connection)) if url]


def _with_files(storage_options: Mapping[str, Any]) -> dict[str, Any]:
    """The options, certificates in a file: botocore takes nothing else."""
    client = storage_options.get("client_kwargs")
    verify = client.get("verify") if isinstance(client, Mapping) else None
    if not isinstance(verify, str) or not verify.lstrip().startswith(PEM):
        return dict(storage_options)
    return {**storage_options, "client_kwargs": {**dict(client or {}), "verify": _certificates(verify)}}


def _certificates(text: str) -> str:
    """The path of a file of this process's with just this content, until the process ends: the same for the same."""
    with _writing:
        path = _private_folder(tempfile.gettempdir()) / f"{hashlib.sha256(text.encode()).hexdigest()}.pem"
        if not path.exists():
            path.touch(mode=0o600)
            path.write_text(text)
    return str(path)


@cache
def _private_folder(parent: str) -> Path:
    """A folder in `parent` that only this user may look into, gone with what is in it when the process ends."""
    folder = tempfile.mkdtemp(prefix="localmodel-certificates-", dir=parent)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def check_environment() -> None:
    """adlfs takes what it is not given from the environment, and a connection string even instead of what it is."""
    found = [name for each in _ADLFS if os.environ.get(name := f"AZURE_STORAGE_{each}")]
    if found:
        raise SourceDenied(
            f"{found[0]} in the environment of the coordinator would be used beside the credentials that the cache "
            "names: put it into STORAGE_OPTIONS there instead",
            reason="CredentialsInvalid",
        )


def _confine(session: Any) -> None:
    """A `requests.Session` sends no login that it finds in `~/.netrc`, and follows no redirect to a name inside."""

    def rebuild_auth(prepared: Any, response: Any) -> None:
        check_name(prepared.url)  # behind a proxy nobody else looks
        if "Authorization" in prepared.headers and session.should_strip_auth(response.request.url, prepared.url):
            del prepared.headers["Authorization"]

    session.max_redirects = MAX_REDIRECTS
    session.auth = session.auth or (lambda request: request)
    session.rebuild_auth = rebuild_auth
