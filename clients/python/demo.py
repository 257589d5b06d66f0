#!/usr/bin/env python3
"""Publish real events: the webhook payloads of GitHub that the npm package @octokit/webhooks-examples holds.

    npm install --prefix .demo @octokit/webhooks-examples
    python3 clients/python/demo.py .demo/node_modules/@octokit/webhooks-examples/api.github.com

Each goes to /github/<event>/<owner>/<repository>, such as /github/issues/octocat/hello-world. To see them
come, follow /github before, or /github/push for one kind.
"""

import argparse
import asyncio
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp

from client import PublishError, publish

# Who an event without a repository is about: the first of these that it names.
OWNERS = (
    ("organization", "login"),
    ("enterprise", "slug"),
    ("installation", "account", "login"),
    ("sender", "login"),
)


def examples(source: str | Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (path, payload) of each example in an index.json of the package, or in all those of a folder."""
    source = Path(source)
    if not source.exists():
        raise FileNotFoundError(f"no such file or folder: {source}")
    for file in sorted(source.rglob("index.json")) if source.is_dir() else [source]:
        for kind in json.loads(file.read_bytes()):
            for payload in kind["examples"]:
                yield topic_path(kind["name"], payload), payload


def topic_path(event: str, payload: dict[str, Any]) -> str:
    """The path to publish a webhook's payload on, percent-encoded."""
    topics = ["github", event]
    if repository := _text_at(payload, "repository", "full_name"):
        topics += repository.split("/", 1)
    elif owner := next(filter(None, (_text_at(payload, *keys) for keys in OWNERS)), None):
        topics.append(owner)
    return "".join(f"/{quote(topic.translate(RESERVED), safe='')}" for topic in topics)


RESERVED = str.maketrans(",/", "__")  # cannot be part of a topic, not even percent-encoded


def _text_at(value: Any, *keys: str) -> str | None:
    """The string that lies under these keys, each inside the one before."""
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value if isinstance(value, str) else None


async def _publish_all(server: str, source: str, user: str | None, password: str | None) -> int:
    count = 0
    async with aiohttp.ClientSession() as session:
        for path, payload in examples(source):
            await publish(
                server.rstrip("/") + path, payload, user=user, password=password, session=session, retry_for=0
            )
            print(path)
            count += 1
    return count


def main() -> int:
    """Returns the exit status: 1 if an event was not accepted, or there are none."""
    parser = argparse.ArgumentParser(description="Publish GitHub's webhook examples to a PyPubSub server.")
    parser.add_argument("source", metavar="FILE_OR_DIR", help="an index.json of that package, or a folder")
    parser.add_argument("--url", default="http://127.0.0.1:2069", help="the server (http://127.0.0.1:2069)")
    parser.add_argument("--user", metavar="NAME:PASSWORD", help="credentials")
    arguments = parser.parse_args()
    user, _, password = arguments.user.partition(":") if arguments.user is not None else (None, None, None)
    try:
        count = asyncio.run(_publish_all(arguments.url, arguments.source, user, password))
    except (PublishError, OSError, ValueError, KeyError, TypeError) as error:
        print(f"demo.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    print(f"{count} events published to {arguments.url}", file=sys.stderr)
    return 0 if count else 1


if __name__ == "__main__":
    sys.exit(main())
