"""The tables of a backlog's file, and how the file is told from those of others."""

import sqlite3
from pathlib import Path

from core.errors import StartError
from core.events.cursor import Mark

_APPLICATION_ID = 0x50505362  # "PPSb", in the file's header
_VERSION = 1
KINDS = ("public", "private")

_SCHEMA = """
BEGIN IMMEDIATE;
CREATE TABLE public (
    position INTEGER PRIMARY KEY, timestamp REAL NOT NULL, path TEXT NOT NULL, line BLOB NOT NULL,
    crc INTEGER NOT NULL  -- zlib.crc32 of the line
);
CREATE TABLE private (
    position INTEGER PRIMARY KEY, timestamp REAL NOT NULL, path TEXT NOT NULL, line BLOB NOT NULL,
    crc INTEGER NOT NULL  -- zlib.crc32 of the line
);
CREATE TABLE kinds (  -- how many events are held, and the latest that is not any more
    kind TEXT PRIMARY KEY, held INTEGER NOT NULL, lost_position INTEGER NOT NULL, lost_timestamp REAL NOT NULL
);
INSERT INTO kinds VALUES ('public', 0, 0, 0), ('private', 0, 0, 0);
CREATE TABLE life (  -- one row
    began_position INTEGER NOT NULL, began_timestamp REAL NOT NULL, from_the_start INTEGER NOT NULL,
    reserved INTEGER NOT NULL  -- no position above it has been given away
);
CREATE TABLE answers (  -- scope: IdempotencyKey.name
    scope BLOB PRIMARY KEY, body BLOB NOT NULL, cursor TEXT NOT NULL, timestamp REAL NOT NULL,
    events INTEGER NOT NULL, at REAL NOT NULL
) WITHOUT ROWID;
CREATE INDEX answers_at ON answers (at);
"""

_LATER_TABLES = """
CREATE TABLE IF NOT EXISTS items (  -- of queues, that events came from; position: of the last event beside it
    queue TEXT NOT NULL, id BLOB NOT NULL, position INTEGER NOT NULL, until REAL NOT NULL,
    PRIMARY KEY (queue, id)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS items_until ON items (queue, until);
CREATE TABLE IF NOT EXISTS imported (  -- the cursors of 0.7's, of events that came from its file
    cursor TEXT PRIMARY KEY, position INTEGER NOT NULL,
    whole INTEGER NOT NULL  -- whether all that 0.7 published after it came as well
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS clock (  -- one row: class Clock
    boot TEXT NOT NULL, since_boot REAL NOT NULL, lived REAL NOT NULL
);
CREATE TABLE IF NOT EXISTS ages (  -- the newest timestamp when the file had lived so long: see ages.py
    kind TEXT NOT NULL, lived REAL NOT NULL, timestamp REAL NOT NULL
);
"""


def is_empty(connection: sqlite3.Connection, path: Path) -> bool:
    """Whether a database has no tables yet. Raises StartError if it is not for this program."""
    (application_id,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    if tables and application_id != _APPLICATION_ID:
        raise StartError(
            f"server.backlog.storage: {path}: is a database, but no backlog: name a file of its own"
        )
    if version > _VERSION:
        raise StartError(
            f"server.backlog.storage: {path}: was written by a newer PyPubSub (format {version}, "
            f"this one reads {_VERSION})"
        )
    return not tables


def create(connection: sqlite3.Connection, began: Mark, *, from_the_start: bool) -> None:
    """Make all tables, of a backlog whose memory begins there."""
    connection.executescript(_SCHEMA)
    connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {_VERSION}")
    connection.execute("INSERT INTO life VALUES (?, ?, ?, ?)", (*began, from_the_start, began.position))
    connection.execute("COMMIT")


def complete(connection: sqlite3.Connection) -> None:
    """Make the tables which files of earlier versions lack, and do not miss."""
    connection.executescript(_LATER_TABLES)
