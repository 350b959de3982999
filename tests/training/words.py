"""A policy of a few words, examples for it, and settings under which it learns quickly."""

import json

import jax
import jax.numpy as jnp
import numpy as np

from rstar_jax import models, steps, training
from rstar_jax.models import decoder as decoders
from rstar_jax.models import tiny

WORDS = [3 * chr(ord('a') + i) for i in range(24)]  # one token each


def policy() -> models.Policy:
    tokenizer = tiny.tokenizer([steps.prompt(' '.join(WORDS)), ' '.join(WORDS)])
    config = models.Config(
        family='qwen2',
        vocab_size=-(-len(tokenizer) // 8) * 8,
        embed_dim=32,
        mlp_dim=64,
        num_layers=1,
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        qkv_bias=True,
        tie_embeddings=True,
    )
    # At 0.02 so narrow a model does next to nothing, and takes long to begin to learn.
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda p: jnp.asarray(rng.normal(p.ndim == 1, 0.15, p.shape), p.dtype),
        decoders.abstract_params(config),
    )
    return models.Policy(config, tokenizer, params)


def sft_examples(count=12):
    rng = np.random.default_rng(0)
    return [
        {
            'query': ' '.join(rng.choice(WORDS, 3)),
            'response': f'<code>\n{" ".join(rng.choice(WORDS, rng.integers(4, 12)))}<end_of_code>',
        }
        for _ in range(count)
    ]


def pair_examples(problems=40):
    """A step with the word bbb is right, one with ccc wrong, wherever it stands."""
    rng = np.random.default_rng(1)
    pairs = []
    for _ in range(problems):
        prompt = steps.prompt(' '.join(rng.choice(WORDS[3:], 4))) + '<code>\n'
        for _ in range(2):
            sides = {}
            for side, word in (('pos', 'bbb'), ('neg', 'ccc')):
                words = [*rng.choice(WORDS[3:], 4), word]
                sides[side] = '# ' + ' '.join(rng.permutation(words)) + '<end_of_step>'
            pairs.append({'prompt': prompt, **sides, 'pos_count': 1, 'neg_count': 2})
    return pairs


def trajectory_examples():
    """Of each problem a right and a wrong trajectory: they part behind their first step."""
    pairs = pair_examples()
    found = []
    for first, last in zip(pairs[::2], pairs[1::2]):
        for side, value in (('pos', 1.0), ('neg', -1.0)):
            found.append(
                {
                    'query': first['prompt'].split('\n')[1],
                    'steps': ['<code>\n', first[side], last[side]],
                    'values': [0.0, value / 2, value],
                    'labels': [True, value > 0, value > 0],
                    'correct': value > 0,
                }
            )
    return found


def sft_settings(**changes):
    shape = dict(epochs=2, batch_size=4, length=128, learning_rate=1e-2, held_out=0.0, form=0.0)
    return training.settings('sft', {'dtype': 'float32'} | shape | changes)


def ppm_settings(**changes):
    shape = dict(epochs=3, batch_size=16, length=96, learning_rate=3e-3)
    return training.settings('ppm', {'dtype': 'float32'} | shape | changes)


class Killed(Exception):
    pass


def killed_at(step):
    def progress(numbers):
        # Within the step, before its update.
        if numbers.get('step') == step and not {'grad_norm', 'held_out_loss'} & numbers.keys():
            raise Killed

    return progress


def same(a, b):
    return all(
        np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def close(a, b, tolerance):
    scale = max(np.abs(x).max() for x in jax.tree.leaves(b))
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=tolerance * scale)


def log_of(folder):
    return [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]
