"""Attention by the splash kernel, which JAX interprets here, against the loop over blocks."""

import collections
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rstar_jax import models, parallel, training
from rstar_jax.models import decoder as decoders
from rstar_jax.plan import compiled_training
from rstar_jax.training import attention, block_attention, layers, losses, splash

BLOCK, LENGTH = 128, 300  # three blocks, the last with padding
# Where segments of a row end, and of another row a prefix and each of its two continuations.
SEGMENTS, TREE = (100, 256, 290), (50, 140, 250)
CONFIG = models.Config('qwen2', 61, 32, 48, 1, 4, 2, 8, qkv_bias=True)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(splash, 'BLOCK', BLOCK)


def rows():
    """end, positions i32[2, LENGTH]."""
    end, positions = np.zeros((2, 2, LENGTH), np.int32)
    for start, stop in zip((0, *SEGMENTS), SEGMENTS):
        end[0, start:stop], positions[0, start:stop] = stop, np.arange(stop - start)
    shared, first, second = TREE
    end[1, :shared], positions[1, :shared] = second, np.arange(shared)
    for start, stop in ((shared, first), (first, second)):
        end[1, start:stop] = stop
        positions[1, start:stop] = shared + np.arange(stop - start)
    return jnp.asarray(end), jnp.asarray(positions)


def close(found, expected, tolerance):
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, atol=tolerance * float(jnp.max(jnp.abs(y))))


def test_the_kernel_gives_what_the_loop_gives_with_gradients():
    end, positions = rows()
    rng = np.random.default_rng(0)
    q, mixed = jnp.asarray(rng.normal(size=(2, 2, LENGTH, 4, 16)), jnp.float32)
    k, v = jnp.asarray(rng.normal(size=(2, 2, LENGTH, 2, 16)), jnp.float32)
    real = (end > 0)[..., None, None]

    def by(packed):
        def read(qkv, window):
            out, _ = packed(end, positions)(*qkv, None, window)
            assert out.shape == mixed.shape and out.dtype == mixed.dtype
            return jnp.where(real, out, 0)

        def both(qkv, window):
            out, back = jax.vjp(lambda qkv: read(qkv, window), qkv)
            return out, back(mixed)

        return jax.jit(both)

    ways = {name: by(packed) for name, packed in attention.BY_NAME.items()}
    for window in (block_attention.WHOLE, 40):
        found = {name: way((q, k, v), window) for name, way in ways.items()}
        close(found['splash'], found['loop'], 3e-6)


def test_a_long_sequence_has_blocks_that_need_no_mask():
    end, positions = jnp.full((1, 512), 512), jnp.arange(512)[None]
    assert splash.pairs(end, positions).kind[0].tolist() == [
        [2 * (j < i) + (j == i) for j in range(4)] for i in range(4)
    ]


def test_on_a_mesh_in_a_whole_loss(monkeypatch):
    monkeypatch.setattr(attention, 'chosen', lambda choice, *_: choice)
    end, positions = (x[:, : 2 * BLOCK] for x in rows())
    end = jnp.minimum(end, 2 * BLOCK)
    rng = np.random.default_rng(0)
    batch = {
        'tokens': jnp.asarray(rng.integers(1, 61, end.shape), jnp.int32),
        'positions': positions,
        'end': end,
        'targets': jnp.asarray(rng.integers(1, 61, end.shape), jnp.int32),
        'weights': jnp.asarray((end > 0) * rng.random(end.shape), jnp.float32),
    }
    params = jax.tree.map(
        lambda p: jnp.asarray(rng.normal(p.ndim == 1, 0.1, p.shape), p.dtype),
        decoders.abstract_params(CONFIG),
    )
    params = layers.stack(params)
    mesh = parallel.global_mesh(fsdp=2, tensor=2, devices=jax.devices()[:4])

    def with_gradients(choice):
        settings = types.SimpleNamespace(attention=choice)
        loss = functools.partial(losses.sft, CONFIG, batch=batch, key=None, settings=settings)
        with jax.set_mesh(mesh):
            return jax.jit(jax.value_and_grad(lambda p: loss(p)[0]))(params)

    close(with_gradients('splash'), with_gradients('loop'), 2e-5)


def test_products_of_the_kernel_are_those_that_are_planned(monkeypatch):
    end, positions = rows()
    shapes = [jax.ShapeDtypeStruct((2, LENGTH, heads, 16), jnp.float32) for heads in (4, 2, 2)]

    def read(*qkv):
        return jnp.sum(splash.packed(end, positions)(*qkv)[0])

    # Of a pair of blocks: forwards, and backwards by queries and by keys.
    made = products(jax.make_jaxpr(jax.grad(read, (0, 1, 2)))(*shapes).jaxpr)
    assert made == {'fwd': 2, 'dq': 3, 'dkv': 4}
    monkeypatch.setattr(attention, 'chosen', lambda choice, *_: choice)
    settings, computed = training.settings('sft', {'dtype': 'bfloat16'}), {}
    for settings.attention in ('splash', 'loop'):
        found = compiled_training.products(CONFIG, settings, 'sft', 2, 1024)
        _, computed[settings.attention] = found
    one = 2 * 2 * compiled_training.scored_pairs(CONFIG, 1024) * CONFIG.num_heads * CONFIG.head_dim
    assert computed['splash'] - computed['loop'] == (sum(made.values()) - 7) * one


def products(jaxpr, kernel='') -> dict[str, int]:
    """Products in each kernel, by the kernel's part."""
    counts = collections.Counter()
    for equation in jaxpr.eqns:
        if equation.primitive.name == 'pallas_call':
            kernel = equation.params['name'].split('_')[2]
        if equation.primitive.name == 'dot_general' and kernel:
            counts[kernel] += 1
        for value in jax.tree.leaves(equation.params):
            inner = getattr(value, 'jaxpr', value)
            if hasattr(inner, 'eqns'):
                counts += products(inner, kernel)
    return counts


@pytest.mark.parametrize(
    'changed, name',
    [
        ({}, 'splash'),
        ({'choice': 'loop'}, 'loop'),
        ({'length': BLOCK}, 'loop'),
        ({'dtype': jnp.dtype('float32')}, 'loop'),
        ({'config': CONFIG.replace(num_kv_heads=1)}, 'loop'),  # on two devices
        ({'platform': 'gpu'}, 'loop'),
        ({'platform': 'cpu'}, 'loop'),
    ],
)
def test_where_the_kernel_is_chosen(monkeypatch, changed, name):
    asked = {'platform': 'tpu', 'choice': 'auto', 'config': CONFIG, 'length': BLOCK + 2}
    asked |= {'dtype': jnp.dtype('bfloat16')} | changed
    platform = asked.pop('platform')
    monkeypatch.setattr(parallel, 'platform', lambda: platform)
    with jax.set_mesh(parallel.global_mesh(tensor=2)):
        assert attention.chosen(**asked) == name
