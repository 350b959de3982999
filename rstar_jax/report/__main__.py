"""The page of a finished or running run; of two runs, side by side.

usage: python -m rstar_jax.report WORKDIR [WORKDIR2] [--trees=N|all] [--problems=INDEX,...]

  --trees=N            trees of each search that the viewer can open, evenly spaced (60)
  --problems=INDEX,... all trees of these problems as well
"""

import sys
from collections.abc import Sequence

from rstar_jax import report
from rstar_jax.job import command
from rstar_jax.job.interrupts import leave
from rstar_jax.settings import errors
from rstar_jax.settings.errors import UserError
from rstar_jax.stages import STAGES


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line (without the program's name) and returns the exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    return command.guarded(lambda: _run(arguments))


def _run(arguments: Sequence[str]) -> int:
    if not arguments or {'-h', '--help', 'help'} & set(arguments):
        return command.show_help(__doc__.strip())
    folders, settings = _parse(arguments)
    with errors.of_setting('report', {'problems': '--problems'}):
        print(report.write(folders[0], STAGES, *folders[1:], **settings))
    return 0


def _parse(arguments: Sequence[str]) -> tuple[list[str], dict]:
    folders, settings = [], {}
    for argument in arguments:
        name, _, value = argument.partition('=')
        try:
            if name == '--trees':
                settings['trees'] = None if value == 'all' else int(value)
            elif name == '--problems':
                settings['problems'] = [int(index) for index in value.split(',')]
            elif name.startswith('-'):
                raise UserError(argument, expected='no such option', remedy='--help lists them')
            else:
                folders.append(argument)
        except ValueError:
            raise UserError(argument, expected='needs whole numbers') from None
    if not 1 <= len(folders) <= 2:
        named = f'expected one or two, not {len(folders)}'
        raise UserError('WORKDIR', expected=named)
    if (settings.get('trees') or 1) < 0:
        raise UserError('--trees', settings['trees'], 'needs at least 0, or all')
    return folders, settings


if __name__ == '__main__':
    if code := main():
        leave(code)
