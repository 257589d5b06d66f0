"""core.http.plain_publish: which heads ask for nothing but to publish an event, and the answer to that."""

from typing import NamedTuple

import pytest
from multidict import CIMultiDict

from core.http.plain_publish import is_plain_publish


class Head(NamedTuple):
    """A head as aiohttp's parser gives it: one of a plain publish, if nothing else is said."""

    method: str = "PUT"
    version: tuple[int, int] = (1, 1)
    raw_headers: tuple[tuple[bytes, bytes], ...] = ((b"Host", b"x"), (b"Content-Length", b"2"))
    should_close: bool = False
    upgrade: bool = False

    @property
    def headers(self) -> CIMultiDict[str]:
        """The fields by their names."""
        return CIMultiDict((name.decode(), value.decode()) for name, value in self.raw_headers)


def with_field(name: bytes, value: bytes) -> Head:
    """A head that has one more field."""
    return Head(raw_headers=(*Head().raw_headers, (name, value)))


PLAIN = {
    "the least": Head(),
    "POST": Head(method="POST"),
    "what curl sends": with_field(b"Accept", b"*/*"),
    "what programs send": with_field(b"User-Agent", b"python-requests/2"),
    "any case": with_field(b"uSER-aGENT", b"x"),
    "JSON": with_field(b"Content-Type", b"application/json"),
    "credentials, which are not looked at": with_field(b"Authorization", b"Basic eDp5"),
    "credentials in any case": with_field(b"authorization", b"Basic eDp5"),
    "languages": with_field(b"Accept-Language", b"en"),
}
NOT_PLAIN = {
    "another method": Head(method="GET"),
    "HTTP/1.0": Head(version=(1, 0)),
    "the last of its connection": Head(should_close=True),
    "another protocol": Head(upgrade=True),
    "an answer in JSON": with_field(b"Accept", b"text/plain, Application/JSON"),
    "several events": with_field(b"Content-Type", b"application/x-NDJSON"),
    "several events by another name": with_field(b"Content-Type", b"application/jsonl"),
    "chunks": with_field(b"Transfer-Encoding", b"chunked"),
    "an expectation": with_field(b"Expect", b"100-continue"),
    "a web page": with_field(b"Origin", b"http://x.example"),
    "a proxy": with_field(b"X-Forwarded-For", b"192.0.2.1"),
    "a key": with_field(b"Idempotency-Key", b"1"),
    "a compressed body": with_field(b"Content-Encoding", b"gzip"),
    "a field that nobody knows": with_field(b"X-Other", b"1"),
    "an unknown field beside credentials": Head(
        raw_headers=((b"Authorization", b"Basic eDp5"), (b"X-Other", b"1"))
    ),
}


@pytest.mark.parametrize("name", PLAIN)
def test_a_publish_like_most_is_plain(name: str) -> None:
    """There is nothing in its head that would have to be looked into."""
    assert is_plain_publish(PLAIN[name])


@pytest.mark.parametrize("name", NOT_PLAIN)
def test_whatever_could_change_the_answer_is_not_plain(name: str) -> None:
    """It goes the long way, which knows what it means."""
    assert not is_plain_publish(NOT_PLAIN[name])
