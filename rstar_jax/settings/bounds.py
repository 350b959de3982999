"""What a setting may be: its limits and choices, for configs and for whoever is called directly."""

import operator
from typing import Any

from rstar_jax.settings.errors import UserError
from rstar_jax.settings.kinds import TRAININGS
from rstar_jax.settings.table import EVAL_SEARCH

AT_LEAST: dict[str, float] = {
    'seed': 0,
    'first_round': 0,
    'last_round': 0,
    'bootstrap.demonstrations': 0,
    'data.limit': 0,
    'data.solved': 0,
    'policy.requests': 1,
    'policy.seconds': 1,
    'serve.port': 0,
    'serve.trajectories': 1,
    'serve.requests': 1,
    'data.overlap': 0,
    'search.trees': 1,
    'synthesize.problems': 0,
    **{f'synthesize.{key}': 1 for key in ('shown', 'tokens', 'samples', 'agree')},
    'search.mean_tokens': 0,
    'search.rollouts': 1,
    'search.candidates': 1,
    'search.max_depth': 1,
    'search.width': 1,
    'search.exploration': 0,
    'search.error_threshold': 1,
    'search.step_tokens': 1,
    'search.temperature': 0,
    'search.top_k': 0,
    'search.min_p': 0,
    'search.repetition': 0,
    'search.tokens': 0,
    'search.agree': 0,
    'search.slots': 0,
    'search.trees_in_flight': 0,
    'search.path_tokens': 1,
    'search.chunk': 1,
    'search.drafts': 0,
    'search.tensor': 1,
    'job.start_seconds': 1,
    'job.keep_seconds': 0,
    'job.devices': 0,
    'execution.seconds': 1,
    'execution.memory_mb': 64,
    'execution.workers': 0,
    'curate.trajectories': 1,
    'curate.side': 1,
    'curate.side_of_one': 1,
    'curate.trajectory_side': 1,
    'curate.margin': 0,
    'curate.edit_distance': 0,
    'curate.synthetic_correct': 0,
    'eval.limit': 0,
    'eval.trajectories': 0,
    'eval.samples': 1,
    'eval.mean_tokens': 0,
    'ablations.seeds': 0,
    'ablations.problems': 0,
    'eval.top': 0,
    'eval.rollouts': 1,
    'eval.candidates': 1,
}
ABOVE: dict[str, float] = {'search.top_p': 0}
AT_MOST: dict[str, float] = {
    'seed': 2**32 - 1,  # of larger ones JAX reads the last 32 bits
    'last_round': 1000,  # all are looked at before the first begins
    'search.top_p': 1,
    'search.min_p': 1,
    'search.drafts': 15,
    'serve.port': 65535,
    'execution.seconds': 86400,
    'curate.synthetic_correct': 1,
}
MOST = 2**31 - 1  # of a whole number: what devices count with
BELOW: dict[str, float] = {'training.ppm.dropout': 1}
for _name in TRAININGS:
    AT_LEAST |= {
        f'training.{_name}.{key}': 1 for key in ('epochs', 'batch_size', 'length', 'micro_batch')
    }
    least_0 = ('learning_rate', 'lora', 'weight_decay', 'measure_every', 'grad_clip', 'held_out')
    AT_LEAST |= {f'training.{_name}.{key}': 0 for key in least_0}
    ABOVE[f'training.{_name}.checkpoint_minutes'] = 0
    BELOW[f'training.{_name}.held_out'] = 1
    AT_MOST |= {f'training.{_name}.length': 2**20, f'training.{_name}.lora': 2**16}
CHOICES: dict[str, tuple[str, ...]] = {
    'policy.dtype': ('', 'float32', 'bfloat16'),
    'policy.weights': ('', 'int8'),
    'search.prompt': ('sft', 'few_shot'),
    'search.strategy': ('mcts', 'puct', 'beam', 'dvts'),
    'search.failed_steps': ('again', 'once'),
    'search.examples': ('fixed', 'shuffled'),
    'search.answers_kept': ('first', 'all'),
    'job.leases': ('counter', 'static', 'ray'),
    'eval.prompt': ('', 'sft', 'few_shot'),
    'execution.isolation': ('auto', 'strict', 'weak', 'none'),
    'curate.final_step_pairs': ('steps', 'trajectories', 'problem'),
    'curate.rounds': ('own', 'all'),
    'curate.choice': ('best', 'right', 'any'),
}

for _name in TRAININGS:
    CHOICES |= {
        f'training.{_name}.schedule': ('linear', 'cosine'),
        f'training.{_name}.keep': ('last', 'best'),
        f'training.{_name}.dtype': ('', 'float32', 'bfloat16'),
        f'training.{_name}.moments': ('float32', 'bfloat16'),
        f'training.{_name}.attention': ('auto', 'loop'),
    }
for _name in ('bootstrap', 'sft'):
    CHOICES[f'training.{_name}.marks'] = ('tokens', 'text')
    AT_LEAST |= {f'training.{_name}.{key}': 0 for key in ('marks_rate', 'form')}
    AT_MOST[f'training.{_name}.form'] = 1
CHOICES['training.ppm.loss'] = ('pairwise', 'orm', 'pqm', 'prm')
CHOICES['training.ppm.squash'] = ('tanh', 'tanh5')
CHOICES['training.ppm.head'] = ('random', 'fitted')
AT_LEAST |= {'training.ppm.dropout': 0, 'training.ppm.center': 0}

for _table in (AT_LEAST, ABOVE, AT_MOST, CHOICES):
    _table |= {
        f'eval.{_key}': _table[f'search.{_key}']
        for _key in EVAL_SEARCH
        if f'search.{_key}' in _table
    }

_LIMITS = (
    ('at least', operator.ge, AT_LEAST),
    ('more than', operator.gt, ABOVE),
    ('at most', operator.le, AT_MOST),
    ('less than', operator.lt, BELOW),
)


def check(key: str, value: Any, shown: str = '') -> None:
    """Raises UserError where a setting cannot have a value.

    key: 'search.rollouts'; one without bounds may be anything. shown: what it is called in the
    error, by default its flag.
    """
    shown = f'{shown or f"--config.{key}"}={value}'
    for words, holds, limits in _LIMITS:
        if key in limits and not holds(value, limits[key]):
            raise UserError(f'{shown}: needs {words} {limits[key]:.10g}')
    if isinstance(value, int) and value > AT_MOST.get(key, MOST):
        raise UserError(f'{shown}: needs at most {MOST}')
    if key in CHOICES and value not in CHOICES[key]:
        choices = ', '.join(choice or 'nothing' for choice in CHOICES[key])
        raise UserError(f'{shown}: needs one of {choices}')
