"""What ends a command by a line of text, without traceback."""

import sys


class UserError(Exception):
    """A mistake of the user: names the value, what was expected, and the remedy, in one line.

    `rstar_jax.main` prints it as `error: ...` and exits with code 2.
    """


class Later(UserError):
    """What may be over when the same command is started again: others of the job that have not
    come, a lock that a lost machine held. Exit code 1, so that schedulers do that."""


def one_line(error: BaseException, most: int | None = 200) -> str:
    """What an error says, in a line of so many characters at most; its type if it says nothing."""
    return ' '.join(str(error).split())[:most] or type(error).__name__


def tell(text: str) -> None:
    """Writes `text` as an error: a line by one call, as threads of the runtime write there too.

    What it names may have line breaks of its own.
    """
    sys.stderr.write(f'error: {" ".join(text.splitlines())}\n')
    sys.stderr.flush()
