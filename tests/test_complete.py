"""`X-Replay: complete` is kept by every reader: who shares a read, resumes at the end, or has other rights.

What a machine found out about all ways to lean on it is tests/test_model.py; these are the ones that broke.
"""

import sqlite3
from pathlib import Path

import pytest

from daemon import StartDaemon, basic
from storage import config

ACL = {"alice": {"password": "secret", "acl": {"all": "all"}}}
ALICE = basic("alice")


async def test_readers_who_resume_at_the_end_after_a_restart_get_what_comes(
    start_daemon: StartDaemon, tmp_path: Path
) -> None:
    """Whatever others have read from the same place before there was anything, and what was private."""
    daemon = start_daemon(config(tmp_path / "backlog.db"))
    last = (await daemon.put("/fruits", {"n": 0})).headers["X-Cursor"]
    await daemon.put("/private/fruits", {"n": 1})
    daemon.stop()
    daemon.start()
    place = {"X-Fetch-Since-Cursor": last}
    async with daemon.subscriber("/fruits", place) as early:
        assert await early.replay() == []
        for n in range(2, 6):
            await daemon.put("/fruits", {"n": n})
            async with daemon.subscriber(f"/fruits,others/{n}", place) as late:  # another's bytes would do
                assert late.headers["X-Replay"] == "complete"
                assert [event["n"] for event in await late.replay()] == list(range(2, n + 1))
        assert [(await early.event())["n"] for _ in range(4)] == [2, 3, 4, 5]


@pytest.mark.parametrize("in_file", [False, True])
@pytest.mark.parametrize("busy", ["private", "public"])
async def test_what_is_held_of_one_kind_is_sent_where_more_of_the_other_has_left(
    start_daemon: StartDaemon, tmp_path: Path, in_file: bool, busy: str
) -> None:
    """A reader with rights to private events gets no less of the public ones than one without."""
    settings = config(tmp_path / "backlog.db", size=10)
    if not in_file:
        del settings["server"]["backlog"]["storage"]
    daemon = start_daemon(settings, acl=ACL)
    quiet_path, busy_path = ("/git", "/private/git") if busy == "private" else ("/private/git", "/git")
    before = (await daemon.put("/before", {"n": -1})).headers["X-Cursor"]
    for n in range(4):
        await daemon.put(quiet_path, {"n": n})
    for n in range(100, 130):
        await daemon.put(busy_path, {"n": n})
    held = [*range(4), *range(120, 130)]
    for asked in ({"X-Fetch-Since": "0"}, {"X-Fetch-Since-Cursor": before}):
        async with daemon.subscriber("/git", ALICE | asked) as stream:
            assert stream.headers["X-Replay"] == "partial"
            assert [event["n"] for event in await stream.replay()] == held
    async with daemon.subscriber("/git", {"X-Fetch-Since-Cursor": before}) as stream:
        assert stream.headers["X-Replay"] == ("complete" if busy == "private" else "partial")
        public = [n for n in held if (n < 100) == (busy == "private")]
        assert [event["n"] for event in await stream.replay()] == public


async def test_a_cursor_from_before_the_memory_began_is_a_place(
    start_daemon: StartDaemon, tmp_path: Path
) -> None:
    """After a restore as docs/backlog.md has it: what a reader has seen is not sent to it again."""
    storage = tmp_path / "backlog.db"
    daemon = start_daemon(config(storage))
    cursors = [(await daemon.put("/fruits", {"n": n})).headers["X-Cursor"] for n in range(5)]
    daemon.stop()
    with sqlite3.connect(storage) as connection:
        connection.execute(
            "UPDATE life SET began_timestamp = strftime('%s', 'now') + 1, "
            "began_position = (strftime('%s', 'now') + 1) * 4096000, from_the_start = 0"
        )
    connection.close()
    daemon.start()
    for n, cursor in enumerate(cursors):
        verdict, events = await daemon.replay("/fruits", X_Fetch_Since_Cursor=cursor)
        assert (verdict, events) == ("unknown", list(range(n + 1, 5)))
