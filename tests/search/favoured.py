"""A tiny policy of random weights that often writes what opens branches of every kind."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from rstar_jax import models
from rstar_jax.models import tiny

TOKENS = ['<end_of_step>', '<end_of_code>', '1', ' 1', '\n', 'print(1)', '<end_of_answer>']


def policy(**how: float) -> models.Policy:
    """The policy; how: as of `favour`."""
    return favour(tiny.policy(['print(1)\n x = 1 + 2 \\boxed{3} apples Tom'], num_layers=2), **how)


def favour(
    policy: models.Policy, scale: float = 4, least: float = 0.5, most: float = 1.5
) -> models.Policy:
    """Embeddings `scale` times as large, those of TOKENS moved by `least` to `most` one way."""
    rows = [policy.tokenizer.encode(t, add_special_tokens=False)[0] for t in TOKENS]
    weight = np.array(policy.params['embed']['weight']) * scale
    weight[rows] += np.linspace(least, most, weight.shape[1]) * np.sign(weight[rows[0]])
    return with_embedding(policy, weight)


def with_embedding(policy: models.Policy, weight: np.ndarray) -> models.Policy:
    """The policy with another table of embeddings."""
    params = {**policy.params, 'embed': {'weight': jnp.asarray(weight)}}
    return dataclasses.replace(policy, params=params)
