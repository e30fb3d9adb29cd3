"""Certificates for servers and nodes of tests and benchmarks: good, and each way of bad.

    authority ── signs ──► good | expired | elsewhere (another host's name) | one for each peer

Made by `openssl`, so that no package is needed for it.
"""

from __future__ import annotations

import ssl
import subprocess
from collections.abc import Sequence
from pathlib import Path

from actors.peers.tls import TlsFiles

HERE = "subjectAltName=IP:127.0.0.1,DNS:localhost"
NO_IDENTIFIERS = ("subjectKeyIdentifier=none", "authorityKeyIdentifier=none")
AUTHORITIES = {
    "complete": ("basicConstraints=critical,CA:true", "keyUsage=critical,keyCertSign,cRLSign"),
    "without key usage": ("basicConstraints=critical,CA:true",),
    "without key identifiers": ("basicConstraints=critical,CA:true", "keyUsage=keyCertSign", *NO_IDENTIFIERS),
    "with basic constraints that are not critical": ("basicConstraints=CA:true", "keyUsage=critical,keyCertSign"),
    "with none of these": ("basicConstraints=CA:true", *NO_IDENTIFIERS),
}
"""What authorities say of themselves. RFC 5280 asks for the first; in companies and old clusters all are found."""
_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")


class Authority:
    """A certificate authority with a folder; `file` is what a client must trust."""

    def __init__(self, folder: Path, extensions: Sequence[str] = AUTHORITIES["complete"]) -> None:
        """`extensions` are of its own certificate, in OpenSSL's words. Those it signs name its key where it does."""
        folder.mkdir(parents=True)
        self.folder = folder
        self.file = folder / "ca.pem"
        self._peers = 0
        self._identifiers = [each for each in extensions if each in NO_IDENTIFIERS]
        lines = ["[req]", "distinguished_name=name", "[name]", "[ca]", "subjectKeyIdentifier=hash", *extensions]
        (folder / "ca.cnf").write_text("\n".join(lines))
        made = ("-config", "ca.cnf", "-extensions", "ca", "-subj", "/CN=test CA", "-days", "2")
        self._run("req", "-x509", *_KEY, "-keyout", "ca.key", "-out", "ca.pem", *made)

    def good(self) -> ssl.SSLContext:
        return self._context("good", HERE, days=2)

    def expired(self) -> ssl.SSLContext:
        return self._context("expired", HERE, days=-1)

    def elsewhere(self) -> ssl.SSLContext:
        return self._context("elsewhere", "subjectAltName=DNS:elsewhere.example", days=2)

    def peer(self, *, days: int = 2) -> TlsFiles:
        """What a node is given: another certificate every time."""
        self._peers += 1
        return self.issue(f"peer-{self._peers}", days=days)

    def issue(self, name: str, names: str = HERE, *, days: int = 2) -> TlsFiles:
        """A certificate for these names, its key, and the authority, in files."""
        (self.folder / "names").write_text("\n".join([names, *self._identifiers]))
        self._run("req", *_KEY, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", "/CN=test")
        signed = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", "names")
        self._run("x509", "-req", "-in", f"{name}.csr", "-days", str(days), *signed, "-out", f"{name}.pem")
        return TlsFiles(self.folder / f"{name}.pem", self.folder / f"{name}.key", self.file)

    def _context(self, name: str, names: str, *, days: int) -> ssl.SSLContext:
        files = self.issue(name, names, days=days)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(files.certificate, files.key)
        return context

    def _run(self, *arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=self.folder, check=True, capture_output=True)
