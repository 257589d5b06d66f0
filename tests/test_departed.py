"""Up to where events have left is never told too low, whatever leaves, in any order, and whatever fails."""

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.events.cursor import Mark
from core.events.replay import NOTHING
from core.events.subscription import Alternative
from core.events.topics import publish_path
from plugins.backlog import departed as module
from plugins.backlog import schema
from plugins.backlog.departed import Departed, keys_of, topic_key

TOPICS = ["a", "b", "c", "d", "e", "rare"]
SETS = st.frozensets(st.sampled_from([*TOPICS, "never"]), max_size=3)
ASKED = st.frozensets(SETS, min_size=1, max_size=3)
PATHS = st.lists(st.sampled_from(TOPICS), max_size=3).map(lambda topics: "/" + "/".join(topics))


class Left(NamedTuple):
    """An event that has left. path: None if nobody knows it."""

    path: str | None
    position: int

    @property
    def mark(self) -> Mark:
        """Where it was."""
        return Mark(self.position, self.position / 4)


LEFT = st.builds(Left, PATHS | PATHS | PATHS | st.none(), st.integers(1, 40))
STEPS = st.lists(
    st.tuples(st.lists(LEFT, max_size=6), st.sampled_from(["saved", "undone", "loaded"])), max_size=8
)


def leave(departed: Departed, event: Left) -> None:
    """Have it leave."""
    if event.path is None:
        departed.leave_unknown(event.mark)
    else:
        departed.leave(keys_of(event.path), event.mark)


def truth(left: Sequence[Left], asked: frozenset[Alternative]) -> Mark:
    """The latest of what has left and may have been asked for."""
    marks = [
        event.mark
        for event in left
        if event.path is None
        or any(alternative <= publish_path(event.path).all_topics for alternative in asked)
    ]
    return max(marks, default=NOTHING)


def by_topic(left: Sequence[Left], asked: frozenset[Alternative]) -> Mark:
    """What must be told if all topics are remembered: of each set the topic of which the least has left."""
    latest = NOTHING
    for alternative in asked:
        of_topics = [
            max(
                (e.mark for e in left if e.path is None or topic in publish_path(e.path).topics),
                default=NOTHING,
            )
            for topic in alternative
        ]
        latest = max(latest, min(of_topics, default=max((event.mark for event in left), default=NOTHING)))
    return latest


@given(
    st.lists(LEFT, max_size=30), st.lists(ASKED, min_size=1, max_size=5), st.sampled_from([0, 1, 2, 3, 1000])
)
@settings(max_examples=300, deadline=None)
def test_what_has_left_is_never_told_too_low(
    left: list[Left], questions: list[frozenset[Alternative]], most: int
) -> None:
    """However few topics are remembered; and if all are, it is told for each topic."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "MOST_TOPICS", most)
        departed = Departed()
        for n, event in enumerate(left, 1):
            leave(departed, event)
            for asked in questions:
                told = departed.of(asked)
                assert truth(left[:n], asked) <= told <= departed.latest
                if most == 1000:
                    assert told == by_topic(left[:n], asked)
            assert len(departed._topics) <= max(most * 1.1, most)
        assert departed.latest == max((event.mark for event in left), default=NOTHING)


@given(STEPS, ASKED, st.sampled_from([0, 1, 2, 3, 1000]))
@settings(max_examples=300, deadline=None)
def test_a_file_has_what_was_committed(
    steps: list[tuple[list[Left], str]], asked: frozenset[Alternative], most: int
) -> None:
    """A life goes on with what transactions have left in the file; what failed is undone, on both sides."""
    with (
        pytest.MonkeyPatch.context() as patch,
        closing(sqlite3.connect(":memory:", isolation_level=None)) as connection,
    ):
        patch.setattr(module, "MOST_TOPICS", most)
        connection.executescript(schema._SCHEMA + schema._LATER_TABLES + "COMMIT;")
        departed = Departed()
        departed.load(connection, "private")
        left: list[Left] = []
        for leaving, outcome in steps:
            before = everything(departed)
            connection.execute("BEGIN")
            for event in leaving:
                leave(departed, event)
            departed.save(connection, "private")
            if outcome == "undone":
                connection.execute("ROLLBACK")
                departed.undo()
                assert everything(departed) == before
            else:
                connection.execute("COMMIT")
                departed.saved()
                left += leaving
            another = Departed()
            another.load(connection, "private")
            assert everything(another) == everything(departed)
            if outcome == "loaded":
                departed = another
            assert truth(left, asked) <= departed.of(asked)
            if most == 1000:
                assert departed.of(asked) == by_topic(left, asked)
        others = Departed()
        others.load(connection, "public")
        assert others.of(frozenset({frozenset()})) == NOTHING


def everything(departed: Departed) -> tuple[Mark, Mark, dict[int, Mark]]:
    """All that it knows."""
    return departed.latest, departed._floor, dict(departed._topics)


def test_the_private_at_the_beginning_of_a_path_is_no_topic() -> None:
    """All private events have it, so it would tell nothing; elsewhere it is one."""
    assert keys_of("/private/a/b") == {topic_key("a"), topic_key("b")}
    assert keys_of("/a/private") == {topic_key("a"), topic_key("private")}
    assert keys_of("/private") == keys_of("/") == frozenset()
    assert keys_of("/private/" + "x" * 1000) == {topic_key("x" * 1000)}


def test_topics_that_left_first_are_forgotten_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader of a topic that left long ago is not told of what all others have lost since."""
    monkeypatch.setattr(module, "MOST_TOPICS", 10)
    departed = Departed()
    for n in range(1, 101):
        departed.leave([topic_key(f"topic {n}")], Mark(n, float(n)))
    assert departed.of([frozenset({"topic 100"})]).position == 100
    assert departed.of([frozenset({"topic 95"})]).position == 95
    assert 80 <= departed.of([frozenset({"topic 3"})]).position <= 90
    assert departed.of([frozenset({"topic 3"})]) == departed.of([frozenset({"never"})])
