"""A directory: a real slapd with users and groups, on a port of its own."""

import base64
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import trustme

from wire import free_port

SUFFIX = "dc=example,dc=org"
PEOPLE = f"ou=people,{SUFFIX}"
GROUPS = f"ou=groups,{SUFFIX}"
ADMIN = f"cn=admin,{SUFFIX}"
PASSWORDS = {
    "alice": "alice's: pässword",
    "bob": "bob's",
    "carol": "carol\N{NO-BREAK SPACE}ª",  # which SASLprep would change
    "müller": "müller's",
    "o'brien, jr+x": "o'brien's",
}
# posixGroup's memberUid compares with case
CONTENT = f"""
dn: {SUFFIX}
objectClass: dcObject
objectClass: organization
dc: example
o: Example

dn: {PEOPLE}
objectClass: organizationalUnit
ou: people

dn: {GROUPS}
objectClass: organizationalUnit
ou: groups

dn: cn=committers,{GROUPS}
objectClass: groupOfNames
cn: committers
member: uid=alice,{PEOPLE}
member: uid=müller,{PEOPLE}
member: uid=o'brien\\, jr\\+x,{PEOPLE}

dn: cn=Board  Members,{GROUPS}
objectClass: groupOfNames
cn: Board  Members
member: uid=bob,{PEOPLE}

dn: cn=posix,{GROUPS}
objectClass: posixGroup
cn: posix
gidNumber: 1000
memberUid: alice
memberUid: bob
"""
SECTIONS = """
moduleload back_mdb
pidfile {directory}/pid
allow bind_anon_cred bind_anon_dn
{extra}
database mdb
suffix {suffix}
rootdn cn=admin,{suffix}
rootpw admin
directory {directory}/content
index uid eq
access to attrs=userPassword by anonymous auth by * none
access to * by * read
"""


def dn_of(user: str) -> str:
    """The dn of a user, however strange its name is."""
    return f"uid={''.join(f'{chr(92)}{byte:02x}' for byte in user.encode())},{PEOPLE}"


def _line(key: str, value: str) -> str:
    return f"{key}:: {base64.b64encode(value.encode()).decode()}\n"


def _person(user: str, password: str) -> str:
    values = {"uid": user, "cn": "x", "sn": "x", "userPassword": password}
    lines = (_line(key, value) for key, value in values.items())
    return f"\n{_line('dn', dn_of(user))}changetype: add\nobjectClass: inetOrgPerson\n{''.join(lines)}"


class Slapd:
    """A directory with everybody in PASSWORDS. extra: lines for its configuration, before the database.

    certificate: for ldaps and StartTLS, else it has neither.
    """

    def __init__(
        self, directory: Path, *, certificate: trustme.LeafCert | None = None, extra: str = ""
    ) -> None:
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None
        self.port, self.tls_port = free_port(), free_port()
        self._urls = [self.uri]
        (directory / "content").mkdir(parents=True)
        if certificate:
            self._urls.append(self.tls_uri)
            certificate.private_key_pem.write_to_path(directory / "key")
            (directory / "crt").write_bytes(b"".join(pem.bytes() for pem in certificate.cert_chain_pems))
            extra += f"\nTLSCertificateFile {directory}/crt\nTLSCertificateKeyFile {directory}/key"
        schemas = "".join(
            f"include /etc/ldap/schema/{name}.schema\n" for name in ("core", "cosine", "nis", "inetorgperson")
        )
        self._config = directory / "slapd.conf"
        self._config.write_text(
            f"{schemas}modulepath /usr/lib/ldap\n"
            + SECTIONS.format(directory=directory, suffix=SUFFIX, extra=extra)
        )
        people = "".join(_person(user, password) for user, password in PASSWORDS.items())
        self._run("slapadd", "-f", str(self._config), stdin=CONTENT + people.replace("changetype: add\n", ""))

    @property
    def uri(self) -> str:
        """Where it serves without TLS, or with StartTLS."""
        return f"ldap://127.0.0.1:{self.port}"

    @property
    def tls_uri(self) -> str:
        """Where it serves with TLS."""
        return f"ldaps://127.0.0.1:{self.tls_port}"

    def start(self) -> None:
        """Start it, and wait until it answers."""
        program = shutil.which("slapd", path=f"{os.environ['PATH']}:/usr/sbin")
        assert program, "slapd is not installed"
        self._process = subprocess.Popen(
            [program, "-f", str(self._config), "-h", " ".join(self._urls), "-d", "none"],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 20
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                assert self._process.poll() is None, "slapd has ended"
                assert time.monotonic() < deadline, "slapd does not listen"
                time.sleep(0.02)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """End it by a signal."""
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(20)
            self._process = None

    def pause(self) -> None:
        """Keep it from answering; the kernel still takes connections for it."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it answer again."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        """End it, whatever state it is in."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(20)
            self._process = None

    # Its content

    def join(self, group: str, user: str) -> None:
        """Make a user a member of a group of names."""
        self._change_member("add", group, user)

    def leave(self, group: str, user: str) -> None:
        """End that."""
        self._change_member("delete", group, user)

    def _change_member(self, change: str, group: str, user: str) -> None:
        member = _line("member", dn_of(user))
        self.modify(f"dn: cn={group},{GROUPS}\nchangetype: modify\n{change}: member\n{member}")

    def set_password(self, user: str, password: str) -> None:
        """Give a user another password."""
        change = f"changetype: modify\nreplace: userPassword\n{_line('userPassword', password)}"
        self.modify(_line("dn", dn_of(user)) + change)

    def add(self, user: str, password: str) -> None:
        """Another user."""
        self.modify(_person(user, password))

    def modify(self, ldif: str) -> None:
        """Any change, as the directory's administrator."""
        self._run("ldapmodify", "-H", self.uri, "-x", "-D", ADMIN, "-w", "admin", stdin=ldif)

    def whoami(self, name: str, password: str) -> str:
        """Who a bind makes somebody, by the tools of slapd; raises CalledProcessError if it fails."""
        return self._run("ldapwhoami", "-H", self.uri, "-x", "-D", name, "-w", password)

    def _run(self, program: str, *arguments: str, stdin: str = "") -> str:
        path = f"{os.environ['PATH']}:/usr/sbin"
        found = shutil.which(program, path=path)
        assert found, f"{program} is not installed"
        done = subprocess.run(
            [found, *arguments], input=stdin.encode(), capture_output=True, check=False, timeout=20
        )
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode()
