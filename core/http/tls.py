"""TLS: the certificate that the server shows, and whom it believes the certificates of clients.

The files are read when a context is made, and not looked at again: a reload makes another context, or fails
and leaves the one that is there.
"""

import asyncio
import logging
import ssl
import tempfile
from pathlib import Path

from core.errors import StartError
from core.settings import TlsConfig

log = logging.getLogger("pypubsub")

_BEGIN, _END = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
# what OpenSSL says of a key that belongs to another certificate; the last if it is of another kind (RSA, EC)
_KEY_OF_ANOTHER = ("KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH", "NO_CERTIFICATE_ASSIGNED")


class Tls:
    """The context for connections that come now. settings: server.tls, None if it is off."""

    def __init__(self, settings: TlsConfig | None) -> None:
        self._settings = settings
        self._context: ssl.SSLContext | None = None

    def context(self) -> ssl.SSLContext | None:
        """The TLS context that was loaded last; None if TLS is off, or before load()."""
        return self._context

    def check(self) -> None:
        """Look whether the files can be used. Raises StartError."""
        if self._settings:
            tls_context(self._settings)

    def load(self) -> None:
        """Read the files. Raises StartError."""
        if self._settings:
            self._context = tls_context(self._settings)

    async def reload(self) -> None:
        """Read the files anew, for new connections. If they cannot be used, the log says so."""
        if self._settings is None:
            return
        try:
            self._context = await asyncio.to_thread(tls_context, self._settings)
        except StartError as error:
            log.error("server.tls is not reloaded, the old certificates stay: %s", error)  # noqa: TRY400
        else:
            log.info("reloaded the certificates of server.tls, for new connections")


def tls_context(tls: TlsConfig) -> ssl.SSLContext:
    """A server's TLS context, TLS 1.2 and newer, from what the files hold now. Raises StartError."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if tls.client_ca:
        # whatever is in the file is trusted, root or not; without this it depends on Python's version
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        for trusted in _certificates("server.tls.client_ca", tls.client_ca):
            context.load_verify_locations(cadata=trusted)
        context.verify_mode = ssl.CERT_OPTIONAL
    sent = _certificates("server.tls.cert", tls.cert)
    if not tls.chain:
        _load_pair(context, tls.cert, tls)
        return context
    sent += _certificates("server.tls.chain", tls.chain)
    try:
        # load_verify_locations() would have it sent as well, but trust it too, to speak for clients
        with tempfile.NamedTemporaryFile("w", prefix="pypubsub-", suffix=".pem") as joined:
            joined.writelines(map(ssl.DER_cert_to_PEM_cert, dict.fromkeys(sent)))  # each once, in order
            joined.flush()
            _load_pair(context, joined.name, tls)
    except OSError as error:
        raise StartError(
            f"server.tls.chain: cannot be joined with the certificate in a temporary file: {error.strerror}"
        ) from error
    return context


def _load_pair(context: ssl.SSLContext, certificates: str, tls: TlsConfig) -> None:
    """Let a context show the certificates of a PEM file, the first of them as its own. Raises StartError."""
    if "PRIVATE KEY-----" not in _read("server.tls.key", tls.key):
        raise StartError(f"server.tls.key: {tls.key}: expected a private key in PEM form, found none")

    def no_password() -> str:  # instead of OpenSSL's question at the terminal
        raise StartError(f"server.tls.key: {tls.key}: is encrypted: expected a key without a passphrase")

    try:
        context.load_cert_chain(certificates, tls.key, no_password)
    except ssl.SSLError as error:
        reason = error.reason or ""
        if reason in _KEY_OF_ANOTHER:
            problem = f"key: {tls.key}: is not the key of the first certificate in {tls.cert}"
        elif "_TOO_" in reason:  # EE_KEY_TOO_SMALL, CA_MD_TOO_WEAK and the like
            problem = f"cert: {tls.cert}: OpenSSL refuses it: {reason.replace('_', ' ').lower()}"
        else:  # the certificates have been read before
            problem = f"key: {tls.key}: expected a private key in PEM form, found a damaged one"
        raise StartError(f"server.tls.{problem}") from error
    except OSError as error:  # gone since it was read
        raise StartError(f"server.tls.key: {tls.key}: {error.strerror}") from error


def _certificates(key: str, path: str) -> list[bytes]:
    """The certificates in a PEM file, in its order, as DER. Raises StartError naming the key and the file."""
    found = []
    probe = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    for number, block in enumerate(_read(key, path).split(_BEGIN)[1:], 1):
        try:
            found.append(ssl.PEM_cert_to_DER_cert(_BEGIN + block.partition(_END)[0] + _END))
            probe.load_verify_locations(cadata=found[-1])
        except (ssl.SSLError, ValueError) as error:
            raise StartError(f"{key}: {path}: certificate {number} in it is damaged") from error
    if not found:
        raise StartError(f"{key}: {path}: expected certificates in PEM form ({_BEGIN}), found none")
    return found


def _read(key: str, path: str) -> str:
    """What is in a PEM file. Raises StartError naming the key and the file."""
    try:
        return Path(path).read_text("latin-1")  # comments may be in any encoding
    except OSError as error:
        raise StartError(f"{key}: {path}: {error.strerror}") from error
