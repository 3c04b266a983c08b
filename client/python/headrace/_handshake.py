"""Connections that do not come about, in words: what gRPC says of them tells nobody what to do."""

from __future__ import annotations

from typing import Final

from headrace._error import HeadraceError, rebuild

_NO_CONNECTION: Final = "failed to connect"

_ADVICE: Final = (
    (
        "certificate has expired",
        "the server's certificate has expired; whoever runs the server has to renew it",
    ),
    (
        "certificate is not yet valid",
        "the server's certificate is not valid yet; look at the clocks of both machines",
    ),
    (
        "Hostname Verification Check failed",
        "the server's certificate is for other names than the one that was called; call the server "
        "by one that it has, or have one made for this name too",
    ),
    (
        "WRONG_VERSION_NUMBER",
        "the server does not speak TLS; leave https:// out, or give it a certificate",
    ),
    (
        "CERTIFICATE_REQUIRED",
        "the server asks for a client's certificate; set HEADRACE_CLIENT_CERT and "
        "HEADRACE_CLIENT_KEY",
    ),
    (
        "Failed to create security handshaker",
        "the certificates to connect with cannot be used; HEADRACE_TLS_CA, HEADRACE_CLIENT_CERT "
        "and HEADRACE_CLIENT_KEY name files in PEM",
    ),
    (
        "Tls handshake failed",
        "the server's certificate is by an authority that is not trusted here; HEADRACE_TLS_CA "
        "names the file with the one to trust",
    ),
    (
        "Socket closed",
        "the server hung up at once; if it has TLS, write https:// before the host, and if it asks "
        "for a client's certificate, set HEADRACE_CLIENT_CERT and HEADRACE_CLIENT_KEY to one that "
        "it trusts; or it has as many connections as it takes",
    ),
)
"""What stands in gRPC's words, and what to do. The first that is found counts."""


def explained(error: HeadraceError) -> HeadraceError:
    """The same error, with what to do put before gRPC's words where it is known."""
    if error.reason or _NO_CONNECTION not in error.message:
        return error
    advice = next((text for sign, text in _ADVICE if sign in error.message), None)
    if advice is None:
        return error
    message = f"{advice} ({error.message})"
    return rebuild(type(error), message, error.code, "", error.metadata, error.retry_after, ())
