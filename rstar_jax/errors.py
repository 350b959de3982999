"""The one exception for what a user did wrong: a line of text, no traceback."""


class UserError(Exception):
    """A mistake of the user: names the value, what was expected, and the remedy, in one line.

    `rstar_jax.main` prints it as `error: ...` and exits with code 2.
    """
