"""Real events: hundreds of GitHub's webhook payloads, with everything that real text has in it."""

import asyncio
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import demo
from daemon import ROOT, Daemon

PACKAGE = Path(".demo/node_modules/@octokit/webhooks-examples/package.json")  # as the Makefile names it


@pytest.fixture
def payloads() -> Path:
    """The npm package, fetched as `make demo` fetches it."""
    if not (ROOT / PACKAGE).exists():
        if shutil.which("npm") is None:
            pytest.skip("npm is not installed, which fetches the payloads")
        try:
            subprocess.run(["make", "-s", PACKAGE], cwd=ROOT, check=True, timeout=50)
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            pytest.skip(f"npm could not fetch the payloads: {error}")
    return (ROOT / PACKAGE).parent


async def test_every_real_payload_arrives_as_it_was_published(payloads: Path, server: Daemon) -> None:
    """`make demo` publishes them; a subscriber gets each, equal to the byte once parsed, in order."""
    expected = list(demo.examples(payloads))
    assert len(expected) > 300
    assert max(len(json.dumps(payload)) for _, payload in expected) > 20_000
    async with server.subscriber("/github") as stream:

        async def read() -> None:
            for path, payload in expected:
                event = await stream.event()
                assert event["pubsub_path"].count("/") == path.count("/")
                sent_on = {key: value for key, value in event.items() if not key.startswith("pubsub_")}
                assert json.dumps(sent_on) == json.dumps(payload)

        reading = asyncio.create_task(read())
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            str(ROOT / "clients/python/demo.py"),
            "--url",
            server.url,
            str(payloads),
            stdout=subprocess.DEVNULL,
        )
        await reading
        assert await process.wait() == 0
