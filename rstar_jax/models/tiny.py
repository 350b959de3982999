"""A tiny model made on the spot: Qwen2's architecture, random weights, a tokenizer of its own.

With it the whole pipeline runs with no download. The tokenizer is Qwen2's byte-level BPE, so any
text survives encoding and decoding; its merges are computed from a few texts until each of their
words is one token, so they are the same each time for the same texts.
"""

import collections
import itertools
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rstar_jax import steps
from rstar_jax.models import decoder
from rstar_jax.models.config import Config
from rstar_jax.models.policy import Policy

EOS = '<|endoftext|>'
# Standard deviation of new weights. For 128 dimensions 0.06 learns in half the steps of the usual
# 0.02, and leaves embeddings that no text has trained different enough to be told apart.
SPREAD = 0.06
ROWS = 64  # the vocabulary is padded to a multiple of this


def policy(texts: Iterable[str], seed: int = 0, **shape: Any) -> Policy:
    """Makes an untrained policy of about 0.8 million parameters (float32, 3 layers of 128).

    Args:
      texts: hold the words that shall be one token each, as `data.arithmetic.vocabulary()`.
      seed: of the weights.
      **shape: fields of models.Config to be changed.
    """
    words = tokenizer(texts)
    eos = words.convert_tokens_to_ids(EOS)
    fields = {
        'vocab_size': -(-len(words) // ROWS) * ROWS,
        'embed_dim': 128,
        'mlp_dim': 512,
        'num_layers': 3,
        'num_heads': 4,
        'num_kv_heads': 2,
        'head_dim': 32,
        'tie_embeddings': True,
        'qkv_bias': True,
        'eos_ids': (eos,),
        'pad_id': eos,
    }
    config = Config(family='qwen2', **(fields | shape))
    return Policy(config, words, _weights(config, seed))


def _weights(config: Config, seed: int) -> dict[str, Any]:
    """Random weights, drawn by NumPy: there is nothing to compile."""
    random = np.random.default_rng(seed)

    def draw(path, leaf):
        if path[-1].key == 'bias':
            return jnp.zeros(leaf.shape)
        if len(leaf.shape) == 1:
            return jnp.ones(leaf.shape)
        return jnp.asarray(SPREAD * random.standard_normal(leaf.shape, np.float32))

    return jax.tree_util.tree_map_with_path(draw, decoder.abstract_params(config))


def tokenizer(texts: Iterable[str]) -> Any:
    """Returns a transformers.Qwen2Tokenizer whose words are those of `texts`.

    All of `steps.SFT_TOKENS` are special tokens of it.
    """
    from transformers import Qwen2Tokenizer

    split = Qwen2Tokenizer().backend_tokenizer.pre_tokenizer.pre_tokenize_str
    counts: collections.Counter[str] = collections.Counter()
    for text in texts:
        for mark in steps.SFT_TOKENS:
            text = text.replace(mark, '\0')
        for part in text.split('\0'):
            counts.update(word for word, _ in split(part))
    alphabet, merges = _merges(counts)
    vocabulary = {token: i for i, token in enumerate([*alphabet, *(a + b for a, b in merges)])}
    made = Qwen2Tokenizer(vocab=vocabulary, merges=merges, eos_token=EOS, pad_token=EOS)
    made.add_special_tokens({'additional_special_tokens': list(steps.SFT_TOKENS)})
    return made


def _merges(counts: Mapping[str, int]) -> tuple[list[str], list[tuple[str, str]]]:
    """Byte-pair merges until every word is one token: the commonest pair first, ties by text."""
    from tokenizers import pre_tokenizers

    pieces = {word: tuple(word) for word in counts}
    merges: list[tuple[str, str]] = []
    while True:
        pairs: collections.Counter[tuple[str, str]] = collections.Counter()
        for word, split in pieces.items():
            for pair in itertools.pairwise(split):
                pairs[pair] += counts[word]
        if not pairs:
            return sorted(pre_tokenizers.ByteLevel.alphabet()), merges
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        pieces = {word: _join(split, best) for word, split in pieces.items()}


def _join(split: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    joined, i = [], 0
    while i < len(split):
        if split[i : i + 2] == pair:
            joined.append(split[i] + split[i + 1])
            i += 2
        else:
            joined.append(split[i])
            i += 1
    return tuple(joined)
