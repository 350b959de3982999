"""The work that a training's share of the peak is taken of, against the compiler's count."""

import jax
import numpy as np
import pytest

from rstar_jax import models, parallel, training
from rstar_jax.models import decoder as decoders
from rstar_jax.training import flops, packing, step
from rstar_jax.training.corpus import Encoded
from rstar_jax.training.examples import PAIR_FIELDS, SFT_FIELDS

SHAPE = models.Config('llama', 512, 128, 384, 2, 4, 2, 32, tie_embeddings=True)
# Products weigh more there; the compiler counts a loop's body, a layer, once.
WIDE = SHAPE.replace(embed_dim=256, mlp_dim=768, num_layers=1)
TOKENS = 128  # one full row, one chunk of logits: no padding, and loops of one round


def batch_of(loss):
    """A micro batch of one row without padding, as the trainer makes it -> (Micros, settings)."""
    changes = {'length': TOKENS, 'micro_batch': 1, 'seed': 0}
    settings = training.settings('ppm' if loss == 'pairwise' else 'sft', changes)
    tokens = np.random.default_rng(0).integers(1, 256, TOKENS).astype(np.int32)
    if loss == 'sft':
        encoded = Encoded(SFT_FIELDS, TOKENS)
        weights = np.ones(TOKENS, np.float32)
        weights[: TOKENS // 2] = 0
        field = {'targets': tokens, 'weights': weights, 'mark': np.zeros_like(tokens)}
        encoded.add('', packing.Example((tokens,), (0,), (field,)))
    else:
        encoded = Encoded(PAIR_FIELDS, TOKENS, TOKENS)
        sides = tokens[:96], np.concatenate([tokens[:64], tokens[96:]])
        pairs, weights = np.array([[0, 1]], np.int32), np.ones(1, np.float32)
        encoded.add('', packing.Example(sides, (64, 64), (), pairs, weights))
    return packing.Micros(encoded, [0], settings, parallel.one_device()), settings


def counted(loss, rank):
    """(our count, the compiler's) of one micro batch's gradients."""
    micros, settings = batch_of(loss)
    settings.lora = rank
    mesh = parallel.one_device()
    compiled = step.Compiled(WIDE, settings, loss, mesh, 1)
    params = decoders.init_params(WIDE, jax.random.key(0))
    if loss != 'sft':
        params = models.init_ppm(models.Policy(WIDE, None, params)).params
    params = compiled.init(params)['params']
    seen = []
    compiled.lower = _noting(compiled.lower, seen)
    compiled.accumulate(compiled.zeros(params), params, micros.batches[0], 1.0, (0, 0))
    ours = flops.work(WIDE, loss, rank).of_batch(micros.batches[0])
    return micros, ours, seen[0].compile().cost_analysis()['flops']


def _noting(lower, seen):
    def noted(*args):
        seen.append(lower(*args))
        return seen[-1]

    return noted


@pytest.mark.parametrize('loss', ['sft', 'pairwise'])
@pytest.mark.parametrize('rank', [0, 4])
def test_work_is_what_the_compiler_counts(loss, rank):
    micros, ours, theirs = counted(loss, rank)
    assert micros.tokens == micros.places == TOKENS
    # Beside: what attention masks, norms, softmax, gradients added up.
    assert ours < theirs < 1.35 * ours


def test_work_by_hand():
    dense = 2 * (128 * (128 + 64 + 64 + 128) + 3 * 128 * 384)
    factors = 4 * 2 * (2 * (128 + 128) + 2 * (128 + 64) + 3 * (128 + 384))
    table = 512 * 128
    attention = 3 * 2 * 2 * 128, (None, None)
    assert flops.work(SHAPE, 'sft') == flops.Work(6 * dense, 6 * table, *attention)
    assert flops.work(SHAPE.replace(tie_embeddings=False), 'sft') == flops.work(SHAPE, 'sft')
    assert flops.work(SHAPE, 'prm') == flops.Work(6 * dense, 0, *attention)
    assert flops.work(SHAPE, 'sft', 4) == flops.Work(4 * dense + 6 * factors, 4 * table, *attention)
    # Seen in the layers: 1 + 2 + 5 and, of three at most, 1 + 2 + 3.
    assert flops.Work(5, 3, 10, (None, 3)).of(np.array([0, 1, 4]), 2) == 3 * 5 + 2 * 3 + 14 * 10


@pytest.mark.parametrize('loss', ['sft', 'pairwise'])
def test_what_is_seen_is_what_rows_show(loss):
    batch = batch_of(loss)[0].batches[0]
    (end,), places = batch['end'], np.arange(TOKENS)
    shown = (places <= places[:, None]) & (places[:, None] < end)
    pairs = flops.work(SHAPE.replace(embed_dim=0, mlp_dim=0, vocab_size=0), 'sft').of_batch(batch)
    assert pairs == 2 * shown.sum() * 12 * 128


def test_shares_of_shared_prefixes():
    micros, _ = batch_of('pairwise')
    assert micros.alone == 96 + 96 and micros.tokens == 64 + 32 + 32
