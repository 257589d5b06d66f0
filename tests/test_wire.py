"""The wire forms, byte for byte."""

import json

import pytest

from core.delivery.wire import BARE, BARE_NUL_TERMINATED, CHUNKED, CHUNKED_NUL_TERMINATED, FORMS, wire_form

LINE = b'{"n": 1234567}\n'  # 15 bytes


@pytest.mark.parametrize(
    ("http_1_0", "nul_terminated", "frame"),
    [
        (False, False, b"f\r\n" + LINE + b"\r\n"),
        (False, True, b"10\r\n" + LINE + b"\0\r\n"),
        (True, False, LINE),
        (True, True, LINE + b"\0"),
    ],
)
def test_a_line_in_each_form(http_1_0: bool, nul_terminated: bool, frame: bytes) -> None:
    """A line is one chunk where there are chunks; a ping is such a line; only history has an end."""
    wire = wire_form(http_1_0=http_1_0, nul_terminated=nul_terminated)
    assert wire.event(LINE) == frame
    assert wire.ping(1588132959.6066568) == wire.event(b'{"stillalive": 1588132959.6066568}\n')
    assert wire.end() == b""
    assert wire.closing == (b"" if http_1_0 else b"0\r\n\r\n")
    assert wire.content_type == "application/vnd.pypubsub-stream"


@pytest.mark.parametrize("now", [0.0, 1.0, 1588132959.6066568, 1e16, 1.5e300])
def test_a_ping_is_json(now: float) -> None:
    """Though no encoder has made it."""
    assert BARE.ping(now) == json.dumps({"stillalive": now}).encode() + b"\n"


def test_there_is_one_instance_of_each_form() -> None:
    """Those who are asked for the same form share their bytes."""
    assert {wire for form in FORMS.values() for wire in form} == {
        CHUNKED,
        BARE,
        CHUNKED_NUL_TERMINATED,
        BARE_NUL_TERMINATED,
    }
    for http_1_0 in (False, True):
        for nul in (False, True):
            first, second = (wire_form(http_1_0=http_1_0, nul_terminated=nul) for _ in range(2))
            assert first is second
