"""How a command ends early: the one exception for what a user did wrong, and the way out."""

import contextlib
import os
import sys


class UserError(Exception):
    """A mistake of the user: names the value, what was expected, and the remedy, in one line.

    `rstar_jax.main` prints it as `error: ...` and exits with code 2.
    """


def leave(code: int) -> None:
    """Ends the process here and now.

    A device may still be computing, and Python's own end takes XLA away from under it: after a
    stop in the middle it crashed one time in five.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(code)
