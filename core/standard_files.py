"""The descriptors 0, 1 and 2, which a parent may have closed."""

import contextlib
import os


def occupy() -> None:
    """Open /dev/null where there is none of them: another file in its place would be taken for it.

    uvloop aborts the process when it closes such a one.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            with contextlib.suppress(OSError):  # without /dev there is nothing that could be done
                os.open(os.devnull, os.O_RDWR)  # which takes the least that is free
