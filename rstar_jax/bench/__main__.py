"""The command of the benches: finds the module, types its settings, writes the figures."""

import dataclasses
import importlib
import inspect
import os
import pathlib
import sys
from typing import Any

from rstar_jax.job import large_pages

if __name__ == '__main__':
    large_pages.take_large()

from rstar_jax.job import atomic, command, ledger
from rstar_jax.job.interrupts import leave
from rstar_jax.settings import docstring
from rstar_jax.settings.errors import UserError

USAGE = 'usage: python -m rstar_jax.bench NAME [--json=FILE] [--key=value ...]'


def names() -> dict[str, str]:
    """Maps the name of every bench to the first line of its docstring, without importing it."""
    found = {}
    for path in sorted(pathlib.Path(__file__).parent.glob('*.py')):
        if not path.stem.startswith('_'):
            found[path.stem] = docstring(path).partition('\n')[0]
    return found


def parse(arguments: list[str], defaults: Any) -> tuple[Any, str | None]:
    """Reads a bench's command line.

    defaults: an instance of the bench's Settings.

    Returns (another one, as the arguments say; path of the JSON file or None).

    Raises UserError: a wrong argument.
    """
    changes: dict[str, Any] = {}
    json_path = None
    known = [field.name for field in dataclasses.fields(defaults)]
    for argument in arguments:
        flag, equals, text = argument.partition('=')
        key = flag.removeprefix('--').replace('-', '_')
        if not flag.startswith('--') or not equals:
            raise UserError(argument, expected='expected --key=value', remedy=USAGE)
        if key == 'json':
            json_path = text
            if not text or os.path.isdir(text):
                raise UserError(flag, text, 'expected a file to write to')
            ledger.check_writable(pathlib.Path(text).parent, '--json')
        elif key in known:
            changes[key] = _typed(flag, text, getattr(defaults, key))
        else:
            has = ', '.join(f'--{name}' for name in ('json', *known))
            raise UserError(flag, expected='no such setting', remedy=f'this bench has {has}')
    return dataclasses.replace(defaults, **changes), json_path


def _typed(flag: str, text: str, default: Any) -> Any:
    kind = type(default)
    if kind is bool:
        if text.lower() in ('true', '1', 'yes', 'false', '0', 'no'):
            return text.lower() in ('true', '1', 'yes')
        raise UserError(flag, text, 'expected true or false')
    try:
        value = kind(text)
    except ValueError:
        raise UserError(flag, text, f'expected a value of type {kind.__name__}') from None
    least = 1 if flag == '--repeats' else 0  # of no runs there are no figures
    if kind in (int, float) and not value >= least:
        raise UserError(flag, text, f'needs at least {least}')
    return value


def report(name: str, device: str, settings: dict, figures: dict) -> str:
    """The readable form of a result."""
    lines = [f'{name} on {device}']
    lines += [f'  {key:32} {value}' for key, value in settings.items()]
    for key, value in figures.items():
        text = f'{value:.4g}' if isinstance(value, float) else str(value)
        lines.append(f'  {key:32} {text}')
    return '\n'.join(lines)


def device_name() -> str:
    """Kind and number of the devices in use; only the processor where the bench needs no jax."""
    if 'jax' not in sys.modules:
        return f'cpu ({os.cpu_count()} cores)'
    from rstar_jax import parallel

    return parallel.devices_in_use()


def main(arguments: list[str]) -> int:
    """Runs one bench and returns the exit code (`job.command.guarded`)."""
    return command.guarded(lambda: _run(arguments))


def _run(arguments: list[str]) -> int:
    benches = names()
    if not arguments or arguments[0] in ('-h', '--help', 'help'):
        known = [f'  {name:12} {line}' for name, line in benches.items()]
        return command.show_help('\n'.join([USAGE, '', *known]))
    name = arguments[0]
    if name not in benches:
        raise UserError(name, expected='no such bench', remedy=f'there are {", ".join(benches)}')
    module = importlib.import_module(f'rstar_jax.bench.{name}')
    defaults = module.Settings()
    if '--help' in arguments[1:]:
        known = [f'  --{key}={value}' for key, value in dataclasses.asdict(defaults).items()]
        return command.show_help('\n'.join([inspect.getdoc(module), '', 'settings:', *known]))
    settings, json_path = parse(arguments[1:], defaults)
    figures = module.run(settings)
    told, device = dataclasses.asdict(settings), device_name()
    print(report(name, device, told, figures))
    if json_path:
        result = {'bench': name, 'device': device, 'settings': told, 'figures': figures}
        atomic.write_json(json_path, result, 1)
    return 0


if __name__ == '__main__':
    if code := main(sys.argv[1:]):
        leave(code)
