"""What ends a command by a line of text, without traceback."""

import contextlib
import sys
from collections.abc import Iterator, Mapping
from typing import Any

_NOT_GIVEN = object()


class UserError(Exception):
    """A mistake of the user: what was given, its value, what was expected, and the remedy.

    Libraries name their own argument; who calls them for a setting says so (`of_setting`), and the
    edge writes a setting as its flag (`job.command`): `--config.search.candidates=0: needs at least
    1`. The command exits with code 2.

    Attributes:
      argument: a parameter ('candidates'), a setting ('search.candidates'), a flag, or a file.
      value: what it was; left out where there is none.
      expected: in words that follow a colon ('needs at least 1').
      remedy: what to do ('raise it'); '' where `expected` says so.
    """

    def __init__(
        self, argument: str, value: Any = _NOT_GIVEN, expected: str = '', remedy: str = ''
    ):
        super().__init__(argument, value, expected, remedy)
        self.argument, self.expected, self.remedy = str(argument), expected, remedy
        self.has_value = value is not _NOT_GIVEN
        self.value = value if self.has_value else None

    def told(self, argument: str | None = None) -> str:
        """All in one line; argument: in the place of its own."""
        head = self.argument if argument is None else argument
        if self.has_value:
            head += f'={self.value}'
        return ': '.join(part for part in (head, self.expected, self.remedy) if part)

    def __str__(self) -> str:
        return self.told()

    def __reduce__(self):  # between processes
        return _again, (type(self), vars(self))


def _again(kind: type[UserError], fields: dict[str, Any]) -> UserError:
    error = kind(fields['argument'])
    vars(error).update(fields)
    return error


class Later(UserError):
    """What may be over when the same command is started again: others of the job that have not
    come, a lock that a lost machine held. Exit code 1, so that schedulers do that."""


@contextlib.contextmanager
def of_setting(section: str, names: Mapping[str, str] | None = None) -> Iterator[None]:
    """Within it, errors of a library's argument are errors of a setting.

    section: 'search' makes 'search.candidates' of 'candidates'. names: of arguments that a setting
    calls otherwise, {'code_seconds': 'execution.seconds'}.
    """
    try:
        yield
    except UserError as error:
        if error.argument.isidentifier():
            error.argument = (names or {}).get(error.argument, f'{section}.{error.argument}')
        raise


def one_line(error: BaseException, most: int | None = 200) -> str:
    """What an error says, in a line of so many characters at most; its type if it says nothing."""
    return ' '.join(str(error).split())[:most] or type(error).__name__


def tell(text: str) -> None:
    """Writes `text` as an error: a line by one call, as threads of the runtime write there too.

    What it names may have line breaks of its own.
    """
    sys.stderr.write(f'error: {" ".join(text.splitlines())}\n')
    sys.stderr.flush()
