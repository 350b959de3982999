"""The decoder against itself: padding, leading axes, dtypes, windows, shapes without arrays."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rstar_jax import models
from rstar_jax.models import attention, decoder, rope

PLAIN = models.Config('llama', 97, 36, 50, 2, 6, 3, 6, tie_embeddings=True)
FULL = models.Config(
    'qwen3',
    97,
    36,
    50,
    2,
    4,
    4,
    10,
    qkv_bias=True,
    output_bias=True,
    qk_norm=True,
    windows=(4, None),
)
VARIANTS = {'plain': PLAIN, 'full': FULL}


@pytest.fixture(params=VARIANTS)
def config(request):
    return VARIANTS[request.param]


@functools.cache
def params_of(config):
    return _random(config)


@functools.partial(jax.jit, static_argnums=0)
def _random(config):
    params = models.decoder.init_params(config, jax.random.key(0))
    # Norms and biases that are all 1 or 0 would hide a mistake in them.
    keys = iter(jax.random.split(jax.random.key(1), 100))
    return jax.tree.map(
        lambda x: x + 0.1 * jax.random.normal(next(keys), x.shape) if x.ndim == 1 else 4 * x, params
    )


@functools.partial(jax.jit, static_argnums=0)
def run(config, params, tokens, positions):
    network = models.decoder.bind(config, params)
    hidden, _ = network(tokens, positions, attention.whole_texts())
    return network.head(hidden)


def texts(batch=3, length=11):
    tokens = jax.random.randint(jax.random.key(2), (batch, length), 0, 97)
    return tokens, jnp.broadcast_to(jnp.arange(length), tokens.shape)


def close(ours, expected, tolerance=1e-5):
    ours, expected = np.asarray(ours), np.asarray(expected)
    assert np.abs(ours - expected).max() <= tolerance * np.abs(expected).max()


def test_padding_makes_no_difference(config):
    params = params_of(config)
    tokens, positions = texts()
    policy = models.Policy(config, None, params)
    lengths = np.array([11, 5, 8])
    right = policy.logits(tokens, lengths)
    for row, length in enumerate(lengths):
        text = tokens[row, :length]
        alone = run(config, params, text[None], positions[:1, :length])[0]
        close(right[row, :length], alone)


def test_any_leading_axes(config):
    params = params_of(config)
    tokens, positions = texts(batch=6)
    flat = run(config, params, tokens, positions)
    shape = (2, 3, 11)
    nested = run(config, params, tokens.reshape(shape), positions.reshape(shape))
    close(nested.reshape(flat.shape), flat)
    single = run(config, params, tokens[0], positions[0])
    close(single, flat[0])


def test_bfloat16_keeps_its_dtype_and_float32_logits(config):
    params = params_of(config)
    tokens, positions = texts()
    exact = run(config, params, tokens, positions)
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    hidden, _ = models.decoder.bind(config, half)(tokens, positions, attention.whole_texts())
    assert hidden.dtype == jnp.bfloat16
    logits = run(config, half, tokens, positions)
    assert logits.dtype == jnp.float32
    error = np.sqrt(np.mean((logits - exact) ** 2) / np.mean(exact**2))
    assert error < 0.05, error  # 8 bits of mantissa through 3 layers


@pytest.mark.parametrize('rows', [1, 3, 9])
def test_products_of_few_rows_in_bfloat16(rows):
    keys = jax.random.split(jax.random.key(0), 2)
    x = jax.random.normal(keys[0], (rows, 1, 40), jnp.bfloat16)
    weight = jax.random.normal(keys[1], (24, 40), jnp.bfloat16)
    wide = jnp.einsum('rti,oi->rto', x.astype(jnp.float32), weight.astype(jnp.float32))
    ours = models.decoder.matmul(x, weight)
    assert ours.dtype == jnp.float32
    close(ours, wide)
    product = jax.grad(lambda w: models.decoder.matmul(x, w).sum())(weight)
    close(product, jnp.broadcast_to(x.astype(jnp.float32).sum((0, 1)), weight.shape), 0.01)


def test_a_window_hides_what_is_further_back():
    q = k = v = jax.random.normal(jax.random.key(0), (1, 9, 2, 4))
    seen = attention.causal(q, k, v, window=3)
    for row in range(9):
        keys = slice(max(0, row - 2), row + 1)
        one = slice(row, row + 1)
        mask = jnp.ones((1, 1, min(3, row + 1)), bool)
        close(seen[:, one], attention.attention(q[:, one], k[:, keys], v[:, keys], mask))


def test_layers_that_are_alike_are_traced_once():
    seen = []

    def attend(q, k, v, cache, window=None):
        seen.append(window)
        return attention.causal(q, k, v, window=window), jnp.abs(k).sum() + cache

    config = dataclasses.replace(FULL, num_layers=5, windows=(4, None, 4, 4, None))
    params = params_of(config)
    tokens, positions = texts()
    network = models.decoder.bind(config, params)
    outputs = []
    hidden, caches = network(
        tokens, positions, attend, list(np.arange(5.0)), each_layer=outputs.append
    )
    assert seen == [4, None]
    # And yet each is computed from its own parameters and cache.
    x = decoder.looked_up(params['embed']['weight'], tokens)
    cos, sin = rope.angles(config, positions, None)
    for index, (output, cache) in enumerate(zip(outputs, caches, strict=True)):
        layer = decoder.bind_layer(config, params['layers'][str(index)])
        full = functools.partial(attend, window=config.window(index))
        x, expected = layer(x, cos, sin, full, float(index))
        close(output, x)
        close(cache, expected)
    close(hidden, network.norm(x))


def test_traced_from_shapes_alone():
    config = FULL
    shapes = models.decoder.abstract_params(config, jnp.bfloat16)
    tokens = jax.ShapeDtypeStruct((2, 5), jnp.int32)

    def forward(params, tokens):
        return run(config, params, tokens, jnp.broadcast_to(jnp.arange(5), (2, 5)))

    out = jax.eval_shape(forward, shapes, tokens)
    assert out.shape == (2, 5, 97) and out.dtype == jnp.float32


def test_config_survives_json():
    import json

    config = FULL.replace(
        rope=models.Rope(kind='longrope', short=(1.0, 1.1, 1.3), long=(2.0, 2.5, 3.0), original=8)
    )
    again = models.Config.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config and hash(again) == hash(config)


def test_a_loop_that_looks_tokens_up_makes_no_second_table():
    """In float32, XLA's way on CPUs, it would be twice as large as the bfloat16 one."""
    table = jax.ShapeDtypeStruct((20_000, 64), jnp.bfloat16)

    def last_sums(table, tokens):
        def body(_, tokens):
            rows = decoder.looked_up(table, tokens).astype(jnp.float32)
            return (tokens + jnp.sum(rows, axis=1).astype(jnp.int32)) % len(table)

        return jax.lax.fori_loop(0, 8, body, tokens)

    compiled = jax.jit(last_sums).lower(table, jax.ShapeDtypeStruct((8,), jnp.int32)).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < table.size


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_what_is_looked_up_are_rows_of_the_table(dtype):
    table = jax.random.normal(jax.random.key(0), (11, 4), dtype)
    tokens = jnp.array([[3, 0], [10, 12]])
    rows = jax.jit(decoder.looked_up)(table, tokens)
    assert rows.dtype == dtype
    np.testing.assert_array_equal(rows, np.asarray(table)[[[3, 0], [10, 10]]])
