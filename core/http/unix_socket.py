"""Sockets in the file system: telling a remnant from one that is served, and removing only our own."""

import contextlib
import os
import socket
import stat
from pathlib import Path

from core.errors import StartError


class UnixSocket:
    """A socket in the file system that this process listens on. Raises StartError.

    backlog: how many connections may wait to be accepted.
    """

    def __init__(self, path: Path, backlog: int) -> None:
        self._path = path
        self.listening = socket.socket(socket.AF_UNIX)
        try:
            if is_remnant(path):
                path.unlink()
            self.listening.bind(str(path))
            self.listening.listen(backlog)
            self._inode = path.stat().st_ino
        except OSError as error:
            self.listening.close()
            reason = os.strerror(error.errno) if error.errno else error  # none: the path is too long
            raise StartError(f"cannot listen on unix:{path}: {reason}") from error
        except StartError:
            self.listening.close()
            raise

    def close(self) -> None:
        """Remove it, unless another process has put its own in the place, and listen no more."""
        with contextlib.suppress(OSError):  # gone, or not to be looked at any more
            if self._path.stat().st_ino == self._inode:  # whose number is not used again until it is closed
                self._path.unlink()
        self.listening.close()


def is_remnant(path: Path) -> bool:
    """Whether there is a socket that nobody listens on. Raises StartError if there is anything else."""
    with socket.socket(socket.AF_UNIX) as client:
        client.setblocking(False)
        try:
            client.connect(str(path))
        except FileNotFoundError:
            return False
        except ConnectionRefusedError:  # so it is with any other file
            if stat.S_ISSOCK(path.stat().st_mode):
                return True
            raise StartError(
                f"cannot listen on unix:{path}: a file is there that is no socket: expected another path"
            ) from None
        except BlockingIOError:
            pass  # the queue of those who wait to be accepted is full
    raise StartError(f"cannot listen on unix:{path}: Address already in use")
