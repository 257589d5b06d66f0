"""Who may publish because of the certificate it shows (clients.payloader_certs), and who may not."""

import asyncio
import datetime
import signal
import ssl
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from core.auth.networks import CertificateNames
from daemon import Daemon, merged
from test_command_line import run
from wire import TIMEOUT

LISTED = ["ci", "Build.example.org", "robot@example.org", "spiffe://example.org/ci", "kiosk.example.org"]


class Site:
    """A daemon with a TLS port on which certificates of an authority are believed, and that authority."""

    def __init__(self, directory: Path, changes: Mapping[str, Any] | None = None) -> None:
        self.authority = trustme.CA()
        self.directory = directory
        own = trustme.CA()
        pair = own.issue_cert("127.0.0.1")
        pair.cert_chain_pems[0].write_to_path(directory / "crt")
        pair.private_key_pem.write_to_path(directory / "key")
        self.authority.cert_pem.write_to_path(directory / "client_ca")
        tls = {"port": 0} | {"cert": f"{directory}/crt", "key": f"{directory}/key"}
        tls["client_ca"] = f"{directory}/client_ca"
        config = {"server": {"tls": tls}, "clients": {"payloaders": ["192.0.2.1"], "payloader_certs": LISTED}}
        self.own_authority = own
        self.daemon = Daemon(directory, merged(config, changes or {}))
        self.daemon.start()
        self.port = int(self.daemon.logged("serves https://").rpartition(":")[2])

    def context(self, certificate: trustme.LeafCert | None = None) -> ssl.SSLContext:
        """A client's, that shows a certificate or none."""
        context = ssl.create_default_context()
        self.own_authority.configure_trust(context)
        if certificate:
            certificate.configure_cert(context)
        return context

    def robot(self) -> ssl.SSLContext:
        """That of a client that may publish."""
        return self.context(self.authority.issue_cert("robot@example.org"))

    async def asks(self, context: ssl.SSLContext, *headers: str, request: str = "PUT /a") -> list[bytes]:
        """The lines of an answer's head. Raises OSError if the server ends the connection instead."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, ssl=context)
        try:
            head = [f"{request} HTTP/1.1", "Host: 127.0.0.1", *headers, "Content-Length: 2", "", "{}"]
            writer.write("\r\n".join(head).encode())
            async with asyncio.timeout(TIMEOUT):
                answer = await reader.readuntil(b"\r\n\r\n")
            return answer.splitlines()
        except asyncio.IncompleteReadError as error:
            raise ConnectionError("the server has closed the connection") from error
        finally:
            writer.transport.abort()

    async def status(self, context: ssl.SSLContext, *headers: str, request: str = "PUT /a") -> int:
        """The status of an answer."""
        return int((await self.asks(context, *headers, request=request))[0].split()[1])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """The daemon of the tests that need no other settings."""
    site = Site(tmp_path_factory.mktemp("site"), {"clients": {"secure_topics": ["deploy"]}})
    yield site
    site.daemon.stop()


StartSite = Callable[..., Site]


@pytest.fixture
def start_site(tmp_path: Path) -> Iterator[StartSite]:
    """Starts a daemon with settings of its own."""
    sites: list[Site] = []

    def start(changes: Mapping[str, Any] | None = None) -> Site:
        sites.append(Site(tmp_path, changes))
        return sites[-1]

    yield start
    for site in sites:
        site.daemon.stop()


def client_certificate(
    authority: trustme.CA, subject: Sequence[tuple[x509.ObjectIdentifier, str]], *others: x509.GeneralName
) -> trustme.LeafCert:
    """A certificate with any names whatever, however odd."""
    key = ec.generate_private_key(ec.SECP256R1())
    signer = serialization.load_pem_private_key(authority.private_key_pem.bytes(), None)
    assert isinstance(signer, ec.EllipticCurvePrivateKey)
    issuer = x509.load_pem_x509_certificate(authority.cert_pem.bytes())
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(kind, name) for kind, name in subject]))
        .issuer_name(issuer.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(1))
        .not_valid_after(now + datetime.timedelta(1))
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False
        )
    )
    if others:
        builder = builder.add_extension(x509.SubjectAlternativeName(others), critical=not subject)
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    certificate = builder.sign(signer, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    return trustme.LeafCert(key.private_bytes(*form), certificate, [])


CN = NameOID.COMMON_NAME
Names = tuple[bool, list[tuple[x509.ObjectIdentifier, str]], list[x509.GeneralName]]
# whether it may publish, its subject, its alternative names
SHOWN: dict[str, Names] = {
    "a listed common name": (True, [(CN, "ci")], []),
    "the second of two common names": (True, [(CN, "cd"), (CN, "ci")], []),
    "a common name in other letters": (False, [(CN, "CI")], []),
    "a common name with a NUL": (False, [(CN, "ci\0.evil.example")], []),
    "a part of a common name": (False, [(CN, "my ci")], []),
    "a star": (False, [(CN, "*")], []),
    "a listed name that is no common name": (False, [(NameOID.ORGANIZATION_NAME, "ci")], []),
    "no listed name, but others": (False, [(CN, "cd")], [x509.DNSName("cd.example.org")]),
    "no subject": (True, [], [x509.DNSName("build.example.org")]),
    "a DNS name in other letters": (True, [(CN, "x")], [x509.DNSName("build.EXAMPLE.org")]),
    "the last of several names": (
        True,
        [(CN, "x")],
        [x509.DNSName("x.example.org"), x509.DNSName("build.example.org")],
    ),
    "a DNS name with a NUL": (False, [(CN, "x")], [x509.DNSName("build.example.org\0.evil.example")]),
    "a wildcard": (False, [(CN, "*.example.org")], [x509.DNSName("*.example.org")]),
    "a name below a listed one": (False, [(CN, "x")], [x509.DNSName("a.build.example.org")]),
    "an e-mail address": (True, [(CN, "x")], [x509.RFC822Name("robot@example.org")]),
    "an e-mail address in other letters": (False, [(CN, "x")], [x509.RFC822Name("Robot@example.org")]),
    "a URI": (True, [(CN, "x")], [x509.UniformResourceIdentifier("spiffe://example.org/ci")]),
    "a URI below a listed one": (
        False,
        [(CN, "x")],
        [x509.UniformResourceIdentifier("spiffe://example.org/ci/x")],
    ),
    "a listed name of another kind": (
        False,
        [(CN, "x")],
        [x509.DirectoryName(x509.Name([x509.NameAttribute(CN, "ci")]))],
    ),
}


@pytest.mark.parametrize("case", SHOWN)
async def test_who_may_publish_by_certificate(site: Site, case: str) -> None:
    """From an address that is not listed: by a name that is, compared as a whole."""
    may, subject, others = SHOWN[case]
    shown = site.context(client_certificate(site.authority, subject, *others))
    assert await site.status(shown) == (202 if may else 403)


# as getpeercert() gives them, where no tool will make such a certificate
ODD = [
    None,
    {},
    {"subject": ()},
    {"subject": ((("commonName", ""),),), "subjectAltName": (("DNS", ""), ("email", ""))},
    {"subjectAltName": (("DNS", "\u212aiosk.example.org"),)},  # whose lower case is kiosk.example.org
    {"subjectAltName": (("othername", "<unsupported>"), ("IP Address", "ci"), ("Registered ID", "ci"))},
    {"subjectAltName": (("DirName", ((("commonName", "ci"),),)),)},
    {"issuer": ((("commonName", "ci"),),)},
]


@pytest.mark.parametrize("certificate", ODD, ids=str)
def test_odd_names_are_not_listed_ones(certificate: Mapping[str, Any] | None) -> None:
    """And no error."""
    assert not CertificateNames([*LISTED, "<unsupported>"]).hold(certificate)


async def test_clients_without_a_certificate_are_served_as_before(site: Site) -> None:
    """They may read, and not publish from here; the refusal names both ways to be allowed to."""
    anybody = site.context()
    assert await site.status(anybody, request="GET /a") == 200
    assert await site.status(anybody) == 403
    answer = await site.daemon.put("/a", {})
    assert answer.status == 403
    assert answer.text == "127.0.0.1 may not publish here (see clients.payloaders, payloader_certs)\n"


async def test_a_certificate_of_another_authority_ends_the_connection(site: Site) -> None:
    """Whatever name it has; also if the other authority has the same name."""
    stranger = site.context(trustme.CA().issue_cert("robot@example.org"))
    for newest in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        stranger.maximum_version = newest
        with pytest.raises(OSError):  # noqa: PT011 (an alert or a reset, whichever comes first)
            await site.status(stranger)
    assert await site.status(site.robot()) == 202


async def test_an_intermediate_authority_may_have_signed_it(site: Site) -> None:
    """If the client shows the way to the authority that is trusted."""
    assert (
        await site.status(site.context(site.authority.create_child_ca().issue_cert("robot@example.org")))
        == 202
    )


async def test_the_servers_own_chain_is_not_trusted_with_clients(
    start_site: StartSite, tmp_path: Path
) -> None:
    """Whoever signs servers does not sign publishers. One that is not a root may be listed as client_ca."""
    servers = trustme.CA().create_child_ca()
    servers.cert_pem.write_to_path(tmp_path / "chain")
    site = start_site({"server": {"tls": {"chain": str(tmp_path / "chain")}}})
    leaf = servers.issue_cert("robot@example.org")
    with pytest.raises(OSError):  # noqa: PT011 (an alert or a reset, whichever comes first)
        await site.status(site.context(leaf))
    servers.cert_pem.write_to_path(tmp_path / "client_ca")
    site.daemon.signal(signal.SIGHUP)
    await site.daemon.until_logged("reloaded the certificates")
    assert await site.status(site.context(leaf)) == 202


async def test_another_authority_is_taken_over_by_a_reload(start_site: StartSite, tmp_path: Path) -> None:
    """New connections are believed by the new file only; a broken one changes nothing."""
    site = start_site()
    (tmp_path / "client_ca").write_text("nobody")
    site.daemon.signal(signal.SIGHUP)
    await site.daemon.until_logged("not reloaded.*server.tls.client_ca: .*/client_ca: expected certificates")
    former = site.robot()
    assert await site.status(former) == 202
    site.authority = trustme.CA()
    site.authority.cert_pem.write_to_path(tmp_path / "client_ca")
    site.daemon.signal(signal.SIGHUP)
    await site.daemon.until_logged("reloaded the certificates")
    assert await site.status(site.robot()) == 202
    with pytest.raises(OSError):  # noqa: PT011 (an alert or a reset, whichever comes first)
        await site.status(former)


async def test_a_certificate_opens_nothing_else(site: Site) -> None:
    """Secure topics need credentials as well, and a page of another site stays outside."""
    assert await site.status(site.robot(), request="PUT /deploy") == 401
    assert await site.status(site.robot(), "Origin: https://evil.example") == 403


async def test_asking_twice_with_a_certificate_publishes_once(site: Site) -> None:
    """An Idempotency-Key is that of the address, as for others."""
    robot = site.robot()
    first = await site.asks(robot, "Idempotency-Key: k1")
    again = await site.asks(robot, "Idempotency-Key: k1")
    assert b"Idempotency-Replayed: true" in again
    (cursor,) = (line for line in first if line.startswith(b"X-Cursor: "))
    assert cursor in again


async def test_a_proxys_certificate_says_nothing_of_its_clients(start_site: StartSite) -> None:
    """What a trusted proxy passes on has the rights of the address that it names, no more."""
    site = start_site({"server": {"trusted_proxies": ["127.0.0.1"]}})
    robot = site.robot()
    assert await site.status(robot) == 202
    assert await site.status(robot, "X-Forwarded-For: 192.0.2.77") == 403
    assert await site.status(robot, "X-Forwarded-For: nonsense") == 403
    assert await site.status(robot, "X-Forwarded-For: 192.0.2.1") == 202


async def test_what_an_untrusted_client_says_of_its_address_costs_it_nothing(site: Site) -> None:
    """Nobody believes it, one way or the other."""
    assert await site.status(site.robot(), "X-Forwarded-For: 198.51.100.1") == 202


def test_check_says_who_may_publish_and_what_has_no_effect(tmp_path: Path) -> None:
    """Names need an authority; with one they are publishers, though no address is listed."""
    pair = "cert: a, key: b"
    names = "clients: {payloader_certs: [ci]}"
    said = run(tmp_path, "--check", config=f"server: {{tls: {{{pair}, client_ca: c}}}}\n{names}").stdout
    assert "publishers: certificate ci\n" in said
    assert "warning" not in said
    for tls in ("", f"server: {{tls: {{{pair}}}}}\n"):
        said = run(tmp_path, "--check", config=tls + names).stdout
        assert "publishers: nobody\n" in said
        assert "clients.payloader_certs: has no effect without server.tls.client_ca" in said
        assert "nobody may publish" in said


def test_a_list_of_names_that_cannot_be_is_explained(tmp_path: Path) -> None:
    """With its place in the list."""
    for wrong, got in (('""', "''"), ('" ci"', "' ci'"), ('"c\\0i"', "'c\\x00i'"), ("5", "5")):
        said = run(tmp_path, "--check", config=f"clients: {{payloader_certs: [ci, {wrong}]}}").stderr
        assert said.startswith("pypubsub.yaml: clients.payloader_certs[1]: expected ")
        assert said.endswith(f", got {got}\n")
