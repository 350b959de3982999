"""What is wrong with a config: names that there are not, values, values that do not go together."""

import re
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from rstar_jax.settings.config import flatten, flatten_sections, for_round, training_values
from rstar_jax.settings.errors import UserError
from rstar_jax.settings.names import groups_of, stages_of, strategies_of, unknown
from rstar_jax.settings.table import ARITHMETIC, SETTINGS, TRAININGS

ROUNDS_OWN = 'what a round has of its own, a config file says by settings.schedule'


def is_setting(argument: str) -> bool:
    """Whether an error's argument is a setting, of the run or of a round of its schedule."""
    return re.sub(r'^schedule\.round\d+\.', '', argument) in SETTINGS


def check_key(config: ConfigDict, key: str) -> None:
    """Raises UserError where `config` has no such key, naming the nearest one."""
    known = flatten(config)
    if key in known:
        return
    shown = f'--config.{key}'
    if key in flatten_sections(config):
        own = next((k for k in known if k.startswith(key + '.')), None)
        remedy = f'set one of its settings, such as --config.{own}' if own else ROUNDS_OWN
        raise UserError(shown, expected='a section', remedy=remedy)
    if is_setting(key):
        raise UserError(shown, expected='no such key in this file', remedy=ROUNDS_OWN)
    raise unknown(key, list(known), shown)


def validate(config: ConfigDict) -> None:
    """Raises UserError for the first value that cannot be meant."""
    stages_of(config.stages, 'stages')
    strategies_of(config.eval.strategies)
    groups_of(config.ablations.groups)
    if config.last_round < config.first_round:
        raise UserError(
            'last_round', config.last_round, f'needs at least first_round={config.first_round}'
        )
    _check_values({key: value for key, value in flatten(config).items() if key in SETTINGS}, '')
    _check_together(config, '')
    for name, rows in config.schedule.items():
        if not re.fullmatch(r'round[1-9]\d*', name):
            raise UserError(f'config.schedule.{name}', expected='needs round1, round2, ...')
        prefix, flat = f'schedule.{name}.', flatten(rows)
        for key, value in flat.items():
            if key not in SETTINGS:
                raise unknown(key, list(SETTINGS), f'config.{prefix}{key}')
            if SETTINGS[key].of_run:
                raise UserError(
                    f'{prefix}{key}', value, 'is of the whole run', f'set --config.{key}'
                )
        _check_values(flat, prefix)
        if 'stages' in rows:
            stages_of(rows.stages, f'{prefix}stages')
        _check_together(for_round(config, int(name.removeprefix('round'))), prefix)


def _check_values(flat: Mapping[str, Any], prefix: str) -> None:
    for name, value in flat.items():
        if wrong := SETTINGS[name].wrong(value):
            raise UserError(prefix + name, value, wrong)


def _check_together(config: ConfigDict, prefix: str) -> None:
    """Raises UserError for values that do not go together."""

    def refuse(name: str, expected: str, remedy: str = '') -> None:
        raise UserError(prefix + name, flatten(config)[name], expected, remedy)

    search, data = config.search, config.data
    for key in ('tokens', 'agree'):
        if config.job.leases == 'ray' and search[key]:
            others = 'which --config.job.leases=ray does not'
            refuse(f'search.{key}', f'has trees of a problem grow one after another, {others}')
    if search.step_tokens >= search.path_tokens:
        fits = f'one step needs to fit into path_tokens={search.path_tokens} behind a prompt'
        refuse('search.step_tokens', fits)
    if data.solved and config.curate.rounds != 'all':
        lost = 'no round would train on what solves the problems that are left out'
        refuse('data.solved', lost, 'set --config.curate.rounds=all')
    if (named := config.eval.benchmarks) and not named.strip(' ,'):
        refuse('eval.benchmarks', 'names no benchmark', 'name some, by commas, or leave it empty')
    for key in ('sources', 'levels', 'answers'):
        if data.problems == ARITHMETIC and data[key]:
            refuse(f'data.{key}', f'{ARITHMETIC} has none to choose from', 'leave it empty')
    ppm = config.training.ppm
    if (ppm.head, ppm.loss) == ('fitted', 'pairwise') and not ppm.center:
        shift = 'without it, one step can shift all values to where the squash is flat'
        refuse('training.ppm.head', f'needs --config.training.ppm.center, as 0.01: {shift}')
    if config.training.keep == 'best':
        if not config.training.measure_every:
            steps = 'the steps between two measurements'
            refuse('training.keep', f'needs --config.training.measure_every, {steps}')
        for kind in TRAININGS:
            if not training_values(config, kind)['held_out']:
                section = 'ppm' if kind == 'ppm' else 'sft'
                refuse(
                    'training.keep', f'needs --config.training.{section}.held_out, what is measured'
                )
