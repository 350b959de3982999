"""Solves one question by search and prints the solution step by step.

    python -m rstar_jax.main --config=experiments/solve.py \\
        --config.policy.path=runs/gsm8k_mini/round1/policy \\
        --config.ppm.path=runs/gsm8k_mini/round1/ppm --config.question='What is 17 * 23 - 4?'

Hardware: anything that holds the models.
Time: not measured yet.
Score: not measured. Searched is less than by experiments/evaluate.py: 1 tree in place of 8, of 8
candidates in place of 32, at temperature 0.7 in place of 1. The answer told is its `best`; without
a PPM, of `unguided`, its `majority`. Its settings:
--config.search.trees=8 --config.search.candidates=32 --config.search.temperature=1.

A model that was not trained on the step form needs --config.search.prompt=few_shot.
"""

from ml_collections import ConfigDict

from rstar_jax import settings


def get_config() -> ConfigDict:
    config = settings.default()
    config.policy.path = ''
    config.question = 'A farmer has 17 sheep. All but 9 run away. How many are left?'
    config.search.rollouts = 4
    config.search.candidates = 8
    config.search.temperature = 0.7
    return config
