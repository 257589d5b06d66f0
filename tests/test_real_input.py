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

PACKAGE = ROOT / ".demo/node_modules/@octokit/webhooks-examples"


@pytest.fixture
def payloads() -> Path:
    """The npm package, fetched as `make demo` fetches it."""
    if not PACKAGE.exists():
        if shutil.which("npm") is None:
            pytest.skip("npm is not installed, which fetches the payloads")
        fetched = subprocess.run(
            ["make", ".demo/node_modules"], cwd=ROOT, capture_output=True, text=True, check=False, timeout=50
        )
        if not PACKAGE.exists():
            pytest.skip(f"npm could not fetch the payloads: {fetched.stderr.strip()[-300:]}")
    return PACKAGE


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
