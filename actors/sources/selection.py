"""The files of a source that a cache wants: `include` and `exclude`, by the globs of the hub and of KServe."""

from __future__ import annotations

import re
from collections.abc import Iterable
from fnmatch import translate
from functools import lru_cache

from actors.errors import SourceNotFound
from actors.manifest import ManifestFile, ModelSource, is_ours, is_packed
from actors.transport.answers import redact


def select(source: ModelSource, files: Iterable[ManifestFile]) -> list[ManifestFile]:
    """Those that are `wanted`. Raises SourceNotFound if nothing is left. Of an archive the members are selected.

    Files that a fill wrote beside them are not: a copy can be the source of the next.
    """
    listed = [file for file in files if not is_ours(file.path)]
    kept = [file for file in listed if wanted(source, file.path)] if not is_packed(source, listed) else listed
    if not kept:
        where = redact(source.uri)
        why = (
            f"none of its {len(listed)} files is selected by include/exclude"
            if listed
            else "it holds no files, or does not exist"
        )
        raise SourceNotFound(f"nothing to cache in {where}: {why}")
    return kept


def wanted(source: ModelSource, path: str) -> bool:
    """Whether it matches a glob of `include` (none: all) and none of `exclude`.

    Globs are the hub's and KServe's: `*` matches `/` too, a final `/` means everything below.
    """
    return (not source.include or _matches(path, source.include)) and not _matches(path, source.exclude)


def left_out(source: ModelSource, folder: str) -> bool:
    """Whether `exclude` leaves out everything below `folder`, which ends in a slash."""
    return folder in source.exclude or any(glob in ("*", f"{folder}*") for glob in source.exclude)


def _matches(path: str, globs: tuple[str, ...]) -> bool:
    return bool(globs) and _pattern(globs).match(path) is not None


@lru_cache(maxsize=64)
def _pattern(globs: tuple[str, ...]) -> re.Pattern[str]:
    """Of all of them: to try hundreds one by one takes Python longer than to list what they are tried on."""
    return re.compile("|".join(translate(glob + "*" if glob.endswith("/") else glob) for glob in globs))
