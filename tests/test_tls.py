"""The second port: the same streams and the same publishing, over TLS."""

import asyncio
import contextlib
import datetime
import json
import os
import re
import signal
import ssl
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from core.errors import StartError
from core.http.tls import tls_context
from core.settings import TlsConfig
from daemon import Daemon, StartDaemon
from wire import TIMEOUT


def tls_daemon(
    start_daemon: StartDaemon, directory: Path, settings: Mapping[str, Any] | None = None
) -> tuple[Daemon, int, ssl.SSLContext]:
    """A daemon with a certificate for 127.0.0.1, its TLS port, and a client's context that trusts it."""
    authority = trustme.CA()
    intermediate = authority.create_child_ca()
    certificate = intermediate.issue_cert("127.0.0.1")
    certificate.cert_chain_pems[0].write_to_path(directory / "crt")
    certificate.private_key_pem.write_to_path(directory / "key")
    intermediate.cert_pem.write_to_path(directory / "chain")
    files = {
        name: str(directory / file) for name, file in (("cert", "crt"), ("key", "key"), ("chain", "chain"))
    }
    tls = {"port": 0, **files}
    server = start_daemon({"server": {"tls": tls, "subscriber_buffer": "64 MiB", **(settings or {})}})
    port = int(server.logged("serves https://").rpartition(":")[2])
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return server, port, context


async def test_events_go_in_and_out_over_tls(start_daemon: StartDaemon, tmp_path: Path) -> None:
    """With the intermediate certificate from `chain`; the plain port serves the same events."""
    server, port, context = tls_daemon(start_daemon, tmp_path)
    async with (
        server.subscriber("/a") as plain,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context)) as session,
        session.get(f"https://127.0.0.1:{port}/a") as stream,
    ):
        async with session.put(f"https://127.0.0.1:{port}/a", json={"n": 1}) as answer:
            assert answer.status == 202
        assert b"stillalive" in await stream.content.readline()
        assert json.loads(await stream.content.readline())["n"] == 1
        assert (await plain.event())["n"] == 1


async def test_a_reader_that_pauses_misses_nothing(start_daemon: StartDaemon, tmp_path: Path) -> None:
    """What the socket does not take waits, and follows in order."""
    server, port, context = tls_daemon(start_daemon, tmp_path, {"ping_interval": "1h"})
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, limit=2**17)
    writer.write(b"GET /a HTTP/1.0\r\nUser-Agent: x\r\n\r\n")
    async with asyncio.timeout(30):
        await reader.readuntil(b"stillalive")
        await reader.readline()
        for n in range(400):  # asyncio stops reading when twice its limit is there
            await server.put("/a", {"n": n, "filling": "x" * 50_000})
        for n in range(400):
            assert json.loads(await reader.readuntil(b"}\n"))["n"] == n
    writer.close()


async def test_a_busy_reader_does_not_hold_up_a_stop(start_daemon: StartDaemon, tmp_path: Path) -> None:
    """It has been sent everything, and does not answer the end of TLS: no reason to wait or to complain."""
    server, port, context = tls_daemon(start_daemon, tmp_path)
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    writer.write(b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n")
    async with asyncio.timeout(10):
        await reader.readuntil(b"stillalive")
    assert server.stop() == 0  # this event loop stands still meanwhile
    assert not any("cut off" in line for line in server.log)
    writer.close()


async def test_each_certificate_of_cert_and_chain_is_sent_once(
    start_daemon: StartDaemon, tmp_path: Path
) -> None:
    """In the order of the files; the chain may hold the certificate as well, as some tools write it."""
    _, port, context = tls_daemon(start_daemon, tmp_path)
    alone = [tmp_path / "crt", tmp_path / "chain"]
    expected = [ssl.PEM_cert_to_DER_cert(path.read_text()) for path in alone]
    assert await certificates_sent(port, context) == expected
    whole = tmp_path / "whole"
    whole.write_text("Ünser Zertifikat\n" + "".join(path.read_text() for path in alone), "utf-8")
    tls = {"port": 0, "cert": str(tmp_path / "crt"), "key": str(tmp_path / "key"), "chain": str(whole)}
    server = start_daemon({"server": {"tls": tls}})
    port = int(server.logged("serves https://").rpartition(":")[2])
    assert await certificates_sent(port, context) == expected


async def certificates_sent(port: int, context: ssl.SSLContext) -> list[bytes]:
    """What a server shows, in DER."""
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    connection = writer.get_extra_info("ssl_object")._sslobj  # public from Python 3.13 on
    found = [ssl.PEM_cert_to_DER_cert(sent.public_bytes()) for sent in connection.get_unverified_chain()]
    writer.close()
    return found


PAIR = {"cert": "crt", "key": "key"}
# file -> its content, by what is wrong with it; the pair crt, key is good
WRONG_FILES = {
    "text": "hello",
    "nothing": "",
    "torn": "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n",
    "hollow": "-----BEGIN CERTIFICATE----------END CERTIFICATE-----\n",
    "foreign": "-----BEGIN CERTIFICATE-----\nMÜIB\n-----END CERTIFICATE-----\n",
    "torn key": "-----BEGIN PRIVATE KEY-----\nMIIB\n-----END PRIVATE KEY-----\n",
}
# server.tls as changed -> what is said of it, with the directory as {0}
UNUSABLE = [
    ({"cert": "none"}, "server.tls.cert: {0}/none: No such file or directory"),
    ({"cert": "."}, "server.tls.cert: {0}/.: Is a directory"),
    ({"cert": "text"}, "server.tls.cert: {0}/text: expected certificates in PEM form"),
    ({"cert": "key"}, "server.tls.cert: {0}/key: expected certificates in PEM form"),
    ({"cert": "torn"}, "server.tls.cert: {0}/torn: certificate 1 in it is damaged"),
    ({"cert": "foreign"}, "server.tls.cert: {0}/foreign: certificate 1 in it is damaged"),
    ({"cert": "weak"}, "server.tls.cert: {0}/weak: OpenSSL refuses it: ee key too small"),
    ({"key": "none"}, "server.tls.key: {0}/none: No such file or directory"),
    ({"key": "text"}, "server.tls.key: {0}/text: expected a private key in PEM form, found none"),
    ({"key": "crt"}, "server.tls.key: {0}/crt: expected a private key in PEM form, found none"),
    (
        {"key": "torn key"},
        "server.tls.key: {0}/torn key: expected a private key in PEM form, found a damaged",
    ),
    (
        {"key": "other key"},
        "server.tls.key: {0}/other key: is not the key of the first certificate in {0}/crt",
    ),
    ({"key": "rsa key"}, "server.tls.key: {0}/rsa key: is not the key of the first certificate in {0}/crt"),
    ({"key": "encrypted key"}, "server.tls.key: {0}/encrypted key: is encrypted"),
    ({"chain": "none"}, "server.tls.chain: {0}/none: No such file or directory"),
    ({"chain": "nothing"}, "server.tls.chain: {0}/nothing: expected certificates in PEM form"),
    ({"chain": "hollow"}, "server.tls.chain: {0}/hollow: certificate 1 in it is damaged"),
    ({"chain": "half"}, "server.tls.chain: {0}/half: certificate 2 in it is damaged"),
    ({"chain": "crt", "key": "other key"}, "server.tls.key: {0}/other key: is not the key of the first"),
]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a good pair, crt and key, and all that can be wrong with one."""
    directory = tmp_path_factory.mktemp("files")
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    certificate.cert_chain_pems[0].write_to_path(directory / "crt")
    certificate.private_key_pem.write_to_path(directory / "key")
    authority.issue_cert("127.0.0.1").private_key_pem.write_to_path(directory / "other key")
    rsa_pair = authority.issue_cert("127.0.0.1", key_type=trustme.KeyType.RSA)
    rsa_pair.private_key_pem.write_to_path(directory / "rsa key")
    key = serialization.load_pem_private_key(certificate.private_key_pem.bytes(), None)
    encryption = serialization.BestAvailableEncryption(b"secret")
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
    (directory / "encrypted key").write_bytes(key.private_bytes(*form))
    for name, content in WRONG_FILES.items():
        (directory / name).write_text(content, "utf-8")
    (directory / "half").write_text((directory / "crt").read_text() + WRONG_FILES["torn"])
    (directory / "weak").write_bytes(weak_certificate())
    return directory


def weak_certificate() -> bytes:
    """A certificate of a key with 1024 bits, as OpenSSL does not let a server have."""
    key = rsa.generate_private_key(65537, 1024)  # noqa: S505 (that is the point)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    day = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, day, day + datetime.timedelta(3650))
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


@pytest.mark.parametrize(("changes", "said"), UNUSABLE)
def test_an_unusable_file_is_named_with_what_is_wrong(
    files: Path, changes: dict[str, str], said: str
) -> None:
    """The key of the settings, the file, the reason; in one line and without a question at the terminal."""
    tls = TlsConfig.model_validate({key: f"{files}/{name}" for key, name in (PAIR | changes).items()})
    with pytest.raises(StartError, match=f"^{re.escape(said.format(files))}") as refused:
        tls_context(tls)
    assert "\n" not in str(refused.value)


async def test_an_unusable_file_stops_the_start(start_daemon: StartDaemon, files: Path) -> None:
    """With one line in the log."""
    tls = {"port": 0, "cert": str(files / "crt"), "key": str(files / "encrypted key")}
    with pytest.raises(AssertionError, match="is encrypted: expected a key without a passphrase"):
        start_daemon({"server": {"tls": tls}})


def new_pair(directory: Path) -> ssl.SSLContext:
    """Put another certificate and its key in the place of crt and key; a context that trusts it alone."""
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    certificate.cert_chain_pems[0].write_to_path(directory / "crt")
    certificate.private_key_pem.write_to_path(directory / "key")
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR2])
async def test_a_signal_reloads_the_certificate_and_streams_go_on(
    start_daemon: StartDaemon, tmp_path: Path, number: signal.Signals
) -> None:
    """New connections see the new one; one that was there before goes on with the old one."""
    server, port, old = tls_daemon(start_daemon, tmp_path)
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=old)
    writer.write(b"GET /a HTTP/1.0\r\n\r\n")
    async with asyncio.timeout(TIMEOUT):
        await reader.readuntil(b"stillalive")
    new = new_pair(tmp_path)
    with pytest.raises(ssl.SSLCertVerificationError):
        await certificates_sent(port, new)
    server.signal(number)
    await server.until_logged("INFO .*reloaded the certificates of server.tls")
    assert await certificates_sent(port, new)
    with pytest.raises(ssl.SSLCertVerificationError):
        await certificates_sent(port, old)
    assert (await server.put("/a", {"n": 1})).status == 202
    async with asyncio.timeout(TIMEOUT):
        assert b'{"n": 1,' in await reader.readuntil(b"pubsub_cursor")
    writer.close()


# file -> what it holds then (None: it is gone), and what is said of it
WRONG_AT_RELOAD = {
    "key": ("another", "server.tls.key: .*/key: is not the key of the first certificate"),
    "crt": ("no certificate", "server.tls.cert: .*/crt: expected certificates"),
    "chain": (None, "server.tls.chain: .*/chain: No such file"),
}


@pytest.mark.parametrize("name", WRONG_AT_RELOAD)
async def test_what_cannot_be_used_is_not_reloaded(
    start_daemon: StartDaemon, tmp_path: Path, name: str
) -> None:
    """The log says why, as an error, and the old certificate stays; once mended, it is taken."""
    server, port, context = tls_daemon(start_daemon, tmp_path)
    content, reason = WRONG_AT_RELOAD[name]
    good = (tmp_path / name).read_text()
    if content is None:
        (tmp_path / name).unlink()
    elif content == "another":
        trustme.CA().issue_cert("127.0.0.1").private_key_pem.write_to_path(tmp_path / name)
    else:
        (tmp_path / name).write_text(content)
    server.signal(signal.SIGHUP)
    await server.until_logged(f"ERROR .*server.tls is not reloaded, the old certificates stay: {reason}")
    assert await certificates_sent(port, context)
    (tmp_path / name).write_text(good)
    server.signal(signal.SIGHUP)
    await server.until_logged("reloaded the certificates")
    assert await certificates_sent(port, context)


async def fifo_read(path: Path) -> int:
    """Wait until a process has opened a named pipe to read from it; the end to write to."""
    async with asyncio.timeout(TIMEOUT):
        while True:
            with contextlib.suppress(OSError):  # nobody reads
                return os.open(path, os.O_WRONLY | os.O_NONBLOCK)
            await asyncio.sleep(0)


def give(pipe: int, content: bytes) -> None:
    """Let whoever reads a named pipe have this for the file's content."""
    os.write(pipe, content)
    os.close(pipe)


async def test_a_signal_during_a_reload_leads_to_another_one(
    start_daemon: StartDaemon, tmp_path: Path
) -> None:
    """Afterwards, and once for all of them. A slow disk, here a named pipe, holds up nobody meanwhile."""
    server, port, context = tls_daemon(start_daemon, tmp_path)
    path = tmp_path / "crt"
    content = path.read_bytes()
    path.unlink()
    os.mkfifo(path)
    server.signal(signal.SIGHUP)
    pipe = await fifo_read(path)
    for _ in range(3):
        server.signal(signal.SIGUSR2)
        await server.until_logged("SIGUSR2")
    assert (await server.put("/a", {})).status == 202
    assert await certificates_sent(port, context)
    give(pipe, b"no certificate")
    await server.until_logged("not reloaded")
    pipe = await fifo_read(path)
    path.unlink()
    path.write_bytes(content)
    give(pipe, content)
    await server.until_logged("reloaded the certificates")
    assert server.stop() == 0
    assert sum("server.tls" in line for line in server.log) == 2


async def test_a_signal_during_the_start_is_not_the_end(tmp_path: Path) -> None:
    """The reload follows as soon as it serves."""
    context, path = new_pair(tmp_path), tmp_path / "crt"
    content = path.read_bytes()
    path.unlink()
    os.mkfifo(path)
    server = Daemon(
        tmp_path, {"server": {"tls": {"port": 0, "cert": str(path), "key": str(tmp_path / "key")}}}
    )
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(asyncio.to_thread(server.start))
        pipe = await fifo_read(path)
        server.signal(signal.SIGHUP)
        path.unlink()
        path.write_bytes(content)
        give(pipe, content)
    try:
        port = int((await server.until_logged("serves https://")).rpartition(":")[2])
        await server.until_logged("reloaded the certificates")
        assert await certificates_sent(port, context)
    finally:
        server.stop()


async def test_old_versions_of_tls_are_refused(start_daemon: StartDaemon, tmp_path: Path) -> None:
    """TLS 1.2 and newer."""
    _, port, context = tls_daemon(start_daemon, tmp_path)
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
        context.minimum_version = ssl.TLSVersion.TLSv1_1
    for newest, accepted in ((ssl.TLSVersion.TLSv1_1, False), (ssl.TLSVersion.TLSv1_2, True)):
        with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
            context.maximum_version = newest
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
        except (ssl.SSLError, ConnectionError):
            assert not accepted
        else:
            assert accepted
            writer.close()
