"""Settings: one table of them all; configs made of it, read from files and checked; errors.

A config file begins with `settings.default()` or one of the paper's rounds and changes it. Stages
ask `bound` which settings bind them; libraries `table.check` whether a value may be.
"""

from rstar_jax.settings.check import check_key, is_setting, validate
from rstar_jax.settings.config import (
    command_line_wins,
    default,
    flatten,
    flatten_sections,
    for_round,
    paper_round,
    paper_schedule,
    preset,
    schedule,
    training_values,
)
from rstar_jax.settings.errors import UserError
from rstar_jax.settings.files import docstring, experiments, load
from rstar_jax.settings.names import groups_of, stages_of, strategies_of
from rstar_jax.settings.reference import describe, reference
from rstar_jax.settings.setting import Range, Setting
from rstar_jax.settings.table import SETTINGS, STAGES, bound, check, growing

__all__ = [
    'SETTINGS',
    'STAGES',
    'Range',
    'Setting',
    'UserError',
    'bound',
    'check',
    'check_key',
    'command_line_wins',
    'default',
    'describe',
    'docstring',
    'experiments',
    'flatten',
    'flatten_sections',
    'for_round',
    'groups_of',
    'growing',
    'is_setting',
    'load',
    'paper_round',
    'paper_schedule',
    'preset',
    'reference',
    'schedule',
    'stages_of',
    'strategies_of',
    'training_values',
    'validate',
]
