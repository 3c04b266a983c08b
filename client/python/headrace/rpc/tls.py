"""The TLS of a server: certificates from files, which are read again when they change.

A certificate that is replaced on disk holds from the next handshake on; connections that are there
stay as they are. What is broken is logged and changes nothing.
"""

from __future__ import annotations

import logging
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path

import grpc

logger = logging.getLogger(__name__)

_Stamp = tuple[tuple[int, ...], ...]


class TlsError(Exception):
    """The certificate files cannot be used; says which, and why."""


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Where a server's certificates are, in PEM."""

    certificate: Path
    """The server's own, followed by those that lead to its authority."""
    key: Path
    """The private key of the first."""
    client_ca: Path | None = None
    """Authorities one of which has to have signed a client's certificate; None: clients need
    none."""

    @property
    def paths(self) -> tuple[Path, ...]:
        """All of them."""
        mine = (self.certificate, self.key)
        return mine if self.client_ca is None else (*mine, self.client_ca)


class Certificates:
    """A server's certificates as they were last good."""

    def __init__(self, files: TlsFiles) -> None:
        """Raises TlsError."""
        self._files = files
        self._seen = self._stamp()
        self._configuration = _read(files)

    def credentials(self) -> grpc.ServerCredentials:
        """For a port of a server."""
        return grpc.dynamic_ssl_server_credentials(
            self._configuration,
            self._renewed,  # type: ignore[arg-type]  # None is documented: nothing new
            require_client_authentication=self._files.client_ca is not None,
        )

    def _renewed(self) -> grpc.ServerCertificateConfiguration | None:
        """What changed since the last handshake; None: nothing. Called by gRPC, in its threads."""
        try:
            stamp = self._stamp()
            if stamp == self._seen:
                return None
            self._seen = stamp
            self._configuration = _read(self._files)
        except TlsError as error:
            logger.error("certificates not taken, the last ones stay: %s", error)  # noqa: TRY400 - no bug
            return None
        logger.info("certificates changed", extra={"file": str(self._files.certificate)})
        return self._configuration

    def _stamp(self) -> _Stamp:
        """Differs once a file has been replaced or written, or what a link leads to is another."""
        try:
            found = [path.stat() for path in self._files.paths]
        except OSError as error:
            raise TlsError(f"{error.filename}: {error.strerror}") from error
        return tuple((s.st_dev, s.st_ino, s.st_mtime_ns, s.st_size) for s in found)


def _read(files: TlsFiles) -> grpc.ServerCertificateConfiguration:
    """Raises TlsError for files that do not go together: gRPC would refuse every handshake."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        # No terminal is asked for the passphrase of an encrypted key.
        context.load_cert_chain(files.certificate, files.key, password="")
    except ssl.SSLError as error:
        raise TlsError(
            f"{files.certificate} and {files.key} are no certificate and its key in PEM, or the"
            f" key is encrypted, which it must not be: {error.reason or error}"
        ) from error
    except OSError as error:
        raise TlsError(f"{error.filename or files.key}: {error.strerror}") from error
    if until := _expiry(files.certificate):
        raise TlsError(f"{files.certificate} has expired, on {until}; renew it")
    authorities = None
    if files.client_ca is not None:
        try:
            context.load_verify_locations(files.client_ca)
        except (ssl.SSLError, OSError) as error:
            raise TlsError(f"{files.client_ca} has no certificate in PEM: {error}") from error
        authorities = files.client_ca.read_bytes()
    pair = (files.key.read_bytes(), files.certificate.read_bytes())
    return grpc.ssl_server_certificate_configuration([pair], authorities)


def _expiry(certificate: Path) -> str | None:
    """When a certificate has expired; None: it has not, or that cannot be told here."""
    if not find_spec("cryptography"):
        return None
    from cryptography.x509 import load_pem_x509_certificate

    until = load_pem_x509_certificate(certificate.read_bytes()).not_valid_after_utc
    return until.isoformat() if until <= datetime.now(UTC) else None
