"""Topics and the index over them: the matching that every event goes through."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from core.delivery.registry import Registry
from core.errors import Refused
from core.events.subscription import EVERYTHING, Alternative, Subscription, parse_subscription
from core.events.topics import parse_publish_path, publish_path

TOPIC = st.sampled_from(["a", "b", "c", "d", "private", "é", " "])
TOPICS = st.frozensets(TOPIC, max_size=4)
ALTERNATIVES = st.frozensets(TOPICS, min_size=1, max_size=3)


def scan(subscriptions: dict[int, frozenset[Alternative]], topics: frozenset[str]) -> set[int]:
    """Which subscriptions an event matches, by a look at each of them."""
    return {
        number
        for number, alternatives in subscriptions.items()
        if any(alternative <= topics for alternative in alternatives)
    }


class IndexAgainstScan(RuleBasedStateMachine):
    """Whatever comes and goes, the index finds just what a plain scan finds."""

    def __init__(self) -> None:
        super().__init__()
        self.registry: Registry[int] = Registry()
        self.subscriptions: dict[int, frozenset[Alternative]] = {}
        self.count = 0

    @rule(alternatives=ALTERNATIVES)
    def subscribe(self, alternatives: frozenset[Alternative]) -> None:
        """Add one."""
        self.count += 1
        self.subscriptions[self.count] = alternatives
        self.registry.add(self.count, alternatives)

    @rule(choice=st.integers(min_value=0))
    def unsubscribe(self, choice: int) -> None:
        """Remove one of those that are there."""
        if self.subscriptions:
            number = sorted(self.subscriptions)[choice % len(self.subscriptions)]
            self.registry.remove(number, self.subscriptions.pop(number))

    @rule(topics=TOPICS)
    def publish(self, topics: frozenset[str]) -> None:
        """Match an event."""
        assert self.registry.match(topics) == scan(self.subscriptions, topics)

    @invariant()
    def empty_when_nobody_is_there(self) -> None:
        """It holds something exactly while somebody is subscribed."""
        assert bool(self.registry) == bool(self.subscriptions)

    def teardown(self) -> None:
        """It returns to empty."""
        for number, alternatives in self.subscriptions.items():
            self.registry.remove(number, alternatives)
        assert not self.registry


TestIndexAgainstScan = IndexAgainstScan.TestCase


def test_an_event_is_matched_without_a_look_at_other_subscriptions() -> None:
    """With 5,000 subscriptions under one common topic, as many are looked at as with 50."""

    def looked_at(subscriptions: int) -> int:
        class Counted(frozenset[str]):
            """An alternative that counts how often it is compared."""

            __slots__ = ()
            comparisons = 0

            def __le__(self, other: object) -> bool:
                Counted.comparisons += 1
                return frozenset(self) <= other  # type: ignore[operator]

            __hash__ = frozenset.__hash__

        registry: Registry[int] = Registry()
        for number in range(subscriptions):
            registry.add(number, frozenset({Counted({"bench", f"t{number}"})}))
        assert registry.match(frozenset({"bench", "t30"})) == {30}
        return Counted.comparisons

    assert looked_at(5_000) == looked_at(50) <= 2


PARTS = st.lists(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/,"), min_size=1), max_size=5
)


def quoted(text: str) -> str:
    """Percent-encoded, each byte of it."""
    return "".join(f"%{byte:02x}" for byte in text.encode())


@given(PARTS)
def test_any_topics_survive_a_publish_path(parts: list[str]) -> None:
    """Whatever Unicode a topic has, percent-encoded or not."""
    for path in ("/" + "/".join(map(quoted, parts)), "//".join(["", *map(quoted, parts), ""])):
        parsed = parse_publish_path(path)
        expected = parts[1:] if parts[:1] == ["private"] else parts
        assert parsed.topics == tuple(expected)
        assert parsed.private == (parts[:1] == ["private"])
        assert parsed.text == "/" + "/".join(parts)


@given(st.lists(PARTS, min_size=1, max_size=4))
def test_any_batches_survive_a_subscribe_path(alternatives: list[list[str]]) -> None:
    """Empty alternatives are left out, and are everything only if there is no comma."""
    path = "/" + ",".join("/".join(map(quoted, alternative)) for alternative in alternatives)
    expected = frozenset(frozenset(alternative) for alternative in alternatives if alternative)
    if expected:
        assert parse_subscription(path) == Subscription(expected)
    elif len(alternatives) == 1:
        assert parse_subscription(path) == EVERYTHING
    else:
        with pytest.raises(Refused) as refused:
            parse_subscription(path)
        assert refused.value.status == 400


@given(ALTERNATIVES, ALTERNATIVES, st.lists(TOPIC, max_size=4))
def test_equal_subscriptions_are_one_key_and_are_met_by_the_same(
    one: frozenset[Alternative], other: frozenset[Alternative], topics: list[str]
) -> None:
    """Channels are found by them."""
    path = publish_path("/".join(topics))
    first, second, third = Subscription(one), Subscription(frozenset(one)), Subscription(other)
    assert first == second
    assert {first: 1}[second] == 1
    assert (first == third) == (one == other)
    assert first != one
    assert first.meets(path) == second.meets(path) == any(each <= set(path.all_topics) for each in one)


@given(st.binary(max_size=20))
def test_any_bytes_in_a_path_are_read_or_refused(raw: bytes) -> None:
    """Nothing but Refused comes out of a path, whatever is in it."""
    for path in (raw.decode("utf-8", "surrogateescape"), "".join(f"%{byte:02x}" for byte in raw)):
        for parse in (parse_publish_path, parse_subscription):
            try:
                parse(path)
            except Refused as refused:
                assert refused.status == 400  # noqa: PT017
