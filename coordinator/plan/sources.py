"""What the resolver's answer means to a cache: nothing yet, a failure, or the files to fetch."""

from __future__ import annotations

from actors.errors import Failure
from coordinator.plan.content import ANY, Content
from coordinator.plan.snapshot import Cache, Resolution
from coordinator.plan.tally import SourceState


def source_state(cache: Cache, resolution: Resolution | None, content: Content = ANY) -> SourceState:
    """A resolution of other content than `spec.digest` names is a failure: nothing of it is to be downloaded.

    `content`: which of those that the request may come to is asked for.
    """
    if resolution is None:
        return SourceState(content=content)
    if resolution.resolved is None:
        return SourceState(failure=resolution.failure, retry_at=resolution.retry_at, content=content)
    manifest = resolution.resolved.manifest
    if manifest.source.selection != cache.selection:
        return SourceState(content=content)  # the answer to an earlier spec
    if content.name not in ("", manifest.digest, manifest.revision):
        return SourceState(content=content)  # what the branch has moved to, which is not to be had, or not any more
    digest = manifest.digest
    failure = None
    if cache.digest and digest and digest != cache.digest:
        failure = mismatch(cache, f"the source has {digest}")
    return SourceState(
        resolved=None if failure else resolution.resolved.name,
        total_bytes=None if manifest.packed else manifest.total_bytes,  # what it holds has another size
        revision=manifest.revision,
        manifest_digest=digest,
        failure=failure,
        retry_at=resolution.retry_at if resolution.resolved.unreadable else None,
        unreadable=resolution.resolved.unreadable,
        carries_options=resolution.resolved.carries_options,
        failing_since=resolution.failing_since,
        answered=resolution.resolved.unreadable is None,
        content=content,
    )


def mismatch(cache: Cache, found: str) -> Failure:
    """`found`: who has which digest instead of the one that the cache insists on."""
    message = f"{found}, spec.digest wants {cache.digest}: correct it, or the source"
    return Failure("DigestMismatch", message, retryable=False)
