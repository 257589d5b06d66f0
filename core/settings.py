"""pypubsub.yaml: its sections `server` and `clients`, with the default of every key, and the file as a whole.

What each key means to an operator stands in pypubsub.yaml. Sections that belong to plugins are described by
them: here is only how they become part of the file.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from ipaddress import AddressValueError, IPv6Address
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from netaddr import AddrFormatError, IPNetwork
from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PlainValidator,
    StrictBool,
    StrictInt,
    StrictStr,
    create_model,
)

from core.config import Duration, PositiveDuration, Section, Size, build, read_yaml
from core.errors import ConfigError, collected

UNIX: Literal["unix"] = "unix"  # in a list of networks: peers of a unix socket, who have no address
TOPIC_FORM = "a topic: text that is not empty and has no / and no comma"
_NETWORK_FORM = 'a network such as 10.0.0.0/8, an address, or "unix"'
DEPLOYED_READERS_LINE_SIZE = 614_400  # bytes; a widely deployed reader fails for ever on a longer line


def _parse_port(value: object) -> int:
    if isinstance(value, str) and re.fullmatch("[0-9]{1,5}", value, re.ASCII):  # in quotes, as 0.7 took it
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 65535:
        raise ValueError("a port from 1 to 65535 (0: any free one)")
    return value


def _parse_network(value: object) -> IPNetwork | Literal["unix"]:
    if value == UNIX:
        return UNIX
    try:
        network = IPNetwork(value) if isinstance(value, str) else None
    except (AddrFormatError, ValueError):
        network = None
    if network is None:
        raise ValueError(_NETWORK_FORM)
    return _as_ipv4_if_mapped(network)


def _as_ipv4_if_mapped(network: IPNetwork) -> IPNetwork:
    """::ffff:10.0.0.0/104 -> 10.0.0.0/8: IPv4-mapped IPv6 addresses (RFC 4291 2.5.5.2) are the IPv4 ones."""
    if network.version == 6 and network.prefixlen >= 96 and network.ip.is_ipv4_mapped():
        return IPNetwork(f"{network.ip.ipv4()}/{network.prefixlen - 96}")
    return network


def is_topic(value: object) -> bool:
    """Whether an event can have this among its topics."""
    return isinstance(value, str) and bool(value) and "/" not in value and "," not in value


def _check_topic(value: str) -> str:
    if not is_topic(value):
        raise ValueError(TOPIC_FORM)
    return value


def as_list(value: object) -> object:
    """One text in the place of a list of texts."""
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


Port = Annotated[int, BeforeValidator(_parse_port)]
Bind = Annotated[StrictStr, AfterValidator(_check_bind)]
Origin = Annotated[StrictStr, AfterValidator(_check_origin)]
HostName = Annotated[StrictStr, AfterValidator(_check_host)]
CertificateName = Annotated[StrictStr, AfterValidator(_check_certificate_name)]
FilePath = Annotated[StrictStr, AfterValidator(_check_file_path)]
Network = Annotated[IPNetwork | Literal["unix"], PlainValidator(_parse_network)]
Topic = Annotated[StrictStr, AfterValidator(_check_topic)]
UserAgentPart = Annotated[StrictStr, Field(min_length=1)]


class TlsConfig(Section):
    """server.tls: a second port, with TLS, on the same addresses."""

    port: Port = 2070
    cert: FilePath  # PEM file
    key: FilePath  # PEM file
    chain: FilePath | None = None  # PEM file of intermediate certificates, sent after those in cert
    client_ca: FilePath | None = None  # PEM file: whose certificates clients may show; None: not asked for


class ServerConfig(Section):
    """server: where it listens, and its limits."""

    port: Port = 2069
    bind: Annotated[tuple[Bind, ...], BeforeValidator(as_list), Field(min_length=1)] = ("0.0.0.0",)  # noqa: S104
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
    max_connections: Annotated[StrictInt, Field(ge=1)] = 50_000
    max_connections_per_address: Annotated[StrictInt, Field(ge=0)] = 0  # 0: no limit
    trusted_proxies: tuple[Network, ...] = ()
    cors_origins: tuple[Origin, ...] = ()
    hosts: tuple[HostName, ...] = ()  # beside addresses, localhost and the machine's own names
    access_log: StrictBool = False

    def takes_ipv4_too(self, bind: str) -> bool:
        """Whether an address of `bind` is all of IPv6, and takes IPv4 as well: no other takes that."""
        return _is_all_of_ipv6(bind) and all(":" in other for other in self.bind)


class ClientsConfig(Section):
    """clients: who may publish, and who reads in an old form."""

    payloaders: tuple[Network, ...] = ()
    payloader_certs: tuple[CertificateName, ...] = ()
    oldschoolers: tuple[UserAgentPart, ...] = ()
    secure_topics: tuple[Topic, ...] = ()
    wrong_credentials: Literal["refused", "anonymous"] = "refused"


class PluginSection(Section):
    """A section that belongs to a plugin; plugins/__init__.py has the table of them."""

    always: ClassVar[bool] = False  # the plugin is there, with its defaults, where its section is not
    # read by read(), beside the rest of the file: errors in it show no values, and those of others do
    apart: ClassVar[bool] = False

    @classmethod
    def read(cls, content: Any, path: Path) -> Self | None:
        """The section, from what stands in the file; None if that is nothing. Raises ConfigError."""
        raise NotImplementedError

    def warnings(self, config: "Config") -> list[str]:  # noqa: ARG002
        """What an operator should know about valid settings: lines that begin with the key."""
        return []


@dataclass(frozen=True)
class Config:
    """pypubsub.yaml, read. sections: of the plugins that are there, by place (server.backlog)."""

    path: Path
    server: ServerConfig
    clients: ClientsConfig
    sections: Mapping[str, PluginSection]

    @property
    def certified_publishers(self) -> tuple[str, ...]:
        """The names of certificates that may publish: none if no certificate is asked for."""
        asked_for = self.server.tls and self.server.tls.client_ca
        return self.clients.payloader_certs if asked_for else ()

    def plan_of_publishers(self) -> list[str]:
        """Who may publish: a line for --check."""
        certificates = [f"certificate {name}" for name in self.certified_publishers]
        named = ", ".join([*map(str, self.clients.payloaders), *certificates])
        return [f"publishers: {named or 'nobody'}"]

    def plan_of_secure_topics(self) -> list[str]:
        """What only users with a right to it may publish on: a line for --check, if there are such topics."""
        topics = self.clients.secure_topics
        return [f"secure topics: {', '.join(topics)}"] if topics else []

    @property
    def publishers_are_named(self) -> bool:
        """Whether anybody may publish over HTTP."""
        return bool(self.clients.payloaders or self.certified_publishers or self.clients.secure_topics)

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
        if self.clients.payloader_certs and not self.certified_publishers:
            found.append("clients.payloader_certs: has no effect without server.tls.client_ca")
        for section in self.sections.values():
            found += section.warnings(self)
        return [f"{self.path}: {warning}" for warning in found]


def load(path: Path, plugins: Mapping[str, type[PluginSection]]) -> Config:
    """The configuration. plugins: their sections, by place. Raises ConfigError with all problems."""
    content = read_yaml(path, "keys such as server: and clients:") or {}
    found: dict[str, PluginSection | None] = {}
    problems: list[str] = []
    for place, model in plugins.items():
        if model.apart and place in content:
            with collected(problems):
                found[place] = model.read(content.pop(place), path)
    try:
        file: Any = build(file_model(plugins), content, path)
    except ConfigError as error:
        raise ConfigError(error.problems + problems) from error
    if problems:
        raise ConfigError(problems)
    for place, model in plugins.items():
        if not model.apart:
            found[place] = reduce(getattr, place.split("."), file)
    sections = {place: section for place in plugins if (section := found.get(place)) is not None}
    return Config(path, file.server, file.clients, sections)


def file_model(plugins: Mapping[str, type[PluginSection]]) -> type[Section]:
    """The model of the whole file, with the sections of plugins in their places."""
    keys: dict[str, dict[str, Any]] = {"server": {}, "clients": {}, "": {}}
    for place, model in plugins.items():
        above, _, key = place.rpartition(".")
        if model.apart:
            keys[above][key] = (Any, None)
        else:
            keys[above][key] = (model, model()) if model.always else (model | None, None)
    server = create_model("ServerConfig", __base__=ServerConfig, **keys["server"])
    clients = create_model("ClientsConfig", __base__=ClientsConfig, **keys["clients"])
    keys[""] |= {"server": (server, server()), "clients": (clients, clients())}
    whole: type[Section] = create_model("File", __base__=Section, **keys[""])
    return whole
