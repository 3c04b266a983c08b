"""A certificate authority for development, in a directory. Needs the cryptography library."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    EllipticCurvePrivateKey,
    generate_private_key,
)
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

AUTHORITY_DAYS = 825
_HOST = re.compile(r"(\*\.)?[A-Za-z0-9]([A-Za-z0-9_.-]{0,251}[A-Za-z0-9])?")
_BACK = timedelta(minutes=5)
"""For clocks that are late."""


class AuthorityError(Exception):
    """What lies in the directory is no authority that can sign."""


class Authority:
    """Signs certificates. One that is in its directory already goes on, so that who trusts it
    trusts what it signs now too."""

    def __init__(self, directory: Path) -> None:
        """Raises AuthorityError."""
        self._directory = directory
        self._certificate, self._key = self._found() or self._made()

    def issue(self, name: str, hosts: Sequence[str], days: int, *, server: bool) -> None:
        """Write `name`.crt and `name`.key, of a server at `hosts` or of a client so called.

        Raises AuthorityError for files that are there and were not made here.
        """
        self._check_is_ours(self._directory / f"{name}.crt")
        key = generate_private_key(SECP256R1())
        purpose = ExtendedKeyUsageOID.SERVER_AUTH if server else ExtendedKeyUsageOID.CLIENT_AUTH
        certificate = (
            _begun(_name(hosts[0]), self._certificate.subject, key, days)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
            .add_extension(x509.SubjectAlternativeName([*map(_general, hosts)]), critical=False)
            .sign(self._key, SHA256())
        )
        _write(self._directory / name, certificate, key)

    def _check_is_ours(self, path: Path) -> None:
        """Raises AuthorityError for a certificate by somebody else, which is not written over."""
        key = path.with_suffix(".key")
        if not path.exists() and not key.exists():
            return
        try:
            certificate = x509.load_pem_x509_certificate(path.read_bytes())
            certificate.verify_directly_issued_by(self._certificate)
        except (OSError, ValueError, TypeError, InvalidSignature):
            raise AuthorityError(
                f"{path} and {key} were not made by this authority, and are not written over;"
                " choose another directory"
            ) from None

    def _found(self) -> tuple[x509.Certificate, EllipticCurvePrivateKey] | None:
        known, secret = self._directory / "ca.crt", self._directory / "ca.key"
        if not known.exists() and not secret.exists():
            return None
        if not known.exists() or not secret.exists():
            raise AuthorityError(
                f"of {known} and {secret} one is missing, and the other is not written over; choose"
                " another directory"
            )
        try:
            certificate = x509.load_pem_x509_certificate(known.read_bytes())
            key = load_pem_private_key(secret.read_bytes(), None)
        except (ValueError, TypeError) as error:
            raise AuthorityError(
                f"{known} and {secret} are no certificate and its key: {error}; remove both"
            ) from None
        if not isinstance(key, EllipticCurvePrivateKey):
            raise AuthorityError(f"{secret} is another kind of key than is made here; remove it")
        if key.public_key() != certificate.public_key():
            raise AuthorityError(f"{secret} is not the key of {known}; remove both")
        return (certificate, key) if certificate.not_valid_after_utc > datetime.now(UTC) else None

    def _made(self) -> tuple[x509.Certificate, EllipticCurvePrivateKey]:
        key = generate_private_key(SECP256R1())
        name = _name("Headrace development authority")
        certificate = (
            _begun(name, name, key, AUTHORITY_DAYS)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(signs=True), critical=True)
            .sign(key, SHA256())
        )
        _write(self._directory / "ca", certificate, key)
        return certificate, key


def _begun(
    subject: x509.Name, issuer: x509.Name, key: EllipticCurvePrivateKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACK)
        .not_valid_after(now + timedelta(days=days))
    )


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs,
        key_cert_sign=signs,
        crl_sign=signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _general(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(host))
    except ValueError:
        if not _HOST.fullmatch(host):
            raise ValueError(f"{host!r} is neither a host's name nor an address") from None
        return x509.DNSName(host)


def _write(place: Path, certificate: x509.Certificate, key: EllipticCurvePrivateKey) -> None:
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    path = place.with_suffix(".key")
    path.unlink(missing_ok=True)  # One that others may read would stay so.
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(secret)
    place.with_suffix(".crt").write_bytes(certificate.public_bytes(Encoding.PEM))
