"""Each thing that an object store can mean has its own reason and its next step, whoever is told of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import pytest

from actors.errors import (
    SourceChanged,
    SourceDenied,
    SourceError,
    SourceExpired,
    SourceNotFound,
    SourceThrottled,
    SourceUnsupported,
)
from actors.fill.range_reader import RangeReader
from actors.manifest import Location, ModelSource
from actors.sources.object_stores import code_in
from actors.sources.options import SourceOptions
from actors.sources.resolve import resolve
from actors.transport.answers import translate_status
from actors.transport.refusals import Refusal, archived, refusal_of
from coordinator import cli
from tests.kit.s3_server import s3

URL, SIGNED = "https://b.example/m/w.bin", "https://b.example/m/w.bin?X-Amz-Signature=s3cret"


def xml(code: str, text: str = "", more: str = "") -> bytes:
    return f'<?xml version="1.0"?>\n<Error><Code>{code}</Code><Message>{text}</Message>{more}</Error>'.encode()


GOOGLE = b'{"error": {"code": 400, "message": "x", "errors": [{"reason": "userProjectMissing", "message": "x"}]}}'


@pytest.mark.parametrize(
    ("status", "headers", "body", "error", "reason", "said"),
    [
        (403, {}, xml("InvalidObjectState"), SourceDenied, "ObjectArchived", "restore it first"),
        (409, {"x-ms-error-code": "BlobArchived"}, b"", SourceDenied, "ObjectArchived", "restore it first"),
        (409, {"X-Ms-Error-Code": "BlobBeingRehydrated"}, b"", SourceError, "ObjectArchived", "being restored"),
        (400, {}, xml("KMS.DisabledException"), SourceDenied, "KeyUnavailable", "KMS.DisabledException: the key that"),
        (400, {}, xml("KMS.NotFoundException"), SourceDenied, "KeyUnavailable", "the key that"),
        (503, {}, xml("KMS.ThrottlingException"), SourceThrottled, "SourceThrottled", "too many requests"),
        (403, {}, xml("AccessDenied", "no kms:Decrypt on key"), SourceDenied, "KeyUnavailable", "the key that"),
        (400, {}, xml("InvalidRequest", "uses Server Side Encryption"), SourceDenied, "KeyUnavailable", "the key that"),
        (403, {}, xml("AccessDenied", "Access Denied"), SourceDenied, "SourceDenied", "a policy of the bucket"),
        (403, {}, xml("AccessDenied", "Request has expired"), SourceExpired, "SourceExpired", "has expired"),
        (400, {}, xml("ExpiredToken"), SourceExpired, "SourceExpired", "has expired"),
        (403, {}, xml("InvalidAccessKeyId"), SourceDenied, "CredentialsInvalid", "access key is not known"),
        (403, {}, xml("SignatureDoesNotMatch"), SourceDenied, "CredentialsInvalid", "the signature does not fit"),
        (403, {}, xml("RequestTimeTooSkewed"), SourceError, "ClockSkewed", "synchronise it"),
        (404, {}, xml("NoSuchBucket"), SourceNotFound, "SourceNotFound", "does not exist"),
        (404, {}, xml("NoSuchKey"), SourceNotFound, "SourceNotFound", "no such object"),
        (
            301,
            {"x-amz-bucket-region": "eu-west-1"},
            xml("PermanentRedirect"),
            SourceUnsupported,
            "WrongRegion",
            "(eu-west-1)",
        ),
        (
            400,
            {},
            xml("AuthorizationHeaderMalformed", "", "<Region>eu-west-3</Region>"),
            SourceUnsupported,
            "WrongRegion",
            "(eu-west-3)",
        ),
        (400, {}, xml("IllegalLocationConstraintException"), SourceUnsupported, "WrongRegion", "region: set"),
        (400, {}, xml("UserProjectMissing"), SourceDenied, "RequesterPays", "whoever reads it pays"),
        (400, {}, GOOGLE, SourceDenied, "RequesterPays", "whoever reads it pays"),
        (503, {"Retry-After": "7"}, xml("SlowDown"), SourceThrottled, "SourceThrottled", "too many requests"),
        (403, {}, xml("AuthenticationFailed", "x"), SourceDenied, "CredentialsInvalid", "the secret key is wrong"),
        (
            403,
            {},
            xml("AuthenticationFailed", "Signature not valid in the specified time frame"),
            SourceExpired,
            "SourceExpired",
            "has expired",
        ),
        (403, {"x-ms-error-code": "AuthorizationPermissionMismatch"}, b"", SourceDenied, "SourceDenied", "a policy"),
        (409, {"x-ms-error-code": "PublicAccessNotPermitted"}, b"", SourceDenied, "SourceDenied", "wants credentials"),
        (412, {}, xml("PreconditionFailed"), SourceChanged, "SourceChanged", "another than when it was listed"),
        (403, {}, xml("SomethingNew"), SourceDenied, "SourceDenied", "answered HTTP 403 SomethingNew: it wants"),
        (500, {}, xml("InternalError"), SourceError, "SourceError", "answered HTTP 500 InternalError"),
        (403, {}, b"<html>no</html>", SourceDenied, "SourceDenied", "answered HTTP 403: it wants"),
        (403, {}, xml("<script>"), SourceDenied, "SourceDenied", "answered HTTP 403: it wants"),
        (403, {}, b"{" * 60_000, SourceDenied, "SourceDenied", "answered HTTP 403: it wants"),
        (403, {"x-ms-error-code": "a b\r\nc"}, b"", SourceDenied, "SourceDenied", "answered HTTP 403: it wants"),
    ],
)
def test_what_a_store_means(
    status: int, headers: Mapping[str, str], body: bytes, error: type[SourceError], reason: str, said: str
) -> None:
    found = translate_status(status, URL, headers, body)
    assert (type(found), found.reason) == (error, reason)
    assert said in str(found)
    assert found.retry_after_s == (7 if "Retry-After" in headers else None)


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (xml("AccessDenied"), SourceExpired),
        (xml("AccessDenied", "Request has expired"), SourceExpired),
        (xml("ExpiredToken"), SourceExpired),
        (xml("InvalidObjectState"), SourceDenied),
        (xml("InvalidAccessKeyId"), SourceDenied),
        (b"", SourceExpired),
    ],
)
def test_a_signed_url_is_taken_for_expired_unless_the_store_says_otherwise(
    body: bytes, error: type[SourceError]
) -> None:
    found = translate_status(403, SIGNED, {}, body)
    assert type(found) is error
    assert "s3cret" not in str(found)
    assert "changed" not in str(found)


def test_the_text_of_a_store_is_looked_into_and_not_passed_on() -> None:
    found = translate_status(403, URL, {}, xml("SignatureDoesNotMatch", "you sent AKIA-s3cret"))
    assert "s3cret" not in str(found)
    assert refusal_of({}, b"x" * (70 << 10) + xml("AccessDenied")) is None, "only the beginning is looked at"


@pytest.mark.parametrize(
    ("storage_class", "status", "restore", "reason"),
    [
        ("STANDARD", None, None, None),
        (None, None, None, None),
        ("GLACIER_IR", None, None, None),
        ("GLACIER", None, None, "ObjectArchived"),
        ("DEEP_ARCHIVE", None, None, "ObjectArchived"),
        ("INTELLIGENT_TIERING", "ARCHIVE_ACCESS", None, "ObjectArchived"),
        ("INTELLIGENT_TIERING", None, None, None),
        ("GLACIER", None, 'ongoing-request="true"', "ObjectArchived"),
        ("GLACIER", None, 'ongoing-request="false", expiry-date="Fri, 21 Dec 2029 00:00:00 GMT"', None),
        ("Archive", None, None, "ObjectArchived"),
        ("ARCHIVE", None, None, None),
    ],
)
def test_what_is_archived_cannot_be_read_until_it_is_restored(
    storage_class: str | None, status: str | None, restore: str | None, reason: str | None
) -> None:
    error = archived("s3://b/k", storage_class, status, restore)
    assert (error.reason if error else None) == reason
    if error is not None:
        assert error.retryable == (restore is not None)


def test_what_a_library_makes_of_an_answer_keeps_its_code() -> None:
    cause = Exception()
    cause.response = {  # type: ignore[attr-defined]  # as botocore's
        "Error": {"Code": "PermanentRedirect", "Message": "x"},
        "ResponseMetadata": {"HTTPHeaders": {"x-amz-bucket-region": "eu-west-1"}},
    }
    outer = PermissionError("Forbidden")
    outer.__cause__ = cause
    assert code_in(outer) == Refusal("PermanentRedirect", "x", "eu-west-1")
    azure = OSError()
    azure.error_code = SimpleNamespace()  # type: ignore[attr-defined]  # as azure's
    assert code_in(azure) is None
    azure.error_code = "BlobArchived"  # type: ignore[attr-defined]  # as azure's
    assert code_in(azure) == Refusal("BlobArchived")
    cause.response = {"Error": {"Code": "403"}}  # type: ignore[attr-defined]  # of a HEAD
    assert code_in(outer) is None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("status", "code", "text", "reason"),
    [
        (403, "AccessDenied", "Access Denied", "SourceDenied"),
        (403, "InvalidAccessKeyId", "", "CredentialsInvalid"),
        (403, "SignatureDoesNotMatch", "", "CredentialsInvalid"),
        (403, "RequestTimeTooSkewed", "", "ClockSkewed"),
        (400, "ExpiredToken", "", "CredentialsExpired"),
        (404, "NoSuchBucket", "", "SourceNotFound"),
        (400, "AuthorizationHeaderMalformed", "", "WrongRegion"),
    ],
)
def test_a_listing_that_is_refused_has_the_reason_of_its_code(status: int, code: str, text: str, reason: str) -> None:
    with s3({"m/a": b"1"}) as server:
        server.refuse = lambda method, key: (status, code, text) if not key else None
        with pytest.raises(SourceError) as caught:
            resolve(ModelSource("s3://bucket/m"), SourceOptions(server.env, timeout_s=5))
        assert caught.value.reason == reason
        assert code in str(caught.value)


@pytest.mark.parametrize(
    ("status", "code", "reason"),
    [
        (403, "InvalidObjectState", "ObjectArchived"),
        (400, "KMS.DisabledException", "KeyUnavailable"),
        (403, "RequestTimeTooSkewed", "ClockSkewed"),
        (404, "NoSuchKey", "SourceNotFound"),
    ],
)
def test_the_engine_reads_the_code_of_a_refused_range_itself(status: int, code: str, reason: str) -> None:
    with s3({"m/a": b"12345"}) as server:
        server.refuse = lambda method, key: (status, code, "")
        reader = RangeReader(stall_timeout_s=5)
        with pytest.raises(SourceError) as caught:
            list(reader.blocks(Location(f"{server.url}/bucket/m/a?X-Amz-Signature=x"), {}, 5, 0, 5))
        assert caught.value.reason == reason
        reader.close()


@pytest.mark.slow
def test_an_archived_object_is_named_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with s3({"m/config.json": b"{}", "m/w.bin": b"x" * 100}) as server:
        server.headers["m/w.bin"] = {"x-amz-storage-class": "DEEP_ARCHIVE"}
        for name, value in server.env.items():
            monkeypatch.setenv(name, value)
        assert cli.main(["fill", "s3://bucket/m", str(tmp_path / "m")]) == 1
        assert "s3://bucket/m/w.bin is in the storage class DEEP_ARCHIVE: it is archived" in capsys.readouterr().err
        assert cli.main(["fill", "s3://bucket/m", str(tmp_path / "m"), "--exclude", "*.bin"]) == 0
