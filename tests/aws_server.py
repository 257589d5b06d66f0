"""The process of aws.Moto: `python aws_server.py PORT`. moto, made to do what AWS does in a few things.

It ends when its standard input does, as with a pytest that was killed.

What moto 5.2 gets wrong, and tests would stumble over:

- It has no locks: two consumers are given the same item now and then, and one that is sent while another
  is deleted may be lost.
- While it waits for items, it looks once a second only for those that are to become visible again; and
  without any pause if the next items of a FIFO queue are held back by those in flight. Which groups
  are in flight it finds out before it waits: it goes on to hold back those that were let go meanwhile, and
  gives out others that were taken.
- Of items of a FIFO queue that become visible again together, it gives out the last one first.
- It goes on waiting for a client that has gone, and takes the next item for it.
- It deletes what somebody else has got since. AWS says that it might not, and refuses it in a FIFO queue.
- It deduplicates by what is in the queue; AWS by what was sent in the last 5 minutes, deleted or not.
- Its policies know actions that AWS's do not, such as sqs:DeleteMessageBatch, and it does not see which
  queue GetQueueUrl is about. What it refuses, it refuses in XML, which no client of SQS expects any more.
- It has two headers Server in a response, which aiohttp does not take in development mode.
- Each item takes it a time that grows with the number of items: at 500 it delivers 30 in a second.
"""

import functools
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import flask
from moto.core.exceptions import AccessDeniedError
from moto.iam.access_control import IAMRequest
from moto.moto_server.werkzeug_app import MotoRequestHandler
from moto.server import main
from moto.sqs import models
from moto.sqs.exceptions import ReceiptHandleIsInvalid, SQSException
from moto.sqs.models import Message, Queue, SQSBackend
from moto.sqs.responses import SQSResponse
from werkzeug.exceptions import HTTPException

changed = threading.Condition()  # held by whoever looks at any queue; notified when an item comes
POLL = 0.05  # seconds between looks for items that are visible again, and for a client that has gone


def one_at_a_time(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method of the backend that runs alone."""

    @functools.wraps(method)
    def alone(*args: Any, **kwargs: Any) -> Any:
        with changed:
            return method(*args, **kwargs)

    return alone


def client_has_gone(connection: socket.socket) -> bool:
    """Whether the other end has closed it."""
    try:
        return connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


class InFlight(set[str]):
    """The groups that a receive_message() has to leave alone; its copy of them is the original."""

    def __deepcopy__(self, memo: object) -> "InFlight":
        latest.groups = self
        return self


latest = threading.local()  # groups: of the receive_message() that runs in this thread


def wait_for_messages(self: Queue, timeout: float) -> None:
    """Let others at the queues for a moment. Called again and again by receive_message()."""
    changed.wait(min(timeout, POLL))
    latest.groups.clear()
    latest.groups |= self.pending_message_groups
    if client_has_gone(flask.request.environ["werkzeug.socket"]):
        raise SQSException("ClientHasGone", "nobody reads this")


add_message = Queue.add_message


def add_message_once(self: Queue, message: Message) -> None:
    """As in AWS, where what was deleted still counts; and tell those who wait."""
    sent: set[str] = self.__dict__.setdefault("sent_deduplication_ids", set())
    redriven = message.approximate_receive_count > 0  # into this queue, where it may have the id of another
    if self.fifo_queue and message.deduplication_id is not None and not redriven:
        if message.deduplication_id in sent:
            return
        sent.add(message.deduplication_id)
    add_message(self, message)
    changed.notify_all()


determine_resource = SQSResponse._determine_resource


def resource(self: SQSResponse) -> str:
    """The queue that a request is about, for GetQueueUrl as well."""
    if name := self._get_param("QueueName"):
        return f"arn:aws:sqs:{self.region}:{self.current_account}:{name}"
    return determine_resource(self)


check_action_permitted = IAMRequest.check_action_permitted


def check_permission(self: IAMRequest, resource: str) -> None:
    """A batch needs the permission of its single action."""
    if self._service == "sqs":
        self._action = self._action.removesuffix("Batch")
    check_action_permitted(self, resource)


authenticate = SQSResponse._authenticate_and_authorize_normal_action


def authenticate_in_json(self: SQSResponse, resource: str) -> None:
    """Refuse in the words and the protocol of AWS."""
    try:
        authenticate(self, resource)
    except HTTPException as error:
        code, message = vars(error)["error_type"], vars(error)["message"]
        if isinstance(error, AccessDeniedError):
            message = f"{message.lower()} on resource: {resource}"
            message = f"User{message.removeprefix('user')} because no identity-based policy allows it"
            code = "AccessDenied"
        error.description = json.dumps({"__type": f"com.amazon.coral.service#{code}", "message": message})
        self.response_headers["x-amzn-query-error"] = f"{code};Sender"
        self.response_headers["content-type"] = "application/x-amz-json-1.0"
        raise


class Count:
    """A number that is counted when it is printed: most of those who ask for all attributes do not."""

    def __init__(self, count: Callable[[], int]) -> None:
        self._count = count

    def __str__(self) -> str:
        return str(self._count())


def visible(self: Queue) -> Count:
    """What a queue says of itself."""
    return Count(lambda: len(self.messages))


def in_flight(self: Queue) -> Count:
    """The same."""
    return Count(lambda: sum(not message.visible for message in self._messages))


def delayed(self: Queue) -> Count:
    """The same."""
    return Count(lambda: sum(message.delayed for message in self._messages))


def delete_message(self: Queue, receipt_handle: str) -> None:
    """Delete what somebody still has. What AWS may do with an old handle, this does: nothing."""
    if receipt_handle in self.deleted_messages:
        return
    for index, message in enumerate(self._messages):
        if message.had_receipt_handle(receipt_handle):
            if self.fifo_queue and (message.visible or message.receipt_handle != receipt_handle):
                break
            if message.receipt_handle != receipt_handle:
                return
            self.pending_messages.discard(message)
            self.deleted_messages.update(filter(None, message.all_receipt_handles))
            del self._messages[index]
            return
    raise ReceiptHandleIsInvalid


def groups_in_flight(self: Queue) -> InFlight:
    """Without those whose consumer has run out of time."""
    self._pending_messages = {message for message in self._pending_messages if not message.visible}
    return InFlight(message.group_id for message in self._pending_messages if message.group_id is not None)


def begin_response(self: MotoRequestHandler, code: int, message: str | None = None) -> None:
    """What http.server does, without Server, which moto adds."""
    self.log_request(code)
    self.send_response_only(code, message)
    self.send_header("Date", self.date_time_string())


def is_kept(self: SQSBackend, queue_name: str, message: Message) -> bool:
    """No item of a test is as old as four days."""
    return True


def patch(owner: Any, name: str, replacement: Any) -> None:
    """Put something in the place of a part of moto, which must have one of that name."""
    getattr(owner, name)
    setattr(owner, name, replacement)


for method in (
    *("receive_message", "send_message", "send_message_batch", "delete_message", "delete_message_batch"),
    *("change_message_visibility", "change_message_visibility_batch", "purge_queue", "get_queue_attributes"),
):
    patch(SQSBackend, method, one_at_a_time(getattr(SQSBackend, method)))
patch(Queue, "wait_for_messages", wait_for_messages)
patch(Queue, "add_message", add_message_once)
patch(SQSResponse, "_determine_resource", resource)
patch(IAMRequest, "check_action_permitted", check_permission)
patch(SQSResponse, "_authenticate_and_authorize_normal_action", authenticate_in_json)
patch(models, "unix_time", time.time)
patch(models, "unix_time_millis", lambda: time.time() * 1000)
patch(Queue, "approximate_number_of_messages", property(visible))
patch(Queue, "approximate_number_of_messages_not_visible", property(in_flight))
patch(Queue, "approximate_number_of_messages_delayed", property(delayed))
patch(models, "camelcase_to_underscores", functools.cache(models.camelcase_to_underscores))  # type: ignore[attr-defined]
patch(Queue, "pending_message_groups", property(groups_in_flight))
patch(MotoRequestHandler, "send_response", begin_response)
patch(Queue, "delete_message", delete_message)
patch(models, "sqs_enforce_strict_queue_purge_behaviour", bool)  # a queue may be purged twice a minute
patch(SQSBackend, "is_message_valid_based_on_retention_period", is_kept)


def end_with_parent() -> None:
    """Wait for the end of the standard input."""
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    threading.Thread(target=end_with_parent, daemon=True).start()
    main(["--port", sys.argv[1]])
