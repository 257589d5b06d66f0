"""The tables of a backlog's file, and how the file is told from those of others."""

import sqlite3
from pathlib import Path

from core.errors import StartError
from core.events.cursor import Mark

_APPLICATION_ID = 0x50505362  # "PPSb", in the file's header
_VERSION = 2  # 1: events are rows, and nothing else
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

_BLOCKS = """
CREATE TABLE IF NOT EXISTS {kind}_blocks (  -- class Summary
    last INTEGER PRIMARY KEY, first_timestamp REAL NOT NULL, last_timestamp REAL NOT NULL,
    events INTEGER NOT NULL, size INTEGER NOT NULL, topics BLOB NOT NULL, crc INTEGER NOT NULL,
    summary_crc INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS {kind}_data (last INTEGER PRIMARY KEY, data BLOB NOT NULL);
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
CREATE TABLE IF NOT EXISTS departed (  -- the latest event of each topic that has left: see departed.py
    kind TEXT NOT NULL, topic INTEGER NOT NULL, position INTEGER NOT NULL, timestamp REAL NOT NULL,
    PRIMARY KEY (kind, topic)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS floors (  -- the same of all topics that are not in it
    kind TEXT PRIMARY KEY, position INTEGER NOT NULL, timestamp REAL NOT NULL
);
INSERT OR IGNORE INTO floors SELECT kind, lost_position, lost_timestamp FROM kinds;
CREATE TABLE IF NOT EXISTS rules (  -- up to which position what is too old has left, by rule of retention
    kind TEXT NOT NULL, rule INTEGER NOT NULL, swept INTEGER NOT NULL, PRIMARY KEY (kind, rule)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS retention (text TEXT NOT NULL);  -- which rules these are: one row
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


def is_complete(connection: sqlite3.Connection) -> bool:
    """Whether a backlog has all tables of this version."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    return bool(version == _VERSION)


def create(connection: sqlite3.Connection, began: Mark, *, from_the_start: bool) -> None:
    """Make a backlog whose memory begins there; complete() makes the rest of its tables."""
    connection.executescript(_SCHEMA)
    connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
    connection.execute("INSERT INTO life VALUES (?, ?, ?, ?)", (*began, from_the_start, began.position))
    connection.execute("COMMIT")


def complete(connection: sqlite3.Connection) -> None:
    """Make the tables that a file of an earlier version lacks. Its events are sealed little by little."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version < _VERSION:
        tables = "".join(_BLOCKS.format(kind=kind) for kind in KINDS) + _LATER_TABLES
        connection.executescript(f"BEGIN IMMEDIATE;{tables}PRAGMA user_version = {_VERSION};COMMIT;")
