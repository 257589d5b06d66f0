"""Remembered answers are kept for a while, and up to a number."""

import pytest

from core.errors import Refused
from core.idempotency import Answers, Scope, check_key


class Clock:
    """Seconds, set by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        """The time."""
        return self.now


def scope(key: str) -> Scope:
    """A key of one publisher on one path."""
    return Scope("127.0.0.1", "/a", key)


def test_an_answer_is_forgotten_after_the_window() -> None:
    """Not before; the key can then be used for another body."""
    clock = Clock()
    answers: Answers[int] = Answers(window=10, clock=clock)
    answers.remember(scope("k"), b"body", 1)
    clock.now += 9.9
    assert answers.find(scope("k"), b"body") == 1
    clock.now += 0.2
    assert answers.find(scope("k"), b"other body") is None


def test_the_oldest_answers_give_way() -> None:
    """Memory is bounded by a number of answers."""
    answers: Answers[int] = Answers(window=10, limit=3, clock=Clock())
    for n in range(5):
        answers.remember(scope(str(n)), b"", n)
    assert [answers.find(scope(str(n)), b"") for n in range(5)] == [None, None, 2, 3, 4]


def test_a_window_of_nothing_remembers_nothing() -> None:
    """idempotency_window: 0."""
    answers: Answers[int] = Answers(window=0, clock=Clock())
    answers.remember(scope("k"), b"", 1)
    assert answers.find(scope("k"), b"") is None


def test_a_key_belongs_to_a_publisher_and_a_path() -> None:
    """The same key elsewhere is another one."""
    answers: Answers[int] = Answers(window=10, clock=Clock())
    answers.remember(Scope("127.0.0.1", "/a", "k"), b"", 1)
    assert answers.find(Scope("127.0.0.2", "/a", "k"), b"") is None
    assert answers.find(Scope("127.0.0.1", "/b", "k"), b"other") is None
    with pytest.raises(Refused) as refused:
        answers.find(Scope("127.0.0.1", "/a", "k"), b"other")
    assert refused.value.status == 422


@pytest.mark.parametrize("key", ["x", "!", "~" * 255, '"a,b;c=d"'])
def test_visible_ascii_is_a_key(key: str) -> None:
    """1 to 255 characters of it."""
    assert check_key(key) == key
