"""Settings of the trainings, and the losses that there are."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from ml_collections import ConfigDict

from rstar_jax import parallel
from rstar_jax.settings import table
from rstar_jax.settings.errors import UserError

# A PPM's losses: what each learns from (data.load_examples), and the encoder.
LOSSES = {
    'pairwise': ('pairs', 'pairs'),
    'orm': ('trajectories', 'outcomes'),
    'pqm': ('trajectories', 'q_values'),
    'prm': ('trajectories', 'step_labels'),
}

# What no config changes; checkpoint_minutes a stage takes from job.keep_seconds.
FIXED = {'grad_clip': 1.0, 'attention': 'auto', 'checkpoint_minutes': 10.0}
MARKS_RATE = 0.05  # of new tokens, as a share of the root mean square of their table

HEAD_MOST = 8192  # pairs or trajectories that a head is fitted to, by chance


def settings(kind: str, given: Mapping[str, Any] | None = None) -> ConfigDict:
    """The settings of one training: those of the table, and what no config changes.


    The seed is of the order of the examples, dropout, the head's first weights and the hold-out.

    Args:
      kind: 'bootstrap', 'sft' or 'ppm'.
      given: what is to be changed, or a config's whole section.

    Raises:
      UserError: there is no such setting.
    """
    own = {key: row.default for key, row in table.training_rows(kind).items()}
    marks = {} if kind == 'ppm' else {'marks_rate': MARKS_RATE}
    made = ConfigDict(own | FIXED | marks | {'seed': 0})
    for key in given or ():
        if key not in made:
            expected = f'no setting of {kind}: expected one of {", ".join(made)}'
            raise UserError(key, expected=expected)
    made.update(given or {})
    return made


def compute_dtype(settings) -> jnp.dtype:
    """The dtype that the network runs in: settings.dtype, or what the devices are fast at."""
    return jnp.dtype(settings.dtype or parallel.fast_dtype())
