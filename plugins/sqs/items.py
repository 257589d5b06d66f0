"""One item of a queue, read as an event: where it goes, and whether it can be published."""

from typing import NamedTuple

from core.errors import Refused
from core.events.event import Draft, json_object, opening_of
from core.events.topics import PublishPath, checked_publish_path
from core.http.heads import MAX_TARGET

_LARGEST_NOTIFICATION = 1024**2  # characters: SQS takes no larger item


class Item(NamedTuple):
    """As SQS hands it over (Amazon SQS API reference, Message)."""

    id: str  # MessageId
    receipt: str  # ReceiptHandle: to delete it with, good for this reading of it only
    body: str


class Terms(NamedTuple):
    """What an item must meet to be published."""

    max_payload_size: int  # bytes
    max_line_size: int  # bytes
    unwrap_sns: bool
    forbidden: frozenset[str]  # secure topics that this queue may not publish on


def draft_of(item: Item, terms: Terms) -> Draft:
    """The event that an item is. Raises Refused, whose message says why it is none."""
    payload = _payload(_text_of(item, terms), terms.max_payload_size)
    path = _path(payload.get("pubsub_path", "/"))
    if forbidden := terms.forbidden & path.all_topics:
        topics = ", ".join(sorted(forbidden))
        raise Refused(403, f"this queue may not publish on {topics} (its key secure_topics says on which)")
    return Draft(path, opening_of(payload, path, terms.max_line_size))


def _text_of(item: Item, terms: Terms) -> str:
    """What is to be published: what a notification holds, whose own size does not count."""
    if terms.unwrap_sns and len(item.body) <= _LARGEST_NOTIFICATION:
        notification = json_object(item.body)
        message = notification.get("Message")
        if notification.get("Type") == "Notification" and isinstance(message, str):
            return message
    return item.body


def _payload(text: str, most: int) -> dict[str, object]:
    size = len(text.encode("utf-8", "surrogatepass"))
    if size > most:
        raise Refused(413, f"it has {size} bytes, and server.max_payload_size is {most}")
    return json_object(text)


def _path(path: object) -> PublishPath:
    if not isinstance(path, str):
        raise Refused(400, "pubsub_path is no text")
    try:
        size = len(path.encode())
    except UnicodeEncodeError:
        raise Refused(400, "pubsub_path holds half of a \\u pair, which is no character") from None
    if size > MAX_TARGET:
        raise Refused(414, f"pubsub_path has {size} bytes, more than the {MAX_TARGET} of a published path")
    return checked_publish_path(path)
