"""By which credentials queues are read, and which permissions these need."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aws import ACCOUNT, REGION, Moto, arn_of
from aws_proxy import AwsProxy
from daemon import ROOT, Daemon, StartDaemon
from documents import sections
from queues import new_queue, numbers, reading

NOTHING = {"key": None, "secret": None}
ACTIONS = ["GetQueueUrl", "ReceiveMessage", "DeleteMessage", "ChangeMessageVisibility"]


def started(
    directory: Path, config: dict[str, Any], files: dict[str, str] | None = None, **environment: str
) -> Daemon:
    """A daemon that finds no credentials but those of these files in its HOME, and of its environment."""
    for name, content in (files or {}).items():
        (directory / ".aws").mkdir(exist_ok=True)
        (directory / ".aws" / name).write_text(content)
    daemon = Daemon(directory, config)
    daemon.environment = {"HOME": str(directory), "AWS_EC2_METADATA_DISABLED": "true", **environment}
    daemon.start()
    return daemon


async def is_read(moto: Moto, daemon: Daemon, queue: str) -> None:
    """Check that items of a queue become events, and are deleted."""
    async with daemon.subscriber("/") as stream:
        moto.send(queue, {"n": 1})
        assert await numbers(stream, 1) == [1]
    await moto.until_empty(queue)


def guide_policy(queue: str, *, without: str = "") -> dict[str, Any]:
    """The policy of docs/sqs.md, for this queue."""
    blocks = dict(sections((ROOT / "docs" / "sqs.md").read_text()))
    (block,) = [
        block
        for block in blocks["Credentials, and the permissions that are needed"]
        if block.language == "json"
    ]
    policy: dict[str, Any] = json.loads("\n".join(block.lines))
    (statement,) = policy["Statement"]
    assert statement["Resource"] == arn_of("build-results")
    assert statement["Action"] == [f"sqs:{action}" for action in ACTIONS]
    statement["Resource"] = arn_of(queue)
    statement["Action"] = [action for action in statement["Action"] if action != f"sqs:{without}"]
    return policy


def by_name(_: Moto, queue: str) -> str:
    """As Moto.queue_url(), for queues that are named."""
    return queue


# Credentials


async def test_a_queue_given_by_its_url_is_read(moto: Moto, start_daemon: StartDaemon) -> None:
    """Nobody is asked where it is."""
    queue = new_queue(moto)
    daemon = start_daemon({"sqs": {"by-url": moto.settings(moto.queue_url(queue))}})
    await is_read(moto, daemon, queue)
    assert any(f"sqs by-url: reads {moto.url}/{ACCOUNT}/{queue}" in line for line in daemon.log)


KEYS = "aws_access_key_id = {key}\naws_secret_access_key = {secret}\n"
WRONG = KEYS.format(key="AKIAWRONG", secret="wrong")


@pytest.mark.parametrize("way", ["environment", "default", "profile", "profile of config", "key and secret"])
async def test_credentials_are_found_as_aws_does(moto: Moto, tmp_path: Path, way: str) -> None:
    """In the settings, by profile, in the environment or in ~/.aws, and the nearest of them is taken."""
    queue = new_queue(moto)
    right = KEYS.format(key=moto.credentials.key, secret=moto.credentials.secret)
    named = {"AWS_ACCESS_KEY_ID": moto.credentials.key, "AWS_SECRET_ACCESS_KEY": moto.credentials.secret}
    wrong = {"AWS_ACCESS_KEY_ID": "AKIAWRONG", "AWS_SECRET_ACCESS_KEY": "wrong"}
    ways: dict[str, tuple[dict[str, Any], dict[str, str], dict[str, str]]] = {
        "environment": (NOTHING, {"credentials": f"[default]\n{WRONG}"}, named),
        "default": (NOTHING, {"credentials": f"[default]\n{right}[other]\n{WRONG}"}, {}),
        "profile": (
            NOTHING | {"profile": "queues"},
            {"credentials": f"[default]\n{WRONG}[queues]\n{right}"},
            wrong,
        ),
        "profile of config": (
            NOTHING | {"profile": "queues", "region": None},
            {"config": f"[profile queues]\nregion = {REGION}\n{right}"},
            {},
        ),
        "key and secret": ({}, {"credentials": f"[default]\n{WRONG}"}, wrong),
    }
    settings, files, environment = ways[way]
    with moto.enforced():
        daemon = started(tmp_path, reading(moto, queue, **settings), files, **environment)
        try:
            await is_read(moto, daemon, queue)
        finally:
            await asyncio.to_thread(daemon.stop)
    assert not any(word in "".join(daemon.log) for word in (*moto.credentials, "wrong"))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (NOTHING, "NoCredentialsError"),
        (NOTHING | {"profile": "nobody"}, "ProfileNotFound"),
        ({"region": None}, "NoRegionError"),
        ({"key": "AKIANOBODY"}, "InvalidClientTokenId"),
        ({"secret": "hunter2"}, "SignatureDoesNotMatch"),
    ],
)
async def test_without_credentials_the_server_serves_on(
    moto: Moto, tmp_path: Path, settings: dict[str, Any], said: str
) -> None:
    """The log says once what is missing, and no secret; publishers and other queues are not held up."""
    queue, other = new_queue(moto), new_queue(moto)
    config = reading(moto, queue, **settings)
    config["sqs"] |= reading(moto, other)["sqs"]
    with moto.enforced():
        daemon = started(tmp_path, config)
        try:
            line = await daemon.until_logged(f"cannot read {queue}")
            assert f" WARNING pypubsub.sqs: sqs {queue}: cannot read {queue}: {said}: " in line
            assert (await daemon.put("/a", {})).status == 202
            await is_read(moto, daemon, other)
        finally:
            assert await asyncio.to_thread(daemon.stop) == 0
    assert len([line for line in daemon.log if "cannot read" in line]) == 1
    assert not any(word in "".join(daemon.log) for word in (moto.credentials.secret, "hunter2"))


async def test_the_log_does_not_tell_of_each_try_where_credentials_were_found(
    moto: Moto, tmp_path: Path
) -> None:
    """While there is no such queue."""
    key, secret = moto.credentials
    async with AwsProxy(moto.url) as proxy:
        config = reading(moto, "there-is-none", endpoint_url=proxy.url, **NOTHING)
        daemon = started(tmp_path, config, AWS_ACCESS_KEY_ID=key, AWS_SECRET_ACCESS_KEY=secret)
        try:
            await daemon.until_logged("cannot read there-is-none")
            await proxy.until_asked("GetQueueUrl", 3)
        finally:
            await asyncio.to_thread(daemon.stop)
    assert not any("Found credentials" in line for line in daemon.log)


async def test_a_name_with_a_percent_sign_is_logged_as_it_is(moto: Moto, start_daemon: StartDaemon) -> None:
    """Although the log formats its lines with such signs."""
    settings = moto.settings("there-is-none")
    daemon = start_daemon({"sqs": {"50%s%": settings}})
    await daemon.until_logged(
        "WARNING pypubsub.sqs: sqs 50%s%: cannot read there-is-none: AWS.SimpleQueueService"
    )


# Permissions


async def test_the_policy_of_the_guide_is_enough(moto: Moto, start_daemon: StartDaemon) -> None:
    """For its queue, and no other."""
    queue, other = new_queue(moto), new_queue(moto)
    key, secret = moto.user(guide_policy(queue))
    with moto.enforced():
        daemon = start_daemon(reading(moto, queue, other, key=key, secret=secret))
        line = await daemon.until_logged(f"sqs {other}: cannot read {other}")
        assert "AccessDenied" in line
        assert "sqs:getqueueurl" in line.lower()
        await is_read(moto, daemon, queue)
        assert not any(f"cannot read {queue}" in line for line in daemon.log)


@pytest.mark.parametrize("action", ["GetQueueUrl", "ReceiveMessage", "DeleteMessage"])
async def test_each_action_of_the_policy_is_needed(
    moto: Moto, start_daemon: StartDaemon, action: str
) -> None:
    """The log names the one that is missing."""
    queue = new_queue(moto)
    key, secret = moto.user(guide_policy(queue, without=action))
    with moto.enforced():
        moto.send(queue, {"n": 1})
        daemon = start_daemon(reading(moto, queue, key=key, secret=secret))
        line = await daemon.until_logged(f"cannot (read|delete from) {queue}")
        assert ": AccessDenied: " in line
        assert f"sqs:{action}".lower() in line.lower()


@pytest.mark.parametrize(
    ("action", "where", "settings"),
    [
        ("GetQueueUrl", Moto.queue_url, {}),
        ("DeleteMessage", by_name, {"delete": False, "bad_items": "leave"}),
    ],
)
async def test_some_actions_are_not_needed_with_some_settings(
    moto: Moto,
    start_daemon: StartDaemon,
    action: str,
    where: Callable[[Moto, str], str],
    settings: dict[str, Any],
) -> None:
    """As docs/sqs.md says: by URL, and where nothing is deleted."""
    queue = new_queue(moto)
    key, secret = moto.user(guide_policy(queue, without=action))
    with moto.enforced():
        daemon = start_daemon(reading(moto, where(moto, queue), key=key, secret=secret, **settings))
        async with daemon.subscriber("/") as stream:
            moto.send_many(queue, [{"n": 1}, "[]", {"n": 2}])
            assert await numbers(stream, 2) == [1, 2]
        await asyncio.to_thread(daemon.stop)
        await moto.until_counts(queue, visible=0, in_flight=3 if action == "DeleteMessage" else 1)
    assert not any("cannot read" in line for line in daemon.log)
