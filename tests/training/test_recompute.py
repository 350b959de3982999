"""What a training keeps of the forward pass; the results are compared with the losses' tests."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rstar_jax import models, parallel, training
from rstar_jax.models import decoder as decoders
from rstar_jax.training import layers, losses, recompute, step

SHAPE = models.Config('qwen2', 61, 64, 512, 8, 4, 2, 16, qkv_bias=True)
SETTINGS = types.SimpleNamespace(dropout=0.0, squash='tanh', attention='auto', center=0.0)
ROWS, LENGTH = 8, 64
NAMES = ('tokens', 'positions', 'end', 'targets', 'weights')


@pytest.fixture
def optimiser():
    """The compiler's own: it is what would undo the recomputation."""
    jax.config.update('jax_disable_most_optimizations', False)
    yield
    jax.config.update('jax_disable_most_optimizations', True)


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_recomputed_layers_take_little_memory(dtype, optimiser, monkeypatch):
    batch = {
        name: jax.ShapeDtypeStruct((ROWS, LENGTH), jnp.float32 if name == 'weights' else jnp.int32)
        for name in NAMES
    }

    def compiled(room, shape=SHAPE):
        """Bytes beside the arguments, and the work, of which a loop's body counts once."""
        params = jax.eval_shape(layers.stack, decoders.abstract_params(shape))

        @jax.jit
        @jax.grad
        def loss(params, batch):
            return losses.sft(shape, layers.cast(params, dtype), batch, None, SETTINGS)[0]

        with recompute.room(room):
            made = loss.lower(params, batch).compile()
        return made.memory_analysis().temp_size_in_bytes, made.cost_analysis()['flops']

    parts, parts_work = compiled(2**30)
    half = SHAPE.replace(num_layers=SHAPE.num_layers // 2)
    kept = [recompute.kept_bytes(shape, ROWS, LENGTH, dtype) for shape in (SHAPE, half)]
    assert kept[0] - kept[1] == pytest.approx(parts - compiled(2**30, half)[0], rel=0.01)
    whole, whole_work = compiled(0)
    everything_kept = jax.checkpoint_policies.everything_saveable
    monkeypatch.setattr(recompute, 'policy', lambda *_: everything_kept)
    everything, work = compiled(0)
    assert parts < 0.5 * everything and whole < 0.5 * parts
    # No product is computed again.
    assert parts_work < 1.01 * work < 0.9 * whole_work


def test_a_training_takes_half_of_what_its_device_has_left():
    mesh, settings = parallel.one_device(), training.settings('sft', {'dtype': 'float32'})
    params = decoders.init_params(SHAPE, jax.random.key(0))
    held = 4 * sum(x.nbytes for x in jax.tree.leaves(params))  # moments and gradients too
    need = recompute.kept_bytes(SHAPE, ROWS, LENGTH, 'float32')
    batch = {
        name: np.zeros((ROWS, LENGTH), np.float32 if name == 'weights' else np.int32)
        for name in NAMES
    }

    def most(memory):
        compiled = step.Compiled(SHAPE, settings, 'sft', mesh, 4, memory_bytes=memory)
        return compiled.prepare(compiled.init(params), [('accumulate', batch)])

    assert most(held + 2 * need - 10_000) < most(held + 2 * need + 10_000) - need // 2
