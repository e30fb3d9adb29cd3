"""Where models come from: a URI becomes a `Resolved`, and a range of a file becomes bytes.

The only module, with its room `actors.hub`, that knows fsspec, s3fs and huggingface_hub. Nothing but the `SourceError`
family leaves it.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from actors.errors import SourceChanged, SourceDenied, SourceError, SourceNotFound, SourceThrottled, SourceUnsupported
from actors.origin import redact, translate_status

__all__ = ["read_range", "redact", "translate_status"]

_EXTRAS = {"gs": "gcs", "gcs": "gcs", "az": "azure", "abfs": "azure", "abfss": "azure"}


def read_range(url: str, storage_options: Mapping[str, Any], start: int, stop: int) -> bytes:
    """Bytes `[start, stop)` of a file behind any fsspec URL; exactly that many, so the caller bounds the memory.

    For locations that are not http(s). Raises SourceChanged when the file is shorter, else as `resolve` does.
    """
    import fsspec

    with translated(url):
        filesystem, path = fsspec.core.url_to_fs(url, **storage_options)
        data: bytes = filesystem.cat_file(path, start=start, end=stop)
    if len(data) != stop - start:
        raise SourceChanged(
            f"{redact(url)} ends at byte {start + len(data)}, before {stop}: it changed since it was listed"
        )
    return data


@contextmanager
def translated(url: str) -> Iterator[None]:
    """Whatever fsspec and its filesystems raise inside becomes the SourceError it stands for.

    fsspec has no error contract, so that this is the one place where `Exception` is caught.
    """
    where = redact(url)
    scheme = url.partition("://")[0]
    try:
        yield
    except SourceError:
        raise
    except FileNotFoundError as error:
        raise SourceNotFound(f"{where} does not exist") from error
    except PermissionError as error:
        raise SourceDenied(f"{where} refused the credentials it was given, or wants some: {error}") from error
    except ImportError as error:
        extra = _EXTRAS.get(scheme)
        hint = f"pip install 'localmodel[{extra}]'" if extra else str(error)
        raise SourceUnsupported(f"{scheme}:// needs a package that is not installed: {hint}") from error
    except ValueError as error:
        if "Protocol not known" in str(error):
            raise SourceUnsupported(f"no reader for {scheme}:// ({where})") from error
        raise SourceError(f"{where}: {error}") from error
    except Exception as error:
        if isinstance(error, OSError) and error.errno == errno.EBUSY:  # what s3fs makes of SlowDown and 503
            raise SourceThrottled(f"{where} asks to slow down: {error}") from error
        raise SourceError(f"{where} could not be read: {str(error) or type(error).__name__}") from error
