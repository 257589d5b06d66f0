"""The options of the command line, and the event loop that they choose."""

import argparse
import asyncio
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from core import __version__
from core.errors import StartError

LOOPS = ("auto", "asyncio", "uvloop")  # auto: uvloop if it is there


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line, its help and its --version."""
    parser = argparse.ArgumentParser(
        description="PyPubSub: JSON events over HTTP, from publishers to subscribers.",
        epilog="`pypubsub.py backlog --help`: commands for a backlog's file.",
    )
    parser.add_argument(
        "--config", type=Path, default="pypubsub.yaml", help="settings (default: %(default)s)"
    )
    parser.add_argument(
        "--acl", type=Path, default="pypubsub_acl.yaml", help="access rights (default: %(default)s)"
    )
    parser.add_argument(
        "--check", action="store_true", help="load everything, say what would be served, and exit"
    )
    parser.add_argument(
        "--hash-password",
        action="store_true",
        help="ask for a password, print its hash for the ACL, and exit",
    )
    parser.add_argument(
        "--loop",
        choices=LOOPS,
        default=LOOPS[0],
        help="event loop (auto: uvloop, which is faster, where it is installed; default: %(default)s)",
    )
    parser.add_argument("--version", action="version", version=f"PyPubSub {__version__}")
    parser.add_argument(
        "--log-level",
        type=str.upper,
        choices=["DEBUG", "INFO", "WARNING", "ERROR"],
        default="INFO",
        help="least level that is logged, to stderr (default: %(default)s)",
    )
    return parser.parse_args(arguments)


def loop_factory(name: str) -> Callable[[], asyncio.AbstractEventLoop] | None:
    """What makes the event loop, one of LOOPS; None: asyncio. Raises StartError."""
    if name == "asyncio":
        return None
    try:
        import uvloop  # noqa: PLC0415 (not there on every platform)
    except ImportError as error:
        if name == "auto":
            return None
        raise StartError(
            f"--loop uvloop: it is not installed: {sys.executable} -m pip install uvloop"
        ) from error
    return uvloop.new_event_loop
