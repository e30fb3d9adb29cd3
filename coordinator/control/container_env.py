"""What a ClusterStorageContainer adds to what a source is asked with: see `coordinator.plan.storage_containers`."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from actors.errors import SourceDenied
from actors.sources.options import SourceOptions
from coordinator.plan.snapshot import EnvEntry


def over(
    own: SourceOptions, entries: Sequence[EnvEntry], read: Callable[[str, str], Mapping[str, Any] | None]
) -> SourceOptions:
    """The operator's own options, with these above them. `read` is of the job namespace.

    Names that mean nothing to a source are left out. Raises SourceDenied (CredentialsMissing) for a Secret, or a key in
    it, that is not there.
    """
    if not entries:
        return own
    given = {each.name: each.value if not each.secret else _held(each, read) for each in entries}
    return replace(own, env={**own.env, **SourceOptions.from_environ(given).env})


def _held(entry: EnvEntry, read: Callable[[str, str], Mapping[str, Any] | None]) -> str:
    data = (read("Secret", entry.secret) or {}).get("data") or {}
    if entry.key not in data:
        raise SourceDenied(
            f"Secret {entry.secret} of the job namespace has no key {entry.key!r}, which a ClusterStorageContainer"
            f" names for {entry.name}",
            reason="CredentialsMissing",
        )
    return base64.b64decode(data[entry.key]).decode(errors="replace")
