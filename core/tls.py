"""TLS: the certificate that the server shows."""

import ssl

from core.errors import StartError
from core.settings import TlsConfig


def tls_context(tls: TlsConfig) -> ssl.SSLContext:
    """A server's TLS context, TLS 1.2 and newer. Raises StartError."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(tls.cert, tls.key, password=_no_password)
        if tls.chain:
            context.load_verify_locations(tls.chain)  # OpenSSL completes the chain it sends from these
    except OSError as error:  # ssl.SSLError is one
        raise StartError(f"server.tls: {error.strerror or error} ({tls.cert}, {tls.key})") from error
    except ValueError as error:  # a NUL in a file's name
        raise StartError(f"server.tls: {error}") from error
    return context


def _no_password() -> str:
    """Instead of OpenSSL's question at the terminal."""
    raise StartError("server.tls.key: is encrypted: expected a key without a passphrase")
