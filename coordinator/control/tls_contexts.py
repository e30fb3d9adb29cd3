"""The TLS context that the next connection is accepted with: of files, else of what was made; anew when it changes."""

from __future__ import annotations

import logging
import ssl
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

from coordinator.control.certificates import KeyPair

_log = logging.getLogger(__name__)


class TlsContexts:
    """Any thread."""

    def __init__(self, folder: Path, settings: Callable[[ssl.SSLContext], None] = lambda context: None) -> None:
        """`folder` holds `tls.crt` and `tls.key`, or nothing; `settings` are applied to every context."""
        self.certificate, self.key = folder / "tls.crt", folder / "tls.key"
        self._settings = settings
        self._lock = threading.Lock()
        self._seen: object = None
        self._of_files: ssl.SSLContext | None = None
        self._pair: KeyPair | None = None
        self._of_pair: ssl.SSLContext | None = None

    @property
    def mounted(self) -> bool:
        """Whether there are files."""
        return self.certificate.exists() and self.key.exists()

    def current(self) -> ssl.SSLContext | None:
        """None: there is no certificate yet. While new files cannot be loaded the last ones are kept."""
        seen = tuple(_look(path) for path in (self.certificate, self.key))
        with self._lock:
            if None in seen:
                return self._of_files or self._of_pair
            if seen != self._seen:
                try:
                    self._of_files = self._load(self.certificate, self.key)
                except OSError as error:  # of ssl, too: they are being written, or do not belong together
                    _log.warning("cannot load the certificate of the webhooks", extra={"error": str(error)})
                else:
                    self._seen = seen
            return self._of_files or self._of_pair

    def show(self, pair: KeyPair) -> None:
        """From now on, unless there are files. Raises OSError for a pair that does not belong together."""
        if pair == self._pair:
            return
        with tempfile.TemporaryDirectory(prefix="localmodel-webhook-") as name:
            certificate, key = Path(name) / "tls.crt", Path(name) / "tls.key"
            certificate.write_bytes(pair.certificate)
            key.touch(mode=0o600)
            key.write_bytes(pair.key)
            context = self._load(certificate, key)
        with self._lock:
            self._pair, self._of_pair = pair, context

    def _load(self, certificate: Path, key: Path) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key, password="")
        context.set_alpn_protocols(["http/1.1"])
        self._settings(context)
        return context


def _look(path: Path) -> tuple[int, int, int] | None:
    """Differs when the file does, also one that a link was turned to, as in a mounted Secret."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ino, status.st_size
