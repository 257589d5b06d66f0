"""Who sees which events: one table of users, events and subscriptions, for live events and for replays."""

import asyncio
import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.auth.rights import MOST_FILED, Rights, is_for, private_alternatives
from core.delivery.registry import Registry
from core.events.subscription import MOST_ALTERNATIVES, Subscription, parse_subscription
from core.events.topics import publish_path
from daemon import StartDaemon, basic
from wire import Stream

PUBLIC = ["/git/a", "/mail", "/git/private", "/fruits"]
PRIVATE = [
    "/private",
    "/private/git/a",
    "/private/git/b",
    "/private/mail/dev",
    "/private/private/git",
    "/private/fruits",
]
ACL: dict[str, Any] = {
    "nothing": {"password": "secret"},
    "git": {"password": "secret", "acl": {"team": ["git"]}},
    "git-a": {"password": "secret", "acl": {"one": ["a", "git"]}},
    "two": {"password": "secret", "acl": {"one": ["git", "b"], "other": ["mail"]}},
    "marked": {"password": "secret", "acl": {"one": ["private"]}},
    "all": {"password": "secret", "acl": {"every": "all"}},
    "never": {"password": "secret", "acl": {"one": ["git", "mail"]}, "topics": ["git"]},
}
# user -> the private events that its segments allow; None: nobody is logged in
SEES: dict[str | None, set[str]] = {
    None: set(),
    "nothing": set(),
    "git": {"/private/git/a", "/private/git/b", "/private/private/git"},
    "git-a": {"/private/git/a"},
    "two": {"/private/git/b", "/private/mail/dev"},
    "marked": {"/private/private/git"},
    "all": set(PRIVATE),
    "never": set(),
}
# subscription -> the events that it is met by
WANTS: dict[str, set[str]] = {
    "/": {*PUBLIC, *PRIVATE},
    "/git": {"/git/a", "/git/private", "/private/git/a", "/private/git/b", "/private/private/git"},
    "/private": {"/git/private", *PRIVATE},
    "/private/git": {"/git/private", "/private/git/a", "/private/git/b", "/private/private/git"},
    "/private/a,mail": {"/private/git/a", "/mail", "/private/mail/dev"},
    "/%70rivate/git/a": {"/private/git/a"},
    "/a/git/a,git/a": {"/git/a", "/private/git/a"},
    "/git,private,": {"/git/a", "/git/private", *PRIVATE},
    "/nothing": set(),
}


def expected(user: str | None, subscription: str) -> list[str]:
    """The paths of the events that this user gets for this subscription, in order."""
    seen = set(PUBLIC) | SEES[user]
    return [path for path in [*PUBLIC, *PRIVATE] if path in seen & WANTS[subscription]]


def headers(user: str | None) -> dict[str, str]:
    """Those with which the user asks."""
    return basic(user) if user else {}


async def paths_until_the_end(stream: Stream) -> list[str]:
    """The paths of all events until the stream ends."""
    paths = []
    with contextlib.suppress(asyncio.IncompleteReadError):
        while True:
            paths.append((await stream.event())["pubsub_path"])
    return paths


@pytest.mark.parametrize("backlog", [{"size": 100}, {"size": 100, "storage": "backlog.db"}, {}])
async def test_every_user_gets_for_every_subscription_what_it_may_see(
    start_daemon: StartDaemon, backlog: dict[str, Any], tmp_path: Any
) -> None:
    """Live, and the same in a replay, whose head says that this is all of it."""
    if "storage" in backlog:
        backlog = {**backlog, "storage": str(tmp_path / "backlog.db")}
    server = start_daemon({"server": {"backlog": backlog}}, acl=ACL)
    cells = [(user, subscription) for user in SEES for subscription in WANTS]
    async with contextlib.AsyncExitStack() as streams:
        live = [
            await streams.enter_async_context(server.subscriber(subscription, headers(user)))
            for user, subscription in cells
        ]
        for path in [*PUBLIC, *PRIVATE]:
            assert (await server.put(path, {})).status == 202
        for user, subscription in cells if backlog else []:
            since = headers(user) | {"X-Fetch-Since": "-1"}
            async with server.subscriber(subscription, since) as stream:
                replayed = [event["pubsub_path"] for event in await stream.replay()]
            assert (user, subscription, replayed) == (user, subscription, expected(user, subscription))
        assert await asyncio.to_thread(server.stop) == 0
        for (user, subscription), stream in zip(cells, live, strict=True):
            paths = await paths_until_the_end(stream)
            assert (user, subscription, paths) == (user, subscription, expected(user, subscription))


TOPICS = st.sampled_from(["a", "b", "c", "private"])
SETS = st.frozensets(TOPICS, max_size=3)


@given(
    st.lists(
        st.tuples(st.frozensets(SETS, min_size=1, max_size=3), st.frozensets(SETS, max_size=3)), max_size=6
    ),
    st.lists(TOPICS, max_size=4),
)
def test_the_index_finds_whom_a_private_event_is_for(
    subscribers: list[tuple[frozenset[frozenset[str]], frozenset[frozenset[str]]]], topics: list[str]
) -> None:
    """Exactly those who ask for it and may see it, by a plain look at each of them."""
    path = publish_path("/".join(["private", *topics]))
    registry: Registry[int] = Registry()
    asked = [(Subscription(alternatives), readable) for alternatives, readable in subscribers]
    for number, (subscription, readable) in enumerate(asked):
        registry.add(number, private_alternatives(subscription, readable))
    found = registry.match(frozenset(path.topics))
    assert found == {
        number
        for number, (subscription, readable) in enumerate(asked)
        if is_for(path, subscription, Rights(readable))
    }
    for number, (subscription, readable) in enumerate(asked):
        registry.remove(number, private_alternatives(subscription, readable))
    assert not registry


def test_a_long_subscription_of_a_user_with_many_rights_is_filed_under_few_batches() -> None:
    """Not under every combination of the two; its rights still decide."""
    subscription = parse_subscription("/" + ",".join(f"t{n}" for n in range(MOST_ALTERNATIVES)))
    readable = frozenset(frozenset({f"x{n}"}) for n in range(MOST_FILED // MOST_ALTERNATIVES + 1))
    assert private_alternatives(subscription, readable) == readable


async def test_a_long_subscription_gets_only_what_it_asks_for(start_daemon: StartDaemon) -> None:
    """Also where the index knows only its user's rights."""
    segments = {f"s{n}": [f"x{n}"] for n in range(MOST_FILED // MOST_ALTERNATIVES + 1)}
    server = start_daemon(acl={"alice": {"password": "secret", "acl": segments}})
    async with server.subscriber(
        "/" + ",".join(f"t{n}" for n in range(MOST_ALTERNATIVES)), basic("alice")
    ) as stream:
        await server.put("/private/x1/other", {})
        await server.put("/private/t5/other", {})
        await server.put("/private/x1/t5", {})
        assert (await stream.event())["pubsub_path"] == "/private/x1/t5"
