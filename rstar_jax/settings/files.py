"""Config files: a docstring (command, hardware, time, score) and `get_config()`, read and run."""

import ast
import importlib.util
import inspect
import pathlib
import re
import traceback
from collections.abc import Sequence

from ml_collections import ConfigDict

from rstar_jax.settings.config import flatten
from rstar_jax.settings.errors import UserError, one_line
from rstar_jax.settings.names import unknown
from rstar_jax.settings.table import SETTINGS

_PACKAGE = pathlib.Path(__file__).resolve().parent.parent
EXPERIMENTS = _PACKAGE / 'experiments'  # of a wheel
if not EXPERIMENTS.is_dir():
    EXPERIMENTS = _PACKAGE.parent / 'experiments'  # of the repository


def load(path: str) -> ConfigDict:
    """Runs `get_config` of a config file, with what follows a ':' in `path` as its argument.

    `experiments/NAME.py` is the project's where the current folder has no such file.

    Raises:
      UserError: no such file, an error in it, an unknown key (the nearest one is named).
    """
    file, *argument = file_and_preset(path)
    if not file.is_file():
        known = ', '.join(f'experiments/{name}' for name, _ in experiments())
        raise UserError('--config', path, 'no such file', f'there are {known}')
    spec = importlib.util.spec_from_file_location(f'config_{file.stem}', file)
    if spec is None or spec.loader is None:
        raise UserError('--config', path, 'needs a Python file with get_config()')
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        if not hasattr(module, 'get_config'):
            raise UserError(str(file), expected='has no get_config()')
        if argument and not inspect.signature(module.get_config).parameters:
            raise UserError('--config', path, f'has no presets: leave :{argument[0]} away')
        config = module.get_config(*argument)
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise _error_in(file, error) from error
    if not isinstance(config, ConfigDict):
        raise UserError(str(file), expected=f'get_config() returned {config!r}, not a ConfigDict')
    missing = [key for key in SETTINGS if key not in flatten(config)]
    if missing:
        raise UserError(
            str(file), expected=f'config.{missing[0]} is missing: start from settings.default()'
        )
    return config.lock()


def _error_in(file: pathlib.Path, error: BaseException) -> UserError:
    """One line for an error raised by a config file; the line number is the one in that file."""
    lines = [
        f.lineno
        for f in traceback.extract_tb(error.__traceback__)
        if pathlib.Path(f.filename) == file
    ]
    if isinstance(error, SyntaxError) and error.lineno:
        lines = [error.lineno]
    place = f'{file}:{lines[-1]}' if lines else str(file)
    # ml_collections' messages: of a key that is set, and of a section that is read.
    found = re.search(r'Key "(\w+)" does not exist', str(error)) or (
        isinstance(error, AttributeError) and re.search(r"'(\w+)\\?'.*Did you mean", str(error))
    )
    if found:
        known = [*SETTINGS, *dict.fromkeys(key.rpartition('.')[0] for key in SETTINGS)]
        key = _written_key(file, lines, found[1])
        return unknown(key, known, f'{place}: config.{key}')
    return UserError(place, expected=f'{type(error).__name__}: {one_line(error, None)}')


def _written_key(file: pathlib.Path, lines: Sequence[int], leaf: str) -> str:
    """The dotted key as the line of the file writes it; only its last part is in the error."""
    if lines:
        line = file.read_text(encoding='utf-8').splitlines()[lines[-1] - 1]
        written = re.search(rf'(?:\w+\.)*{re.escape(leaf)}\b', line)
        if written and '.' in written[0]:
            return written[0].split('.', 1)[1]
    return leaf


def experiments() -> list[tuple[str, str]]:
    """(file name, first line of its docstring) of the config files that come with the project."""
    files = sorted(EXPERIMENTS.glob('*.py'))
    return [(path.name, docstring(path).partition('\n')[0]) for path in files]


def docstring(path: pathlib.Path) -> str:
    """The docstring of a Python file, without running it."""
    return ast.get_docstring(ast.parse(path.read_text(encoding='utf-8'))) or ''


def file_and_preset(path: str) -> tuple[pathlib.Path, *tuple[str, ...]]:
    """The file of a --config, and what follows a ':' behind it."""
    name, mark, preset = path.rpartition(':')
    whole = not mark or pathlib.Path(path).is_file()
    file = pathlib.Path(path if whole else name)
    if file.parent == pathlib.Path('experiments') and not file.is_file():  # asked from elsewhere
        file = EXPERIMENTS / file.name
    return (file,) if whole else (file, preset)
