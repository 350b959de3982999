"""Bytes of a model's arrays, counted from its shape: those that a training makes."""

import jax
import pytest

from rstar_jax import models, parallel, training
from rstar_jax.training import step
from rstar_jax.training.memory import held

SHAPE = models.Config('qwen2', 320, 64, 96, 2, 8, 2, 8, qkv_bias=True)


@pytest.mark.parametrize('lora', [0, 4])
@pytest.mark.parametrize('moments', ['float32', 'bfloat16'])
@pytest.mark.parametrize('kind', ['sft', 'ppm'])
def test_what_is_counted_is_what_a_training_holds(kind, moments, lora):
    settings = training.settings(kind, {'lora': lora, 'moments': moments, 'dtype': 'bfloat16'})
    params = models.decoder.init_params(SHAPE, jax.random.key(0))
    loss = 'sft'
    if kind == 'ppm':
        params = models.init_ppm(models.Policy(SHAPE, None, params)).params
        loss = settings.loss
    compiled = step.Compiled(SHAPE, settings, loss, parallel.one_device(), 9)
    counted = held(SHAPE, 'bfloat16', settings, headless=kind == 'ppm')
    real = compiled.held(compiled.init(params))
    # Besides there are a PPM's value head, counters, and of LoRA what tells rows of new tokens.
    assert 0 <= real - counted.weights - counted.moments < 12 * (SHAPE.embed_dim + 9)
    assert counted.least < counted.most or lora


def test_a_search_holds_the_weights_alone():
    params = models.decoder.init_params(SHAPE, jax.random.key(0))
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert held(SHAPE, 'bfloat16').most == held(SHAPE, 'bfloat16').least == 2 * size
