"""The errors of the data plane, and the value they become when they cross a process.

    LocalModelError
    ├── SourceError            retryable
    │   ├── SourceNotFound     permanent (404)
    │   ├── SourceDenied       permanent (401, 403)
    │   ├── SourceUnsupported  permanent (no such scheme, or its package is not installed)
    │   ├── SourceThrottled    retryable, carries retry_after_s (429, 503)
    │   └── SourceChanged      retryable: start over from a fresh manifest
    │       └── SourceExpired  retryable: the same files, at fresh locations
    ├── IntegrityError         refetched once, then permanent
    │   └── SignatureInvalid   permanent: not signed as it must be
    ├── InsufficientStorage    until capacity changes
    │   └── Evicted            until there is room beside what it made room for
    └── StoreError             retryable

A foreign exception is translated once, where it enters, with `from`. Messages are redacted when they are made.
"Permanent" means that trying again cannot help before somebody changes something; it is still tried, at the slowest
pace, so that recovery needs no person.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from actors.redaction import redacted

_FINAL = frozenset({"InvalidURI", "PackageMissing", "SchemeNotAllowed", "InvalidProxy"})


@dataclass(frozen=True, slots=True)
class Failure:
    """What went wrong, as a value. `reason` is CamelCase for machines; `message` is for `kubectl describe`."""

    reason: str
    message: str
    retryable: bool = True
    retry_after_s: float | None = None

    @property
    def final(self) -> bool:
        """Whether nothing will change by itself: what was asked for, or this installation, must be another."""
        return self.reason in _FINAL

    def __post_init__(self) -> None:
        object.__setattr__(self, "message", redacted(self.message))


class LocalModelError(Exception):
    """Base of everything this project raises on purpose. The message names the thing, the number and the next step."""

    retryable: ClassVar[bool] = True

    def __init__(self, message: str, *, reason: str | None = None, retry_after_s: float | None = None) -> None:
        super().__init__(redacted(message))
        self.reason = reason or type(self).__name__
        self.retry_after_s = retry_after_s

    def failure(self) -> Failure:
        """The same error as a value that may leave the process."""
        return Failure(self.reason, str(self), self.retryable, self.retry_after_s)


class SourceError(LocalModelError):
    """The origin did not answer as it should: unreachable, reset, timed out, 5xx."""


class SourceNotFound(SourceError):
    """The origin has no such repository, revision, bucket, prefix or file."""

    retryable = False


class SourceDenied(SourceError):
    """The origin wants (other) credentials."""

    retryable = False


class SourceUnsupported(SourceError):
    """No reader for this URI. The message names the scheme, and the extra to install where there is one."""

    retryable = False


class SourceThrottled(SourceError):
    """The origin asked us to slow down. `retry_after_s` is what it named, or None."""


class SourceChanged(SourceError):
    """The file is no longer the one the manifest was made from (ETag, length, revision)."""


class SourceExpired(SourceChanged):
    """A location is no longer good: its signature or its token ended, or was revoked. Nothing says that files changed.

    So it is told apart from SourceChanged: fresh locations for the same files are enough.
    """


class IntegrityError(LocalModelError):
    """Bytes of the right length that are not the right bytes."""

    retryable = False


class SignatureInvalid(IntegrityError):
    """The files are what their source says, but not signed as they must be."""


class InsufficientStorage(LocalModelError):
    """Does not fit. The message carries needed, free, limit and reserved bytes."""


class Evicted(InsufficientStorage):
    """It was here, and made room for another model."""


class StoreError(LocalModelError):
    """The local disk refused: permission, read-only, I/O error, or a path that is not ours."""


class Cancelled(Exception):
    """The fill was told to end. Its bytes stay in the ingest."""
