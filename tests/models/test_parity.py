"""Every family against transformers (torch, float32) on tiny random models."""

import importlib
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from rstar_jax import models
from rstar_jax.models import attention

sys.path.insert(0, str(pathlib.Path(__file__).parent))
tiny_torch = importlib.import_module('tiny_torch')

TOLERANCE = 1e-5


@pytest.fixture(scope='module', params=tiny_torch.CONFIGS)
def pair(request, tmp_path_factory):
    """(torch model, our policy read from its files)."""
    folder = tmp_path_factory.mktemp(request.param)
    tiny_torch.save(request.param, folder)
    return tiny_torch.model(request.param), models.load(folder, 'float32')


def close(ours, expected):
    ours, expected = np.asarray(ours), np.asarray(expected)
    assert ours.shape == expected.shape
    assert np.abs(ours - expected).max() <= TOLERANCE * np.abs(expected).max()


def texts(batch=2, length=40):
    return np.random.default_rng(0).integers(3, 259, (batch, length))


def test_every_layer_and_the_logits(pair):
    reference, policy = pair
    tokens = texts()
    with torch.no_grad():
        expected = reference(torch.tensor(tokens), output_hidden_states=True)

    @jax.jit
    def forward(params, tokens):
        outputs = []
        network = models.decoder.bind(policy.config, params)
        positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        hidden, _ = network(tokens, positions, attention.whole_texts(), each_layer=outputs.append)
        return [*outputs[:-1], hidden], network.head(hidden)

    layers, logits = forward(policy.params, tokens)
    # transformers lists the embedding first, and the last layer after the final norm.
    for ours, theirs in zip(layers, expected.hidden_states[1:], strict=True):
        close(ours, theirs)
    close(logits, expected.logits)


def test_greedy_text_of_64_tokens(pair):
    reference, policy = pair
    prompt = texts(batch=1, length=20)
    with torch.no_grad():
        expected = reference.generate(
            torch.tensor(prompt), max_new_tokens=64, do_sample=False, use_cache=False
        )
    tokens = jnp.zeros((1, 84), jnp.int32).at[:, :20].set(prompt)

    @jax.jit
    def greedy(params, tokens):
        def write(length, tokens):
            row = models.Policy(policy.config, None, params).logits(tokens, length[None])
            return tokens.at[0, length].set(jnp.argmax(row[0, length - 1]))

        return jax.lax.fori_loop(20, 84, write, tokens)

    tokens = greedy(policy.params, tokens)
    assert tokens[0].tolist() == expected[0].tolist()


@pytest.mark.parametrize('squash', ['tanh', 'tanh5'])
def test_ppm_scores(squash):
    reference = tiny_torch.model('qwen2')
    policy = _policy_of(reference)
    ppm = models.init_ppm(policy, seed=3, squash=squash)
    head = ppm.params['value_head']
    head['weight'] = jax.random.normal(jax.random.key(0), head['weight'].shape)
    tokens, lengths = texts(batch=3), np.array([40, 1, 17])
    with torch.no_grad():
        hidden = reference.model(torch.tensor(tokens)).last_hidden_state
        last = hidden[torch.arange(3), torch.tensor(lengths) - 1]
        linear = torch.nn.Linear(36, 1)
        linear.weight.copy_(torch.tensor(np.asarray(head['weight'])))
        linear.bias.copy_(torch.tensor(np.asarray(head['bias'])))
        raw = linear(last)[:, 0]
        expected = torch.tanh(raw if squash == 'tanh' else raw / 5)
    scores = np.asarray(ppm.scores(tokens, lengths))
    assert np.abs(scores - expected.numpy()).max() < 1e-5
    assert np.abs(scores).max() <= 1


def _policy_of(reference):
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        reference.save_pretrained(folder)
        tiny_torch.tokenizer().save_pretrained(folder)
        return models.load(folder, 'float32')
