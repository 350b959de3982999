"""All settings in words: the help of a config file, and the reference in Markdown."""

import json
from typing import Any

from rstar_jax.settings.config import flatten
from rstar_jax.settings.files import docstring, file_and_preset, load
from rstar_jax.settings.presets import PRESETS, ROUNDS
from rstar_jax.settings.setting import Setting
from rstar_jax.settings.table import SETTINGS


def describe(path: str) -> str:
    """The help text of one config file: its docstring, then every setting, value and meaning."""
    values = flatten(load(path))
    lines = [docstring(file_and_preset(path)[0]), '', 'settings:']
    for name in [*SETTINGS, *(name for name in values if name not in SETTINGS)]:
        lines.append(f'  --config.{name}={_shown(values[name])}')
        if name in SETTINGS:
            lines.append(f'      {SETTINGS[name].meaning}')
    return '\n'.join(lines)


def reference() -> str:
    """Every setting in Markdown, a table for each section; then the paper's rounds and presets."""
    sections: dict[str, list[Setting]] = {}
    for row in SETTINGS.values():
        sections.setdefault(row.name.rpartition('.')[0], []).append(row)
    text = '# Settings\n'
    for section, rows in sections.items():
        text += f'\n## {section or "The run"}\n\n| setting | default | values | meaning | binds |\n'
        text += '|---|---|---|---|---|\n' + ''.join(map(_line, rows))
    tables = {f'Round {n} of the paper': values for n, values in ROUNDS.items()}
    for title, values in (
        tables | {f':{name}': values for name, values in PRESETS.items()}
    ).items():
        text += f'\n## {title}\n\n| setting | value |\n|---|---|\n'
        text += ''.join(f'| `{name}` | {_code(value)} |\n' for name, value in values.items())
    return text


def _line(row: Setting) -> str:
    values = ', '.join(map(_code, row.choices)) or (str(row.allowed) if row.allowed else '')
    binds = [f'{name} (may grow)' if name in row.grows else name for name in row.binds]
    cells = (f'`{row.name}`', _code(row.default), values, row.meaning, ', '.join(binds))
    return '| ' + ' | '.join(cell.replace('|', '\\|') for cell in cells) + ' |\n'


def _code(value: Any) -> str:
    return f'`{_shown(value)}`' if value not in ('', ()) else 'empty'


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
