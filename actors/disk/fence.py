"""The agent that started last may write to a root, and no other.

    <root>/.localmodel/incarnation      its name

An agent that was replaced but still runs, behind a partition for example, finds another name there and stops writing.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import stat

from actors.disk.filesystem import FULL, disk_errors
from actors.disk.handles import NOT_A_FOLDER
from actors.disk.layout import Gone, Layout
from actors.errors import StoreError

_FILE = "incarnation"
_BYTES = 1 << 10
_INCARNATION = re.compile(r"[\w.:-]{1,200}")
_NO_NAME = frozenset({errno.ENOENT, errno.EINVAL, errno.EFBIG, *NOT_A_FOLDER})

_log = logging.getLogger(__name__)


class Fence:
    """`uid` is the user that this process writes as on this disk."""

    def __init__(self, layout: Layout, incarnation: str) -> None:
        """From now on this incarnation is the writer. Raises OSError."""
        self.incarnation = incarnation
        self._layout = layout
        self.uid = self._claim()

    def check(self) -> None:
        """Returns while this incarnation is the writer. Raises StoreError once another one has started."""
        with disk_errors(f"reading {self._layout.own_path / _FILE}"):
            writer = self._writer()
            if _INCARNATION.fullmatch(writer) is None:  # nobody has taken over: an agent leaves its name
                _log.warning("the name of the writer was damaged", extra={"root": str(self._layout.path)})
                self._claim()
                return
        if writer != self.incarnation:
            path = self._layout.path
            raise StoreError(f"agent {writer} has taken over {path}; this one stops writing", reason="Fenced")

    def _writer(self) -> str:
        """The name in the file; "" if it holds none. Raises OSError where that cannot be known."""
        try:
            with self._layout.own() as own:
                return own.read(_FILE, _BYTES).decode()
        except Gone:
            raise
        except UnicodeDecodeError:
            return ""
        except OSError as error:
            if error.errno not in _NO_NAME:
                raise
            return ""

    def _claim(self) -> int:
        """This incarnation is the writer; which user that makes us on this disk."""
        with self._layout.own() as own:
            status = own.status(_FILE)
            if status is not None and not stat.S_ISREG(status.st_mode):
                self._layout.set_aside(own, _FILE, "is not a regular file")
            content = self.incarnation.encode()
            try:
                own.write(_FILE, content)
            except OSError as error:
                if error.errno not in FULL or status is None:
                    raise
                descriptor = own.open(_FILE, os.O_WRONLY)  # its block is there already
                os.pwrite(descriptor, content, 0)
                os.ftruncate(descriptor, len(content))
                os.close(descriptor)
            return own.lstat(_FILE).st_uid
