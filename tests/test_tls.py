"""The second port: the same streams and the same publishing, over TLS."""

import asyncio
import json
import ssl
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import trustme
from cryptography.hazmat.primitives import serialization

from daemon import Daemon

StartDaemon = Callable[..., Daemon]


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
    server, port, context = tls_daemon(start_daemon, tmp_path)
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, limit=2**17)
    writer.write(b"GET /a HTTP/1.0\r\n\r\n")
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


async def test_an_encrypted_key_is_refused(start_daemon: StartDaemon, tmp_path: Path) -> None:
    """In one line, without a question at the terminal."""
    certificate = trustme.CA().issue_cert("127.0.0.1")
    key = serialization.load_pem_private_key(certificate.private_key_pem.bytes(), None)
    encryption = serialization.BestAvailableEncryption(b"secret")
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
    (tmp_path / "key").write_bytes(key.private_bytes(*form))
    certificate.cert_chain_pems[0].write_to_path(tmp_path / "crt")
    tls = {"port": 0, "cert": str(tmp_path / "crt"), "key": str(tmp_path / "key")}
    with pytest.raises(AssertionError, match="is encrypted"):
        start_daemon({"server": {"tls": tls}})


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
