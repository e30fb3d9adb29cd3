"""The version of a model that is asked for, and the versions that are on the nodes. Pure.

    spec.revision edited      another request: what it comes to is the next version
    the branch has moved      the same request: only a cache that is refreshed hears of that, and from then on its
                              copies are known by their content

    due ──► asked without the pinned commit ──► answered ──► status.versions: Next, status.refresh: when and what
      ▲                                                                             │
      └──────────────────── an interval later, or another annotation ◄──────────────┘

The next version stands in status, so that another coordinator goes on with it. A branch that cannot be asked, or whose
new version has not the digest that the spec insists on, changes nothing but status.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from actors.errors import Failure
from actors.messages import Earlier
from actors.times import rfc3339, seconds_of
from coordinator.kube.parts import mapping_of
from coordinator.plan.content import Content
from coordinator.plan.snapshot import Cache, Resolution
from coordinator.plan.tally import Tally

_HEXADECIMAL = re.compile(r"(?:\w+:)?(?P<digits>[0-9a-f]{40,})")
FAILED_PAUSE_S = 300.0
"""A question for a newer version that was in vain is asked again after this, or the interval if that is shorter."""


def is_refreshed(cache: Cache) -> bool:
    """Whether its request may come to something else than it did."""
    return cache.refresh_s is not None or bool(cache.refresh_request) or bool(mapping_of(cache.status.get("refresh")))


def question(cache: Cache, now: float) -> str:
    """Names the question for a newer version that is due; "": none is.

    The first answer to a request is as new as it gets.
    """
    if not is_refreshed(cache) or cache.problem is not None or not written_content(cache).name:
        return ""
    last = mapping_of(cache.status.get("refresh"))
    at, request = seconds_of(last.get("at")), last.get("request") or ""
    name = f"{cache.refresh_request}@{last.get('at', '')}"
    if cache.refresh_request and cache.refresh_request != request:
        return name
    if cache.refresh_s is None:
        return ""
    pause_s = min(cache.refresh_s, FAILED_PAUSE_S) if last.get("reason") else cache.refresh_s
    return name if at is None or not at <= now < at + pause_s else ""


def written_content(cache: Cache) -> Content:
    """The content that the present request comes to, as status has it: the next, or the one in service."""
    for entry in written_versions(cache):
        if entry.get("selection") == cache.selection:
            return Content(entry.get("revision"), entry.get("digest"))
    if cache.status.get("selection") == cache.selection:
        return Content(cache.status.get("revision"), cache.status.get("manifestDigest"))
    return Content()


def content(cache: Cache, resolution: Resolution | None, now: float) -> Content:
    """The content asked for of a cache that is refreshed: the answer to the question that is due, else the last."""
    if not is_refreshed(cache):
        return Content()
    known = written_content(cache)
    resolved = resolution.resolved if resolution is not None else None
    if resolution is None or resolved is None or resolved.unreadable is not None:
        return known
    manifest = resolved.manifest
    if manifest.source.selection != cache.selection or refused_digest(cache, resolution) is not None:
        return known
    if known.name and not (resolution.refresh and resolution.refresh == question(cache, now)):
        return known
    return Content(manifest.revision, manifest.digest)


def refused_digest(cache: Cache, resolution: Resolution) -> str | None:
    """The digest of the answer, where `spec.digest` is another."""
    digest = resolution.resolved.manifest.digest if resolution.resolved is not None else None
    return digest if cache.digest is not None and digest not in (None, cache.digest) else None


def refresh_status(cache: Cache, resolution: Resolution | None, now: float) -> Mapping[str, Any] | None:
    """`status.refresh`: as it is, or what the question that was due has been answered."""
    before = mapping_of(cache.status.get("refresh")) or None
    due = question(cache, now)
    if not due or resolution is None or resolution.refresh != due:
        if before is None and cache.refresh_s is not None and written_content(cache).name:
            return None  # the question is on its way
        return before
    said: dict[str, Any] = {"at": rfc3339(now)}
    if cache.refresh_request:
        said["request"] = cache.refresh_request
    failure = resolution.refresh_failure
    if failure is None and refused_digest(cache, resolution) is not None and resolution.resolved is not None:
        found = resolution.resolved.manifest
        failure = Failure(
            "DigestMismatch", f"the source has {found.digest}, spec.digest wants {cache.digest}", retryable=False
        )
        said["revision"] = found.revision
    if failure is not None:
        said |= {"reason": failure.reason, "message": failure.message}
    return {name: value for name, value in said.items() if value is not None}


# --- what is on the nodes ---


@dataclass(slots=True)
class _Count:
    nodes: int = 0
    beside: int = 0


def versions(
    tally: Tally,
    wanted: Content,
    failure: Failure | None,
    refresh: Mapping[str, Any],
    permits: Callable[[Earlier], bool] = lambda _: True,
) -> list[dict[str, Any]] | None:
    """`status.versions`: what is in service first, then what is on its way, then what is kept. None: nothing is there.

    `wanted`: what the present request comes to, as far as that is known; `failure`: what keeps it from the nodes, and
    `refresh` what was said of a newer one. `permits`: whether the cache may be told of a copy.
    """
    cache = tally.cache
    counts = _counts(tally, wanted, permits)
    coming = _find(counts, wanted) if wanted.name else None
    serving = max((each for each in counts if counts[each].nodes), key=lambda each: counts[each].nodes, default=None)
    complete = tally.earlier == 0 and (failure is None or not tally.total)
    found: list[dict[str, Any]] = []
    if coming is not None and (complete or serving is None):
        serving = coming
    elif serving == coming and tally.earlier:
        others = (each for each in counts if counts[each].nodes and each != coming)
        serving = max(others, key=lambda each: counts[each].nodes, default=serving)
    for each, count in counts.items():
        if each != coming and (count.nodes or each == serving):
            found.append(_entry(each, count, "Current"))
    if coming is not None and coming == serving:
        found.insert(0, _entry(coming, counts[coming], "Current"))
    elif coming is not None:
        entry = _next(coming, counts[coming], failure) | {"selection": cache.selection}
        found.append(entry | ({"kept": True} if _was_kept(cache, coming) else {}))
    elif tally.earlier and cache.status.get("selection") != cache.selection:
        found.append(_next(Content(cache.source.revision), _Count(), failure))
    if refresh.get("revision") and refresh.get("reason"):
        why = Failure(refresh["reason"], refresh.get("message") or "", retryable=False)
        found.append(_next(Content(refresh["revision"]), _Count(), why))
    found += [_entry(each, count, "Previous") for each, count in counts.items() if not count.nodes and each != coming]
    return found or None


def _was_kept(cache: Cache, coming: Content) -> bool:
    return any(
        each.get("state") == "Previous" or each.get("kept")
        for each in written_versions(cache)
        if coming.name in (each.get("digest"), each.get("revision"))
    )


def said_of(found: Iterable[Mapping[str, Any]] | None, total: int) -> str | None:
    """`2/4 on 1f2e3d4c5b6a, 4 have it`: how far the version is that is on its way; None: none is."""
    coming = next((each for each in found or () if each["state"] in ("Next", "Failed")), None)
    if coming is None:
        return None
    name = short_revision(coming.get("revision") or coming.get("digest")) or "the next version"
    return f"{coming['nodes']}/{total} on {name}" + (f", {coming['beside']} have it ready" if coming["beside"] else "")


def short_revision(revision: str | None) -> str | None:
    """Of a commit the first digits, of a digest those after its algorithm; anything else as it is."""
    found = _HEXADECIMAL.fullmatch(revision or "")
    return found["digits"][:12] if found else revision


def _counts(tally: Tally, wanted: Content, permits: Callable[[Earlier], bool]) -> dict[Content, _Count]:
    known = {Content(each.get("revision"), each.get("digest")) for each in written_versions(tally.cache)}
    counts: dict[Content, _Count] = {}
    for of, in_place in ((tally.placed, True), (tally.beside, False)):
        for (selection, revision, digest), nodes in of.items():
            each = Content(revision, digest)
            if each not in known and not permits(Earlier(selection, revision, digest)):
                continue
            count = counts.setdefault(_find(counts, each) or each, _Count())  # two commits may have the same content
            count.nodes += nodes if in_place else 0
            count.beside += 0 if in_place else nodes
    if tally.unmeasured:  # their agents are silent: the copy that was there still is
        status = tally.cache.status
        served = Content(status.get("revision"), status.get("manifestDigest"))
        counts.setdefault(_find(counts, served) or served, _Count()).nodes += tally.unmeasured
    if wanted.name and _find(counts, wanted) is None and (counts or tally.total):
        counts[wanted] = _Count()
    return counts


def _find(counts: Iterable[Content], wanted: Content) -> Content | None:
    return next((each for each in counts if wanted.name and wanted.name in (each.digest, each.revision)), None)


def _entry(content: Content, count: _Count, state: str) -> dict[str, Any]:
    entry = {"revision": content.revision, "digest": content.digest, "state": state}
    return {name: value for name, value in entry.items() if value is not None} | {
        "nodes": count.nodes,
        "beside": count.beside,
    }


def _next(content: Content, count: _Count, failure: Failure | None) -> dict[str, Any]:
    if failure is None:
        return _entry(content, count, "Next")
    state = "Next" if failure.retryable else "Failed"
    return _entry(content, count, state) | {"reason": failure.reason, "message": failure.message}


def written_versions(cache: Cache) -> Iterator[Mapping[str, Any]]:
    """As they stand in status."""
    yield from (each for each in cache.status.get("versions") or () if isinstance(each, Mapping))
