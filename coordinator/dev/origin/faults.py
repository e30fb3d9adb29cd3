"""What a test origin does wrong on demand. Set in-process through `Origin.faults`, or over HTTP at `/_faults`.

curl -X PUT    $ORIGIN/_faults -d '[{"path": "*.safetensors", "status": 429, "retry_after": "2", "times": 3}]'
curl -X DELETE $ORIGIN/_faults
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that goes wrong for requests whose URL path matches the glob `path` (`*` also matches `/`).

    The bytes of LFS files travel from `/_cdn/…`, after a redirect from `/{repo}/resolve/…`: `path` can name either.
    Several may be set in one fault; `times` None means until cleared.
    """

    path: str = "*"
    times: int | None = None
    method: str | None = None
    latency_s: float = 0.0
    status: int | None = None
    """Answer this instead; with `retry_after`, that header (seconds or an HTTP-date)."""
    retry_after: str | None = None
    location: str | None = None
    """With a redirect as `status`: where to."""
    etag: str | None = None
    """Send this ETag instead of the true one."""
    content_range: str | None = None
    """Send this Content-Range instead of the true one."""
    corrupt_bytes: int = 0
    """Flip this many bytes at the start of the body; its length stays right."""
    truncate_bytes: int = 0
    """Send, and declare in Content-Length, this many bytes less than were asked for."""
    extra_bytes: int = 0
    """Send, and declare in Content-Length, this many bytes more than were asked for."""
    drop_after_bytes: int | None = None
    """Close the connection after this much of the body, short of the declared Content-Length."""
    stall_after_bytes: int | None = None
    """Send nothing for `stall_s` after this much of the body, then go on."""
    stall_s: float = 3600.0
    trickle_bytes_per_s: float | None = None
    """Send the body this slowly, in the smallest pieces."""


class Faults:
    """The faults in force. The first that matches a request is used. Any thread may call anything."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._left: list[tuple[Fault, int | None]] = []

    def set(self, *faults: Fault) -> None:
        """Exactly these, from now on."""
        with self._lock:
            self._left = [(fault, fault.times) for fault in faults]

    def clear(self) -> None:
        self.set()

    def load(self, documents: Iterable[dict[str, object]]) -> None:
        """`set` from JSON. Raises TypeError for a field that no fault has."""
        self.set(*(Fault(**document) for document in documents))  # type: ignore[arg-type]  # checked by the tests that send it

    def active(self) -> list[dict[str, object]]:
        """The faults in force and not used up, as JSON; `times` is how often each still happens."""
        with self._lock:
            return [{**asdict(fault), "times": left} for fault, left in self._left if left != 0]

    def take(self, method: str, path: str) -> Fault | None:
        """The fault for this request, one of its `times` used up; None: serve it well."""
        with self._lock:
            for number, (fault, left) in enumerate(self._left):
                if left == 0 or not fnmatchcase(path, fault.path) or fault.method not in (None, method):
                    continue
                if left is not None:
                    self._left[number] = (fault, left - 1)
                return fault
        return None
