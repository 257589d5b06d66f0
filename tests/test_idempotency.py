"""Remembered answers are kept for a while, and up to a number."""

import asyncio
import math

import pytest

from core.errors import Refused
from core.events.idempotency import IdempotencyKey, ReplyCache, fair_share, idempotency_key
from wire import TIMEOUT


class Clock:
    """Seconds, set by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        """The time."""
        return self.now


def ask(key: str, body: bytes = b"body") -> IdempotencyKey:
    """A key of one publisher on one path."""
    return idempotency_key("127.0.0.1", "/a", key, body)


def test_an_answer_is_forgotten_after_the_window() -> None:
    """Not before; the key can then be used for another body."""
    clock = Clock()
    answers: ReplyCache[int] = ReplyCache(window=10, clock=clock)
    answers.remember(ask("k"), 1)
    clock.now += 9.9
    assert answers.find(ask("k")) == 1
    clock.now += 0.2
    assert answers.find(ask("k", b"other body")) is None


def test_the_oldest_answers_give_way() -> None:
    """Memory is bounded by a number of answers."""
    answers: ReplyCache[int] = ReplyCache(window=10, limit=3, clock=Clock())
    for n in range(5):
        answers.remember(ask(str(n)), n)
    assert [answers.find(ask(str(n))) for n in range(5)] == [None, None, 2, 3, 4]


def test_a_window_of_nothing_remembers_nothing() -> None:
    """idempotency_window: 0."""
    answers: ReplyCache[int] = ReplyCache(window=0, clock=Clock())
    answers.remember(ask("k"), 1)
    assert answers.find(ask("k")) is None


def test_a_key_belongs_to_a_publisher_and_a_path() -> None:
    """The same key elsewhere is another one."""
    answers: ReplyCache[int] = ReplyCache(window=10, clock=Clock())
    answers.remember(ask("k"), 1)
    assert answers.find(idempotency_key("127.0.0.2", "/a", "k", b"body")) is None
    assert answers.find(idempotency_key("127.0.0.1", "/b", "k", b"other")) is None
    with pytest.raises(Refused) as refused:
        answers.find(ask("k", b"other"))
    assert refused.value.status == 422


@pytest.mark.parametrize("key", ["x", "!", "~" * 255, '"a,b;c=d"'])
def test_visible_ascii_is_a_key(key: str) -> None:
    """1 to 255 characters of it."""
    assert ask(key) == ask(key)


def test_a_refusal_is_not_remembered() -> None:
    """The key can be used again, for another body too."""
    answers: ReplyCache[int] = ReplyCache(window=10, clock=Clock())
    answers.remember(ask("k"), 1)
    answers.forget(ask("k"), 1)
    assert answers.find(ask("k", b"other")) is None


def test_the_window_begins_anew_when_the_answer_is_there() -> None:
    """And a refusal that comes late does not take away what was remembered meanwhile."""
    clock = Clock()
    answers: ReplyCache[int] = ReplyCache(window=10, clock=clock)
    answers.remember(ask("k"), 1, age=-math.inf)
    clock.now += 11
    assert answers.find(ask("k")) == 1
    answers.remember(ask("other"), 2)
    clock.now += 9
    answers.remember(ask("k"), 1)
    clock.now += 9
    assert answers.find(ask("other")) is None
    answers.forget(ask("k"), 0)
    assert answers.find(ask("k")) == 1


async def test_answers_leave_memory_though_nobody_asks_for_them() -> None:
    """Also behind one that was a long time coming, which is kept until then and a window longer."""
    answers: ReplyCache[int] = ReplyCache(window=0.1)
    answers.remember(ask("coming"), 1, age=-math.inf)
    answers.remember(ask("there"), 2)
    async with asyncio.timeout(TIMEOUT):
        while answers.find(ask("there")) is not None:  # noqa: ASYNC110 (time does it)
            await asyncio.sleep(0.01)
    assert answers.find(ask("coming")) == 1
    answers.remember(ask("coming"), 1)
    async with asyncio.timeout(TIMEOUT):
        while len(answers._replies):  # noqa: ASYNC110 (a timer does it)
            await asyncio.sleep(0.01)


def test_an_answer_of_an_earlier_life_is_as_old_as_it_is() -> None:
    """What is left of the window counts."""
    clock = Clock()
    answers: ReplyCache[int] = ReplyCache(window=10, clock=clock)
    answers.remember(ask("k"), 1, age=7)
    clock.now += 2.9
    assert answers.find(ask("k")) == 1
    clock.now += 0.2
    assert answers.find(ask("k")) is None


def test_a_publisher_does_not_push_out_the_keys_of_others() -> None:
    """However many it uses: it loses its own oldest ones. Alone it may have all the room there is."""
    answers: ReplyCache[int] = ReplyCache(window=10, limit=10, clock=Clock())

    def held(publisher: str, numbers: range) -> list[int | None]:
        return [answers.find(idempotency_key(publisher, "/a", str(n), b"body")) for n in numbers]

    def use(publisher: str, numbers: range) -> None:
        for n in numbers:
            answers.remember(idempotency_key(publisher, "/a", str(n), b"body"), n)

    use("quiet", range(2))
    use("busy", range(100))
    assert held("quiet", range(2)) == [0, 1]
    assert held("busy", range(90, 100)) == [None, None, *range(92, 100)]
    use("as busy", range(100))
    assert held("quiet", range(2)) == [0, 1]
    assert held("busy", range(96, 100)) == list(range(96, 100))
    assert held("as busy", range(95, 100)) == [None, *range(96, 100)]
    answers.forget(idempotency_key("quiet", "/a", "0", b"body"), 0)
    answers.forget(idempotency_key("quiet", "/a", "1", b"body"), 1)
    use("busy", range(200, 206))
    assert held("busy", range(200, 206)) == list(range(200, 206))


@pytest.mark.parametrize(
    ("counts", "share"), [([], 12), ([12], 12), ([13], 12), ([2, 20], 10), ([5, 5, 5], 4), ([1, 4, 9, 9], 3)]
)
def test_a_fair_share(counts: list[int], share: int) -> None:
    """Who has less keeps all; together they keep no more than the limit."""
    assert fair_share(counts, 12) == share
    assert sum(min(count, share) for count in counts) <= 12
