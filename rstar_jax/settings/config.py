"""Configs: the default one, what each round has of its own, and the paper's.

A config is locked: a key that does not exist is an error, in a file and on the command line alike.
"""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from rstar_jax.settings import table
from rstar_jax.settings.errors import UserError
from rstar_jax.settings.names import stages_of
from rstar_jax.settings.presets import PRESETS, ROUNDS
from rstar_jax.settings.table import PREVIOUS, SETTINGS


def default() -> ConfigDict:
    """The base of every config file: all keys at their defaults, locked."""
    config = _nested({name: row.default for name, row in SETTINGS.items()})
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
        raise UserError(f'--config=FILE:{name}', expected=f'needs one of {", ".join(PRESETS)}')
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


def training_values(config: ConfigDict, kind: str) -> dict[str, Any]:
    """The settings of one training ('bootstrap', 'sft' or 'ppm'), those it shares among them."""
    flat = flatten(config)
    found = {key: flat[row.name] for key, row in table.training_rows(kind).items()}
    return {**found, 'checkpoint_minutes': flat['job.keep_seconds'] / 60 or float('inf')}


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
