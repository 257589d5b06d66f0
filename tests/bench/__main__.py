"""`python tests/bench`, see bench.command_line."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).parent.parent)  # instead of this directory, whose modules are bench's

from bench.command_line import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
