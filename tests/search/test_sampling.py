"""Sampling: shares of tokens, and which tokens may be drawn at all."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rstar_jax.search import sampling
from rstar_jax.search.config import Config

ROWS, VOCAB = 3, 256
LOGITS = jnp.asarray(2 * np.random.default_rng(0).standard_normal((ROWS, VOCAB)), jnp.float32)


def shares(**settings) -> np.ndarray:
    """How often each token is drawn when u runs evenly over [0, 1)."""
    draw = jax.jit(sampling.sample)
    chosen = sampling.Settings.of(Config(**settings))
    counts, told = np.zeros((2, ROWS, VOCAB))
    for u in (np.arange(2000) + 0.5) / 2000:
        tokens, share = draw(LOGITS, jnp.full((ROWS,), u, jnp.float32), chosen)
        counts[np.arange(ROWS), np.asarray(tokens)] += 1
        told[np.arange(ROWS), np.asarray(tokens)] = share
    counts /= 2000
    np.testing.assert_allclose(told[counts > 0], counts[counts > 0], atol=1.1e-3)
    return counts


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
    found, right = shares(**settings), expected(**settings)
    np.testing.assert_allclose(found, right, atol=1.1e-3)
    assert (found[right == 0] == 0).all()


def test_without_temperature_the_likeliest_token_is_taken():
    tokens, _ = sampling.sample(
        LOGITS, jnp.full((ROWS,), 0.9, jnp.float32), sampling.Settings.of(Config(temperature=0.0))
    )
    np.testing.assert_array_equal(tokens, np.argmax(LOGITS, axis=-1))
