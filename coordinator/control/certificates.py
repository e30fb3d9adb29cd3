"""Certificates for the webhooks where nobody else makes them: an authority for one certificate, and its key forgotten.

    issue ──► authority (its key is thrown away) ──signs──► certificate, key       for the names of one Service

To trust the authority is to trust this one certificate. So a new certificate brings a new authority, and for as long
as replicas may still show the old one the bundle holds both.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

LIFETIME = timedelta(days=90)
RENEWED_AT = 2 / 3
"""The share of its life after which a certificate is replaced."""
_SKEW = timedelta(hours=1)
"""How far an API server's clock may be behind."""


@dataclass(frozen=True, slots=True)
class KeyPair:
    """PEM: a certificate with its key, and the authorities that clients are to trust."""

    certificate: bytes
    key: bytes
    authorities: bytes


@dataclass(frozen=True, slots=True)
class Validity:
    """What a certificate says of itself. Times are epoch seconds."""

    begins: float
    ends: float
    names: frozenset[str]

    def is_due(self, now: float) -> bool:
        """Whether it should be replaced by now."""
        return now >= self.begins + (self.ends - self.begins) * RENEWED_AT


def issue(names: Sequence[str], now: float, *, trusted: bytes = b"", lifetime: timedelta = LIFETIME) -> KeyPair:
    """A new certificate for DNS names and addresses. Of `trusted`, what has not expired is kept beside."""
    begins = datetime.fromtimestamp(now, UTC) - _SKEW
    ends = datetime.fromtimestamp(now, UTC) + lifetime
    root, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    issuer = _named(f"{names[0]} authority")
    constraints = x509.BasicConstraints(ca=True, path_length=0)
    usage = _usage(key_cert_sign=True, crl_sign=True)
    identity = x509.SubjectKeyIdentifier.from_public_key(root.public_key())
    authority = (
        _builder(issuer, issuer, root.public_key(), begins, ends)
        .add_extension(constraints, critical=True)
        .add_extension(usage, critical=True)
        .add_extension(identity, critical=False)
        .sign(root, hashes.SHA256())
    )
    certificate = (
        _builder(_named(names[0]), issuer, key.public_key(), begins, ends)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([_alternative(name) for name in names]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identity), critical=False)
        .sign(root, hashes.SHA256())
    )
    return KeyPair(
        certificate.public_bytes(serialization.Encoding.PEM),
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
        authority.public_bytes(serialization.Encoding.PEM) + unexpired(trusted, now),
    )


def validity(certificate: bytes) -> Validity | None:
    """Of the first certificate in the PEM; None where it cannot be read."""
    found = _read(certificate)
    if not found:
        return None
    try:
        alternative = found[0].extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        names = frozenset[str]()
    else:
        addresses = alternative.get_values_for_type(x509.IPAddress)
        names = frozenset([*alternative.get_values_for_type(x509.DNSName), *map(str, addresses)])
    begins, ends = found[0].not_valid_before_utc, found[0].not_valid_after_utc
    return Validity(begins.timestamp(), ends.timestamp(), names)


def unexpired(authorities: bytes, now: float) -> bytes:
    """Those of a bundle that are still valid, in its order."""
    return b"".join(
        each.public_bytes(serialization.Encoding.PEM)
        for each in _read(authorities)
        if each.not_valid_after_utc.timestamp() > now
    )


def _read(pem: bytes) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(pem) if pem.strip() else []
    except (ValueError, UnsupportedAlgorithm):
        return []


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, begins: datetime, ends: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begins)
        .not_valid_after(ends)
    )


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])


def _alternative(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _usage(*, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
