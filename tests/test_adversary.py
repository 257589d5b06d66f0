"""Who tries to get in by a request: garbage for credentials, disguised paths, forged addresses, web pages.

Each trap is sent byte by byte to the real daemon. That nothing arrives is shown by what is published next
and comes first. test_adversary_private.py and test_adversary_guessing.py go on from here.
"""

import asyncio
import base64
import json
from collections.abc import Iterator
from typing import Any

import pytest

from attack import (
    LISTED,
    UNLISTED,
    all_answers,
    authorization,
    fresh_address,
    publish,
    request,
    send,
)
from daemon import Daemon, basic
from wire import Stream, basic_of, credentials

ACL: dict[str, Any] = {
    "alice": {"password": "secret", "acl": {"team": ["git"]}, "topics": ["deploy"]},
    "all": {"password": "secret", "acl": {"every": "all"}},
    "zoë": {"password": "pässwörd:ÿþ?>", "acl": {"every": "all"}},
}
RIGHT = credentials("alice")
ENCODED = RIGHT.removeprefix(b"Basic ")
ZOE = credentials("zoë", "pässwörd:ÿþ?>")


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """One daemon that all tests attack."""
    config = {
        "server": {"backlog": {"size": 100}},
        "clients": {"payloaders": [LISTED], "secure_topics": ["deploy"]},
    }
    daemon = Daemon(tmp_path_factory.mktemp("attacked"), config)
    daemon.write_acl(ACL)
    daemon.start()
    yield daemon
    assert daemon.stop() == 0


# Credentials

# what it is -> values of the header Authorization; each is 401, although many hold the right ones
GARBAGE: dict[str, list[bytes]] = {
    "empty": [b""],
    "spaces": [b"   "],
    "no scheme": [ENCODED],
    "no space": [b"Basic" + ENCODED],
    "a colon": [b"Basic:" + ENCODED],
    "an equals sign": [b"Basic=" + ENCODED],
    "a tab for the space": [b"Basic\t" + ENCODED],
    "a tab behind the space": [b"Basic \t" + ENCODED],
    "a no-break space": [b"Basic\xa0" + ENCODED],
    "a no-break space before": [b"\xa0" + RIGHT],
    "a no-break space behind": [RIGHT + b"\xa0"],
    "scheme only": [b"Basic"],
    "scheme and space": [b"Basic "],
    "another scheme": [b"Basic2 " + ENCODED],
    "Bearer": [b"Bearer " + ENCODED],
    "Negotiate": [b"Negotiate " + ENCODED],
    "Digest": [b'Digest username="alice", realm="PyPubSub", nonce="x", uri="/", response="y"'],
    "ApiKey": [b"ApiKey secret"],
    "twice": [RIGHT, RIGHT],
    "wrong, then right": [credentials("alice", "wrong"), RIGHT],
    "right, then wrong": [RIGHT, credentials("alice", "wrong")],
    "Bearer, then right": [b"Bearer x", RIGHT],
    "right, then empty": [RIGHT, b""],
    "two with a comma": [RIGHT + b", " + RIGHT],
    "two without the scheme": [RIGHT + b"," + ENCODED],
    "two with a space": [RIGHT + b" " + RIGHT],
    "Bearer and right with a comma": [b"Bearer x, " + RIGHT],
    "a parameter": [RIGHT + b', charset="UTF-8"'],
    "in quotes": [b'Basic "' + ENCODED + b'"'],
    "in brackets": [b"Basic <" + ENCODED + b">"],
    "not encoded": [b"Basic alice:secret"],
    "in hexadecimal": [b"Basic " + base64.b16encode(b"alice:secret")],
    "in Base32": [b"Basic " + base64.b32encode(b"alice:secret")],
    "in the URL's alphabet": [b"Basic " + base64.urlsafe_b64encode(base64.b64decode(ZOE[6:]))],
    "percent-encoded": [credentials("all").replace(b"=", b"%3D")],
    "encoded twice": [basic_of(ENCODED)],
    "without padding": [credentials("all").rstrip(b"=")],
    "cut off": [RIGHT[:-1]],
    "one character more": [RIGHT + b"A"],
    "padding in the middle": [b"Basic " + ENCODED[:4] + b"====" + ENCODED[4:]],
    "a space in the middle": [b"Basic " + ENCODED[:4] + b" " + ENCODED[4:]],
    "a backslash n in the middle": [b"Basic " + ENCODED[:4] + b"\\n" + ENCODED[4:]],
    "garbage in the middle": [b"Basic " + ENCODED[:4] + b"!?*" + ENCODED[4:]],
    "Latin-1 in the Base64": [b"Basic \xe4" + ENCODED],
    "UTF-8 in the Base64": [b"Basic " + "ä".encode() + ENCODED],
    "nothing encoded": [basic_of(b"") + b"===="],
    "no colon": [basic_of(b"alice")],
    "a fullwidth colon": [basic_of("alice\uff1asecret".encode())],
    "a colon only": [basic_of(b":")],
    "no user": [basic_of(b":secret")],
    "a colon first": [basic_of(b":alice:secret")],
    "no password": [basic_of(b"alice:")],
    "a NUL behind the user": [credentials(b"alice\0")],
    "a NUL before the user": [credentials(b"\0alice")],
    "a NUL behind the password": [credentials(b"alice", b"secret\0")],
    "a NUL and more behind the password": [credentials(b"alice", b"secret\0or more")],
    "a line feed behind the user": [credentials(b"alice\n")],
    "a line feed behind the password": [credentials(b"alice", b"secret\n")],
    "a carriage return and a line feed": [credentials(b"alice", b"secret\r\nX-User: all")],
    "a tab before the password": [credentials(b"alice", b"\tsecret")],
    "an escape sequence": [credentials(b"alice\x1b[2J")],
    "a delete": [credentials(b"alice\x7f")],
    "a C1 control character": [credentials("alice\x85")],
    "a space before the user": [credentials(b" alice")],
    "a space behind the user": [credentials(b"alice ")],
    "a no-break space behind the user": [credentials("alice\xa0")],
    "a byte order mark": [credentials("\ufeffalice")],
    "a zero-width space": [credentials("ali\u200bce")],
    "a soft hyphen": [credentials("ali\u00adce")],
    "a right-to-left override": [credentials("\u202eecila")],
    "Latin-1": [credentials("zoë".encode("latin-1"), "pässwörd:ÿþ?>".encode("latin-1"))],
    "UTF-16": [basic_of("alice:secret".encode("utf-16"))],
    "UTF-7": [basic_of(b"alice+ADo-secret")],
    "an overlong colon": [basic_of(b"alice\xc0\xbasecret")],
    "a surrogate": [credentials(b"alice\xed\xa0\x80")],
    "beyond Unicode": [credentials(b"alice\xf5\x80\x80\x80")],
    "a cut-off character": [credentials(b"alice\xc3")],
    "a user of 256 bytes": [credentials("alice" + "x" * 251)],
    "a user of 86 long characters": [credentials("\ufdfa" * 86)],
}
METHODS = ["GET", "PUT", "POST"]
NEEDING = {"GET": "/a", "PUT": "/deploy", "POST": "/a/deploy"}  # where credentials are needed, or looked at


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE)
async def test_garbage_for_credentials_is_refused(daemon: Daemon, garbage: list[bytes], method: str) -> None:
    """401 and what is expected, whatever else the request holds."""
    answer = await send(daemon, request(method, NEEDING[method], authorization(*garbage)), fresh_address())
    assert answer.status == 401
    assert answer.headers["www-authenticate"] == 'Basic realm="PyPubSub", charset="UTF-8"'


WRONG = {"garbage": b"garbage", "wrong password": credentials("alice", "guess"), "nobody": credentials("eve")}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
async def test_wrong_credentials_are_refused_before_the_address_is_looked_at(
    daemon: Daemon, wrong: bytes, method: str
) -> None:
    """So an address that may not publish gets 401 too, not 403."""
    answer = await send(daemon, request(method, "/a", authorization(wrong)), UNLISTED)
    assert answer.status == 401
    assert UNLISTED not in answer.text


@pytest.mark.parametrize("expect", [b"", b"Expect: 100-continue\r\n"], ids=["", "Expect"])
@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
async def test_wrong_credentials_are_refused_before_the_body_is_read(
    daemon: Daemon, wrong: bytes, expect: bytes
) -> None:
    """The answer comes although the body does not, and nobody is told to send it."""
    sent = request("PUT", "/deploy", authorization(wrong) + expect, body=None)
    assert (await send(daemon, sent, fresh_address())).status == 401


async def test_nothing_is_published_with_credentials_that_are_refused(daemon: Daemon) -> None:
    """Where they are needed. Where the address does without any, they are not looked at: it is published."""
    async with daemon.subscriber("/", basic("all")) as stream:
        for values in [*GARBAGE.values(), *([value] for value in WRONG.values())]:
            for path in ("/deploy", "/private/deploy"):
                await send(daemon, request("PUT", path, authorization(*values)), fresh_address())
            sent = await send(daemon, request("PUT", "/a", authorization(*values)), fresh_address())
            assert sent.status == 202
            assert (await stream.event())["pubsub_path"] == "/a"
        await publish(daemon, "/marker")
        assert (await stream.event())["pubsub_path"] == "/marker"


# what no parser may make credentials of; many hold the right ones
NO_HEADER: dict[str, bytes] = {
    "a folded line": b"Authorization: Basic\r\n " + ENCODED + b"\r\n",
    "a space before the colon": b"Authorization : " + RIGHT + b"\r\n",
    "a NUL": b"Authorization: " + RIGHT + b"\0\r\n",
    "a control character": b"Authorization: " + RIGHT + b"\x01\r\n",
    "a vertical tab": b"Authorization: Basic\x0b" + ENCODED + b"\r\n",
    "a lone line feed": b"Authorization: " + RIGHT + b"\nX-Other: y\r\n",
    "a lone carriage return": b"Authorization: " + RIGHT + b"\rX-Other: y\r\n",
    "no colon": b"Authorization " + RIGHT + b"\r\n",
    "a NUL in the name": b"Author\0ization: " + RIGHT + b"\r\n",
    "longer than any": authorization(credentials(b"alice", b"x" * 9000)),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("lines", NO_HEADER.values(), ids=NO_HEADER)
async def test_a_header_that_is_none_ends_the_request(daemon: Daemon, lines: bytes, method: str) -> None:
    """400 or 431, and the end of the connection: what follows is not taken for another request."""
    sent = request(method, "/a", lines) + request("HEAD", "/")
    answers = await all_answers(daemon, sent, fresh_address())
    assert answers.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 431 "))
    assert answers.count(b"\r\nServer:") == 1


NAMES = [
    *("*", "*)(uid=*", "alice)(|(uid=*", "alice*", "(alice)", "alice,ou=people", "uid=alice", "\\61lice"),
    *("../alice", "alice/../all", "./alice", "alice/", "/alice", "%61lice", "alice%00", "{}", "{alice}"),
    *("[]", "null", "~", "__class__", "${alice}", "$(id)", "`id`", "' or 1=1 --", '"alice"', "alice;"),
    *("alice@example.org", "EXAMPLE\\alice", "alice,all", "alice all", "Alice", "ALICE", "aLICE", "nobody"),
    *(
        "\u0430lice",
        "alic\u0435",
        "\uff41lice",
        "al\u0131ce",
        "\u1d43lice",
        "zoe\u0308",
        "ZOË",
        "ﬁle",
        "file alice",
        "x" * 255,
    ),
]  # some with Cyrillic, fullwidth, dotless, superscript and combining letters


@pytest.mark.parametrize("name", NAMES, ids=ascii)
async def test_a_name_that_is_not_the_users_to_the_letter_is_nobody(daemon: Daemon, name: str) -> None:
    """Refused with the words for a wrong password, which do not tell whether there is such a user."""
    wrong = request("GET", "/", authorization(credentials("alice", "wrong")))
    guess = request("GET", "/", authorization(credentials(name)))
    expected = await send(daemon, wrong, fresh_address())
    answer = await send(daemon, guess, fresh_address())
    assert (answer.status, answer.text) == (401, expected.text)


# passwords, all close to the right one
PASSWORDS = [
    "Secret",
    "SECRET",
    "secret ",
    " secret",
    "secre",
    "secrets",
    "\uff53ecret",
    "*",
    "s\u0435cret",
    "secret:",
]


@pytest.mark.parametrize("password", PASSWORDS, ids=ascii)
async def test_a_password_is_the_right_one_only_to_the_letter(daemon: Daemon, password: str) -> None:
    """No case, space or likeness is overlooked."""
    guess = request("GET", "/", authorization(credentials("alice", password)))
    assert (await send(daemon, guess, fresh_address())).status == 401


# as RFC 9110 and RFC 7617 allow them
RIGHT_ONES = {
    "as usual": RIGHT,
    "lower-case scheme": b"basic " + ENCODED,
    "upper-case scheme": b"BASIC " + ENCODED,
    "more spaces": b"Basic   " + ENCODED,
    "white space around": b"  Basic " + ENCODED + b" \t",
    "UTF-8, colons in the password": ZOE,
}


@pytest.mark.parametrize("right", RIGHT_ONES.values(), ids=RIGHT_ONES)
async def test_right_credentials_open_private_events(daemon: Daemon, right: bytes) -> None:
    """Without this, the refusals above would prove nothing."""
    async with daemon.subscriber("/git", {"Authorization": right.decode()}) as stream:
        await publish(daemon, "/private/git")
        assert (await stream.event())["pubsub_path"] == "/private/git"


@pytest.mark.parametrize("method", ["HEAD", "OPTIONS", "DELETE"])
async def test_a_method_that_needs_no_credentials_does_not_tell_whether_they_are_right(
    daemon: Daemon, method: str
) -> None:
    """So it is of no use for guessing."""
    source = fresh_address()
    right = await send(daemon, request(method, "/", authorization(RIGHT)), source)
    wrong = await send(daemon, request(method, "/", authorization(credentials("alice", "guess"))), source)
    assert (right.status, right.text) == (wrong.status, wrong.text)
    assert "www-authenticate" not in wrong.headers


# headers that other programs take for credentials, on a request of nobody
PRETENDED = {
    "Proxy-Authorization": RIGHT,
    "X-Authorization": RIGHT,
    "X-Remote-User": b"alice",
    "Remote-User": b"alice",
    "X-Forwarded-User": b"alice",
    "Cookie": b"Authorization=" + RIGHT,
}


@pytest.mark.parametrize("name", PRETENDED)
async def test_only_one_header_holds_credentials(daemon: Daemon, name: str) -> None:
    """Others are no login: a secure topic still asks for one."""
    header = b"%s: %s\r\n" % (name.encode(), PRETENDED[name])
    assert (await send(daemon, request("PUT", "/deploy", header))).status == 401


@pytest.mark.parametrize("target", ["http://alice:secret@pubsub.example/deploy", "/deploy?user=alice:secret"])
async def test_credentials_in_the_target_are_no_login(daemon: Daemon, target: str) -> None:
    """They would stand in the logs of proxies."""
    assert (await send(daemon, request("PUT", target))).status == 401


# Paths

# target of a publish -> pubsub_path, which begins with /private for a private event only
PUBLISHED: dict[str, str] = {
    "/private": "/private",
    "/%70rivate/x": "/private/x",
    "/%70%72%69%76%61%74%65/x": "/private/x",
    "/pri%76ate%2Fx": "/private/x",
    "/%2Fprivate/x": "/private/x",
    "/%2f%2Fprivate/x": "/private/x",
    "//private/x": "/private/x",
    "///private//x/": "/private/x",
    "/private%2Fx": "/private/x",
    "/private/private/x": "/private/private/x",
    "/private?x": "/private",
    "/private#x": "/private",
    "http://pubsub.example/private/x": "/private/x",
    "http://pubsub.example//%70rivate/x": "/private/x",
    "http://user:pw@pubsub.example/private/x": "/private/x",
    "https://other.example:1/private/x": "/private/x",
    "/private/../x": "/private/../x",
    "/private/%2e%2e/x": "/private/../x",
    # ordinary topics from here on
    "/Private/x": "/Private/x",
    "/PRIVATE/x": "/PRIVATE/x",
    "/x/private": "/x/private",
    "/x/../private/y": "/x/../private/y",
    "/./private/x": "/./private/x",
    "/../private/x": "/../private/x",
    "/%2e%2e/private/x": "/../private/x",
    "/..%2Fprivate/x": "/../private/x",
    "/private;v=1/x": "/private;v=1/x",
    "/;private/x": "/;private/x",
    "/private&x": "/private&x",
    "/x?/private/y": "/x",
    "/?path=/private/x": "/",
    "/x#/private": "/x",
    "/x%3F/private": "/x?/private",
    "http://private/x": "/x",
    "http://pubsub.example?/private": "/",
    "/http://private/x": "/http:/private/x",
    "/private\\x": "/private\\x",
    "/\\private/x": "/\\private/x",
    "/%5Cprivate/x": "/\\private/x",
    "/%2570rivate/x": "/%70rivate/x",
    "/%252Fprivate/x": "/%2Fprivate/x",
    "/%u0070rivate/x": "/%u0070rivate/x",
    "/%EF%BD%90rivate/x": "/\uff50rivate/x",
    "/%D1%80rivate/x": "/\u0440rivate/x",
    "/pr%C4%B1vate/x": "/pr\u0131vate/x",
    "/%E2%80%8Bprivate/x": "/\u200bprivate/x",
    "/%EF%BB%BFprivate/x": "/\ufeffprivate/x",
    "/private%00/x": "/private\0/x",
    "/%00private/x": "/\0private/x",
    "/private%20/x": "/private /x",
    "/%0Aprivate/x": "/\nprivate/x",
    "/+private/x": "/+private/x",
    "/%/private": "/%/private",
}


async def path_of_next(stream: Stream) -> str:
    """pubsub_path of the next event."""
    path = (await stream.event())["pubsub_path"]
    assert isinstance(path, str)
    return path


@pytest.mark.parametrize("target", PUBLISHED)
async def test_a_disguised_path_is_private_or_not_as_its_event_says(daemon: Daemon, target: str) -> None:
    """Nobody without the right gets a private event; what is not private is an ordinary event to everybody.

    The daemon normalises nothing but empty parts: case, dots and look-alikes make another topic.
    """
    path = PUBLISHED[target]
    async with daemon.subscriber("/", basic("all")) as member, daemon.subscriber("/") as stranger:
        answer = await send(daemon, request("PUT", target, b"Accept: application/json\r\n"))
        assert json.loads(answer.text)["path"] == path
        await publish(daemon, "/marker")
        assert await path_of_next(member) == path
        private = path.split("/")[1] == "private"
        assert await path_of_next(stranger) == ("/marker" if private else path)


@pytest.mark.parametrize("target", [target for target in PUBLISHED if PUBLISHED[target] != "/"])
async def test_a_disguised_path_is_judged_in_a_replay_as_it_was_live(daemon: Daemon, target: str) -> None:
    """It goes through the backlog as text and is read once more."""
    marker = await publish(daemon, "/marker")
    path = PUBLISHED[target]
    await publish(daemon, target)
    private = path.split("/")[1] == "private"
    for headers, expected in ((basic("all"), [path]), ({}, [] if private else [path])):
        async with daemon.subscriber(f"/?cursor={marker}", headers) as stream:
            assert [event["pubsub_path"] for event in await stream.replay()] == expected


# targets that are no path, or none to publish on
NO_PATH: list[bytes] = [
    *(b"*", b"private/x", b"%2Fprivate", b"?/private", b"#/private", b"\\private", b"pubsub.example:2069"),
    *(b"http:/private/x", b"http:///private/x", b"http://h:99999/private", b"http://h:x/private"),
    *(b"http://alice:secret@:1/private", b"http://[::1/private", b"mailto:private"),
    *(b"/\xc3\xa9", b"/\xff", b"/private\x00", b"/private\x7f", b"/pri\tvate", b"/\x1b[2Jprivate"),
    *(b"/%C0%AFprivate/x", b"/%C1%B0rivate", b"/%E0%80%AFprivate", b"/%F0%80%80%AFx", b"/%FF", b"/%ED%A0%80"),
    *(b"/x,private", b"/private,x", b"/private%2Cx", b"/private/%2c", b"/,", b"/%2C/private"),
]


@pytest.mark.parametrize("target", NO_PATH, ids=ascii)
async def test_a_target_that_is_no_path_is_refused(daemon: Daemon, target: bytes) -> None:
    """400, and nothing is published."""
    async with daemon.subscriber("/", basic("all")) as stream:
        assert (await send(daemon, request("PUT", target))).status == 400
        await publish(daemon, "/marker")
        assert await path_of_next(stream) == "/marker"


@pytest.mark.parametrize("path", ["/,", "/,,,", "/%2C", "/%2c,", "/,/,", "//,//", "/,?since=-1"])
async def test_commas_alone_do_not_open_the_whole_stream(daemon: Daemon, path: str) -> None:
    """400, also for who might see everything."""
    async with daemon.subscriber(path, basic("all")) as stream:
        assert stream.status == 400


# what a stranger asks for -> a public event that meets it
STRANGERS: dict[str, str] = {
    "/": "/marker",
    "/private": "/marker/private",
    "/%70rivate": "/marker/private",
    "//private": "/marker/private",
    "/private/private": "/marker/private",
    "/,private": "/marker/private",
    "/private,": "/marker/private",
    "/private%2C": "/marker/private",
    "/git,,private": "/git",
    "/a,,git": "/git",
    "/private/git": "/git/private",
    "/private%2Fgit": "/git/private",
    "/git/private": "/git/private",
    "/../private": "/marker/../private",
    "/x/../private": "/x/../private",
    "http://all:secret@pubsub.example/": "/marker",
    "http://all:secret@pubsub.example/private": "/marker/private",
}


@pytest.mark.parametrize("target", ["/private?x=/git", "/?user=all&password=secret", "/?private"])
async def test_a_query_is_no_way_to_more(daemon: Daemon, target: str) -> None:
    """What it cannot say is refused."""
    assert (await daemon.request("GET", target)).status == 400


@pytest.mark.parametrize("subscription", STRANGERS)
async def test_no_subscription_shows_private_events_to_a_stranger(daemon: Daemon, subscription: str) -> None:
    """Live: whatever stands in the path, the public event comes first."""
    async with daemon.subscriber(subscription) as stream:
        for path in ("/private/git", "/private/private/git", "/private", "/private/x/../y"):
            await publish(daemon, path)
        await publish(daemon, STRANGERS[subscription], b'{"marker": true}')
        assert "marker" in await stream.event()


@pytest.mark.parametrize("subscription", STRANGERS)
async def test_no_subscription_replays_private_events_to_a_stranger(
    daemon: Daemon, subscription: str
) -> None:
    """The same from the backlog."""
    cursor = await publish(daemon, "/private/git")
    for path in ("/private/git", "/private/private/git", STRANGERS[subscription], "/private"):
        await publish(daemon, path)
    async with daemon.subscriber(subscription, {"X-Fetch-Since-Cursor": cursor}) as stream:
        assert [event["pubsub_path"] for event in await stream.replay()] == [STRANGERS[subscription]]


SECURE = [
    "/%64eploy",
    "/x%2Fdeploy",
    "//deploy",
    "/private/deploy",
    "/x/../deploy",
    "http://h/deploy?x",
    "/deploy#x",
]


@pytest.mark.parametrize("target", SECURE)
async def test_a_disguised_secure_topic_still_needs_credentials(daemon: Daemon, target: str) -> None:
    """401 without; 403 with those of somebody who has no right to it."""
    assert (await send(daemon, request("PUT", target))).status == 401
    assert (await send(daemon, request("PUT", target, authorization(credentials("all"))))).status == 403
    assert (await send(daemon, request("PUT", target, authorization(RIGHT)))).status == 202


# Addresses

EVIL = b"203.0.113.6"
# who connects, the headers it sends, whether it may publish; 127.0.0.1 is a trusted proxy and 192.0.2.7 a
# listed publisher
FORWARDED: dict[str, tuple[str, list[bytes], bool]] = {
    "an honest proxy": ("127.0.0.1", [b"X-Forwarded-For: 192.0.2.7"], True),
    "an honest proxy, RFC 7239": ("127.0.0.1", [b"Forwarded: for=192.0.2.7"], True),
    "nobody's word": ("127.0.0.2", [b"X-Forwarded-For: 192.0.2.7"], False),
    "nobody's word, RFC 7239": ("127.0.0.2", [b"Forwarded: for=192.0.2.7"], False),
    "nobody's word for the proxy": ("127.0.0.2", [b"X-Forwarded-For: 192.0.2.7, 127.0.0.1"], False),
    "forged to the left": ("127.0.0.1", [b"X-Forwarded-For: 192.0.2.7, " + EVIL], False),
    "forged in a header before": (
        "127.0.0.1",
        [b"X-Forwarded-For: 192.0.2.7", b"X-Forwarded-For: " + EVIL],
        False,
    ),
    "forged in lower case": (
        "127.0.0.1",
        [b"x-forwarded-for: 192.0.2.7", b"X-FORWARDED-FOR: " + EVIL],
        False,
    ),
    "forged in the other header": (
        "127.0.0.1",
        [b"X-Forwarded-For: " + EVIL, b"Forwarded: for=192.0.2.7"],
        False,
    ),
    "forged beside RFC 7239": (
        "127.0.0.1",
        [b"Forwarded: for=" + EVIL, b"X-Forwarded-For: 192.0.2.7"],
        False,
    ),
    "forged with a trusted hop": ("127.0.0.1", [b"X-Forwarded-For: 192.0.2.7, 127.0.0.1, " + EVIL], False),
    "forged twice in one": ("127.0.0.1", [b"Forwarded: for=192.0.2.7;for=" + EVIL], False),
    "forged in quotes": ("127.0.0.1", [b'Forwarded: for=192.0.2.7, for="x, for=192.0.2.7"'], False),
    "forged by the wrong name": ("127.0.0.1", [b"Forwarded: for=" + EVIL + b";by=192.0.2.7"], False),
    "X-Real-IP": ("127.0.0.1", [b"X-Forwarded-For: " + EVIL, b"X-Real-IP: 192.0.2.7"], False),
    "Client-IP": ("127.0.0.2", [b"Client-IP: 192.0.2.7", b"True-Client-IP: 192.0.2.7"], False),
    "nothing in it": ("127.0.0.1", [b"X-Forwarded-For:"], False),
    "nothing at the end": ("127.0.0.1", [b"X-Forwarded-For: 192.0.2.7,"], False),
    "nothing after it": ("127.0.0.1", [b"X-Forwarded-For: 192.0.2.7", b"X-Forwarded-For:"], False),
    "a name": ("127.0.0.1", [b"X-Forwarded-For: localhost"], False),
    "unix": ("127.0.0.1", [b"X-Forwarded-For: unix"], False),
    "a network": ("127.0.0.1", [b"X-Forwarded-For: 192.0.2.0/24"], False),
    "a number": ("127.0.0.1", [b"X-Forwarded-For: 3221225991"], False),
    "hexadecimal": ("127.0.0.1", [b"X-Forwarded-For: 0xc0000207"], False),
    "octal": ("127.0.0.1", [b"X-Forwarded-For: 0300.0.2.7"], False),
    "short": ("127.0.0.1", [b"X-Forwarded-For: 192.519"], False),
    "a semicolon": ("127.0.0.1", [b"X-Forwarded-For: 192.0.2.7; " + EVIL], False),
    "the other header's form": ("127.0.0.1", [b"X-Forwarded-For: for=192.0.2.7"], False),
    "bytes": ("127.0.0.1", [b"X-Forwarded-For: 192.0.2.7\xff"], False),
    "Arabic digits": ("127.0.0.1", ["X-Forwarded-For: ١٩٢.0.2.7".encode()], False),
    "hidden": ("127.0.0.1", [b"Forwarded: for=_hidden"], False),
    "no for": ("127.0.0.1", [b"Forwarded: by=192.0.2.7"], False),
    "no equals sign": ("127.0.0.1", [b"Forwarded: 192.0.2.7"], False),
}


@pytest.fixture(scope="module")
def behind_proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon that believes one proxy."""
    config = {"server": {"trusted_proxies": ["127.0.0.1"]}, "clients": {"payloaders": ["192.0.2.7", "unix"]}}
    daemon = Daemon(tmp_path_factory.mktemp("proxied"), config)
    daemon.start()
    yield daemon
    assert daemon.stop() == 0


@pytest.mark.parametrize("case", FORWARDED)
async def test_no_header_makes_a_publisher_of_somebody_else(behind_proxy: Daemon, case: str) -> None:
    """Only what the trusted proxy itself has seen counts."""
    source, headers, may_publish = FORWARDED[case]
    sent = request("PUT", "/a", b"".join(header + b"\r\n" for header in headers))
    assert (await send(behind_proxy, sent, source)).status == (202 if may_publish else 403)


# Web pages

# what a browser adds for a page of another site, whatever the page sends
PAGES = {
    "another site": b"Sec-Fetch-Site: cross-site\r\nOrigin: https://evil.example\r\n",
    "another host of the site": b"Sec-Fetch-Site: same-site\r\nOrigin: https://evil.pubsub.example\r\n",
    "no origin told": b"Sec-Fetch-Site: cross-site\r\n",
    "an opaque origin": b"Sec-Fetch-Site: cross-site\r\nOrigin: null\r\n",
    "an older browser": b"Origin: https://evil.example\r\n",
    "an older browser, opaque": b"Origin: null\r\n",
    "our name, another port": b"Origin: http://pubsub.example:2070\r\n",
    "our name at the front": b"Origin: http://pubsub.example:2069.evil.example\r\n",
    "our name as a user": b"Origin: http://pubsub.example:2069@evil.example\r\n",
    "our name at the end": b"Origin: http://evil-pubsub.example:2069\r\n",
    "a file": b"Origin: file://\r\n",
    "an extension": b"Origin: chrome-extension://abcdef\r\n",
    "empty": b"Origin:\r\n",
    "in upper case": b"Sec-Fetch-Site: Same-Origin\r\n",
    "two values": b"Sec-Fetch-Site: same-origin, cross-site\r\n",
}
FORMS = [
    b"text/plain",
    b"application/x-www-form-urlencoded",
    b"multipart/form-data; boundary=x",
    b"application/json",
]


@pytest.mark.parametrize("login", [b"", authorization(RIGHT)], ids=["", "logged in"])
@pytest.mark.parametrize("page", PAGES.values(), ids=PAGES)
async def test_a_page_of_another_site_publishes_nothing(daemon: Daemon, page: bytes, login: bytes) -> None:
    """By no form, although its visitor may: the browser adds address and credentials by itself."""
    async with daemon.subscriber("/", basic("all")) as stream:
        for form in FORMS:
            sent = request("POST", "/deploy", page + login + b"Content-Type: %s\r\n" % form)
            assert (await send(daemon, sent)).status == 403
        await publish(daemon, "/marker")
        assert await path_of_next(stream) == "/marker"


@pytest.mark.parametrize("page", PAGES.values(), ids=PAGES)
async def test_a_page_of_another_site_cannot_read_its_visitors_stream(daemon: Daemon, page: bytes) -> None:
    """The browser keeps an answer from a page unless the server names the page's origin."""
    answer = await send(daemon, request("GET", "/", page + authorization(RIGHT)))
    assert not [name for name in answer.headers if name.startswith("access-control-")]


async def test_a_page_of_another_site_gets_no_leave_to_ask(daemon: Daemon) -> None:
    """The preflight for methods and headers beyond those of a form says nothing."""
    page = PAGES["another site"] + b"Access-Control-Request-Method: PUT\r\n"
    answer = await send(daemon, request("OPTIONS", "/deploy", page))
    assert not [name for name in answer.headers if name.startswith("access-control-")]


async def test_a_login_under_way_when_its_client_leaves_harms_nobody(daemon: Daemon) -> None:
    """Others who wait for the same are answered."""
    sent = request("GET", "/", authorization(credentials("all")))
    answers = [asyncio.create_task(send(daemon, sent, fresh_address())) for _ in range(20)]
    for _ in range(20):
        _, writer = await asyncio.open_connection("127.0.0.1", daemon.port)
        writer.write(sent)
        writer.close()
    assert {answer.status for answer in await asyncio.gather(*answers)} == {200}
