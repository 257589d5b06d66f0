"""`python tests/bench`, see bench.command_line."""

import sys
from pathlib import Path

_TESTS = Path(__file__).resolve().parent.parent

sys.path[:1] = [str(_TESTS), str(_TESTS.parent)]  # for this directory, whose modules are bench's

from bench.command_line import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
