"""A part of a file, as fsspec's filesystems read one, in memory for no more than that part.

They take into memory whatever a server answers to a range, which may be the whole file, or have no end.

    S3        read up to one byte more than was asked for
    WebHDFS   no answer is longer than a document may be
    Google    the same
    any       as the library does it
"""

from __future__ import annotations

from typing import Any

from actors.sources.listings import bound_answers


def part_of(filesystem: Any, path: str, start: int, stop: int) -> bytes:
    """What came of bytes `[start, stop)`; it may be fewer, or one more. Raises whatever the library does."""
    protocols = filesystem.protocol if isinstance(filesystem.protocol, tuple) else (filesystem.protocol,)
    if "s3" in protocols:
        import asyncio  # here, because `fill` of everything that is no bucket would wait for it

        task = asyncio.run_coroutine_threadsafe(_of_object(filesystem, path, start, stop), filesystem.loop)
        return task.result()
    bound_answers(filesystem)
    data: bytes = filesystem.cat_file(path, start=start, end=stop)
    return data


async def _of_object(filesystem: Any, path: str, start: int, stop: int) -> bytes:
    bucket, key, _ = filesystem.split_path(path)
    wanted = f"bytes={start}-{stop - 1}"
    answer = await filesystem._call_s3("get_object", Bucket=bucket, Key=key, Range=wanted)
    body, data = answer["Body"], bytearray()
    try:
        while len(data) <= stop - start and (block := await body.read(stop - start + 1 - len(data))):
            data += block
    finally:
        body.close()
    return bytes(data)
