"""What object stores mean by the codes of their errors, which say more than a status: one table for all of them.

    code (of a body, a header, or a library's exception)  ──►  error class, reason, next step

    ObjectArchived       restore it first                          Glacier, Deep Archive, Azure's archive tier
    KeyUnavailable       the key that it is encrypted with         KMS, customers' keys
    CredentialsInvalid   the keys themselves are wrong             an unknown access key, a wrong signature
    SourceExpired        they were right and have ended            session tokens, links
    ClockSkewed          this machine's clock is wrong
    WrongRegion          the bucket is somewhere else
    RequesterPays        somebody has to be named who pays

What no code names keeps the meaning of its status: see `answers.translate_status`. Of what a store says only the
code is passed on: its text may quote what was sent. Pure.

https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html
https://learn.microsoft.com/rest/api/storageservices/blob-service-error-codes
https://cloud.google.com/storage/docs/json_api/v1/status-codes
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

from actors.errors import (
    SourceChanged,
    SourceDenied,
    SourceError,
    SourceExpired,
    SourceNotFound,
    SourceThrottled,
    SourceUnsupported,
)

MAX_BODY_BYTES = 64 << 10
"""Of an answer that is an error; what comes after it is not looked at."""

_CODE = re.compile(r"[A-Za-z][\w.-]{1,63}")
_XML_CODE = re.compile(rb"<Code>\s*([\w.-]{2,64})\s*</Code>")
_XML_TEXT = re.compile(rb"<(?:Message|AuthenticationErrorDetail)>([^<]{0,2000})")
_REGION = re.compile(r"[a-z0-9-]{2,32}")
_XML_REGION = re.compile(rb"<Region>\s*([a-z0-9-]{2,32})\s*</Region>")


@dataclass(frozen=True, slots=True)
class Refusal:
    """What a store said: its code, its text, which is only looked into, and the bucket's region if it named one."""

    code: str
    text: str = ""
    region: str | None = None


@dataclass(frozen=True, slots=True)
class Meaning:
    """`reason`: None is the class's own."""

    error: type[SourceError]
    advice: str
    reason: str | None = None


_ARCHIVED = Meaning(
    SourceDenied,
    "it is archived: restore it first (for S3: aws s3api restore-object), or leave it out",
    "ObjectArchived",
)
_RESTORING = Meaning(
    SourceError, "it is archived and being restored: it can be read once that is done", "ObjectArchived"
)
_KEY = Meaning(
    SourceDenied,
    "the key that it is encrypted with is disabled, deleted, or not for these credentials",
    "KeyUnavailable",
)
_UNKNOWN_KEY = Meaning(
    SourceDenied, "the access key is not known there: correct it, or the endpoint", "CredentialsInvalid"
)
_WRONG_KEY = Meaning(
    SourceDenied,
    "the signature does not fit: the secret key is wrong, or a proxy changes requests",
    "CredentialsInvalid",
)
_EXPIRED = Meaning(SourceExpired, "what it was asked with has expired")
_CLOCK = Meaning(SourceError, "the clock of this machine is wrong by too much: synchronise it", "ClockSkewed")
_REGION_WRONG = Meaning(
    SourceUnsupported, "the bucket is in another region{region}: set the region, or the endpoint", "WrongRegion"
)
_PAYS = Meaning(SourceDenied, "whoever reads it pays for it, and nobody is named who does", "RequesterPays")
_DENIED = Meaning(SourceDenied, "a policy of the bucket or of the account does not allow it to these credentials")
_NETWORK = Meaning(SourceDenied, "its network rules do not allow this address, or its policy these credentials")
_DISABLED = Meaning(SourceDenied, "the account is disabled or has a problem: its owner has to be asked")
_ABSENT = Meaning(SourceNotFound, "there is no such object")
_NO_BUCKET = Meaning(SourceNotFound, "the bucket does not exist: correct its name, or the endpoint")
_THROTTLED = Meaning(SourceThrottled, "too many requests")
_CHANGED = Meaning(SourceChanged, "the object is another than when it was listed")

_MEANINGS: Mapping[str, Meaning] = {
    # S3, and what speaks like it
    "InvalidObjectState": _ARCHIVED,
    "RestoreAlreadyInProgress": _RESTORING,
    "InvalidAccessKeyId": _UNKNOWN_KEY,
    "SignatureDoesNotMatch": _WRONG_KEY,
    "InvalidSecurity": _WRONG_KEY,
    "ExpiredToken": _EXPIRED,
    "ExpiredTokenException": _EXPIRED,
    "TokenRefreshRequired": _EXPIRED,
    "RequestExpired": _EXPIRED,
    "InvalidToken": _UNKNOWN_KEY,
    "InvalidClientTokenId": _UNKNOWN_KEY,
    "RequestTimeTooSkewed": _CLOCK,
    "PermanentRedirect": _REGION_WRONG,
    "TemporaryRedirect": _REGION_WRONG,
    "AuthorizationHeaderMalformed": _REGION_WRONG,
    "IllegalLocationConstraintException": _REGION_WRONG,
    "AccessDenied": _DENIED,
    "AllAccessDisabled": _DENIED,
    "AccountProblem": _DISABLED,
    "NotSignedUp": _DISABLED,
    "NoSuchBucket": _NO_BUCKET,
    "NoSuchKey": _ABSENT,
    "NoSuchVersion": _ABSENT,
    "PreconditionFailed": _CHANGED,
    "SlowDown": _THROTTLED,
    "ServiceUnavailable": _THROTTLED,
    "RequestLimitExceeded": _THROTTLED,
    "Throttling": _THROTTLED,
    "ThrottlingException": _THROTTLED,
    "TooManyRequests": _THROTTLED,
    # Azure
    "BlobArchived": _ARCHIVED,
    "BlobBeingRehydrated": _RESTORING,
    "BlobNotFound": _ABSENT,
    "ResourceNotFound": _ABSENT,
    "ContainerNotFound": _NO_BUCKET,
    "ContainerBeingDeleted": _NO_BUCKET,
    "AuthenticationFailed": _WRONG_KEY,
    "InvalidAuthenticationInfo": _WRONG_KEY,
    "NoAuthenticationInformation": Meaning(SourceDenied, "it wants credentials"),
    "AuthorizationFailure": _NETWORK,
    "AuthorizationPermissionMismatch": _DENIED,
    "AuthorizationSourceIPMismatch": _NETWORK,
    "InsufficientAccountPermissions": _DENIED,
    "PublicAccessNotPermitted": Meaning(SourceDenied, "it wants credentials: the account allows nothing to everybody"),
    "AccountIsDisabled": _DISABLED,
    "KeyVaultAccessTokenCannotBeAcquired": _KEY,
    "KeyVaultEncryptionKeyNotFound": _KEY,
    "KeyVaultVaultNotFound": _KEY,
    "ServerBusy": _THROTTLED,
    "OperationTimedOut": _THROTTLED,
    # Google
    "UserProjectMissing": _PAYS,
    "userProjectMissing": _PAYS,
    "userProjectAccessDenied": _PAYS,
    "UserProjectAccessDenied": _PAYS,
    "accountDisabled": _DISABLED,
    "rateLimitExceeded": _THROTTLED,
    "userRateLimitExceeded": _THROTTLED,
    "cloudKmsDisabledKey": _KEY,
    "cloudKmsDisabledCryptoKeyVersion": _KEY,
    "cloudKmsPermissionDenied": _KEY,
    "cloudKmsCryptoKeyNotFound": _KEY,
    "conditionNotMet": _CHANGED,
}
_BY_TEXT: tuple[tuple[frozenset[str], str, Meaning], ...] = (
    (frozenset({"AccessDenied"}), "expired", _EXPIRED),
    (frozenset({"AccessDenied"}), "kms", _KEY),
    (frozenset({"AccessDenied"}), "requester pays", _PAYS),
    (frozenset({"AuthenticationFailed"}), "signature not valid in the specified time frame", _EXPIRED),
    (frozenset({"AuthenticationFailed"}), "signature fields not well formed", _WRONG_KEY),
    (frozenset({"AuthenticationFailed"}), "date header", _CLOCK),
    (frozenset({"AuthenticationFailed", "InvalidAuthenticationInfo"}), "expired", _EXPIRED),
    (frozenset({"InvalidRequest", "InvalidArgument"}), "server side encryption", _KEY),
    (frozenset({"InvalidRequest", "InvalidArgument"}), "requester pays", _PAYS),
)
"""Where one code stands for several things, a word of the text tells."""


def refusal_of(headers: Mapping[str, str], body: bytes = b"") -> Refusal | None:
    """What an error answer says beside its status. `headers` by any case of their names; `body`: its beginning."""
    lower = {name.lower(): value for name, value in headers.items()}
    region = lower.get("x-amz-bucket-region", "")
    known = region if _REGION.fullmatch(region) else None
    named = next((lower[name] for name in ("x-ms-error-code", "x-amz-error-code") if name in lower), "")
    body = body[:MAX_BODY_BYTES]
    if xml := _XML_CODE.search(body):
        text, where = _XML_TEXT.findall(body), _XML_REGION.search(body)
        known = where[1].decode() if where else known
        return Refusal(xml[1].decode("ascii", "replace"), b" ".join(text).decode(errors="replace"), known)
    if _CODE.fullmatch(named):
        return Refusal(named, "", known)
    return _of_json(body) if body.lstrip()[:1] == b"{" else None


def _of_json(body: bytes) -> Refusal | None:
    """Google's `{"error": {"errors": [{"reason": …}], "message": …}}`."""
    try:
        error = json.loads(body)["error"]
        code, text = error["errors"][0]["reason"], error.get("message")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None
    return Refusal(code, str(text)) if isinstance(code, str) and _CODE.fullmatch(code) else None


def meaning_of(refusal: Refusal) -> Meaning | None:
    """None: the code says nothing that the status does not."""
    text = refusal.text.lower()
    special = (meaning for codes, word, meaning in _BY_TEXT if refusal.code in codes and word in text)
    if (found := next(special, None)) is not None:
        return found
    if refusal.code.startswith("KMS."):
        return _THROTTLED if "Throttl" in refusal.code else _KEY
    return _MEANINGS.get(refusal.code)


def error_of(where: str, said: str, refusal: Refusal, retry_after_s: float | None = None) -> SourceError | None:
    """The error that it stands for; None as in `meaning_of`. `where` and `said` begin the message."""
    meaning = meaning_of(refusal)
    if meaning is None:
        return None
    region = f" ({refusal.region})" if refusal.region else ""
    text = f"{where} {said} {refusal.code}: {meaning.advice.format(region=region)}"
    return meaning.error(text, reason=meaning.reason, retry_after_s=retry_after_s)


def archived(
    where: str, storage_class: str | None, archive_status: str | None, restore: str | None
) -> SourceError | None:
    """Why an object cannot be read that is in an archive, by what its description says; None: it can be.

    S3's classes and its `x-amz-restore`; Intelligent-Tiering's archive tiers; Azure's tier `Archive`. Google's class
    ARCHIVE is read like any other.
    """
    tier = archive_status or storage_class or ""
    if tier not in ("GLACIER", "DEEP_ARCHIVE", "ARCHIVE_ACCESS", "DEEP_ARCHIVE_ACCESS", "Archive"):
        return None
    if restore and 'ongoing-request="false"' in restore:
        return None
    meaning = _RESTORING if restore and 'ongoing-request="true"' in restore else _ARCHIVED
    return meaning.error(f"{where} is in the storage class {tier}: {meaning.advice}", reason=meaning.reason)
