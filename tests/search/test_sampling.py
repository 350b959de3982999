"""Sampling: shares of tokens, and which tokens may be drawn at all."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import qmc

from rstar_jax import parallel
from rstar_jax.search.config import Config
from rstar_jax.search.engine import devices, sampling

ROWS, VOCAB = 3, 256
LOGITS = jnp.asarray(2 * np.random.default_rng(0).standard_normal((ROWS, VOCAB)), jnp.float32)


def draws(logits, u, settings) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and shares [N,R] of logits f32[R,V] for each of f32[N,COINS] u."""
    draw = jax.jit(jax.vmap(sampling.sample, in_axes=(None, 0, None)))
    u = np.broadcast_to(u[:, None], (len(u), len(logits), sampling.COINS))
    return tuple(map(np.asarray, draw(logits.T, jnp.asarray(u, jnp.float32), settings)))


def shares(**settings) -> tuple[np.ndarray, np.ndarray]:
    """How often each token is drawn when u runs evenly over the cube, and the shares told."""
    u = qmc.Sobol(sampling.COINS, seed=0).random_base2(15)
    tokens, share = draws(LOGITS, u, sampling.Settings.of(Config(**settings)))
    counts, told = np.zeros((2, ROWS, VOCAB))
    for row in range(ROWS):
        counts[row] = np.bincount(tokens[:, row], minlength=VOCAB) / len(tokens)
        told[row, tokens[:, row]] = share[:, row]
    return counts, told


def expected(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0) -> np.ndarray:
    """The same shares by transformers' own processors."""
    torch = pytest.importorskip('torch')
    from transformers.generation import logits_process as processors

    scores = torch.tensor(np.array(LOGITS)) / temperature
    if top_k:
        scores = processors.TopKLogitsWarper(top_k)(None, scores)
    if top_p < 1:
        scores = processors.TopPLogitsWarper(top_p)(None, scores)
    if min_p:
        scores = processors.MinPLogitsWarper(min_p)(None, scores)
    return torch.softmax(scores, dim=-1).numpy()


@pytest.mark.parametrize(
    'settings',
    [
        {},
        {'temperature': 0.7},
        {'top_k': 5},
        {'top_p': 0.8},
        {'min_p': 0.1},
        {'temperature': 1.3, 'top_k': 40, 'top_p': 0.9, 'min_p': 0.05},
    ],
    ids=str,
)
def test_shares_are_those_of_transformers(settings):
    (found, told), right = shares(**settings), expected(**settings)
    np.testing.assert_allclose(found, right, atol=1.1e-3)
    assert (found[right == 0] == 0).all()
    np.testing.assert_allclose(told[told > 0], right[told > 0], rtol=1e-5)


def test_rounding_changes_hardly_more_tokens_than_it_must():
    """No sampler can do better than the distance of the two distributions (total variation)."""
    random = np.random.default_rng(1)
    logits = (3 * random.standard_normal((1, 4096))).astype(np.float32)
    rounded = logits + np.float32(1e-3) * random.standard_normal(logits.shape, np.float32)
    u = random.random((1 << 14, sampling.COINS), np.float32)
    settings = sampling.Settings.of(Config())
    differ = draws(logits, u, settings)[0] != draws(rounded, u, settings)[0]
    distance = 0.5 * np.abs(np.asarray(jax.nn.softmax(logits) - jax.nn.softmax(rounded))).sum()
    assert 0 < differ.mean() < 4 * distance


def test_without_temperature_the_likeliest_token_is_taken():
    u = np.full((1, sampling.COINS), 0.9)
    tokens, _ = draws(LOGITS, u, sampling.Settings.of(Config(temperature=0.0)))
    np.testing.assert_array_equal(tokens[0], np.argmax(LOGITS, axis=-1))


def test_what_a_process_has_set_changes_no_draw():
    """Neither its default generator nor how that is split over devices."""
    keys = np.arange(10, dtype=np.uint32).reshape(5, 2)
    positions = np.arange(5)
    expected = np.asarray(sampling.uniforms(keys, positions))
    with jax.threefry_partitionable(False), jax.default_prng_impl('rbg'):
        np.testing.assert_array_equal(sampling.uniforms(keys, positions), expected)


def test_products_of_float32_are_pinned():
    mesh = parallel.local_mesh(devices=jax.devices()[:1])

    def lowered(dtype, precision):
        x = jnp.ones((4, 4), dtype)
        with jax.default_matmul_precision(precision):
            return devices.mapped(_square, mesh).lower(x).as_text()

    assert 'HIGHEST' in lowered('float32', 'bfloat16')
    assert 'HIGHEST' not in lowered('bfloat16', 'default')


def _square(x):
    return x @ x
