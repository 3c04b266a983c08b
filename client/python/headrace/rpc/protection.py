"""How a server that others can reach is protected: TLS, and tokens."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import grpc

from headrace.host.sockets import private_files
from headrace.rpc.access import Access
from headrace.rpc.tls import Certificates, TlsError, TlsFiles
from headrace.rpc.tokens import TokensError

__all__ = ["Protection", "ProtectionError"]

ProtectionError = (TlsError, TokensError)
"""What reading the files may raise."""


@dataclass(frozen=True, slots=True)
class Protection:
    """Of one server. None: it goes without."""

    certificates: Certificates | None = None
    access: Access | None = None

    @classmethod
    def read(
        cls,
        certificate: Path | None = None,
        key: Path | None = None,
        client_ca: Path | None = None,
        tokens: Path | None = None,
    ) -> Protection:
        """By the files that a server was told of. Raises TlsError, TokensError."""
        if lacks := missing_beside(certificate, key, client_ca):
            raise TlsError(f"{lacks} is missing")
        certificates = None
        if certificate is not None and key is not None:
            certificates = Certificates(TlsFiles(certificate, key, client_ca))
        return cls(certificates, None if tokens is None else Access(tokens))

    def add_port(self, server: grpc.aio.Server, address: str) -> int:
        """Bind an address; gives the port. A Unix socket has no TLS: its file's mode says who may
        connect. Raises what gRPC raises."""
        if address.startswith("unix:"):
            with private_files():
                return int(server.add_insecure_port(address))
        if self.certificates is None:
            return int(server.add_insecure_port(address))
        return int(server.add_secure_port(address, self.certificates.credentials()))


OPEN = Protection()
"""No protection at all: for what this machine alone can reach."""


def missing_beside(
    certificate: Path | None, key: Path | None, client_ca: Path | None
) -> str | None:
    """Which of `tls_cert` and `tls_key` the others need and was not given."""
    if certificate is None and (key is not None or client_ca is not None):
        return "tls_cert"
    return "tls_key" if certificate is not None and key is None else None
