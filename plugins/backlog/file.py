"""The backlog in a file: events go out once they are on the disk, and any number of them can be read again.

What comes while one transaction is written is stored together in the next one (group commit), so the disk
sets how long a publisher waits, and not how many events there are in a second.

The newest events are in memory too, so that only those who come from further back make the file be read.
"""

import asyncio
import errno
import fcntl
import logging
import math
import os
import time
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple, ParamSpec, TypeVar

from core.errors import RETRY_AFTER, Refused, StartError
from core.events.cursor import Mark, position_of
from core.events.event import Event
from core.events.idempotency import IdempotencyKey, QueueItem
from core.events.replay import NOTHING, Gone, Placement, Reach, ReplayRequest, place, place_cursor
from core.events.selection import Selection
from core.events.store import PORTION, Accepted, Outlet, Page, RememberedReply, StoreError
from core.events.turns import Slice
from core.events.waiting import MOST_WAITING
from core.settings import ServerConfig
from core.trouble import Trouble
from plugins.backlog.ages import Ages, since_boot, this_boot
from plugins.backlog.database import RESERVED_AHEAD, BacklogFile, Clock, Write
from plugins.backlog.import_0_7 import import_old_backlog, is_old_backlog
from plugins.backlog.memory import Backlog, Kind
from plugins.backlog.pages import LookedBack, newest
from plugins.backlog.progress import Progress
from plugins.backlog.schema import KINDS
from plugins.backlog.settings import BacklogConfig

log = logging.getLogger("pypubsub.backlog")

_GROUP_EVENTS = 10_000  # with as many, or so many bytes, a group that is stored together is long enough
_GROUP_BYTES = 8 * 1024**2
_CLOCK_KEPT_EVERY = 60.0  # seconds
_LOG_MOVED_EVERY = 60.0  # seconds, at least
_ANY = "any"  # failures of a kind: only the first one is told, whatever the reasons of the others

P = ParamSpec("P")
R = TypeVar("R")


class _Waiting(NamedTuple):
    """Events that wait to be stored."""

    write: Write
    size: int  # bytes of their lines
    done: asyncio.Future[Accepted]


class StoredBacklog(Backlog):
    """A backlog that outlives the process."""

    durable = True

    def __init__(
        self,
        config: BacklogConfig,
        server: ServerConfig,
        path: Path,
        outlet: Outlet,
        clock: Callable[[], float] = since_boot,
    ) -> None:
        super().__init__(config, outlet, clock)
        self._path: Final = path
        self._max_line_size = server.max_line_size
        self._file = BacklogFile(
            path, config.size, server.idempotency_window, self._retention, config.max_bytes or math.inf
        )
        self._lock: int | None = None  # open file
        self._writing = ThreadPoolExecutor(1, "backlog writer")
        self._reading = ThreadPoolExecutor(1, "backlog reader")
        self._waiting: list[_Waiting] = []
        self._waiting_bytes = 0
        self._anything_waits = asyncio.Event()
        self._anything_to_seal = asyncio.Event()
        self._anything_to_seal.set()
        # by whether it is private: the last of what was appended
        self._appended: dict[bool, asyncio.Future[Accepted]] = {}
        # by whether they may see private events: position up to which others may be given to subscribers
        self._reserved = {False: 0, True: 0}
        self._reservation = asyncio.Lock()
        self._writing_fails = self._trouble("write", "publishers are refused")
        self._moving_fails = self._trouble(
            "move what is stored from the -wal into the file", "nothing is lost, but the -wal grows"
        )
        self._sealing_fails = self._trouble(
            "seal old events", "nothing is lost, but the file grows and replays take longer"
        )
        self._reading_fails = self._trouble("read", "replays from it are refused or break off")
        self._remembered: Sequence[RememberedReply] = ()
        self._lived_before = 0.0  # seconds that the file has lived, beside those of the clock
        self._log_moved = -math.inf  # when that was last tried: seconds that the file had lived
        self._clock_kept = 0.0  # when the file was last told: seconds that it had lived

    def check(self) -> None:
        """Raises StartError if there is no directory for the file, as the configuration names it."""
        check_directory(Path(self._config.storage or self._path))

    def _trouble(self, what: str, consequence: str) -> Trouble:
        """What the log says while something cannot be done with the file."""
        began = f"cannot {what}, {consequence} until this is mended: %s"
        return Trouble(log, began, f"can {what} again: {self._path}", level=logging.ERROR)

    # A life

    async def _open(self, now: Mark) -> Mark:
        """Open the file, which may be an old one that is imported, or begin a new one."""
        check_directory(self._path)
        last = await self._in(self._writing, self._open_file, now)
        try:
            await self._in(self._reading, self._file.open_reader)
        except StoreError as error:
            raise StartError(f"server.backlog.storage: {error}") from error
        return last

    def _open_file(self, now: Mark) -> Mark:
        lock_path = Path(f"{self._path}-lock")
        # the lock stays when the file itself is taken away; an empty file may be what a crash of 0.7 has left
        first_life = not lock_path.exists() and not self._path.exists()
        self._lock = lock(self._path, lock_path)
        try:
            imported = is_old_backlog(self._path)
            if imported:
                import_old_backlog(self._path, self._config.size, self._max_line_size, now)
            life = self._file.open(now, from_the_start=first_life)
            # imported events are as old as the time of day says: the old file stays
            self._open_ages(now.timestamp, {} if imported else life.newest)
            self._remembered = self._file.remembered(self._lived())
        except OSError as error:
            where = error.filename or self._path
            raise StartError(f"server.backlog.storage: {where}: {error.strerror}") from error
        except StoreError as error:
            raise StartError(f"server.backlog.storage: {error}") from error
        self._began, self._from_the_start = life.began, life.from_the_start
        for name, kind in self._kinds.items():
            kind.end = kind.in_memory_after = life.ends[name]
        try:
            if damaged := self._file.tidy_up():
                log.error("%s: %d blocks are damaged: replays break off there", self._path, damaged)
            self._keep_clock()
            while self._file.prune(self._all_kept_since(), self._lived()):
                pass
        except StoreError as error:  # it can be read, at least
            self._writing_fails.began(str(error), _ANY)
        return life.last

    def _open_ages(self, now: float, newest: Mapping[str, float | None]) -> None:
        """Find out how long the file has lived, and what was stamped when.

        now: Unix seconds; newest: by kind, the timestamp of the newest event, if it tells how old that is.

        The time in which this machine was off is not counted: only the time of day tells of it, and that may
        be wrong, at a start even by years.
        """
        clock, boot = self._clock(), this_boot()
        kept = self._file.clock()
        lived = kept.lived if kept else now
        if kept and boot and kept.boot == boot:
            lived += max(0.0, clock - kept.since_boot)
        self._lived_before = lived - clock
        for name, kind in self._kinds.items():
            points = self._file.ages(name) or [(lived, newest.get(name) or now)]
            kind.ages = Ages(points, lived, newest.get(name))
            # stamps go on from the last one, also if that has left
            kind.ages.begin(max(now, newest.get(name) or now, self._file.departed(name).timestamp))

    def _lived(self) -> float:
        """Seconds that the file has lived: a clock that nobody sets, and that goes on over restarts."""
        return self._lived_before + self._clock()

    def _keep_clock(self) -> None:
        """Have the file know it in another life. Raises StoreError."""
        lived = self._lived()
        ages = {name: kind.ages.points for name, kind in self._kinds.items()}
        self._file.keep_clock(Clock(this_boot(), self._clock(), lived), ages)
        self._clock_kept = lived

    def remembered(self) -> Sequence[RememberedReply]:
        """The answers of an earlier life, once."""
        remembered, self._remembered = self._remembered, ()
        return remembered

    async def remembered_items(self, queue: str) -> Sequence[tuple[bytes, float]]:
        """A queue's items, oldest first, and the seconds for which each is remembered. Raises StoreError."""
        return await self._in_reader(self._file.remembered_items, queue, self._lived())

    async def run(self) -> None:
        """Store what waits, and let go of what is too old, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._write_groups(), name="write the backlog")
            tasks.create_task(self._prune_regularly(), name="prune the backlog")
            tasks.create_task(self._seal_when_due(), name="seal the backlog")

    async def flush(self) -> None:
        """Wait until everything appended is delivered or refused."""
        await super().flush()
        while under_way := self._under_way(private=True):
            await asyncio.wait(under_way)

    def _under_way(self, *, private: bool) -> list[asyncio.Future[Accepted]]:
        """The last of what was appended, of each kind that a subscriber may see, while it is not stored."""
        seen = (done for is_private, done in self._appended.items() if private or not is_private)
        return [done for done in seen if not done.done()]

    async def stop(self) -> None:
        """Close the file."""
        try:
            await self._in(self._writing, self._file.close_writer)
            await self._in(self._reading, self._file.close_reader)
        finally:
            self._writing.shutdown()
            self._reading.shutdown()
            if self._lock is not None:
                os.close(self._lock)

    async def _in(
        self, thread: ThreadPoolExecutor, call: Callable[P, R], *arguments: P.args, **named: P.kwargs
    ) -> R:
        return await asyncio.get_running_loop().run_in_executor(thread, lambda: call(*arguments, **named))

    # Writing

    def _take(
        self,
        events: Sequence[Event],
        key: IdempotencyKey | None,
        items: Sequence[QueueItem],
        forgotten: Sequence[bytes],
    ) -> asyncio.Future[Accepted]:
        """Have events stored, and then delivered."""
        done: asyncio.Future[Accepted] = asyncio.get_running_loop().create_future()
        write = Write(events, key, Accepted(events[-1].stamp, len(events)), items, forgotten)
        size = 0
        for event in events:
            size += len(event.line)
        self._waiting.append(_Waiting(write, size, done))
        self._waiting_bytes += size
        self.is_full = self._waiting_bytes > MOST_WAITING
        self._anything_waits.set()
        for private in {event.path.private for event in events}:
            self._appended[private] = done
        return done

    async def _write_groups(self) -> None:
        """Store in one transaction what has come while the last one was written, up to a bound."""
        while True:
            await self._anything_waits.wait()
            group = self._next_group()
            if not self._waiting:
                self._anything_waits.clear()
            writes = [each.write for each in group]
            try:
                await self._in(self._writing, self._file.store, writes, self.end(private=True), self._lived())
            except StoreError as error:
                self._writing_fails.began(str(error), _ANY)
                self._refuse(group)
            else:
                self._writing_fails.ended()
                self._drop_pushed_out()
                await self._deliver_group(group)
                if self._file.is_to_seal:
                    self._anything_to_seal.set()
                if self._file.log_has_grown:
                    await self._move_log()

    async def _move_log(self) -> None:
        """Have SQLite's log moved into the file, and say so when that fails."""
        self._log_moved = self._lived()
        try:
            await self._in(self._writing, self._file.move_log)
        except StoreError as error:
            self._moving_fails.began(str(error), _ANY)
        else:
            self._moving_fails.ended()

    def _next_group(self) -> list[_Waiting]:
        events = size = count = 0
        for count, waiting in enumerate(self._waiting, 1):  # noqa: B007 (it is used behind the loop)
            events += len(waiting.write.events)
            size += waiting.size
            if events >= _GROUP_EVENTS or size >= _GROUP_BYTES:
                break
        group, self._waiting = self._waiting[:count], self._waiting[count:]
        self._waiting_bytes -= size
        self.is_full = self._waiting_bytes > MOST_WAITING
        return group

    def _refuse(self, group: Sequence[_Waiting]) -> None:
        for waiting in group:
            refused = Refused(503, "the event could not be stored: ask again", headers=RETRY_AFTER)
            if not waiting.done.cancelled():
                waiting.done.set_exception(refused)

    async def _deliver_group(self, group: Sequence[_Waiting]) -> None:
        count = 0
        piece = Slice()
        for write, _, done in group:
            for event in write.events:
                self._keep(event)
                count += 1
                if not count % PORTION:
                    if piece.over:
                        await piece.next()  # subscribers take what they have got, requests have their turn
                    await self._outlet.wait_for_capacity()
            if not done.cancelled():
                done.set_result(write.accepted)

    def _bound(self, kind: Kind) -> None:
        # half of the memory for each kind: how fast old public events are read does not tell of private ones
        # and what has left as soon as it was stored is not held at all
        while (recent := kind.oldest) and (
            kind.held_bytes > self._config.memory // 2 or recent.oldest.position <= kind.pushed_out
        ):
            kind.in_memory_after = kind.drop(recent)[0].position

    async def prune(self) -> None:
        """Let go of what is too old by now, answers too."""
        lived = self._lived()
        out_of_pace = [self._look_at_clock(kind, lived) for kind in self._kinds.values()]
        kept_since = self._all_kept_since()
        ends = {name: kind.end for name, kind in self._kinds.items()}
        try:
            if any(out_of_pace) or lived >= self._clock_kept + _CLOCK_KEPT_EVERY:
                await self._in(self._writing, self._keep_clock)
            while await self._in(self._writing, self._file.prune, kept_since, self._lived()):
                pass
            if self._writing_fails.lasts:  # a write that changes something tells whether it can again
                await self._in(self._writing, self._file.reserve, self.end(private=True))
                self._writing_fails.ended()
        except StoreError as error:
            self._writing_fails.began(str(error), _ANY)
        else:
            for name, kind in self._kinds.items():
                # not before it has left the file: who reads there would be told that nothing is missing
                # and what was too old when it was stored, behind the pruning, is still there
                for _ in self._drop_old(kind, kept_since[name], ends[name]):
                    pass
            if self._moving_fails.lasts or lived >= self._log_moved + _LOG_MOVED_EVERY:
                await self._move_log()
        self._anything_to_seal.set()  # in case that it has failed

    def _all_kept_since(self) -> dict[str, list[float]]:
        return {name: self._kept_since(kind, self._lived()) for name, kind in self._kinds.items()}

    def _drop_pushed_out(self) -> None:
        """Let go in memory of what has been pushed out of the file."""
        for name, kind in self._kinds.items():
            kind.pushed_out = self._file.pushed_out(name)
            self._bound(kind)

    def _reach(self, selection: Selection) -> Reach:
        lost = self._file.gone("private", selection.private) if selection.reads_private else NOTHING
        return Reach(self._began, self._file.gone("public", selection.public), lost, self._from_the_start)

    def _gone(self, selection: Selection) -> Gone:
        """What has left memory: what is about to leave the file is still here, from the oldest event on."""
        gone = super()._gone(selection)
        if self._config.keep:  # of some topics, later events may have left before
            return gone
        kinds = zip(gone, self._kinds.values(), strict=True)
        return Gone(*(min(at, kind.oldest.oldest.position - 1) if kind.oldest else at for at, kind in kinds))

    # Sealing

    async def _seal_when_due(self) -> None:
        """Have the oldest rows put into blocks; what is to be written comes in between."""
        while True:
            await self._anything_to_seal.wait()
            self._anything_to_seal.clear()
            try:
                await self._seal()
                self._sealing_fails.ended()
            except StoreError as error:
                self._sealing_fails.began(str(error), _ANY)

    async def _seal(self) -> None:
        """Seal what there is to seal: after a burst, or of a file of an earlier version, it may be much."""
        progress = Progress(log, f"{self._path}: sealing old events", self._file.rows)
        began = time.monotonic()
        while await self._in(self._writing, self._file.seal):
            now = time.monotonic()
            await asyncio.sleep(now - began)  # as long as it took: others are to have the processor, too
            began = time.monotonic()
            progress.show(self._file.rows)

    # Reading

    async def settle(self, position: int, *, private: bool) -> None:
        """Wait until what was appended has been delivered, and the position is safe from a later life."""
        if under_way := self._under_way(private=private):
            await asyncio.wait(under_way)
        # with each event that is stored, some positions after it are
        if position <= max(self._reserved[private], self.end(private=private) + RESERVED_AHEAD):
            return
        async with self._reservation:
            # while nothing can be written, only a clock set back at a crash could give a position away twice
            if position > self._reserved[private] and not self._writing_fails.lasts:
                try:
                    await self._in(self._writing, self._file.reserve, position)
                except StoreError as error:
                    self._writing_fails.began(str(error), _ANY)
                else:
                    self._reserved[private] = position + RESERVED_AHEAD

    async def place(self, asked: ReplayRequest | None, now: Mark, selection: Selection) -> Placement:
        """Where a subscriber begins to read and where it ends, and what it is told."""
        try:
            return await super().place(asked, now, selection)
        except StoreError as error:
            raise Refused(503, "the backlog cannot be read: ask again", headers=RETRY_AFTER) from error

    async def _position_of(self, cursor: str) -> int | None:
        """The position of a cursor, also of one of 0.7's whose event was imported."""
        if (position := position_of(cursor)) is not None:
            return position
        found = await self._in_reader(self._file.imported, cursor)
        return found and found[0]

    async def _place_cursor(self, cursor: str, now: int, selection: Selection) -> Placement:
        """Where to go on after a cursor; after one of 0.7's, if its event was imported."""
        if position_of(cursor) is not None:
            return await super()._place_cursor(cursor, now, selection)
        found = await self._in_reader(self._file.imported, cursor)
        reach = self._reach(selection)
        if found is None:
            return place_cursor(None, reach, now)
        position, whole = found
        held = whole and position >= max(reach.began.position, reach.lost.position)
        return place(position, "complete" if held else "partial", reach)

    async def _first_since(self, timestamp: float, private: bool) -> int | None:
        upto = self.end(private=private)
        return await self._in_reader(self._file.first_since, timestamp, upto, kinds_seen(private))

    async def _newest(self, count: int, upto: int, selection: Selection) -> list[int]:
        """The positions of the newest events of a selection: from memory, and those before from the file."""
        found = await super()._newest(count, upto, selection)
        # asked behind that: what has been dropped meanwhile is among what is looked for in the file
        in_memory_after = max(kind.in_memory_after for kind in self._seen(selection.reads_private))
        found = found[bisect_right(found, in_memory_after) :]
        if len(found) == count:
            return found

        async def look_back(kind: str, upto: int) -> LookedBack:
            return await self._in_reader(self._file.before, kind, selection, upto)

        parts = [partial(look_back, kind) for kind in kinds_seen(selection.reads_private)]
        return await newest(count - len(found), min(upto, in_memory_after), parts) + found

    async def read(self, after: int, upto: int, selection: Selection, most: int | None = None) -> Page:
        """What comes after a position: from memory, or older events from the file. Raises StoreError."""
        if all(after >= kind.in_memory_after for kind in self._seen(selection.reads_private)):
            return await super().read(after, upto, selection, most)
        return await self._in_reader(self._file.read, after, upto, selection, most)

    async def _in_reader(self, call: Callable[P, R], *arguments: P.args, **named: P.kwargs) -> R:
        try:
            result = await self._in(self._reading, call, *arguments, **named)
        except StoreError as error:
            self._reading_fails.began(str(error), _ANY)
            raise
        self._reading_fails.ended()
        return result


def check_directory(storage: Path) -> None:
    """Raises StartError if there is no directory for a file."""
    if not storage.parent.is_dir():
        raise StartError(f"server.backlog.storage: {storage}: there is no directory {storage.parent}")


def kinds_seen(private: bool) -> Sequence[str]:
    """The kinds of events that a subscriber may see, as the file names them."""
    return KINDS if private else KINDS[:1]


def lock(storage: Path, lock_path: Path) -> int:
    """Keep a second server off the file until the open file that is returned is closed. Raises StartError."""
    try:
        descriptor = os.open(lock_path, os.O_CREAT | os.O_RDWR, 0o600)
    except OSError as error:
        raise StartError(f"server.backlog.storage: {lock_path}: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        taken = error.errno in (errno.EWOULDBLOCK, errno.EACCES)
        reason = f"{storage}: is in use by another PyPubSub" if taken else f"{lock_path}: {error.strerror}"
        raise StartError(f"server.backlog.storage: {reason}") from error
    return descriptor
