"""Answers, asked of the code itself: their heads, CORS, JSON, refusals, and what is held back."""

import asyncio
import json
import logging
from email.utils import parsedate_to_datetime

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from core.errors import RETRY_AFTER, Refused
from core.events.cursor import Stamp
from core.events.store import Accepted
from core.events.topics import publish_path
from core.http.answers import ALLOWED_METHODS, CORS_ANSWER_HEADERS, SERVER, Answers, cors
from core.http.refusals import LINES_A_SECOND
from core.settings import ServerConfig

LISTED, OTHER = "https://listed.example", "https://other.example"
PLAIN = ServerConfig()
WITH_PAGES = ServerConfig(cors_origins=(LISTED,), refusal_delay=0.01)
STAMP = Stamp(1, "0190b8a0-0000-7000-8000-000000000000", 5.5)


def answers(settings: ServerConfig = PLAIN) -> Answers:
    """Of a server with three subscribers."""
    return Answers(settings, "abc", asyncio.Event())


def request(method: str = "PUT", **headers: str) -> web.Request:
    """Some request."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return make_mocked_request(method, "/a/b?secret=1", headers=named)


def text_of(response: web.Response) -> str:
    """What it says."""
    assert response.text is not None
    return response.text


def test_every_head_tells_who_answers_and_how_many_there_are() -> None:
    """And nothing else, where no pages are listed."""
    asked = answers()
    asked.requests = 7
    assert asked.head(request()) == {"Server": SERVER, "X-Subscribers": "3", "X-Requests": "7"}
    assert asked.no_content(request("HEAD")).status == 204


@pytest.mark.parametrize(
    ("origin", "told"),
    [
        (None, {"Vary": "Origin"}),
        (OTHER, {"Vary": "Origin"}),
        ("null", {"Vary": "Origin"}),
        (
            LISTED,
            {
                "Vary": "Origin",
                "Access-Control-Allow-Origin": LISTED,
                "Access-Control-Allow-Credentials": "true",
                "Access-Control-Expose-Headers": CORS_ANSWER_HEADERS,
            },
        ),
    ],
)
def test_a_browser_is_told_of_listed_pages_alone(origin: str | None, told: dict[str, str]) -> None:
    """Caches are told that it depends, whoever asks; without a list there is nothing to tell."""
    headers = {} if origin is None else {"Origin": origin}
    assert cors((LISTED,), headers) == told
    assert cors((), headers) == {}


def test_a_preflight_is_answered_for_listed_pages() -> None:
    """Others, and programs, learn of the methods only."""
    listed = answers(WITH_PAGES).options(request("OPTIONS", Origin=LISTED)).headers
    assert listed["Allow"] == listed["Access-Control-Allow-Methods"] == ALLOWED_METHODS
    assert "Last-Event-ID" in listed["Access-Control-Allow-Headers"]
    for other in (
        answers(WITH_PAGES).options(request("OPTIONS", Origin=OTHER)),
        answers().options(request()),
    ):
        assert other.headers["Allow"] == ALLOWED_METHODS
        assert "Access-Control-Allow-Methods" not in other.headers


def test_an_accepted_event_is_told_in_text_or_json() -> None:
    """As the publisher asks."""
    path, accepted = publish_path("/a/b"), Accepted(STAMP, 1)
    plain = answers().accepted_response(request(), path, accepted, replayed=False)
    assert (plain.status, text_of(plain)) == (202, "accepted\n")
    assert plain.headers["X-Cursor"] == STAMP.cursor
    assert "Idempotency-Replayed" not in plain.headers
    asked = answers().accepted_response(request(Accept="application/json"), path, accepted, replayed=True)
    assert json.loads(text_of(asked)) == {"cursor": STAMP.cursor, "timestamp": 5.5, "path": "/a/b"}
    assert asked.headers["Idempotency-Replayed"] == "true"


@pytest.mark.parametrize(("events", "text"), [(1, "accepted 1 event\n"), (2, "accepted 2 events\n")])
def test_a_batch_is_told_by_its_number(events: int, text: str) -> None:
    """In words, and as a count."""
    headers = {"Content-Type": "application/x-ndjson"}
    path, accepted = publish_path("/a"), Accepted(STAMP, events)
    assert text_of(answers().accepted_response(request(**headers), path, accepted, replayed=False)) == text
    asked = answers().accepted_response(
        request(**headers, Accept="application/json"), path, accepted, replayed=False
    )
    assert json.loads(text_of(asked)) == {"cursor": STAMP.cursor, "count": events}


def test_the_quick_answer_has_the_head_of_the_long_one() -> None:
    """For a plain publish they are one and the same, but for the order of the fields."""
    for settings in (PLAIN, WITH_PAGES):
        asked = answers(settings)
        head, _, body = asked.plain_response(Accepted(STAMP, 1)).partition(b"\r\n\r\n")
        status, *lines = head.decode().split("\r\n")
        fields = dict(line.split(": ", 1) for line in lines)
        long = asked.accepted_response(request(), publish_path("/a"), Accepted(STAMP, 1), replayed=False)
        assert status == "HTTP/1.1 202 Accepted"
        assert body.decode() == text_of(long)
        assert fields["Content-Length"] == str(len(body))
        assert parsedate_to_datetime(fields["Date"])
        for name in ("Server", "X-Subscribers", "X-Requests", "X-Cursor", "Content-Type", "Vary"):
            assert fields.get(name) == long.headers.get(name), name


def test_a_stream_counts_who_it_is_for() -> None:
    """One more than there are; a verdict only where a replay was asked for."""
    stream = answers().stream(request("GET"), "text/x", STAMP.cursor, None)
    assert stream.headers["X-Subscribers"] == "4"
    assert stream.headers["Content-Type"] == "text/x"
    assert "X-Replay" not in stream.headers
    assert answers().stream(request("GET"), "text/x", "c", "partial").headers["X-Replay"] == "partial"


def test_a_refusal_says_why_and_the_log_no_query(caplog: pytest.LogCaptureFixture) -> None:
    """In the form that was asked for, with the fields that belong to it."""
    caplog.set_level(logging.INFO)
    refused = Refused(503, "not now", headers=RETRY_AFTER, close=True)
    answer = answers().refusal(request(Accept="application/json"), refused, "10.0.0.1")
    assert answer.status == 503
    assert json.loads(text_of(answer)) == {"error": "not now"}
    assert answer.headers["Retry-After"] == RETRY_AFTER["Retry-After"]
    assert not answer.keep_alive
    assert "refused PUT /a/b from 10.0.0.1: 503 not now" in caplog.text
    assert "secret" not in caplog.text


def test_a_flood_of_refusals_is_counted_and_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    """Past a hundred lines a second, and quiet ones never."""
    caplog.set_level(logging.INFO)
    asked = answers()
    for _ in range(3 * LINES_A_SECOND):
        asked.note_refusal(Refused(401, "who?"), "it", "x")
    asked.note_refusal(Refused(408, "silent", reason="silent", quiet=True), "it", "x")
    assert LINES_A_SECOND <= caplog.text.count("401 who?") <= 2 * LINES_A_SECOND
    assert "silent" not in caplog.text
    assert asked.refusals.summary() == f"{3 * LINES_A_SECOND} of 401, 1 of 408 (silent)"


async def test_a_refusal_is_held_back_until_the_server_stops() -> None:
    """A stop is not delayed by those who wait to be refused."""
    stopping = asyncio.Event()
    asked = Answers(ServerConfig(refusal_delay=3600), (), stopping)
    held = asyncio.create_task(asked.hold_back(asyncio.get_running_loop().time()))
    await asyncio.sleep(0)
    assert not held.done()
    stopping.set()
    await held


async def test_a_refusal_is_not_held_back_beyond_its_time() -> None:
    """Of a request that came that long ago, not at all."""
    asked = answers(WITH_PAGES)
    await asked.hold_back(asyncio.get_running_loop().time() - 60)
