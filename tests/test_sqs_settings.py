"""The section `sqs`: what is accepted, what is said of mistakes, and what is needed for it."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from aws import arn_of
from core.errors import ConfigError
from daemon import ROOT, Daemon
from documents import Block, sections, yaml_of
from plugins.sqs.settings import build_queues, warnings_of_twins

SECRET = "hunter2"
PATH = Path("pypubsub.yaml")
GUIDE: dict[str, list[Block]] = dict(sections((ROOT / "docs" / "sqs.md").read_text()))


def problems(settings: Any) -> list[str]:
    """What is wrong with the section."""
    with pytest.raises(ConfigError) as found:
        build_queues(settings, PATH)
    return found.value.problems


def problem(**settings: Any) -> str:
    """What is wrong with a queue `q`, behind its name; one thing only."""
    (line,) = problems({"q": {"queue": "a"} | settings})
    assert line.startswith("pypubsub.yaml: sqs.q")
    return line.removeprefix("pypubsub.yaml: sqs.q")


def warnings(*secure: str, **settings: Any) -> list[str]:
    """What is said of a queue that is valid."""
    return build_queues({"q": {"queue": "a"} | settings}, PATH)["q"].warnings(secure)


def check(directory: Path, settings: Any, **environment: str) -> subprocess.CompletedProcess[str]:
    """`pypubsub.py --check` of a configuration."""
    (directory / "pypubsub.yaml").write_text(yaml.safe_dump(settings))
    return subprocess.run(
        [sys.executable, ROOT / "pypubsub.py", "--check"],
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
        env={"PATH": "/usr/bin:/bin", **environment},
    )


# What is accepted


@pytest.mark.parametrize(
    "queue",
    [
        "build-results",
        "A_9",
        "a" * 80,
        "a" * 75 + ".fifo",
        "https://sqs.us-east-1.amazonaws.com/123456789012/build-results",
        "http://127.0.0.1:5000/123456789012/a.fifo",
    ],
)
def test_a_queue_is_named_or_given_by_its_url(queue: str) -> None:
    """As SQS names them."""
    assert build_queues({"q": {"queue": queue}}, PATH)["q"].queue == queue


def test_the_bounds_of_settings_are_accepted() -> None:
    """The least and the most that the document says."""
    for wait, batch, visibility, window in [("1s", 1, "1s", "1s"), (20, 10, "12h", "14d")]:
        settings = {"wait": wait, "batch": batch, "visibility": visibility, "window": window}
        build_queues({"é/1": {"queue": "a"} | settings}, PATH)


def test_how_long_items_are_hidden() -> None:
    """As the queue has it, 5 minutes if they stay, or as it is set."""

    def hidden(**settings: Any) -> int | None:
        return build_queues({"q": {"queue": "a"} | settings}, PATH)["q"].hidden_for

    assert hidden(delete=True) is None
    assert hidden() == 300
    assert hidden(visibility="7m") == 420
    assert hidden(delete=True, visibility="7m") == 420


def test_the_examples_of_the_guide_are_accepted() -> None:
    """Each yaml block of docs/sqs.md, without a warning."""
    blocks = [text for found in GUIDE.values() for text in yaml_of(found, acl=False)]
    assert len(blocks) >= 2
    for block in blocks:
        content = yaml.safe_load(block)
        assert list(content) == ["sqs"]
        for queue in build_queues(content["sqs"], PATH).values():
            assert queue.warnings(()) == []


def test_check_says_which_queues_are_read(tmp_path: Path) -> None:
    """With what becomes of their items, and neither key nor secret."""
    queue = {"queue": "a.fifo", "region": "eu-west-1", "endpoint_url": "http://h:1"}
    queue |= {"key": SECRET, "secret": SECRET}
    ended = check(tmp_path, {"sqs": {"q": queue}})
    assert ended.returncode == 0
    assert "sqs q: a.fifo in eu-west-1 at http://h:1, whose items are left\n" in ended.stdout
    assert "warning: pypubsub.yaml: sqs.q.delete: is off" in ended.stdout
    assert "warning: pypubsub.yaml: sqs.q.endpoint_url: items travel unencrypted" in ended.stdout
    assert SECRET not in ended.stdout + ended.stderr


# Mistakes


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("wait", 0, "1s to 20s"),
        ("wait", "0.9s", "1s to 20s"),
        ("wait", "21s", "1s to 20s"),
        ("wait", SECRET, "a number with a unit"),
        ("wait", True, "a number with a unit"),
        ("batch", 0, "greater than or equal to 1"),
        ("batch", 11, "less than or equal to 10"),
        ("batch", "5", "a whole number"),
        ("batch", True, "a whole number"),
        ("consumers", 0, "greater than or equal to 1"),
        ("consumers", 51, "less than or equal to 50"),
        ("visibility", "0.5s", "1s to 12h"),
        ("visibility", "13h", "1s to 12h"),
        ("window", 0, "more than 0"),
        ("window", "15d", "14d at most"),
        ("delete", SECRET, "true or false"),
        ("delete", 1, "true or false"),
        ("unwrap_sns", "yes", "true or false"),
        ("bad_items", SECRET, "'leave' or 'delete'"),
        ("region", 7, "text"),
        ("region", f"us {SECRET}", "text without spaces"),
        ("profile", "", "text that is not empty"),
        ("endpoint_url", SECRET, "a URL such as"),
        ("endpoint_url", f"https://user:{SECRET}@host", "a URL such as"),
        ("endpoint_url", "ftp://host", "a URL such as"),
        ("secure_topics", SECRET, "a list"),
        ("secure_topics", ["a/b"], "a topic"),
        ("queue", "", "the name of a queue, or its URL"),
        ("queue", SECRET + " ", "the name of a queue, or its URL"),
        ("queue", "a" * 81, "the name of a queue, or its URL"),
        ("queue", "a" * 76 + ".fifo", "the name of a queue, or its URL"),
        ("queue", "a.b", "the name of a queue, or its URL"),
        ("queue", "https://[h/a", "the name of a queue, or its URL"),
        ("queue", "a\n", "the name of a queue, or its URL"),
        ("queue", "123456789012/a", "the name of a queue, or its URL"),
        ("queue", "https://host/", "the name of a queue, or its URL"),
        ("queue", arn_of("a"), "the name of a queue, or its URL"),
        ("queue", 7, "text"),
    ],
)
def test_a_wrong_value_is_refused(key: str, value: Any, said: str) -> None:
    """With the key, and with what would be right; without what stands there."""
    line = problem(**{key: value})
    assert line.startswith(f".{key}")
    assert f": expected {said}" in line or said in line.partition(": expected ")[2]
    assert SECRET not in line


def test_a_key_without_a_secret_is_refused() -> None:
    """Nor the other way round, nor with a profile."""
    together = ": expected key and secret together, or neither of them, got "
    for settings in ({"key": SECRET}, {"secret": SECRET}, {"secret": SECRET, "profile": "p"}):
        line = problem(**settings)
        assert line.startswith(together)
        assert SECRET not in line
    line = problem(key=SECRET, secret=SECRET, profile="p")
    assert line.startswith(": expected key and secret, or profile, but not both, got ")
    assert SECRET not in line
    for key in ("key", "secret"):
        for value in (12345, f"{SECRET} {SECRET}", f"é{SECRET}", ""):
            (line,) = problems({"q": {"queue": "a", "key": "A", "secret": "A", key: value}})
            assert line.startswith(f"pypubsub.yaml: sqs.q.{key}: expected text")
            assert SECRET not in line
            assert "12345" not in line


def test_an_unknown_key_is_refused() -> None:
    """With the one that was meant. One that is no slip of a key is not shown: it may be one of a secret."""
    assert problem(que="a") == ".que: unknown key, did you mean queue?"
    assert problem(secure_topic=["a"]) == ".secure_topic: unknown key, did you mean secure_topics?"
    line = problem(**{SECRET: SECRET})
    assert line.startswith(": has an unknown key; known here: bad_items, batch, ")
    assert SECRET not in line


@pytest.mark.parametrize("section", [[SECRET], SECRET, 7, [{"queue": SECRET}]])
def test_a_section_that_is_none_is_refused(tmp_path: Path, section: Any) -> None:
    """It has names, and below each the keys of a queue."""
    expected = "sqs: expected names of your choice, and below each the keys of a queue"
    assert problems(section) == [f"pypubsub.yaml: {expected}"]
    ended = check(tmp_path, {"sqs": section})
    assert (ended.returncode, ended.stderr) == (1, f"pypubsub.yaml: {expected}\n")


def test_a_queue_is_not_read_twice() -> None:
    """Each reader would publish what is in it. The same name elsewhere is another queue."""
    queue = {"queue": "a", "region": "us-east-1"}
    (line,) = problems({"q": queue, "other": queue, "elsewhere": queue | {"region": "eu-west-1"}})
    assert line == "pypubsub.yaml: sqs.other.queue: is read as sqs.q already"


AWS = "https://sqs.us-east-1.amazonaws.com/123456789012/a"


@pytest.mark.parametrize(
    "other",
    [
        AWS,
        "http://sqs.us-east-1.amazonaws.com/123456789012/a",
        "https://SQS.us-east-1.amazonaws.com:443/123456789012/a",
        "https://us-east-1.queue.amazonaws.com/123456789012/a",
        "https://queue.amazonaws.com/123456789012/a",
        "https://sqs-fips.us-east-1.amazonaws.com/123456789012/a",
        "https://sqs.us-east-1.api.aws/123456789012/a",
    ],
)
def test_a_queue_is_the_same_however_its_url_is_written(other: str) -> None:
    """And whoever reads it."""
    first, second = {"queue": AWS}, {"queue": other, "region": "eu-west-1", "key": "k", "secret": "s"}
    assert problems({"q": first, "other": second}) == [
        "pypubsub.yaml: sqs.other.queue: is read as sqs.q already"
    ]


@pytest.mark.parametrize(
    "other",
    [
        AWS.replace("us-east-1", "us-west-1"),
        AWS.replace("123456789012", "210987654321"),
        AWS.replace("amazonaws.com", "amazonaws.com.example.org"),
        AWS[:-1] + "b",
    ],
)
def test_another_url_is_another_queue(other: str) -> None:
    """Of another region, account or name, or not at AWS."""
    assert len(build_queues({"q": {"queue": AWS}, "other": {"queue": other}}, PATH)) == 2


def test_a_queue_that_may_be_read_twice_is_warned_of() -> None:
    """The account of a name is known when it is asked for: then it is seen whether it is."""

    def twins(**settings: Any) -> list[str]:
        return warnings_of_twins(build_queues({"q": {"queue": AWS}, "other": settings}, PATH))

    said = ["other.queue: may be the queue of sqs.q: if it is, only one of the two reads it"]
    assert twins(queue="a", region="us-east-1") == twins(queue="a") == said
    assert twins(queue="b") == twins(queue="a", region="eu-west-1") == []
    assert twins(queue="a", endpoint_url="http://127.0.0.1:1") == []


def test_a_queue_that_is_no_section_is_refused() -> None:
    """Also where the name of the queue was forgotten."""
    for settings in ([SECRET], SECRET, 7):
        (line,) = problems({"q": settings})
        assert line.startswith("pypubsub.yaml: sqs.q: expected ")
        assert SECRET not in line
    lines = problems({"queue": "a", "secret": SECRET})
    assert [line.partition(": expected")[0] for line in lines] == [
        "pypubsub.yaml: sqs.queue",
        "pypubsub.yaml: sqs.secret",
    ]
    assert SECRET not in "".join(lines)
    assert problems({"q": {"region": "a"}}) == ["pypubsub.yaml: sqs.q.queue: is missing"]


@pytest.mark.parametrize("name", ["", "a b", "a,b", "a\x00", "x" * 65, 7])
def test_a_name_that_the_log_cannot_use_is_refused(name: Any) -> None:
    """Up to 64 characters, which can be seen, without spaces and commas."""
    (line,) = problems({name: {"queue": "a"}})
    assert line.startswith("pypubsub.yaml: sqs: expected a name of up to 64 characters")


def test_all_mistakes_are_reported_at_once(tmp_path: Path) -> None:
    """Those of all queues, beside those of other sections; --check and the start show no secret."""
    queue = {"queue": "a", "key": SECRET, "wait": SECRET, "batch": 0}
    settings = {"server": {"port": "high"}, "sqs": {"one": queue, "two": {"batch": SECRET}}}
    ended = check(tmp_path, settings)
    assert ended.returncode == 1
    assert [line.split(": ")[1] for line in ended.stderr.splitlines()] == [
        "server.port",
        "sqs.one.wait",
        "sqs.one.batch",
        "sqs.two.queue",
        "sqs.two.batch",
    ]
    assert SECRET not in ended.stderr + ended.stdout


def test_what_an_operator_should_know_is_said() -> None:
    """Of valid settings: a FIFO queue that keeps its items, no encryption, topics that nobody secures."""
    assert warnings() == []
    assert warnings(queue="a.fifo", delete=True) == []
    assert [line.partition(":")[0] for line in warnings(queue="a.fifo")] == ["delete"]
    assert [line.partition(":")[0] for line in warnings(queue="https://host/1/a.fifo")] == ["delete"]
    for url in ("http://10.0.0.1:9324", "http://localhost.example.org", "http://127.0.0.1.example.org"):
        assert warnings(endpoint_url=url) == ["endpoint_url: items travel unencrypted: use https"]
    here = ("http://127.0.0.1:9324", "http://localhost/", "http://[::1]:1", "http://127.1.2.3")
    for url in ("https://host", *here):
        assert warnings(endpoint_url=url) == []
    said = ["secure_topics: not in clients.secure_topics: b, c"]
    assert warnings("a", "d", secure_topics=["c", "a", "b"]) == said


# The library


def without_aioboto3(directory: Path) -> dict[str, str]:
    """An environment in which it is not installed."""
    directory.mkdir(exist_ok=True)
    (directory / "sitecustomize.py").write_text(
        "import sys\n"
        "class Without:\n"
        "    def __init__(self, finder):\n"
        "        self.finder = finder\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in {'aioboto3', 'aiobotocore', 'boto3', 'botocore'}:\n"
        "            return None\n"
        "        return self.finder.find_spec(name, path, target)\n"
        "sys.meta_path[:] = map(Without, sys.meta_path)\n"
    )
    return {"PYTHONPATH": str(directory)}


def test_a_server_without_the_library_says_how_to_install_it(tmp_path: Path) -> None:
    """The start and --check end with status 1 and one line, whose command is one for this Python."""
    environment = without_aioboto3(tmp_path / "without")
    queue = {"q": {"queue": "a", "key": SECRET, "secret": SECRET}}
    requirement = next(
        line for line in (ROOT / "requirements.txt").read_text().splitlines() if line.startswith("aioboto3")
    ).split()[0]
    said = f"sqs: aioboto3 is not installed: {sys.executable} -m pip install '{requirement}'"
    ended = check(tmp_path, {"sqs": queue}, **environment)
    assert (ended.returncode, ended.stderr) == (1, said + "\n")
    daemon = Daemon(tmp_path, {"sqs": queue})
    daemon.environment = environment
    with pytest.raises(AssertionError, match="the daemon ended before it logged"):
        daemon.start()
    assert daemon.wait() == 1
    lines = [line for line in daemon.log if " WARNING " not in line]
    assert len(lines) == 1
    assert lines[0].endswith(said)
    assert " ERROR " in lines[0]


def test_the_library_is_needed_only_for_queues(tmp_path: Path) -> None:
    """Without the section, or with an empty one, it is not even imported."""
    assert check(tmp_path, {"sqs": {}}, **without_aioboto3(tmp_path / "without")).returncode == 0
    daemon = Daemon(tmp_path)
    daemon.environment = {"PYTHONPROFILEIMPORTTIME": "1"}
    daemon.start()
    assert daemon.stop() == 0
    imported = {
        line.split("|")[-1].strip().partition(".")[0] for line in daemon.log if "import time:" in line
    }
    assert "aiohttp" in imported
    assert not imported & {"aioboto3", "aiobotocore", "boto3", "botocore"}
