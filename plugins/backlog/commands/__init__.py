"""`pypubsub.py backlog COMMAND FILE`: what an operator does with a backlog's file.

arguments   the command line
opening     FILE, for reading beside a running server, or locked; what is said if it cannot be used
moments     times and places in the order of events, as operators write and read them
walking     all that is in a file, a piece at a time
stat        how much is in it
exporting   its events as lines
sources     lines, of such an export or of PyPubSub 0.7, as events
importing   a new file, or an old one with more events
merging     events put in between those that are there
checking    whether it is as it was written
backup      a copy
mending     its memory begins anew; what was stamped wrong or is damaged leaves; it gets smaller
"""

import os
import signal
import sys
from collections.abc import Sequence

from core.errors import StartError
from core.events.store import StoreError
from core.signals import RELOADS
from plugins.backlog.commands.arguments import parse
from plugins.backlog.commands.opening import CommandError

_INTERRUPTED = 128 + signal.SIGINT


def main(arguments: Sequence[str]) -> int:
    """Run a command. 0: done; 1: it could not be, or FILE is damaged; 2: it was not understood."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, RELOADS)  # which are nothing here: a hang-up ends it
    parsed = parse(arguments)
    try:
        status: int = parsed.run(parsed)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever reads it has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for Python's own flush at the end
        return 0
    except (CommandError, StoreError, StartError) as error:
        return _failed(str(error).removeprefix("server.backlog.storage: "))
    except OSError as error:
        return _failed(f"{error.filename or 'the output'}: {error.strerror}")
    except KeyboardInterrupt:
        return _INTERRUPTED
    return status


def _failed(reason: str) -> int:
    print(reason, file=sys.stderr)
    return 1
