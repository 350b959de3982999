"""Configs: the default one, how config files are read, overridden and checked.

A config file has a docstring (command, hardware, time, score) and `get_config()`, which takes
`default()` and changes it. The config is locked: a key that does not exist is an error that names
the nearest one, in a file and on the command line alike.
"""

import ast
import difflib
import importlib.util
import inspect
import json
import math
import pathlib
import re
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from rstar_jax.settings import bounds
from rstar_jax.settings.errors import UserError, one_line
from rstar_jax.settings.kinds import STAGES
from rstar_jax.settings.table import (
    ABLATIONS,
    ARITHMETIC,
    KEYS,
    PRESETS,
    PREVIOUS,
    ROUNDS,
    STRATEGIES,
)

_PACKAGE = pathlib.Path(__file__).resolve().parent.parent
EXPERIMENTS = _PACKAGE / 'experiments'  # of a wheel
if not EXPERIMENTS.is_dir():
    EXPERIMENTS = _PACKAGE.parent / 'experiments'  # of the repository
# A setting's kind, and what is said of a value that is of another.
NEEDED = {
    bool: 'True or False',
    int: 'a whole number',
    float: 'a number',
    str: 'a text',
    tuple: 'a list',
}
ROUNDS_OWN = 'what a round has of its own, a config file says by configs.schedule'
# Beginnings of keys that no round can have of its own.
OF_THE_RUN = (
    *('first_round', 'last_round', 'compiled', 'question', 'serve.', 'ablations.'),
    'job.start_seconds',
)


def default() -> ConfigDict:
    """The base of every config file: all keys at their defaults, locked."""
    config = _nested({key: value for key, (value, _) in KEYS.items()})
    config.schedule = ConfigDict()
    return config.lock()


def for_round(config: ConfigDict, number: int) -> ConfigDict:
    """The config of one round: `config` with what `config.schedule` says of that round.

    Rounds after the first search with what the round before trained, by the prompt that it was
    trained on, and train from the base model that the first began with.
    """
    made = ConfigDict(config.to_dict())
    schedule = made.schedule
    del made.schedule
    if number > max(1, made.first_round):
        if made.policy.path != PREVIOUS and not made.bootstrap.demonstrations:
            made.base.path = made.base.path or made.policy.path
        made.policy.path = PREVIOUS
        made.search.prompt = 'sft'
    # Round 0 is evaluated as the first searches.
    rows = f'round{number or max(1, made.first_round)}'
    if rows in schedule:
        made.update_from_flattened_dict(flatten(schedule[rows]))
        if 'stages' in schedule[rows]:  # leaves some of the run's out; it has no others
            run, own = (stages_of(one.stages) for one in (config, made))
            made.stages = ','.join(name for name in own if name in run)
    return made.lock()


def schedule(config: ConfigDict, rounds: Mapping[int, Mapping[str, Any]]) -> ConfigDict:
    """Adds what rounds have of their own, by number and key, to `config.schedule`; returns it."""
    with config.unlocked():
        for number, values in rounds.items():
            config.schedule[f'round{number}'] = _nested(values)
    return config


def paper_schedule(config: ConfigDict) -> ConfigDict:
    """Adds the paper's settings of its rounds to `config.schedule`; returns `config`."""
    return schedule(config, ROUNDS)


def paper_round(number: int) -> ConfigDict:
    """The default config with the paper's settings of one round."""
    config = default()
    own = {**ROUNDS[number], 'first_round': number, 'last_round': number}
    config.update_from_flattened_dict(own)
    return config


def preset(config: ConfigDict, name: str) -> ConfigDict:
    """Sets everything in which paper and released code differ, in all rounds; returns `config`.

    name: a key of PRESETS, or '' to leave all as it is.
    """
    if name and name not in PRESETS:
        raise UserError(f'--config=FILE:{name}: no such preset; there are {", ".join(PRESETS)}')
    chosen = PRESETS[name] if name else {}
    config.update_from_flattened_dict(chosen)
    command_line_wins(config, chosen)
    return config


def command_line_wins(config: ConfigDict, overridden: Mapping[str, Any]) -> None:
    """Takes out of the schedule what the command line sets for every round."""
    with config.unlocked():
        for rows in config.schedule.values():
            for key in overridden:
                section, _, leaf = key.rpartition('.')
                if leaf in flatten_sections(rows).get(section, {}):
                    del flatten_sections(rows)[section][leaf]


def flatten_sections(config: ConfigDict, prefix: str = '') -> dict[str, ConfigDict]:
    """Every section of a config by its dotted name; '' is the config itself."""
    found = {prefix: config}
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            found.update(flatten_sections(value, f'{prefix}.{key}'.lstrip('.')))
    return found


def flatten(config: ConfigDict) -> dict[str, Any]:
    """Leaf values by dotted key."""
    return {
        f'{section}.{key}'.lstrip('.'): value
        for section, rows in flatten_sections(config).items()
        for key, value in rows.items()
        if not isinstance(value, ConfigDict)
    }


def _nested(flat: Mapping[str, Any]) -> ConfigDict:
    config = ConfigDict()
    for key, value in flat.items():
        section = config
        *parents, leaf = key.split('.')
        for parent in parents:
            if parent not in section:
                section[parent] = ConfigDict()
            section = section[parent]
        section[leaf] = value
    return config


def nearest(key: str, known: Sequence[str]) -> str | None:
    """The known key most like `key`; a wrong section counts less than a wrong name."""
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    if close:
        return close[0]
    by_name = {name.rpartition('.')[2]: name for name in known}
    close = difflib.get_close_matches(key.rpartition('.')[2], list(by_name), n=1, cutoff=0.7)
    return by_name[close[0]] if close else None


def check_key(config: ConfigDict, key: str) -> None:
    """Raises UserError where `config` has no such key, naming the nearest one."""
    known = flatten(config)
    if key in known:
        return
    if key in flatten_sections(config):
        own = next((k for k in known if k.startswith(key + '.')), None)
        remedy = f'set one of its keys, such as --config.{own}' if own else ROUNDS_OWN
        raise UserError(f'--config.{key}: a section; {remedy}')
    if re.sub(r'^schedule\.round\d+\.', '', key) in KEYS:
        raise UserError(f'--config.{key}: no such key in this file; {ROUNDS_OWN}')
    raise UserError('--' + _unknown(key, list(known)).replace('mean config', 'mean --config'))


def _unknown(key: str, known: Sequence[str]) -> str:
    found = nearest(key, known)
    remedy = f'did you mean config.{found}?' if found else 'see --help for the keys'
    return f'config.{key}: no such key; {remedy}'


def load(path: str) -> ConfigDict:
    """Runs `get_config` of a config file, with what follows a ':' in `path` as its argument.

    `experiments/NAME.py` is the project's where the current folder has no such file.

    Raises:
      UserError: no such file, an error in it, an unknown key (the nearest one is named).
    """
    file, *argument = _file_and_preset(path)
    if not file.is_file():
        known = ', '.join(f'experiments/{name}' for name, _ in experiments())
        raise UserError(f'--config={path}: no such file; there are {known}')
    spec = importlib.util.spec_from_file_location(f'config_{file.stem}', file)
    if spec is None or spec.loader is None:
        raise UserError(f'--config={path}: needs a Python file with get_config()')
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        if not hasattr(module, 'get_config'):
            raise UserError(f'{file}: has no get_config()')
        if argument and not inspect.signature(module.get_config).parameters:
            raise UserError(f'--config={path}: {file} has no presets: leave :{argument[0]} away')
        config = module.get_config(*argument)
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise UserError(_error_in(file, error)) from error
    if not isinstance(config, ConfigDict):
        raise UserError(f'{file}: get_config() returned {config!r}, not a ConfigDict')
    missing = [key for key in KEYS if key not in flatten(config)]
    if missing:
        raise UserError(f'{file}: config.{missing[0]} is missing; start from configs.default()')
    return config.lock()


def _error_in(file: pathlib.Path, error: BaseException) -> str:
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
    unknown = re.search(r'Key "(\w+)" does not exist', str(error)) or (
        isinstance(error, AttributeError) and re.search(r"'(\w+)\\?'.*Did you mean", str(error))
    )
    if unknown:
        known = [*KEYS, *dict.fromkeys(key.rpartition('.')[0] for key in KEYS)]
        return f'{place}: {_unknown(_written_key(file, lines, unknown[1]), known)}'
    return f'{place}: {type(error).__name__}: {one_line(error, None)}'


def _written_key(file: pathlib.Path, lines: Sequence[int], leaf: str) -> str:
    """The dotted key as the line of the file writes it; only its last part is in the error."""
    if lines:
        line = file.read_text(encoding='utf-8').splitlines()[lines[-1] - 1]
        written = re.search(rf'(?:\w+\.)*{re.escape(leaf)}\b', line)
        if written and '.' in written[0]:
            return written[0].split('.', 1)[1]
    return leaf


def stages_of(text: str, flag: str = '--stages') -> tuple[str, ...]:
    """'search,curate' -> ('search', 'curate'), in the order in which they run."""
    asked = _names(text, STAGES, flag, 'stage')
    return tuple(name for name in STAGES if name in asked)


def groups_of(text: str) -> tuple[str, ...]:
    """The groups of the ablations; empty: all."""
    flag = '--config.ablations.groups'
    return _names(text, ABLATIONS, flag, 'group') if text else ABLATIONS


def strategies_of(text: str) -> tuple[str, ...]:
    """The strategies of an evaluation, in the order in which they are given."""
    return _names(text, STRATEGIES, '--config.eval.strategies', 'strategy')


def _names(text: str, known: Sequence[str], flag: str, what: str) -> tuple[str, ...]:
    asked = tuple(name.strip() for name in text.split(',') if name.strip())
    for name in asked:
        if name not in known:
            close = nearest(name, known)
            remedy = f'did you mean {close}?' if close else f'there are {", ".join(known)}'
            raise UserError(f'{flag}={text}: no {what} {name}; {remedy}')
    if not asked:
        raise UserError(f'{flag}={text}: needs at least one of {", ".join(known)}')
    return asked


def validate(config: ConfigDict) -> None:
    """Raises UserError for the first value that cannot be meant."""
    stages_of(config.stages, '--config.stages')
    strategies_of(config.eval.strategies)
    groups_of(config.ablations.groups)
    if config.last_round < config.first_round:
        raise UserError(
            f'--config.last_round={config.last_round}: needs at least first_round='
            f'{config.first_round}'
        )
    top = {key: value for key, value in flatten(config).items() if key in KEYS}
    _validate_values(top, '')
    _validate_together(config, '')
    for name, rows in config.schedule.items():
        if not re.fullmatch(r'round[1-9]\d*', name):
            raise UserError(f'config.schedule.{name}: no round; expected round1, round2, ...')
        flat = flatten(rows)
        for key, value in flat.items():
            if key not in KEYS:
                known = [f'schedule.{name}.{key}' for key in KEYS]
                raise UserError(_unknown(f'schedule.{name}.{key}', known))
            if key.startswith(OF_THE_RUN):
                raise UserError(
                    f'--config.schedule.{name}.{key}={value}: is of the whole run: set '
                    f'--config.{key}'
                )
        _validate_values(flat, f'schedule.{name}.')
        if 'stages' in rows:
            stages_of(rows.stages, f'--config.schedule.{name}.stages')
        number = int(name.removeprefix('round'))
        _validate_together(for_round(config, number), f'schedule.{name}.')


def _validate_together(config: ConfigDict, prefix: str) -> None:
    """Raises UserError for values that do not go together."""
    for name in ('search', 'eval'):
        section = config[name]
        if config.job.leases == 'ray' and (section.tokens or section.agree):
            key = 'tokens' if section.tokens else 'agree'
            raise UserError(
                f'--config.{prefix}{name}.{key}={section[key]}: has the trees of a problem grow '
                'one after another, which --config.job.leases=ray does not'
            )
        if section.step_tokens >= section.path_tokens:
            raise UserError(
                f'--config.{prefix}{name}.step_tokens={section.step_tokens}: one step needs to fit '
                f'into path_tokens={section.path_tokens} behind a prompt'
            )
    if config.data.solved and config.curate.rounds != 'all':
        raise UserError(
            f'--config.{prefix}data.solved={config.data.solved}: no round would train on what '
            'solves the problems that are left out: set --config.curate.rounds=all'
        )
    if (named := config.eval.benchmarks) and not named.strip(' ,'):
        raise UserError(
            f'--config.{prefix}eval.benchmarks={named}: names no benchmark: name some, by commas, '
            'or leave it empty'
        )
    for key in ('sources', 'levels', 'answers'):
        if config.data.problems == ARITHMETIC and (value := config.data[key]):
            raise UserError(
                f'--config.{prefix}data.{key}={value}: {ARITHMETIC} has none to choose from; leave '
                'it empty'
            )
    ppm = config.training.ppm
    if (ppm.head, ppm.loss) == ('fitted', 'pairwise') and not ppm.center:
        raise UserError(
            f'--config.{prefix}training.ppm.head=fitted: needs --config.training.ppm.center, as '
            '0.01: without it, one step can shift all values to where the squash is flat'
        )
    for name, section in config.training.items():
        if section.keep == 'best' and not section.measure_every:
            raise UserError(
                f'--config.{prefix}training.{name}.keep=best: needs --config.training.{name}.'
                'measure_every, the steps between two measurements'
            )
        if section.keep == 'best' and not section.held_out:
            raise UserError(
                f'--config.{prefix}training.{name}.keep=best: needs --config.training.{name}.'
                'held_out, the share of the problems that is measured'
            )


def _validate_values(flat: Mapping[str, Any], prefix: str) -> None:
    for key, value in flat.items():
        kind = type(KEYS[key][0])
        kinds = {float: (int, float), tuple: (tuple, list)}.get(kind, kind)
        # The sections of a schedule take any type, and all sections take None.
        if not isinstance(value, kinds):
            raise UserError(f'--config.{prefix}{key}={value!r}: needs {NEEDED[kind]}')
        if key in ('search.more_rollouts', 'ablations.rollouts') and not all(
            isinstance(rollouts, int) and rollouts > 0 for rollouts in value
        ):
            raise UserError(f'--config.{prefix}{key}={value}: needs whole numbers from 1 on')
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f'--config.{prefix}{key}={value}: needs a finite number')
        bounds.check(key, value, f'--config.{prefix}{key}')


def experiments() -> list[tuple[str, str]]:
    """(file name, first line of its docstring) of the config files that come with the project."""
    files = sorted(EXPERIMENTS.glob('*.py'))
    return [(path.name, docstring(path).partition('\n')[0]) for path in files]


def docstring(path: pathlib.Path) -> str:
    """The docstring of a Python file, without running it."""
    return ast.get_docstring(ast.parse(path.read_text(encoding='utf-8'))) or ''


def describe(path: str) -> str:
    """The help text of one config file: its docstring, then every key, value and meaning."""
    config = load(path)
    lines = [docstring(_file_and_preset(path)[0]), '', 'settings:']
    values = flatten(config)
    for key in [*KEYS, *(key for key in values if key not in KEYS)]:
        value = values[key]
        meaning = KEYS[key][1] if key in KEYS else ''
        lines += [f'  --config.{key}={_shown(value)}'] + ([f'      {meaning}'] if meaning else [])
    return '\n'.join(lines)


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _file_and_preset(path: str) -> tuple[pathlib.Path, *tuple[str, ...]]:
    name, mark, preset = path.rpartition(':')
    whole = not mark or pathlib.Path(path).is_file()
    file = pathlib.Path(path if whole else name)
    if file.parent == pathlib.Path('experiments') and not file.is_file():  # asked from elsewhere
        file = EXPERIMENTS / file.name
    return (file,) if whole else (file, preset)
