"""pypubsub.yaml: its sections `server` and `clients`, with the default of every key, and the file as a whole.

What each key means to an operator stands in pypubsub.yaml.
"""

import re
from ipaddress import AddressValueError, IPv6Address
from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    StrictBool,
    StrictInt,
    StrictStr,
)

from core.auth.networks import Network
from core.auth.rights_config import AnyGrants, Topic
from core.config import Duration, PositiveDuration, Section, Size, build, read_yaml
from core.errors import ConfigError
from core.sqs_settings import QueueConfig, build_queues, warnings_of_twins

DEPLOYED_READERS_LINE_SIZE = 614_400  # bytes; a widely deployed reader fails for ever on a longer line


def _parse_port(value: object) -> int:
    if isinstance(value, str) and re.fullmatch("[0-9]{1,5}", value, re.ASCII):  # in quotes, as 0.7 took it
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 65535:
        raise ValueError("a port from 1 to 65535 (0: any free one)")
    return value


def _as_list(value: object) -> object:
    return (value,) if isinstance(value, str) else value


def _check_bind(value: str) -> str:
    if not value or value == "unix:" or not value.isprintable() or " " in value:
        raise ValueError("an address (0.0.0.0, ::), a host name or unix:/path")
    return value


def _is_all_of_ipv6(value: str) -> bool:
    try:
        return IPv6Address(value).is_unspecified  # :: has other spellings
    except AddressValueError:
        return False


def _check_line_size(value: int) -> int:
    if value < 1024:
        raise ValueError("1 KiB or more")
    return value


def _check_origin(value: str) -> str:
    if not re.fullmatch(r"https?://([a-z0-9._-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?", value, re.ASCII):
        raise ValueError("an origin as browsers send it: https://example.org, or with a port, no path")
    return value


def _check_host(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*", value, re.ASCII):
        raise ValueError(
            "a name of this server as browsers send it: pubsub.example.org, no port, no https://"
        )
    return value.lower()


def _check_certificate_name(value: str) -> str:
    if not value or not value.isprintable() or value != value.strip():
        raise ValueError(
            "a name in a client's certificate: a common name, a DNS name, an e-mail address or a URI"
        )
    return value


def _check_file_path(value: str) -> str:
    if not value or value.endswith("/") or "\0" in value:
        raise ValueError("the path of a file")
    return value


def _check_ldap_uri(value: str) -> str:
    if not re.fullmatch(r"ldaps?://([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?/?", value, re.ASCII):
        raise ValueError("ldap://host or ldaps://host, perhaps with a port, nothing behind it")
    return value.rstrip("/")


def _check_user_dn(value: str) -> str:
    if "%s" not in value or "%" in value.replace("%s", ""):
        raise ValueError("a dn with %s for the user's name: uid=%s,ou=people,dc=example,dc=org")
    return value


def _check_pattern(value: object) -> str:
    if isinstance(value, dict) or (isinstance(value, str) and value.endswith(":")):
        raise ValueError("a filter without a colon at its end, which makes a key of it in YAML")
    if not isinstance(value, str) or "%s" not in value or "%" in value.replace("%s", "") or "=" not in value:
        raise ValueError("a filter with %s for the user's name: member=uid=%s,ou=people,dc=example,dc=org")
    return value


Port = Annotated[int, BeforeValidator(_parse_port)]
Bind = Annotated[StrictStr, AfterValidator(_check_bind)]
Origin = Annotated[StrictStr, AfterValidator(_check_origin)]
HostName = Annotated[StrictStr, AfterValidator(_check_host)]
CertificateName = Annotated[StrictStr, AfterValidator(_check_certificate_name)]
FilePath = Annotated[StrictStr, AfterValidator(_check_file_path)]
LdapUri = Annotated[StrictStr, AfterValidator(_check_ldap_uri)]
UserDn = Annotated[StrictStr, AfterValidator(_check_user_dn)]
Pattern = Annotated[str, BeforeValidator(_check_pattern)]
UserAgentPart = Annotated[StrictStr, Field(min_length=1)]


class TlsConfig(Section):
    """server.tls: a second port, with TLS, on the same addresses."""

    port: Port = 2070
    cert: FilePath  # PEM file
    key: FilePath  # PEM file
    chain: FilePath | None = None  # PEM file of intermediate certificates, sent after those in cert
    client_ca: FilePath | None = None  # PEM file: whose certificates clients may show; None: not asked for


class BacklogConfig(Section):
    """server.backlog: what is kept for subscribers who come later."""

    size: Annotated[StrictInt, Field(ge=0)] = 0  # events of each kind, public and private; 0: no backlog
    max_age: Duration = 0.0  # seconds; 0: kept until pushed out
    storage: FilePath | None = None  # SQLite file; None: kept in memory only
    memory: Size = 64 * 1024**2  # bytes of the newest events that are held ready, beside the file


class ServerConfig(Section):
    """server: where it listens, and its limits."""

    port: Port = 2069
    bind: Annotated[tuple[Bind, ...], BeforeValidator(_as_list), Field(min_length=1)] = ("0.0.0.0",)  # noqa: S104
    tls: TlsConfig | None = None
    max_payload_size: Size = 102_400
    max_line_size: Annotated[Size, AfterValidator(_check_line_size)] = 600_000
    ping_interval: PositiveDuration = 5.0
    refusal_delay: Duration = 2.0
    head_timeout: PositiveDuration = 20.0
    subscriber_buffer: Size = 1024**2
    write_timeout: PositiveDuration = 300.0
    drain_timeout: Duration = 10.0
    idempotency_window: Duration = 600.0
    backlog: BacklogConfig = BacklogConfig()
    max_connections: Annotated[StrictInt, Field(ge=1)] = 50_000
    max_connections_per_address: Annotated[StrictInt, Field(ge=0)] = 0  # 0: no limit
    trusted_proxies: tuple[Network, ...] = ()
    cors_origins: tuple[Origin, ...] = ()
    hosts: tuple[HostName, ...] = ()  # beside addresses, localhost and the machine's own names
    access_log: StrictBool = False

    def takes_ipv4_too(self, bind: str) -> bool:
        """Whether an address of `bind` is all of IPv6, and takes IPv4 as well: no other takes that."""
        return _is_all_of_ipv6(bind) and all(":" in other for other in self.bind)


class LdapConfig(Section):
    """clients.ldap: a directory of those who are not in the ACL file."""

    uri: Annotated[tuple[LdapUri, ...], BeforeValidator(_as_list), Field(min_length=1)]  # asked in this order
    start_tls: StrictBool = False
    ca_file: FilePath | None = None  # PEM file; None: the system's authorities
    verify: StrictBool = True  # the directory's certificate
    user_dn: UserDn
    base_scope: StrictStr
    membership_patterns: tuple[Pattern, ...] = ()
    acl: dict[StrictStr, AnyGrants]  # by the dn of a group or of a user
    timeout: PositiveDuration = 5.0  # for a connection, and for an answer
    refresh: PositiveDuration = 60.0
    grace: Duration = 600.0

    def warnings(self) -> list[str]:
        """What an operator should know about valid settings, one line each."""
        found = []
        plain = any(uri.startswith("ldap:") for uri in self.uri)
        if plain and not self.start_tls:
            found.append("clients.ldap.uri: passwords go there unencrypted: use ldaps or start_tls")
        if self.start_tls and not plain:
            found.append("clients.ldap.start_tls: has no effect with ldaps, which is encrypted anyhow")
        if not self.verify:
            found.append("clients.ldap.verify: is off, so anybody in between can take the directory's place")
        if not self.verify and self.ca_file:
            found.append("clients.ldap.ca_file: has no effect while clients.ldap.verify is off")
        for dn, grants in self.acl.items():
            found += [f"clients.ldap.acl.{dn}.{warning}" for warning in grants.warnings()]
        return found


class ClientsConfig(Section):
    """clients: who may publish, and who reads in an old form."""

    payloaders: tuple[Network, ...] = ()
    payloader_certs: tuple[CertificateName, ...] = ()
    oldschoolers: tuple[UserAgentPart, ...] = ()
    secure_topics: tuple[Topic, ...] = ()
    ldap: LdapConfig | None = None
    wrong_credentials: Literal["refused", "anonymous"] = "refused"


class Config(Section):
    """pypubsub.yaml."""

    server: ServerConfig = ServerConfig()
    clients: ClientsConfig = ClientsConfig()
    sqs: dict[str, QueueConfig] = Field(default_factory=dict)

    @property
    def certified_publishers(self) -> tuple[str, ...]:
        """The names of certificates that may publish: none if no certificate is asked for."""
        asked_for = self.server.tls and self.server.tls.client_ca
        return self.clients.payloader_certs if asked_for else ()

    def warnings(self) -> list[str]:
        """What an operator should know about settings that are valid, one line each."""
        found = []
        if self.server.max_line_size > DEPLOYED_READERS_LINE_SIZE:
            found.append(
                f"server.max_line_size: {self.server.max_line_size} is more than the "
                f"{DEPLOYED_READERS_LINE_SIZE} bytes that readers built on asfpy can take"
            )
        if self.server.max_payload_size > self.server.max_line_size:
            found.append(
                f"server.max_payload_size: {self.server.max_payload_size} is more than "
                f"server.max_line_size ({self.server.max_line_size}), which then limits an event"
            )
        backlog = self.server.backlog
        if backlog.storage and not backlog.size:
            found.append("server.backlog.storage: has no effect while server.backlog.size is 0")
        if backlog.memory != BacklogConfig().memory and not backlog.storage:
            found.append("server.backlog.memory: has no effect without server.backlog.storage")
        if self.clients.ldap:
            found += self.clients.ldap.warnings()
        if self.clients.payloader_certs and not self.certified_publishers:
            found.append("clients.payloader_certs: has no effect without server.tls.client_ca")
        for name, queue in self.sqs.items():
            found += [f"sqs.{name}.{warning}" for warning in queue.warnings(self.clients.secure_topics)]
        found += [f"sqs.{warning}" for warning in warnings_of_twins(self.sqs)]
        publishers = self.clients.payloaders or self.certified_publishers or self.clients.secure_topics
        if not (publishers or self.sqs):
            found.append("clients.payloaders: is empty, so nobody may publish")
        return found


def load(path: Path) -> tuple[Config, list[str]]:
    """The configuration, and what its owner should know about it. Raises ConfigError with all problems."""
    content = read_yaml(path, "keys such as server: and clients:") or {}
    queues: dict[str, QueueConfig] = {}
    problems: list[str] = []
    try:
        queues = build_queues(content.pop("sqs", {}), path)  # apart, for their values are not shown
    except ConfigError as error:
        problems = error.problems
    try:
        config = build(Config, content, path).model_copy(update={"sqs": queues})
    except ConfigError as error:
        raise ConfigError(error.problems + problems) from error
    if problems:
        raise ConfigError(problems)
    return config, [f"{path}: {warning}" for warning in config.warnings()]
