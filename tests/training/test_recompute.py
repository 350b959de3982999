"""What a training keeps of the forward pass; the results are compared with the losses' tests."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rstar_jax import models, training
from rstar_jax.models import decoder as decoders
from rstar_jax.training import checkpoints, losses, recompute, step

SHAPE = models.Config('qwen2', 61, 64, 512, 8, 4, 2, 16, qkv_bias=True)
SETTINGS = types.SimpleNamespace(dropout=0.0, squash='tanh')
ROWS, LENGTH = 8, 64
NAMES = ('tokens', 'positions', 'end', 'targets', 'weights')


@pytest.fixture
def optimiser():
    """The compiler's own: it is what would undo the recomputation."""
    jax.config.update('jax_disable_most_optimizations', False)
    yield
    jax.config.update('jax_disable_most_optimizations', True)


def test_recomputed_layers_take_little_memory(optimiser, monkeypatch):
    params = decoders.abstract_params(SHAPE)
    batch = {
        name: jax.ShapeDtypeStruct((ROWS, LENGTH), jnp.float32 if name == 'weights' else jnp.int32)
        for name in NAMES
    }

    def compiled(room):
        """Bytes beside the arguments, and the work."""
        loss = jax.jit(jax.grad(lambda p, b: losses.sft(SHAPE, p, b, None, SETTINGS)[0]))
        with recompute.room(room):
            made = loss.lower(params, batch).compile()
        return made.memory_analysis().temp_size_in_bytes, made.cost_analysis()['flops']

    parts, parts_work = compiled(2**30)
    whole, whole_work = compiled(0)
    monkeypatch.setattr(recompute, 'layers_of', lambda decoder, *_: decoder)
    everything, work = compiled(0)
    assert parts < 0.5 * everything and whole < 0.5 * parts
    assert recompute.kept_bytes(SHAPE, ROWS, LENGTH, 4) == pytest.approx(parts, rel=0.2)
    # No product is computed again but those of the attention's weights.
    assert parts_work < 1.1 * work < whole_work


def test_a_training_takes_half_of_what_its_device_has_left():
    mesh, settings = checkpoints.one_device(), training.default_sft()
    settings.dtype = 'float32'
    params = decoders.init_params(SHAPE, jax.random.key(0))
    held = 4 * sum(x.nbytes for x in jax.tree.leaves(params))  # moments and gradients too
    need = recompute.kept_bytes(SHAPE, ROWS, LENGTH, 4)
    batch = {
        name: np.zeros((ROWS, LENGTH), np.float32 if name == 'weights' else np.int32)
        for name in NAMES
    }

    def most(memory):
        compiled = step.Compiled(SHAPE, settings, 'sft', mesh, 4, memory=memory)
        return compiled.prepare(compiled.init(params), [('accumulate', batch)])

    assert most(held + 2 * need - 10_000) < most(held + 2 * need + 10_000) - need // 2
