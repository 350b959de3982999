"""Dispatcher of the benches: finds the module, types the settings, writes the figures."""

import importlib
import inspect
import os
import pathlib
import sys
from collections.abc import Callable
from typing import Any

from rstar_jax.job import large_pages

if __name__ == '__main__':
    large_pages.take_large()

from rstar_jax.job import atomic, command, ledger
from rstar_jax.job.interrupts import leave
from rstar_jax.settings import configs
from rstar_jax.settings.errors import UserError

USAGE = 'usage: python -m rstar_jax.bench NAME [--json=FILE] [--key=value ...]'


def names() -> dict[str, str]:
    """Maps the name of every bench to the first line of its docstring, without importing it."""
    found = {}
    for path in sorted(pathlib.Path(__file__).parent.glob('*.py')):
        if not path.stem.startswith('_'):
            found[path.stem] = configs.docstring(path).partition('\n')[0]
    return found


def settings_of(run: Callable[..., dict[str, float]]) -> dict[str, Any]:
    """The settings of a bench and their defaults, from the signature of its `run`."""
    parameters = inspect.signature(run).parameters.values()
    return {parameter.name: parameter.default for parameter in parameters}


def parse(name: str, arguments: list[str], defaults: dict[str, Any]) -> tuple[dict, str | None]:
    """Returns (settings, path of the JSON file or None); raises UserError on a wrong argument."""
    settings, json_path = dict(defaults), None
    for argument in arguments:
        flag, equals, text = argument.partition('=')
        key = flag.removeprefix('--').replace('-', '_')
        if not flag.startswith('--') or not equals:
            raise UserError(f'{argument}: expected --key=value; {USAGE}')
        if key == 'json':
            json_path = text
            if not text or os.path.isdir(text):
                raise UserError(f'{argument}: expected a file to write to')
            ledger.check_writable(pathlib.Path(text).parent, '--json')
        elif key in defaults:
            settings[key] = _typed(argument, text, defaults[key])
        else:
            known = ', '.join(f'--{known}' for known in ['json', *defaults])
            raise UserError(f'{flag}: bench {name} has no such setting; it has {known}')
    return settings, json_path


def _typed(argument: str, text: str, default: Any) -> Any:
    kind = str if default is None else type(default)
    if kind is bool:
        if text.lower() in ('true', '1', 'yes', 'false', '0', 'no'):
            return text.lower() in ('true', '1', 'yes')
        raise UserError(f'{argument}: expected true or false')
    try:
        value = kind(text)
    except ValueError:
        raise UserError(f'{argument}: expected a value of type {kind.__name__}') from None
    least = 1 if argument.startswith('--repeats=') else 0  # of no runs there are no figures
    if kind in (int, float) and default >= 0 and not value >= least:
        raise UserError(f'{argument}: expected at least {least}')
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
        raise UserError(f'{name}: no such bench; there are {", ".join(benches) or "none yet"}')
    module = importlib.import_module(f'rstar_jax.bench.{name}')
    if '--help' in arguments[1:]:
        known = [f'  --{key}={value}' for key, value in settings_of(module.run).items()]
        return command.show_help('\n'.join([inspect.getdoc(module), '', 'settings:', *known]))
    settings, json_path = parse(name, arguments[1:], settings_of(module.run))
    figures = module.run(**settings)
    device = device_name()
    print(report(name, device, settings, figures))
    if json_path:
        result = {'bench': name, 'device': device, 'settings': settings, 'figures': figures}
        atomic.write_json(json_path, result, 1)
    return 0


if __name__ == '__main__':
    if code := main(sys.argv[1:]):
        leave(code)
