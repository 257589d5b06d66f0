"""The section `sqs` of pypubsub.yaml: queues whose items are published, by names of the operator's choice.

What each key means to an operator stands in docs/sqs.md.
"""

import re
from collections.abc import Mapping
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, StrictBool, StrictInt, StrictStr, model_validator

from core.config import PositiveDuration, Section, build, parse_duration
from core.errors import ConfigError
from core.settings import Config, PluginSection, Topic

# what the API of SQS takes (Amazon SQS API reference, ReceiveMessage)
LONGEST_POLL = 20  # seconds
LONGEST_VISIBILITY = 12 * 3600  # seconds
MOST_AT_ONCE = 10  # items
_VISIBILITY_OF_WHAT_STAYS = 300  # seconds
_QUEUE_FORM = "the name of a queue, or its URL"
_LONGEST_WINDOW = 14 * 86400  # seconds: a queue keeps nothing longer


def _check_queue(value: str) -> str:
    name = r"[A-Za-z0-9_-]{1,80}|[A-Za-z0-9_-]{1,75}\.fifo"
    if not re.fullmatch(rf"({name})|https?://[!-~]+/({name})", value, re.ASCII):
        raise ValueError(_QUEUE_FORM)
    try:
        urlsplit(value)
    except ValueError:
        raise ValueError(_QUEUE_FORM) from None
    return value


def _check_url(value: str) -> str:
    if not re.fullmatch(
        r"https?://([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?(/[!-~]*)?", value, re.ASCII
    ):
        raise ValueError("a URL such as http://127.0.0.1:9324")
    return value


def _check_word(value: str) -> str:
    if not re.fullmatch(r"[!-~]+", value, re.ASCII):
        raise ValueError("text without spaces, in ASCII")
    return value


def _parse_wait(value: object) -> int:
    seconds = parse_duration(value)
    if not 1 <= seconds <= LONGEST_POLL:
        raise ValueError(
            "1s to 20s: with less the queue would be asked without end, and more SQS does not take"
        )
    return round(seconds)


def _parse_visibility(value: object) -> int:
    seconds = parse_duration(value)
    if not 1 <= seconds <= LONGEST_VISIBILITY:
        raise ValueError("1s to 12h")
    return round(seconds)


def _check_window(value: float) -> float:
    if value > _LONGEST_WINDOW:
        raise ValueError("14d at most: a queue keeps no item longer")
    return value


Word = Annotated[StrictStr, AfterValidator(_check_word)]


class QueueConfig(Section):
    """sqs.NAME: one queue."""

    shows_values: ClassVar[bool] = False  # there is a secret among them

    queue: Annotated[StrictStr, AfterValidator(_check_queue)]
    region: Word | None = None
    endpoint_url: Annotated[StrictStr, AfterValidator(_check_url)] | None = None
    key: Word | None = None
    secret: Word | None = None
    profile: Annotated[StrictStr, Field(min_length=1)] | None = None
    delete: StrictBool = False  # items that are published
    bad_items: Literal["leave", "delete"] = "leave"
    unwrap_sns: StrictBool = False
    secure_topics: tuple[Topic, ...] = ()  # of clients.secure_topics, that items may be published on
    wait: Annotated[int, BeforeValidator(_parse_wait)] = LONGEST_POLL  # seconds
    batch: Annotated[StrictInt, Field(ge=1, le=MOST_AT_ONCE)] = MOST_AT_ONCE
    consumers: Annotated[StrictInt, Field(ge=1, le=50)] = 4
    visibility: Annotated[int, BeforeValidator(_parse_visibility)] | None = None  # seconds
    window: Annotated[PositiveDuration, AfterValidator(_check_window)] = 4 * 86400.0

    @model_validator(mode="after")
    def _check_credentials(self) -> Self:
        if (self.key is None) != (self.secret is None):
            raise ValueError("key and secret together, or neither of them")
        if self.key is not None and self.profile is not None:
            raise ValueError("key and secret, or profile, but not both")
        return self

    @property
    def hidden_for(self) -> int | None:
        """How long an item that was read is given to nobody: seconds, None for as long as the queue has it.

        Items that stay come again and again, so that it should not be soon.
        """
        return self.visibility or (None if self.delete else _VISIBILITY_OF_WHAT_STAYS)

    def is_the_same_as(self, other: "QueueConfig") -> bool:
        """Whether both are read from one queue, as far as that can be seen before it is asked for."""
        if self.url and other.url:
            return self.identity_of(self.url) == other.identity_of(other.url)
        return all(
            getattr(self, key) == getattr(other, key)
            for key in ("queue", "region", "endpoint_url", "key", "profile")
        )

    def may_be_the_same_as(self, other: "QueueConfig") -> bool:
        """Whether one has the name of the queue whose URL the other has; accounts are not compared."""
        named, given = (other, self) if self.url else (self, other)
        if named.url or not given.url or named.name != given.name:
            return False
        regions = {region for region in (named.region, _region_of(given.url) or given.region) if region}
        return named.endpoint_url == given.endpoint_url and len(regions) < 2

    def identity_of(self, url: str) -> str:
        """What the queue of that URL is known by, of several ways to write it."""
        parts = urlsplit(url)
        if region := _region_of(url):
            return f"{region}{parts.path}"
        return f"{self.endpoint_url or ''} {parts.netloc.lower()}{parts.path}"

    @property
    def url(self) -> str | None:
        """Of the queue, if it is known before it is asked for."""
        return self.queue if "/" in self.queue else None

    @property
    def name(self) -> str:
        """Of the queue, also where a URL is given."""
        return self.queue.rpartition("/")[2]

    @property
    def connections(self) -> int:
        """How many are made to the queue at most."""
        return 2 * self.consumers + 1

    @property
    def plan(self) -> str:
        """What is read, and what becomes of it, in words."""
        where = f" in {self.region}" if self.region else ""
        at = f" at {self.endpoint_url}" if self.endpoint_url else ""
        return f"{self.queue}{where}{at}, whose items are {'deleted' if self.delete else 'left'}"

    def warnings(self, secure_topics: tuple[str, ...]) -> list[str]:
        """What an operator should know about valid settings, each with the key it is about."""
        found = []
        if self.name.endswith(".fifo") and not self.delete:
            found.append(
                "delete: is off, so of a message group a FIFO queue gives out the first items and no others"
            )
        if (self.endpoint_url or "").startswith("http:") and not self._stays_on_this_machine():
            found.append("endpoint_url: items travel unencrypted: use https")
        if unknown := set(self.secure_topics) - set(secure_topics):
            found.append(f"secure_topics: not in clients.secure_topics: {', '.join(sorted(unknown))}")
        return found

    def _stays_on_this_machine(self) -> bool:
        return bool(re.match(r"http://(127\.[0-9.]+|localhost|\[::1\])([:/]|$)", self.endpoint_url or ""))


def _region_of(url: str) -> str | None:
    """The region in a queue's URL at AWS; None elsewhere."""
    host = urlsplit(url).hostname or ""
    if not re.search(r"\.(amazonaws\.com|amazonaws\.com\.cn|api\.aws)$", host):
        return None
    match = re.search(r"\b[a-z]{2,3}(-[a-z]+)+-[0-9]+\b", host)
    return match[0] if match else "us-east-1"  # https://queue.amazonaws.com, which is old


def warnings_of_twins(queues: Mapping[str, QueueConfig]) -> list[str]:
    """What an operator should know of settings that are valid, and may name one queue in two ways."""
    return [
        f"{name}.queue: may be the queue of sqs.{other}: if it is, only one of the two reads it"
        for (other, first), (name, second) in combinations(queues.items(), 2)
        if first.may_be_the_same_as(second)
    ]


def build_queues(content: Any, path: Path) -> dict[str, QueueConfig]:
    """The section of a file. Raises ConfigError with all problems."""
    if not isinstance(content, dict):
        raise ConfigError([f"{path}: sqs: expected names of your choice, and below each the keys of a queue"])
    queues: dict[str, QueueConfig] = {}
    problems: list[str] = []
    for name, settings in content.items():
        if not isinstance(name, str) or not re.fullmatch(r"[^\s,]{1,64}", name) or not name.isprintable():
            problems.append(f"{path}: sqs: expected a name of up to 64 characters, got {str(name)[:64]!r}")
            continue
        try:
            queue = build(QueueConfig, settings, path, above=("sqs", name))
        except ConfigError as error:
            problems += error.problems
            continue
        twin = next((other for other in queues if queues[other].is_the_same_as(queue)), None)
        if twin is not None:  # each would publish what is in it
            problems.append(f"{path}: sqs.{name}.queue: is read as sqs.{twin} already")
        queues[name] = queue
    if problems:
        raise ConfigError(problems)
    return queues


class QueuesConfig(PluginSection):
    """sqs: the queues, by names of the operator's choice."""

    apart: ClassVar[bool] = True

    queues: dict[str, QueueConfig]

    @classmethod
    def read(cls, content: Any, path: Path) -> Self | None:
        """The section of a file. Raises ConfigError with all problems, which show no values."""
        queues = build_queues(content, path)
        return cls(queues=queues) if queues else None

    def warnings(self, config: Config) -> list[str]:
        """What an operator should know about valid settings, one line each."""
        found = []
        for name, queue in self.queues.items():
            found += [f"sqs.{name}.{warning}" for warning in queue.warnings(config.clients.secure_topics)]
        return found + [f"sqs.{warning}" for warning in warnings_of_twins(self.queues)]
