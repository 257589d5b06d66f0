"""docs/access.md tells the truth: each of its commands is run, as it stands there and in its order.

A test follows sections that build on one another, in an installation of its own. A `yaml` block is the whole
of pypubsub.yaml, but for the ports, or goes into the ACL file, below the users of the sections before.
`systemctl`, `chown` and `nginx -t` are done to the test's daemon, files and nginx, not to the machine.
Commands without `sudo` must need none, though it may be root who runs the tests.
"""

import asyncio
import contextlib
import re
import shlex
import stat
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import trustme

from daemon import ROOT
from documents import Block, Scenario, next_line, sections, skip_without, yaml_of
from installation import INSTALLED, InstalledDaemon
from nginx import NginxProcess, documented_location
from slapd import Slapd
from wire import TIMEOUT, free_port

GUIDE = (ROOT / "docs/access.md").read_text()
SECTIONS = dict(sections(GUIDE))
FILE = ["Users in a file", "Topics that only some may publish on"]
DIRECTORY = ["Users in a directory"]
TLS = ["TLS", "Publishers with certificates", "TLS by nginx"]
PASSWORD = "correct horse"
LDAP = "ldaps://ldap.example.org"
HARMLESS = {".venv/bin/python", "chmod", "curl", "openssl"}  # with sudo, done here as they are written
PUBLISHER = "192.0.2.1"  # in clients.payloaders where the guide trusts a proxy to report an address


class Walk(Scenario):
    """Somebody who does what the guide says. directory: for the installation and what belongs to it."""

    def __init__(self, running: contextlib.AsyncExitStack, directory: Path) -> None:
        self.directory = directory / "pypubsub"
        self.directory.mkdir()
        self.daemon = InstalledDaemon(self.directory)
        self.environment = {"CURL_HOME": str(directory)}
        self._nginx_port = free_port()
        self._ldap: str = LDAP
        self._not_mine: set[Path] = set()  # files in the installation that sudo made or gave away
        ports = {
            "127.0.0.1:2069": self.daemon.port,
            "pubsub.example.org:2070": self.daemon.tls_port,
            "pubsub.example.org:443": self._nginx_port,
        }
        lines = (f'connect-to = "{name}:127.0.0.1:{port}"\n' for name, port in ports.items())
        (directory / ".curlrc").write_text("".join(lines))
        super().__init__(running, cwd=self.directory, environment=self.environment, typed=f"{PASSWORD}\n")
        self._nginx_directory = directory / "nginx"
        self._nginx_directory.mkdir()
        self.nginx = NginxProcess(self._nginx_directory)

    def ask_directory(self, slapd: Slapd, authority: Path) -> None:
        """Take this directory for the guide's."""
        self._ldap = slapd.tls_uri
        self.environment["LDAPTLS_CACERT"] = str(authority)
        self.daemon.environment["SSL_CERT_FILE"] = str(authority)

    async def follow(self, heading: str) -> None:
        """Do what a section says, and see what it shows."""
        for block in SECTIONS[heading]:
            match block.language:
                case "sh":
                    await self.run(block.lines)
                case "text":
                    await self.check_printed([self._with_ports(line) for line in block.lines])
                case "json":
                    await self.check_stream(block.lines)
                case "yaml":
                    self.use_yaml(block)
                case "nginx":
                    self.nginx.configure(self._with_ports("\n".join(block.lines)))
                case language:
                    raise AssertionError(f"what is to be done with a block of {language}?")
        await self._check_streams()

    def use_yaml(self, block: Block) -> None:
        """Put a block of YAML where it belongs."""
        for users in yaml_of([block], acl=True):
            with self.daemon.acl_path.open("a") as file:
                file.write(users)
        for settings in yaml_of([block], acl=False):
            self.daemon.configure(settings.replace(LDAP, self._ldap))

    def _with_ports(self, text: str) -> str:
        """A line of output, or nginx's configuration, with what differs here."""
        here = {
            ":2069": f":{self.daemon.port}",
            "listen 443 ": f"listen 127.0.0.1:{self._nginx_port} ",
            INSTALLED: str(self.directory),
        }
        for there, instead in here.items():
            text = text.replace(there, instead)
        return text

    async def run_one(self, command: str) -> None:
        """Run a command."""
        match shlex.split(command):
            case ["sudo", "systemctl", "restart", "pypubsub"]:
                await self._restart()
            case ["sudo", "systemctl", "reload", "pypubsub"]:
                self.daemon.reload_files()
            case ["sudo", "nginx", "-t"]:
                self.nginx.check()
            case ["sudo", "systemctl", "reload", "nginx"]:
                self.nginx.reload(self._nginx_port)
            case ["sudo", "chown", self.daemon.user, name]:
                self._not_mine.add(self.directory / name)
                assert (self.directory / name).exists()
            case ["sudo", "-u", self.daemon.user, *words] | ["sudo", *words] if words[0] in HARMLESS:
                before = set(self.directory.iterdir())
                await super().run_one(command.removeprefix("sudo ").removeprefix(f"-u {self.daemon.user} "))
                self._not_mine |= set(self.directory.iterdir()) - before
            case ["sudo", *_]:
                raise AssertionError(f"what is to be done for {command}?")
            case words:
                before = set(self.directory.iterdir())
                await super().run_one(command.replace(LDAP, self._ldap))
                assert set(self.directory.iterdir()) == before, f"{command} writes into {INSTALLED}"
                read = {self.directory / word for word in words}
                if "--check" in words:
                    read.add(self.daemon.acl_path)
                assert [file for file in read & self._not_mine if not is_open(file)] == []

    async def _restart(self) -> None:
        """Restart the daemon; all streams end."""
        self.daemon.restart()
        async with asyncio.timeout(TIMEOUT):
            while self.streams:
                await self.streams.pop().wait()

    async def _check_streams(self) -> None:
        """See that whoever follows a stream in the guide sees the private events that the guide grants."""
        if not self.streams:
            return
        answer = await self.daemon.put("/private/git/example", {"last": True}, X_Forwarded_For=PUBLISHER)
        assert answer.status == 202, answer.text
        async with asyncio.timeout(TIMEOUT):
            for stream in self.streams:
                while '"last": true' not in await next_line(stream.stdout):
                    pass


def is_open(file: Path) -> bool:
    """Whether every user of the machine can read it."""
    return bool(file.stat().st_mode & stat.S_IROTH)


def commands_of(heading: str) -> Iterator[str]:
    """Each line of a section's `sh` blocks."""
    for block in SECTIONS[heading]:
        if block.language == "sh":
            yield from block.lines


@asynccontextmanager
async def walk_to(heading: str, directory: Path) -> AsyncIterator[Walk]:
    """A walk that starts at a section, with the users of those before it, and the settings as shipped."""
    async with contextlib.AsyncExitStack() as running:
        walk = Walk(running, directory)
        for before in list(SECTIONS)[: list(SECTIONS).index(heading)]:
            for users in yaml_of(SECTIONS[before], acl=True):
                walk.use_yaml(Block("yaml", users.splitlines()))
        walk.daemon.start()
        try:
            yield walk
        finally:
            if walk.daemon.running:
                walk.daemon.stop()
            print("\n".join(walk.daemon.log))  # pytest shows it if the test has failed


async def test_users_in_a_file(tmp_path: Path) -> None:
    """They see private events, and publish on secure topics."""
    skip_without("curl")
    async with walk_to(FILE[0], tmp_path) as walk:
        netrc = walk.directory / "alice.netrc"
        (line,) = re.findall("as `(machine .*?)`", GUIDE)
        netrc.write_text(f"{line}\n")
        netrc.chmod(0o600)
        for heading in FILE:
            await walk.follow(heading)


async def test_users_in_a_directory(tmp_path: Path) -> None:
    """They see private events, by groups that ldapsearch finds as well."""
    for program in ("curl", "ldapsearch", "slapd"):
        skip_without(program)
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "authority")
    slapd = Slapd(tmp_path / "slapd", certificate=authority.issue_cert("127.0.0.1"))
    slapd.start()
    try:
        slapd.add("jane", "battery staple")
        slapd.join("committers", "jane")
        async with walk_to(DIRECTORY[0], tmp_path) as walk:
            walk.ask_directory(slapd, tmp_path / "authority")
            for heading in DIRECTORY:
                await walk.follow(heading)
    finally:
        slapd.close()


async def test_tls(tmp_path: Path) -> None:
    """By the server itself, with and without certificates of publishers, and by nginx."""
    for program in ("curl", "openssl", "nginx"):
        skip_without(program)
    async with walk_to(TLS[0], tmp_path) as walk:
        with walk.nginx:
            for heading in TLS:
                await walk.follow(heading)
            *_, refused, answer = SECTIONS[TLS[-1]]
            await walk.run(f"{command} --interface 127.0.0.2" for command in refused.lines)
            await walk.check_printed([line.replace("127.0.0.1", "127.0.0.2") for line in answer.lines])


async def test_files_with_secrets_are_closed_to_others(tmp_path: Path) -> None:
    """After the guide's commands, and --check warns of nothing."""
    skip_without("openssl")
    secrets_made = re.compile(r"sudo (openssl|chown|chmod) ")
    async with walk_to("When rights change", tmp_path) as walk:
        walk.daemon.acl_path.chmod(0o644)  # as an editor makes it
        for heading in SECTIONS:
            await walk.run(line for line in commands_of(heading) if secrets_made.match(line))
        secret = [
            file
            for file in walk.directory.iterdir()
            if file.is_file() and re.search("PRIVATE KEY|^  password:", file.read_text(), re.MULTILINE)
        ]
        assert len(secret) == 4
        assert [file for file in secret if stat.S_IMODE(file.stat().st_mode) != 0o600] == []
        (settings,) = yaml_of(SECTIONS["Publishers with certificates"], acl=False)
        walk.daemon.configure(settings)
        await walk.run(["sudo -u pypubsub .venv/bin/python pypubsub.py --check"])
        await walk.check_printed(
            [
                f"serves http://0.0.0.0:{walk.daemon.port}",
                f"serves https://0.0.0.0:{walk.daemon.tls_port}",
                "publishers: certificate ci.example.org",
                "backlog: none",
                "users: 3 in the ACL file",
            ]
        )


def test_nginx_passes_requests_on_as_in_the_guide_for_operators() -> None:
    """test_nginx.py holds for the guide as well."""
    (server,) = [block for block in SECTIONS["TLS by nginx"] if block.language == "nginx"]
    _, start, location = "\n".join(server.lines).partition("    location / {")
    assert directives(f"{start}{location.removesuffix('}')}") == directives(documented_location())


def directives(configuration: str) -> list[str]:
    """Lines of nginx's configuration, without comments."""
    return [re.sub("#.*", "", line).strip() for line in configuration.strip().splitlines()]


def test_every_command_is_run() -> None:
    """No line to type stands anywhere but where the tests above find it."""
    run = [line for heading in FILE + DIRECTORY + TLS for line in commands_of(heading)]
    assert len(run) > 25
    shown = "".join(re.findall(r"^```sh\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL)).splitlines()
    assert shown == run
    assert {*re.findall(r"^\s*[`~]{3,}(.+)$", GUIDE, re.MULTILINE)} == {"sh", "text", "json", "yaml", "nginx"}
    assert re.findall(r"^(?: {4}|\t|\$ ).*", re.sub(r"(?ms)^```.*?^```$", "", GUIDE), re.MULTILINE) == []
