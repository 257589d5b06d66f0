"""A copy of a backlog's file, of one moment, while a server writes it."""

import argparse
import contextlib
import os
import tempfile
from pathlib import Path

from plugins.backlog.commands.opening import CommandError, bytes_of, reading
from plugins.backlog.sqlite_file import remove_database, sync_directory


def run(arguments: argparse.Namespace) -> int:
    """Make it, under another name until it is on the disk."""
    target: Path = arguments.target
    if os.path.lexists(target):
        raise CommandError(f"{target}: is there already")
    if not target.parent.is_dir():
        raise CommandError(f"{target}: there is no directory {target.parent}")
    with reading(arguments.file) as connection:
        # mode 0600, as the file itself: it holds private events
        descriptor, name = tempfile.mkstemp(prefix=f"{target.name}.", suffix=".partial", dir=target.parent)
        partial = Path(name)
        try:
            # reads as of one moment, which keeps no one from writing, and writes what is held and no more
            connection.execute("VACUUM INTO ?", (str(partial.absolute()),))
            os.fsync(descriptor)
            _put_in_place(partial, target)
        except BaseException:
            remove_database(partial)
            raise
        finally:
            os.close(descriptor)
    sync_directory(target.parent)
    print(f"{target}: {bytes_of(target)} bytes")
    return 0


def _put_in_place(partial: Path, target: Path) -> None:
    """Give a file its name, if no other has it by now."""
    try:
        os.link(partial, target)
    except FileExistsError:
        raise CommandError(f"{target}: is there already") from None
    except OSError:  # a file system without hard links
        partial.rename(target)
    with contextlib.suppress(FileNotFoundError):
        partial.unlink()
