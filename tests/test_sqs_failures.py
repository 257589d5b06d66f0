"""Whatever fails between a queue and the stream: nothing is lost or comes twice, and it is told once."""

import asyncio
import contextlib
import os
import re
import signal
import sqlite3
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from aws import Counts, Moto
from aws_proxy import AwsProxy, Do, Reply, refusal
from daemon import Daemon, StartDaemon
from plugins.sqs.queue import Backoff
from queues import (
    OVER,
    TROUBLE,
    answered,
    body,
    check_no_fault,
    check_told_once,
    config,
    lines,
    new_name,
    new_queue,
    numbers,
    received,
    replayed,
    stopped,
    until_lines,
)
from storage import Trouble, disk, full_disk, locked, moved_away
from wire import free_port

pytestmark = pytest.mark.timeout(180)  # on a machine that others use too
RECEIVE, DELETE, HIDE = "ReceiveMessage", "DeleteMessageBatch", "ChangeMessageVisibilityBatch"
LONG = 3600  # seconds: what a test would not survive


class Stage(NamedTuple):
    """A daemon that reads one queue, by the name `q`, through a proxy."""

    daemon: Daemon
    moto: Moto
    proxy: AwsProxy
    queue: str

    async def send(self, *numbers: int, group: str | None = None) -> None:
        """Put items with these numbers into the queue."""
        bodies = [body("q", n) for n in numbers]
        await asyncio.to_thread(self.moto.send_many, self.queue, bodies, group)

    def asked(self, operation: str) -> int:
        """How often the daemon has asked for something."""
        return self.proxy.operations.count(operation)


@contextlib.asynccontextmanager
async def reading(
    moto: Moto,
    start_daemon: StartDaemon,
    storage: Path | None = None,
    *,
    queue: str = "",
    server: Mapping[str, Any] | None = None,
    **settings: Any,
) -> AsyncIterator[Stage]:
    """One daemon, one queue, and the proxy between them."""
    queue = queue or new_queue(moto)
    async with AwsProxy(moto.url) as proxy:
        settings = moto.settings(queue, **{"endpoint_url": proxy.url, "wait": 1, **settings})
        daemon = start_daemon(config({"q": settings}, storage, **(server or {})))
        stage = Stage(daemon, moto, proxy, queue)
        await proxy.until_asked(RECEIVE)
        yield stage
        if daemon.running:
            assert await stopped(daemon) == 0


# What SQS may answer, and what the log calls it


def one_item(**changes: Any) -> Reply:
    """An answer with an item that is not as SQS's are; None: it lacks that."""
    item = {"MessageId": "odd", "ReceiptHandle": "x", "Body": "{}"} | changes
    return answered({"Messages": [{name: value for name, value in item.items() if value is not None}]})


HTML = Reply(200, b"<html><body>Log in to the WiFi</body></html>", {"Content-Type": "text/html"})
ODD = "OddAnswerError"
ANY_REQUEST: dict[str, tuple[Do | Reply, str]] = {
    "internal": (refusal(500, "InternalFailure"), "InternalFailure"),
    "unavailable": (refusal(503, "ServiceUnavailable"), "ServiceUnavailable"),
    "throttled": (refusal(400, "ThrottlingException"), "ThrottlingException"),
    "expired": (refusal(403, "ExpiredToken"), "ExpiredToken"),
    "unknown-key": (refusal(403, "InvalidClientTokenId"), "InvalidClientTokenId"),
    "denied": (refusal(403, "AccessDenied"), "AccessDenied"),
    "gateway": (Reply(502, b"<html>Bad Gateway</html>", {"Content-Type": "text/html"}), "502"),
    "cut": (Do.CUT, "ConnectionClosedError"),
    "lost-answer": (Do.LOSE_ANSWER, "ConnectionClosedError"),
    "html": (HTML, ODD),
    "list": (answered([]), ODD),
    "null": (answered(None), ODD),
    "no-text": (answered(b'{"\xff": 1}'), ODD),
    "odd-refusal": (answered([1], 400), ODD),
}
WHEN_RECEIVING: dict[str, tuple[Do | Reply, str]] = ANY_REQUEST | {
    "no-id": (one_item(MessageId=None), ODD),
    "no-receipt": (one_item(ReceiptHandle=None), ODD),
    "no-body": (one_item(Body=None), ODD),
    "id-of-another-type": (one_item(MessageId=5), ODD),
    "body-of-another-type": (one_item(Body={"n": 1}), ODD),
    "items-are-text": (answered({"Messages": "none"}), ODD),
    "items-are-a-number": (answered({"Messages": 7}), ODD),
    "items-are-an-object": (answered({"Messages": {"MessageId": "x"}}), ODD),
    "huge": (answered({"Messages": "x" * 30_000_000}), ODD),
}


async def check_recovery(
    daemon: Daemon, moto: Moto, proxy: AwsProxy, queue: str, name: str, failing: tuple[str, Do | Reply, str]
) -> None:
    """Have three requests fail in a row, with items before, meanwhile and afterwards."""
    operation, action, kind = failing
    await proxy.until_asked(DELETE)
    before = proxy.operations.count(operation)
    times = (
        1 if (operation, action) == (DELETE, Do.LOSE_ANSWER) else 3
    )  # what was deleted does not come again
    proxy.on(operation, action, times)
    await asyncio.to_thread(moto.send, queue, body(name, 1))
    await proxy.until_asked(operation, before + times)
    assert not lines(daemon, OVER, name)
    await asyncio.to_thread(moto.send, queue, body(name, 2))
    await until_lines(daemon, OVER, name)
    assert kind in lines(daemon, TROUBLE, name)[0]


@pytest.mark.parametrize(
    ("operation", "answers", "hidden_for"), [(RECEIVE, WHEN_RECEIVING, 1), (DELETE, ANY_REQUEST, 3)]
)
async def test_a_failure_is_told_once_and_tried_again_until_it_is_over(
    moto: Moto,
    start_daemon: StartDaemon,
    tmp_path: Path,
    operation: str,
    answers: Mapping[str, tuple[Do | Reply, str]],
    hidden_for: int,
) -> None:
    """However often in a row: one line at its beginning, one at its end; each item is an event once.

    A queue for each failure, all at the same time, since they do not disturb one another.
    """
    async with contextlib.AsyncExitStack() as stack:
        proxies = {name: await stack.enter_async_context(AwsProxy(moto.url)) for name in answers}
        queues = {name: new_queue(moto) for name in answers}
        for name, queue in queues.items():
            moto.send(queue, body(name, 0))
        settings = {
            name: moto.settings(queues[name], endpoint_url=proxy.url, wait=1, visibility=hidden_for)
            for name, proxy in proxies.items()
        }
        daemon = start_daemon(config(settings, tmp_path / "backlog.db"))
        async with asyncio.TaskGroup() as tasks:
            for name, (action, kind) in answers.items():
                failing = (operation, action, kind)
                tasks.create_task(
                    check_recovery(daemon, moto, proxies[name], queues[name], name, failing), name=name
                )
        for name, (_, kind) in answers.items():
            await moto.until_empty(queues[name])
            check_told_once(daemon, name, kind)
            assert await replayed(daemon, f"/{name}") == [0, 1, 2], name
        assert await stopped(daemon) == 0


async def test_items_that_could_not_be_deleted_are_deleted_when_they_come_again(
    moto: Moto, start_daemon: StartDaemon, tmp_path: Path
) -> None:
    """An answer that lists them as failed: their events are in the stream once, and it is no trouble."""
    async with reading(moto, start_daemon, tmp_path / "backlog.db", visibility=1) as stage:
        failed = {"Id": "0", "Code": "InternalError", "SenderFault": False, "Message": "because of the test"}
        stage.proxy.on(DELETE, answered({"Successful": [], "Failed": [failed]}), times=2)
        await stage.send(0)
        await stage.proxy.until_asked(DELETE, 3)
        await moto.until_empty(stage.queue)
        assert await replayed(stage.daemon, "/q") == [0]
        check_told_once(stage.daemon, "q")


async def test_a_failing_delete_in_one_group_does_not_block_the_others(
    moto: Moto, start_daemon: StartDaemon, tmp_path: Path
) -> None:
    """The rest of its own group waits until the item is visible again, and comes behind it."""
    queue = new_queue(moto, fifo=True)
    async with (
        reading(moto, start_daemon, tmp_path / "backlog.db", queue=queue, visibility=5) as stage,
        stage.daemon.subscriber("/q") as stream,
    ):
        stage.proxy.on(DELETE, refusal(500, "InternalFailure"), times=1)
        await stage.send(10, group="a")
        assert await numbers(stream, 1) == [10]
        await stage.send(11, 12, group="a")
        await stage.send(20, 21, group="b")
        assert await numbers(stream, 4) == [20, 21, 11, 12]
        await moto.until_empty(queue)
        assert await replayed(stage.daemon, "/q") == [10, 20, 21, 11, 12]
        check_told_once(stage.daemon, "q", "InternalFailure")


# Queues that are not there


async def test_a_queue_that_is_made_later_or_anew_is_read(moto: Moto, start_daemon: StartDaemon) -> None:
    """By its name: it is not there at the start, is made, deleted, and made again."""
    queue = new_name()
    async with AwsProxy(moto.url) as proxy:
        settings = moto.settings(queue, endpoint_url=proxy.url, wait=1)
        daemon = start_daemon(config({"q": settings}))
        await proxy.until_asked("GetQueueUrl", 3)
        async with daemon.subscriber("/q") as stream:
            for life in (1, 2):
                if life == 2:
                    asked = len(proxy.operations)
                    await asyncio.to_thread(moto.delete_queue, queue)
                    await proxy.until(lambda: len(proxy.operations) >= asked + 3, "asked")  # noqa: B023
                assert len(lines(daemon, TROUBLE, "q")) == life
                assert "NonExistentQueue" in lines(daemon, TROUBLE, "q")[-1]
                assert len(lines(daemon, OVER, "q")) == life - 1
                await asyncio.to_thread(moto.create_queue, queue)
                await asyncio.to_thread(moto.send_many, queue, [body("q", life), body("q", -life)])
                assert await numbers(stream, 2) == [life, -life]
                await until_lines(daemon, OVER, "q", life)
                await moto.until_empty(queue)
        assert await stopped(daemon) == 0
    assert len(lines(daemon, TROUBLE, "q")) == len(lines(daemon, OVER, "q")) == 2


async def test_an_aws_that_goes_and_comes_again(own_moto: Moto, start_daemon: StartDaemon) -> None:
    """It refuses connections, then lacks the queue, then has it: each is told once, and then all goes on."""
    daemon = start_daemon(config({"q": own_moto.settings("q", wait=1, key="any", secret="any")}))
    await until_lines(daemon, TROUBLE, "q")
    async with daemon.subscriber("/q") as stream:
        for life, kinds in enumerate(
            (["EndpointConnectionError", "NonExistentQueue"], ["EndpointConnectionError", "NonExistentQueue"])
        ):
            await asyncio.to_thread(own_moto.start)
            await until_lines(daemon, TROUBLE, "q", len(kinds) * (life + 1))
            own_moto.create_queue("q")
            await asyncio.to_thread(own_moto.send, "q", body("q", life))
            assert await numbers(stream, 1) == [life]
            await until_lines(daemon, OVER, "q", life + 1)
            await own_moto.until_empty("q")
            await asyncio.to_thread(own_moto.stop)
            await until_lines(daemon, TROUBLE, "q", len(kinds) * (life + 1) + 1)
    check_no_fault(daemon)


# Others go on


async def test_one_queues_trouble_is_no_other_ones(
    moto: Moto, start_daemon: StartDaemon, tmp_path: Path
) -> None:
    """One hangs until its time is over, one is refused: a third, publishers and subscribers are served."""
    queues = {name: new_queue(moto) for name in ("hanging", "refused", "good")}
    async with AwsProxy(moto.url) as proxy, AwsProxy(moto.url) as good:
        proxy.on(None, Do.HANG)
        settings = {
            "hanging": moto.settings(queues["hanging"], endpoint_url=proxy.url, wait=1),
            "refused": moto.settings(queues["refused"], endpoint_url=f"http://127.0.0.1:{free_port()}"),
            "good": moto.settings(queues["good"], endpoint_url=good.url, wait=1),
        }
        daemon = start_daemon(config(settings, tmp_path / "backlog.db"))
        await proxy.until_hanging()
        await until_lines(daemon, TROUBLE, "refused")
        async with daemon.subscriber("/good") as stream:
            for n in range(0, 60, 3):
                await asyncio.to_thread(
                    moto.send_many, queues["good"], [body("good", n), body("good", n + 1)]
                )
                assert await numbers(stream, 2) == [n, n + 1]
                assert (await daemon.put("/good", {"n": n + 2})).status == 202
                assert await numbers(stream, 1) == [n + 2]
        assert not lines(daemon, TROUBLE, "good")
        await asyncio.to_thread(moto.send, queues["hanging"], body("hanging", 0))
        assert proxy.hanging == 1  # still the first one, or its successor
        proxy.heal()
        await until_lines(daemon, OVER, "hanging")
        await moto.until_empty(queues["hanging"])
        assert await replayed(daemon, "/hanging") == [0]
        check_told_once(daemon, "hanging", "ReadTimeoutError")
        assert len(lines(daemon, TROUBLE, "refused")) == 1
        assert await stopped(daemon) == 0


def test_pauses_grow_up_to_a_minute_and_begin_anew_after_success() -> None:
    """And are not the same for two who wait for the same thing."""
    backoffs = [Backoff() for _ in range(20)]
    rows = [[backoff.next() for _ in range(40)] for backoff in backoffs]
    for pauses in rows:
        for tries, pause in enumerate(pauses):
            longest = min(60.0, 2.0**tries)
            assert longest / 2 <= pause <= longest
    assert len({row[0] for row in rows}) == len({row[-1] for row in rows}) == len(rows)
    backoffs[0].reset()
    assert backoffs[0].next() <= 1


async def test_what_fails_is_not_asked_for_without_end(moto: Moto, start_daemon: StartDaemon) -> None:
    """While another queue publishes items one by one, a refused one is asked a few times only."""
    queues = {name: new_queue(moto) for name in ("refused", "good")}
    async with AwsProxy(moto.url) as proxy:
        proxy.on(None, refusal(403, "AccessDenied"))
        settings = {
            "refused": moto.settings(queues["refused"], endpoint_url=proxy.url),
            "good": moto.settings(queues["good"]),
        }
        daemon = start_daemon(config(settings))
        async with daemon.subscriber("/good") as stream:
            for n in range(50):
                await asyncio.to_thread(moto.send, queues["good"], body("good", n))
                assert await numbers(stream, 1) == [n]
        assert len(proxy.operations) <= 10
        assert await stopped(daemon) == 0


def open_files(daemon: Daemon) -> int:
    """How many files and connections the daemon has open."""
    return len(os.listdir(f"/proc/{daemon.pid}/fd"))


async def test_connections_that_are_cut_leave_nothing_open(moto: Moto, start_daemon: StartDaemon) -> None:
    """Those of ten queues, again and again: the daemon has as many files open as before."""
    names = [f"q{number}" for number in range(10)]
    queues = {name: new_queue(moto) for name in names}
    async with AwsProxy(moto.url) as proxy:
        proxy.on(RECEIVE, Do.HANG)
        settings = {name: moto.settings(queues[name], endpoint_url=proxy.url) for name in names}
        daemon = start_daemon(config(settings))
        await proxy.until_hanging(len(names))
        files = open_files(daemon)
        for cuts in range(1, 4):
            asked = proxy.operations.count(RECEIVE)
            proxy.cut()
            await proxy.until_asked(RECEIVE, asked + len(names))
            await proxy.until_hanging(len(names))
            assert open_files(daemon) <= files + 2, cuts
        assert await stopped(daemon) == 0


# While nothing can be stored


@pytest.fixture
def storage(tmp_path: Path) -> Iterator[Path]:
    """Where a backlog is to be: on a small disk of its own, which can be filled."""
    with disk(tmp_path / "backlog", "1m") as where:
        yield where / "backlog.db"


TROUBLES = pytest.mark.parametrize(
    "trouble", [full_disk, moved_away, locked], ids=lambda trouble: trouble.__name__
)


@TROUBLES
async def test_items_stay_hidden_in_the_queue_while_nothing_can_be_stored(
    moto: Moto, start_daemon: StartDaemon, storage: Path, trouble: Trouble
) -> None:
    """None is deleted, none gets to the dead letters, one line says so; then each is an event once."""
    dead = new_queue(moto)
    queue = new_queue(moto, dead_letters=dead, max_receives=2)
    async with reading(moto, start_daemon, storage, queue=queue, visibility=1) as stage:
        await stage.send(0)
        await moto.until_empty(queue)
        deleted = stage.asked(DELETE)
        async with stage.daemon.subscriber("/") as stream:
            with trouble(stage.daemon, storage):
                await stage.send(*range(1, 11))
                await until_lines(stage.daemon, TROUBLE, "q")
                await stage.proxy.until_asked(HIDE, 3)
                assert stage.asked(DELETE) == deleted
                assert moto.counts(queue) == Counts(0, 10)
                assert (await stream.object()).keys() == {"stillalive"}
            seen = [(await stream.event())["n"] for _ in range(10)]
        await moto.until_empty(queue)
        assert sorted(seen) == list(range(1, 11))
        assert await replayed(stage.daemon, "/q") == [0, *seen]
        assert moto.counts(dead) == Counts(0, 0)
        await until_lines(stage.daemon, OVER, "q")
        check_told_once(stage.daemon, "q", "could not be stored")


# Deleted after stored


async def test_an_item_is_deleted_after_its_event_is_forced_out_to_the_disk(
    moto: Moto, start_daemon: StartDaemon, tmp_path: Path
) -> None:
    """So that a crash of the machine costs none: each deletion follows an fdatasync that has returned."""
    async with reading(moto, start_daemon, tmp_path / "backlog.db") as stage:
        trace = tmp_path / "trace"
        calls = "--trace=fsync,fdatasync,sendto,sendmsg,write,writev"
        strace = await asyncio.create_subprocess_exec(
            *("strace", "-f", calls, "-s", "300", "-o", str(trace), "-p", str(stage.daemon.pid)),
            stderr=asyncio.subprocess.PIPE,
        )
        assert strace.stderr is not None
        assert b"attached" in await strace.stderr.readline()
        for n in range(5):
            await stage.send(n)
            await stage.proxy.until_asked(DELETE, n + 1)
        assert await stopped(stage.daemon) == 0
        await strace.communicate()
    told = re.findall(r"sync(?:\(\d+| resumed>).* = 0|AmazonSQS\.DeleteMessageBatch", trace.read_text())
    deletions = [place for place, call in enumerate(told) if "Delete" in call]
    assert len(deletions) == 5
    assert all("sync" in told[place - 1] for place in deletions)


# The same item, twice


@pytest.mark.parametrize("at_once", ["in one answer", "to two readers"])
async def test_an_item_that_is_given_out_twice_is_published_once(
    moto: Moto, start_daemon: StartDaemon, tmp_path: Path, at_once: str
) -> None:
    """While its event is being stored, which a lock delays: SQS may do that, also of itself."""
    storage = tmp_path / "backlog.db"
    queue = new_queue(moto)
    moto.send(queue, body("q", 0))
    items = received(moto, queue, VisibilityTimeout=0) + received(moto, queue, VisibilityTimeout=LONG)
    batch, times = (2, 1) if at_once == "in one answer" else (1, 3)
    async with AwsProxy(moto.url) as proxy:
        proxy.on(RECEIVE, Do.HOLD)
        settings = moto.settings(queue, endpoint_url=proxy.url, wait=1, batch=batch, consumers=3)
        daemon = start_daemon(config({"q": settings}, storage))
        await proxy.until_hanging()
        with locked(daemon, storage):
            proxy.release()
            proxy.on(RECEIVE, answered({"Messages": items[-batch:]}), times=times)
            await proxy.until_asked(RECEIVE, 1 + times)
        await moto.until_empty(queue)
        assert await replayed(daemon, "/q") == [0]
        assert await stopped(daemon) == 0


# Stops


async def test_a_stop_ends_the_waiting_for_items(moto: Moto, start_daemon: StartDaemon) -> None:
    """It leaves, with status 0, a request that would wait for 20 s."""
    async with AwsProxy(moto.url) as proxy:
        proxy.on(RECEIVE, Do.HANG)
        settings = moto.settings(new_queue(moto), endpoint_url=proxy.url, wait=20)
        daemon = start_daemon(config({"q": settings}, drain_timeout=LONG))
        await proxy.until_hanging()
        assert await stopped(daemon) == 0
        await proxy.until_hanging(0)
    assert proxy.operations.count(RECEIVE) == 1
    assert not lines(daemon, TROUBLE, "q")


async def test_what_is_stored_is_deleted_before_a_stop_ends(moto: Moto, start_daemon: StartDaemon) -> None:
    """A deletion that is under way is waited for."""
    async with reading(moto, start_daemon, server={"drain_timeout": LONG}, visibility=LONG) as stage:
        stage.proxy.on(DELETE, Do.HOLD)
        await stage.send(0, 1, 2)
        await stage.proxy.until_hanging()
        stage.daemon.signal(signal.SIGTERM)
        await stage.daemon.until_logged("SIGTERM: stopping")
        assert stage.daemon.running
        assert moto.counts(stage.queue) == Counts(0, 3)
        stage.proxy.release()
        assert await asyncio.to_thread(stage.daemon.wait) == 0
        assert moto.counts(stage.queue) == Counts(0, 0)
        assert stage.asked(DELETE) == 1


async def test_a_stop_does_not_wait_for_ever_for_a_deletion(moto: Moto, start_daemon: StartDaemon) -> None:
    """Half of drain_timeout; the items come again."""
    async with reading(moto, start_daemon, server={"drain_timeout": 1}, wait=20) as stage:
        stage.proxy.on(DELETE, Do.HANG)
        await stage.send(0)
        await stage.proxy.until_hanging()
        assert await stopped(stage.daemon) == 0
        assert moto.counts(stage.queue) == Counts(0, 1)


async def test_a_stop_stores_and_deletes_what_was_read(
    moto: Moto, start_daemon: StartDaemon, tmp_path: Path
) -> None:
    """Also if the disk is slow: a lock holds up the write that the stop finds under way."""
    storage = tmp_path / "backlog.db"
    async with reading(moto, start_daemon, storage, visibility=LONG) as stage:
        with locked(stage.daemon, storage):
            await stage.send(0, 1, 2)
            await moto.until_counts(stage.queue, 0, 3)
            stage.daemon.signal(signal.SIGTERM)
            await stage.daemon.until_logged("SIGTERM: stopping")
        assert await asyncio.to_thread(stage.daemon.wait) == 0
        assert moto.counts(stage.queue) == Counts(0, 0)
        stage.daemon.start()
        assert sorted(await replayed(stage.daemon, "/q")) == [0, 1, 2]


@pytest.mark.parametrize("moment", ["between two tries", "during a try"])
async def test_a_stop_gives_back_what_cannot_be_stored(
    moto: Moto, start_daemon: StartDaemon, tmp_path: Path, moment: str
) -> None:
    """Others may have the items at once, although they were to be hidden for long."""
    storage = tmp_path / "backlog.db"
    trouble = moved_away if moment == "between two tries" else locked
    async with reading(moto, start_daemon, storage, visibility=LONG) as stage:
        await stage.send(0)
        await moto.until_empty(stage.queue)
        with trouble(stage.daemon, storage):
            await stage.send(1, 2, 3)
            if moment == "between two tries":
                await stage.proxy.until_asked(HIDE, 2)
            await moto.until_counts(stage.queue, 0, 3)
            assert await stopped(stage.daemon) == 0
        assert moto.counts(stage.queue) == Counts(3, 0)
        stage.daemon.start()
        await moto.until_empty(stage.queue)
        assert (await replayed(stage.daemon, "/q"))[0] == 0
        assert sorted(await replayed(stage.daemon, "/q")) == [0, 1, 2, 3]


async def test_a_stop_comes_through_while_something_fails(moto: Moto, start_daemon: StartDaemon) -> None:
    """One reader of the queue has failed, and waits for another one's deletion: the stop is not forgotten."""
    queue = new_queue(moto)
    moto.send_many(queue, [body("q", 0), body("q", 1)])
    async with AwsProxy(moto.url) as proxy:
        proxy.on(DELETE, Do.HOLD)
        proxy.on(RECEIVE, refusal(500, "InternalFailure"))
        proxy.on(RECEIVE, Do.PASS, times=2)
        settings = moto.settings(queue, endpoint_url=proxy.url, batch=1, visibility=LONG)
        daemon = start_daemon(config({"q": settings}, drain_timeout=LONG))
        await proxy.until_hanging(2)
        await proxy.until_asked(RECEIVE, 3)
        async with daemon.subscriber("/q") as stream:
            assert (await stream.object()).keys() == {"stillalive"}
            assert proxy.hanging == 2
            daemon.signal(signal.SIGTERM)
            await daemon.until_logged("SIGTERM: stopping")
            for _ in range(3):  # it has told its readers by then
                assert (await stream.object()).keys() == {"stillalive"}
            proxy.release()
        assert await asyncio.to_thread(daemon.wait) == 0
    assert moto.counts(queue) == Counts(0, 0)


# Files of earlier versions


async def test_a_backlog_of_an_earlier_version_gets_its_table_of_items(
    moto: Moto, start_daemon: StartDaemon, tmp_path: Path
) -> None:
    """Its events stay, and the items that come are remembered over a crash."""
    storage = tmp_path / "backlog.db"
    before = start_daemon(config({}, storage))
    assert (await before.put("/q", {"n": 0})).status == 202
    before.stop()
    with contextlib.closing(sqlite3.connect(storage)) as connection:
        connection.execute("DROP TABLE items")
        connection.execute("PRAGMA user_version = 1")
        connection.execute("VACUUM")
    async with reading(moto, start_daemon, storage, visibility=1) as stage:
        stage.proxy.on(DELETE, Do.HANG)
        await stage.send(1)
        await stage.proxy.until_hanging()
        await asyncio.to_thread(stage.daemon.stop, signal.SIGKILL)
        stage.proxy.heal()
        stage.daemon.start()
        await stage.send(2)
        await moto.until_empty(stage.queue)
        assert await replayed(stage.daemon, "/q") == [0, 1, 2]
