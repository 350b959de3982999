"""Rates: how they fall, and those of new tokens' rows."""

import jax.numpy as jnp
import numpy as np
import pytest

from rstar_jax import training
from rstar_jax.training import optimiser


@pytest.mark.parametrize(
    ('schedule', 'expected'),
    [('linear', [1, 0.75, 0.5, 0.25, 0]), ('cosine', [1, 0.853553, 0.5, 0.146447, 0])],
)
def test_rates_fall_from_the_first_step_to_nothing(schedule, expected):
    settings = training.settings('sft', {'learning_rate': 0.01, 'schedule': schedule})
    settings.update({'grad_clip': 0.0, 'weight_decay': 0.0})
    made = optimiser.optimiser(settings, 4)
    params = {'norm': jnp.ones(3)}
    state, moved = made.init(params), []
    for _ in range(5):
        updates, state = made.update({'norm': jnp.ones(3)}, state, params, frozen={})
        moved.append(-float(updates['norm'][0]))
    assert moved == pytest.approx([0.01 * share for share in expected], rel=1e-4, abs=1e-7)


def test_new_rows_beside_a_frozen_table_learn_at_a_share_of_its_size():
    settings = training.settings('sft', {'learning_rate': 0.01, 'marks_rate': 0.05, 'lora': 4})
    settings.update({'grad_clip': 0.0, 'weight_decay': 0.0})
    made = optimiser.optimiser(settings, 10, [3, 5])
    params = {'embed': {'new': jnp.ones((2, 4))}, 'layers': {'lora_a': jnp.ones((1, 4, 6))}}
    frozen = {'embed': {'rms': jnp.float32(2.0)}}
    updates, _ = made.update(params, made.init(params), params, frozen=frozen)
    np.testing.assert_allclose(updates['embed']['new'], -0.05 * 2.0, rtol=1e-4)
    np.testing.assert_allclose(updates['layers']['lora_a'], -0.01, rtol=1e-4)
