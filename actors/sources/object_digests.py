"""What an object store knows of the bytes of an object: a digest, else a checksum, and the ETag.

S3           asked of each object (`s3_head`)
GCS, Azure   comes with the listing (`described`)
"""

from __future__ import annotations

import base64
import errno
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from actors import numbers
from actors.digest import CHECKSUMS
from actors.manifest import Digest
from actors.transport.refusals import archived

_UNKNOWN_TO_THE_STORE = frozenset({errno.EINVAL, errno.EPERM, errno.ENOSYS})  # s3fs's for 400, 405 and 501
_ETAG = re.compile(r'"?([0-9a-f]{32})(?:-(\d+))?"?')


@dataclass(frozen=True, slots=True)
class Head:
    size: int
    etag: str
    digest: Digest | None
    checksum: Digest | None


def s3_head(filesystem: Any, name: str) -> Head:
    """What S3 says of one object. https://docs.aws.amazon.com/AmazonS3/latest/API/API_HeadObject.html

    A sha256 if the object was uploaded with one. The ETag is an MD5 of objects that were uploaded in one part, and an
    MD5 of the parts' MD5s of others, unless they are encrypted with a key of the customer's or of KMS. Where neither
    can be compared (so also if the parts were of several sizes), S3's checksum of the whole object can.
    https://docs.aws.amazon.com/AmazonS3/latest/userguide/checking-object-integrity-upload.html
    """
    bucket, _, key = name.partition("/")

    def head(**more: object) -> Mapping[str, Any]:
        answer: Mapping[str, Any] = filesystem.call_s3("head_object", Bucket=bucket, Key=key, **more)
        return answer

    answer = head(ChecksumMode="ENABLED")
    classes = answer.get("StorageClass"), answer.get("ArchiveStatus")
    if (error := archived(f"s3://{name}", *classes, answer.get("Restore"))) is not None:
        raise error
    size, etag = numbers.count(answer["ContentLength"]), answer["ETag"]
    of_whole = answer if answer.get("ChecksumType", "FULL_OBJECT") == "FULL_OBJECT" else {}
    digest = _checksum("sha256", of_whole.get("ChecksumSHA256"))
    plain = answer.get("ServerSideEncryption", "AES256") == "AES256" and "SSECustomerAlgorithm" not in answer
    if digest is None and plain:
        match = _ETAG.fullmatch(etag)
        if match and match[2] is None:
            digest = Digest(f"md5:{match[1]}")
        elif match and (part := _part_bytes(head, etag, size, int(match[2]))) is not None:
            digest = Digest(f"md5-{part}:{match[1]}-{match[2]}")
    found = (_checksum(algorithm, of_whole.get(f"Checksum{algorithm.upper()}")) for algorithm in CHECKSUMS)
    return Head(size, etag, digest, None if digest else next(filter(None, found), None))


def _part_bytes(head: Callable[..., Mapping[str, Any]], etag: str, size: int, count: int) -> int | None:
    """How large the parts were that an object was uploaded in, all but the last; None if they were not of one size.

    Asked of the first and of the one in the middle: if those are of one size, and it fits, all are.
    """
    sizes = set()
    for number in {1, max(count // 2, 1)}:
        try:
            answer = head(PartNumber=number)
        except OSError as error:
            if error.errno in _UNKNOWN_TO_THE_STORE:
                return None
            raise
        if answer["ETag"] != etag or (count > 1 and numbers.count(answer["ContentLength"]) == size):
            return None  # a store that does not know parts answers for the whole
        sizes.add(numbers.count(answer["ContentLength"]))
    part = sizes.pop()
    return part if not sizes and part > 0 and -(-size // part) == count else None


def described(info: Mapping[str, Any]) -> tuple[Digest | None, Digest | None, str | None]:
    """The digest, else the checksum, and the ETag of an object in a listing; what holds for its bytes over HTTP, too.

    Google: `md5Hash`, which composite objects lack, and `crc32c`. Azure: the Content-MD5 that the uploader gave, and
    the ETag.
    """
    md5, etag = info.get("md5Hash"), info.get("etag")
    if isinstance(md5, str):
        md5 = base64.b64decode(md5)
    elif (settings := info.get("content_settings")) is not None:
        md5 = settings.get("content_md5")
    digest = Digest(f"md5:{bytes(md5).hex()}") if md5 else None
    checksum = None if digest else _checksum("crc32c", info.get("crc32c"))
    return digest, checksum, etag if isinstance(etag, str) and etag.startswith('"') else None


def _checksum(algorithm: str, encoded: object) -> Digest | None:
    """From base64. None if it is one of the parts' checksums, to which S3 adds `-` and how many they are."""
    if not isinstance(encoded, str) or not encoded or "-" in encoded:
        return None
    return Digest(f"{algorithm}:{base64.b64decode(encoded).hex()}")
