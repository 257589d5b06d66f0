"""Sockets in the file system: telling a remnant from one that is served, and removing only our own."""

import asyncio
import contextlib
from pathlib import Path


async def answers(path: Path) -> bool:
    """Whether somebody listens on a unix socket; one that nobody listens on is a remnant."""
    try:
        _, writer = await asyncio.open_unix_connection(path)
    except (OSError, ValueError):  # ValueError: a path that cannot be one
        return False
    writer.close()
    return True


class UnixSocket:
    """A socket in the file system that this process made."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._inode = path.stat().st_ino

    def remove(self) -> None:
        """Remove it, unless another process has put its own in the place."""
        with contextlib.suppress(OSError):  # gone, or not to be looked at any more
            if self._path.stat().st_ino == self._inode:
                self._path.unlink()
