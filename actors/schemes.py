"""Which URIs may be read: an allow-list of schemes, and below which folders files are.

    hf s3 s3a gs gcs az abfs abfss http https oci hdfs webhdfs     always
    file                                                           below the roots that somebody named
    anything else that fsspec knows                                only what somebody named

fsspec opens whatever a string says: other filesystems inside (`::`), lists of byte ranges of any local file
(`reference://`), the memory of the process. So a string of a cache's author is looked at here before anything opens it,
and again by whoever reads what a manifest names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from actors.errors import SourceDenied, SourceUnsupported

STANDARD = frozenset(["hf", "s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "http", "https", "oci", "hdfs", "webhdfs"])
LOCAL = frozenset({"file", "local"})
"""fsspec has two names for it."""

_OPENING_OTHERS = frozenset(
    "reference simplecache filecache blockcache cached dir generic async_wrapper zip tar libarchive".split(" ")  # noqa: SIM905  a list takes a line for each
)
MAX_URI = 4096
"""A part of it stands in the URL of every file."""

_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)://.", re.ASCII)
_NAME = re.compile(r"[a-z][a-z0-9+.-]*", re.ASCII)
_LITERAL = re.compile(r"://(?:[^/?#]*@)?\[[0-9A-Fa-f:.%]*\]")
_UNSEEN = re.compile(r"[\x00-\x20\x7f-\xa0\u2028\u2029\ufeff]")
_BLANKS_ARE_NAMES = frozenset(["s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "hdfs", "webhdfs", "file", "local"])
"""Where a name is a key and no URL: keys and files have spaces in them."""


@dataclass(frozen=True, slots=True)
class Schemes:
    """What may be read beside the standard schemes. `file_roots` are absolute; None: files may be anywhere."""

    more: frozenset[str] = frozenset()
    file_roots: tuple[str, ...] | None = ()

    @classmethod
    def parse(cls, more: str, file_roots: str) -> Schemes:
        """Of two lists by comma. A root allows `file`. Raises ValueError that says what cannot be understood."""
        names = frozenset(name.strip().removesuffix("://") for name in more.split(",") if name.strip())
        roots = tuple(root.strip() for root in file_roots.split(",") if root.strip())
        for name in names:
            if not _NAME.fullmatch(name):
                raise ValueError(f"{name!r} is not a scheme such as sftp")
        for root in roots:
            if not root.startswith("/"):
                raise ValueError(f"{root!r} is not an absolute path")
        if names & LOCAL and not roots:
            raise ValueError("file also needs the folders that may be read: --file-roots /data,/mnt")
        for name in sorted(names & _OPENING_OTHERS):
            raise ValueError(f"{name} opens other filesystems, whatever their scheme, and cannot be allowed")
        return cls(names | ({"file"} if roots else set()), roots)

    def scheme_of(self, uri: str, *, listed: bool = False) -> str:
        """The scheme of a URI that may be read. Raises SourceUnsupported and SourceDenied, without quoting the URI.

        `listed`: it is the location of a file that a source lists, whose name may have any character.
        """
        scheme = self.check(uri, listed=listed)
        if scheme in LOCAL:
            self.check_path(uri.partition("://")[2])
        return scheme

    def check(self, uri: str, *, listed: bool = False) -> str:
        """As `scheme_of`, without a look at the disk. Pure."""
        scheme = check_form(uri, listed=listed)
        if scheme not in STANDARD | self.more:
            more = "" if self.file_roots is None else "; whoever runs the coordinator can allow more (--allow-schemes)"
            raise SourceUnsupported(
                f"no reader for {scheme}:// is allowed: a source is one of {_listed(STANDARD | self.more)}{more}",
                reason="SchemeNotAllowed",
            )
        return scheme

    def check_path(self, path: str) -> None:
        """Returns if the file, links followed, is below one of the roots. Raises SourceDenied."""
        if self.file_roots is None:
            return
        real = Path(path).resolve() if path.startswith("/") else None  # fsspec would expand `~`, and know a cwd
        roots = [Path(root).resolve() for root in self.file_roots]
        if real is None or not any(real == root or root in real.parents for root in roots):
            raise SourceDenied(
                f"a file source is absolute and below {_listed(self.file_roots) or 'a folder that is allowed'}, "
                "links followed; whoever runs the coordinator can allow other folders (--file-roots)",
                reason="SchemeNotAllowed",
            )


ANY_FILE = Schemes(frozenset({"file"}), None)
"""Of a person's own command: whoever starts it may read these files anyway."""


def check_form(uri: str, *, listed: bool = False) -> str:
    """The scheme of what has the form of a source's URI, or of a file that one lists. Raises SourceUnsupported, without
    quoting it.
    """
    if len(uri) > MAX_URI:
        raise SourceUnsupported(f"the source has {len(uri)} characters, and may have {MAX_URI}", reason="InvalidURI")
    if "::" in _LITERAL.sub("://", uri):
        raise SourceUnsupported("a source is one URI: chains of them (::) are not read", reason="InvalidURI")
    match = _SCHEME.match(uri)
    if match is None:
        raise SourceUnsupported(
            f"the source has no scheme such as hf:// or s3://{_hint(uri)}: it must begin with one in lower case",
            reason="InvalidURI",
        )
    unseen = _UNSEEN.search(uri) if not listed or match[1] not in LOCAL else None
    if unseen is not None and (unseen[0] != " " or match[1] not in _BLANKS_ARE_NAMES or uri != uri.strip()):
        raise SourceUnsupported(
            f"the source has the character {unseen[0]!r} at position {unseen.start()}: remove it, or write it as "
            f"{''.join(f'%{byte:02X}' for byte in unseen[0].encode())}",
            reason="InvalidURI",
        )
    return match[1]


def _hint(uri: str) -> str:
    """Of what was probably meant; nothing else of the URI is shown."""
    before, mark, _ = uri.partition("://")
    return f" ({before.strip().lower()}:// was probably meant)" if mark and before.strip().lower() in STANDARD else ""


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))
