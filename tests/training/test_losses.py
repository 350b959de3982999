"""Losses against plain references, and packed rows against sequences run one by one."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from rstar_jax import models, parallel
from rstar_jax.models import attention as plain
from rstar_jax.models import decoder as decoders
from rstar_jax.models import heads
from rstar_jax.plan import collectives, compiled_training
from rstar_jax.training import block_attention, flops, layers, losses, packing, recompute
from rstar_jax.training.step import Compiled
from tests.training import words

SETTINGS = types.SimpleNamespace(dropout=0.0, squash='tanh', attention='auto', center=0.0)


def config(**changes):
    values = {
        'family': 'qwen2',
        'vocab_size': 61,
        'embed_dim': 32,
        'mlp_dim': 48,
        'num_layers': 1,
        'num_heads': 4,
        'num_kv_heads': 2,
        'head_dim': 8,
        'qkv_bias': True,
        'tie_embeddings': True,
    }
    return models.Config(**values | changes)


def params_of(shape, seed=0):
    """Made by numpy, which compiles nothing; large, so that every token matters to every other."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda p: jnp.asarray(rng.normal(p.ndim == 1, 0.1, p.shape), p.dtype),
        decoders.abstract_params(shape),
    )


def ppm_params(shape, seed=0):
    weight = np.random.default_rng(9).normal(size=(1, shape.embed_dim)).astype(np.float32)
    head = {'weight': jnp.asarray(weight), 'bias': jnp.asarray([0.3], jnp.float32)}
    return {'decoder': params_of(shape, seed), 'value_head': head}


def plain_hidden(shape, params, sequences):
    """Hidden states f32[n, S, D] of sequences, each in a row of its own, by plain attention."""
    padded = np.zeros((len(sequences), max(map(len, sequences))), np.int32)
    for row, sequence in zip(padded, sequences):
        row[: len(sequence)] = sequence  # what follows a token is not seen by it
    positions = jnp.broadcast_to(jnp.arange(padded.shape[1]), padded.shape)
    return decoders.bind(shape, params)(padded, positions, plain.whole_texts())[0]


def packed(examples, fields, length=96, rows=1):
    """All examples as one micro batch of rows that are filled in turn."""
    items = packing.merge(examples, length)
    members = [list(range(row, len(items), rows)) for row in range(rows)]
    batch = packing.fill(packing.Micro(rows, length, members), items, fields)
    return {name: jnp.asarray(value) for name, value in batch.items()}


def random_sequences(count, seed=0, low=5, high=14):
    rng = np.random.default_rng(seed)
    return [rng.integers(1, 61, rng.integers(low, high)).astype(np.int32) for _ in range(count)]


def sft_example(tokens, prompt):
    targets, weights = np.zeros_like(tokens), np.zeros(len(tokens), np.float32)
    targets[prompt - 1 : -1], weights[prompt - 1 : -1] = tokens[prompt:], 1
    return packing.Example((tokens,), (prompt - 1,), ({'targets': targets, 'weights': weights},))


SFT_FIELDS = {'targets': np.int32, 'weights': np.float32}


@pytest.mark.parametrize('chunk', [4, 24, 512])
def test_cross_entropy_equals_torch_with_gradients(monkeypatch, chunk):
    monkeypatch.setattr(losses, 'CHUNK_TOKENS', chunk)
    rng = np.random.default_rng(0)
    hidden, head = rng.normal(size=(2, 11, 8)), rng.normal(size=(37, 8))
    targets = rng.integers(0, 37, (2, 11))
    weights = (rng.random((2, 11)) < [[0.8], [0.2]]) * rng.random((2, 11))
    h, w = (torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (hidden, head))
    each = torch.nn.functional.cross_entropy(
        (h @ w.T).reshape(-1, 37), torch.tensor(targets).reshape(-1), reduction='none'
    )
    expected = 3 * (each * torch.tensor(weights).reshape(-1)).sum()
    expected.backward()
    arrays = [jnp.asarray(x, jnp.float32) for x in (hidden, head)]
    weights = jnp.asarray(weights, jnp.float32)
    targets = jnp.asarray(targets)

    def function(h, w):
        return 3 * losses.cross_entropy(h, w, targets, weights)

    value, gradients = jax.jit(jax.value_and_grad(function, (0, 1)))(*arrays)
    assert float(value) == pytest.approx(float(expected.detach()), rel=1e-5)
    assert float(function(*arrays)) == pytest.approx(float(value), rel=1e-6)
    words.close(gradients, [jnp.asarray(h.grad.numpy()), jnp.asarray(w.grad.numpy())], 1e-6)


@pytest.mark.parametrize('frozen', [False, True])
@pytest.mark.parametrize('tensor', [1, 2])
def test_a_vocabulary_that_the_devices_do_not_divide_is_cut_over_them(monkeypatch, tensor, frozen):
    """For a chunk of logits they do not exchange gradients of the whole table."""
    monkeypatch.setattr(losses, 'CHUNK_TOKENS', 1)
    rng, mesh = np.random.default_rng(0), parallel.global_mesh(tensor=tensor)
    hidden, table, new = (rng.normal(size=(*n, 32)) for n in ((8, 19), (1001,), (3,)))
    targets, weights = rng.integers(990, 1001, (8, 19)), rng.random((8, 19))
    cut = [(('data', 'fsdp'),), (None, 'fsdp'), (None, 'fsdp'), (), ()]
    places = [jax.NamedSharding(mesh, jax.P(*axes)) for axes in cut]
    given = [np.float32(hidden), np.float32(table), np.float32(new), targets, np.float32(weights)]

    def loss(hidden, table, new, targets, weights):
        new = (np.array([0, 998, 1000]), new) if frozen else None
        return losses.cross_entropy(hidden, table, targets, weights, new)

    function = jax.value_and_grad(loss, (0, 2 if frozen else 1))
    with jax.set_mesh(mesh):
        placed = list(map(jax.device_put, given, places))
        jitted = jax.jit(function, out_shardings=(None, tuple(places[:2])))
        program = jitted.lower(*placed).compile()
    words.close(program(*placed), jax.jit(function)(*given), 1e-6)
    text = program.as_text()
    once, twice = (collectives.exchanged(text, trips) for trips in (1, 2))
    chunk = sum(part.bytes - once[kind].bytes for kind, part in twice.items())
    assert 0 < chunk < given[1].nbytes / 8


@pytest.mark.parametrize('tied, kept', [(True, 2**40), (False, 0)])
def test_packed_sft_equals_sequences_one_by_one(tied, kept):
    shape = config(tie_embeddings=tied, num_layers=2)
    params = params_of(shape)
    sequences = random_sequences(6)
    # Two answers to one question share its prompt.
    sequences[1] = np.concatenate([sequences[0][:3], sequences[1]])
    sequences += [np.concatenate([np.arange(1, 21), s]).astype(np.int32) for s in sequences[:2]]
    prompts = [3, 3, 4, 2, 3, 1, 20, 20]
    examples = [sft_example(s, p) for s, p in zip(sequences, prompts)]
    batch = packed(examples, SFT_FIELDS, rows=2)
    assert int((batch['end'] > 0).sum()) < sum(map(len, sequences))

    def reference(params):
        total = 0.0
        hidden = plain_hidden(shape, params, sequences)
        chances = jax.nn.log_softmax(decoders.bind(shape, params).head(hidden))
        for row, sequence, prompt in zip(chances, sequences, prompts):
            places = jnp.arange(prompt - 1, len(sequence) - 1)
            total -= jnp.sum(row[places, sequence[prompt:]])
        return total

    def function(params):
        return losses.sft(shape, layers.stack(params), batch, None, SETTINGS)[0]

    with recompute.room(kept):
        value, gradients = jax.jit(jax.value_and_grad(function))(params)
    expected, expected_gradients = jax.jit(jax.value_and_grad(reference))(params)
    assert float(value) == pytest.approx(float(expected), rel=1e-5)
    words.close(gradients, expected_gradients, 2e-5)


def pair_examples(seed=0):
    rng = np.random.default_rng(seed)
    examples = []
    for _ in range(3):
        prefix = rng.integers(1, 61, 18)
        sides = [np.append(prefix, rng.integers(1, 61, n)).astype(np.int32) for n in (4, 7, 3, 5)]
        examples.append(
            packing.Example(
                tuple(sides),
                tuple(map(len, sides)),
                pairs=np.array([[0, 2], [0, 3], [1, 2], [1, 3]], np.int32),
                pair_weights=np.full(4, 0.25, np.float32),
                count=4,
            )
        )
    return examples


@pytest.mark.parametrize('squash, center', [('tanh', 0.0), ('tanh5', 0.0), ('tanh', 0.3)])
def test_packed_pairs_with_shared_prefixes_equal_plain_ones(squash, center):
    shape = config()
    params = ppm_params(shape)
    examples = pair_examples()
    batch = packed(examples, {}, rows=2)
    computed = int((batch['end'] > 0).sum())
    assert computed == 3 * (18 + 4 + 7 + 3 + 5)
    assert sum(example.alone for example in examples) == 3 * (8 * 18 + 2 * (4 + 7 + 3 + 5))

    def rewards(params):
        sequences = [sequence for example in examples for sequence in example.sequences]
        hidden = plain_hidden(shape, params['decoder'], sequences)
        last = hidden[jnp.arange(len(sequences)), jnp.array([len(s) - 1 for s in sequences])]
        raw = last @ params['value_head']['weight'][0] + params['value_head']['bias'][0]
        return raw.reshape(len(examples), -1)

    def reference(params, center=center):
        total = 0.0
        for raw, example in zip(rewards(params), examples):
            r = jnp.tanh(raw) if squash == 'tanh' else raw
            for (i, j), weight in zip(example.pairs, example.pair_weights):
                total -= weight * jnp.log(1 / (1 + jnp.exp(r[j] - r[i])))
                total += weight * center * (raw[i] + raw[j]) ** 2
        return total

    settings = types.SimpleNamespace(dropout=0.0, squash=squash, attention='auto', center=center)

    def function(params, seed=0):
        key = None if seed is None else jax.random.key(seed)
        return losses.pairwise(shape, layers.stack(params), batch, key, settings)

    measure = jax.jit(lambda params: function(params, None))
    blank = {name: jnp.zeros_like(value) for name, value in params['value_head'].items()}
    _, even = measure({**params, 'value_head': blank})  # which puts nothing above anything
    assert (even['accuracy'], even['pairs_right'], even['pairs']) == (0, 0, 12)
    measured, _ = measure(params)
    assert float(measured) == pytest.approx(float(reference(params, 0.0)), rel=1e-5)

    (value, metrics), gradients = jax.jit(jax.value_and_grad(function, has_aux=True))(params)
    expected, expected_gradients = jax.jit(jax.value_and_grad(reference))(params)
    assert float(value) == pytest.approx(float(expected), rel=1e-5)
    words.close(gradients, expected_gradients, 2e-5)
    assert int(metrics['pairs']) == 12
    values = np.asarray(jax.jit(rewards)(params))
    right = sum(r[i] > r[j] for r, example in zip(values, examples) for i, j in example.pairs)
    assert int(metrics['pairs_right']) == right
    assert float(metrics['accuracy']) == pytest.approx(right / 4)
    trained = np.tanh(values) if squash == 'tanh' else values
    used = np.tanh(values if squash == 'tanh' else values / 5)
    index = np.concatenate([example.pairs + 4 * k for k, example in enumerate(examples)])
    better, worse = trained.ravel()[index].T
    assert float(metrics['margin']) == pytest.approx((better - worse).sum() / 4, rel=1e-4)
    assert float(metrics['level']) == pytest.approx(used.ravel()[index].mean() * 3, rel=1e-4)


@pytest.mark.parametrize('squash', ['tanh', 'tanh5'])
@pytest.mark.parametrize('name', ['orm', 'prm', 'pqm'])
def test_losses_of_values_equal_torch_with_gradients(name, squash):
    """Against what their definitions say of the value in use, in float64."""
    shape = config()
    params = ppm_params(shape)
    params['value_head']['weight'] *= 0.3
    sequences = random_sequences(4, seed=3)
    rng = np.random.default_rng(4)
    function = jax.jit(lambda decoder: plain_hidden(shape, decoder, sequences))
    hidden, decoder_gradients = jax.vjp(function, params['decoder'])
    torch_of = functools.partial(torch.tensor, dtype=torch.float64, requires_grad=True)
    states = torch_of(np.asarray(hidden))
    head = {name: torch_of(np.asarray(value)) for name, value in params['value_head'].items()}
    examples, expected, right = [], 0, 0
    for row, sequence in zip(states, sequences):
        places = [len(sequence) - 1] if name == 'orm' else [3, len(sequence) - 1]
        size = len(places)
        learnt = rng.uniform(-1, 1, size) if name == 'pqm' else rng.integers(0, 2, size)
        targets, weights = np.zeros((2, len(sequence)), np.float32)
        targets[places], weights[places] = learnt, 1
        field = {'targets': targets, 'weights': weights}
        examples.append(packing.Example((sequence,), (places[0],), (field,)))
        raw = row[places] @ head['weight'][0] + head['bias'][0]
        value = torch.tanh(raw if squash == 'tanh' else raw / 5)
        target = torch.tensor(targets[places], dtype=torch.float64)
        if name == 'pqm':
            expected += ((value - target) ** 2).sum()
        else:
            loss = torch.nn.functional.binary_cross_entropy
            expected += loss((1 + value) / 2, target, reduction='sum')
            right += int(((value > 0) == (target == 1)).sum())
    expected.backward()
    gradients = {
        'decoder': decoder_gradients(jnp.asarray(states.grad.numpy(), jnp.float32))[0],
        'value_head': {name: jnp.asarray(value.grad.numpy()) for name, value in head.items()},
    }
    batch = packed(examples, {'targets': np.float32, 'weights': np.float32}, rows=2)
    settings = types.SimpleNamespace(dropout=0.0, squash=squash, attention='auto')

    def ours(params):
        return losses.BY_NAME[name](shape, layers.stack(params), batch, None, settings)

    (value, metrics), found = jax.jit(jax.value_and_grad(ours, has_aux=True))(params)
    assert float(value) == pytest.approx(float(expected.detach()), rel=1e-5)
    words.close(found, gradients, 1e-5)
    assert metrics == ({} if name == 'pqm' else {'accuracy': right})


def test_dropout_acts_in_training_only_and_keeps_the_mean():
    shape = config()
    params = ppm_params(shape)
    batch = packed(pair_examples(), {}, rows=2)
    settings = types.SimpleNamespace(dropout=0.5, squash='tanh5', attention='auto', center=0.0)
    hidden = np.random.default_rng(0).normal(size=(2, 8, 32)).astype(np.float32)

    params = layers.stack(params)
    function = jax.jit(lambda key: losses.pairwise(shape, params, batch, key, settings)[0])

    def value(key):
        return float(function(key))

    assert value(None) == value(None)
    # Each side drops entries of its own: of a pair of the same text, too.
    same = {**batch, 'rejected': batch['chosen']}
    found = losses.pairwise(shape, params, same, jax.random.key(0), settings)[1]
    assert float(found['margin']) != 0
    assert value(jax.random.key(0)) == value(jax.random.key(0)) != value(jax.random.key(1))
    values = jax.vmap(lambda key: heads.value(params['value_head'], hidden, dropout=0.5, key=key))(
        jax.random.split(jax.random.key(0), 400)
    )
    spread = np.std(values, axis=0) / np.sqrt(400)
    plain_values = np.asarray(heads.value(params['value_head'], hidden))
    assert np.all(np.abs(np.mean(values, axis=0) - plain_values) < 5 * spread + 1e-6)


@pytest.mark.parametrize('window', [None, 5])
def test_blocks_of_queries_equal_plain_attention(monkeypatch, window):
    monkeypatch.setattr(block_attention, 'BLOCKS', {'cpu': 8})
    examples = pair_examples()[:2]
    batch = packed(examples, {}, length=80)
    length = 80
    rng = np.random.default_rng(0)
    q = jnp.asarray(rng.normal(size=(1, length, 4, 8)), jnp.float32)
    k, v = jnp.asarray(rng.normal(size=(2, 1, length, 2, 8)), jnp.float32)
    keyed = {} if window is None else {'window': window}
    attend = block_attention.packed(batch['end'], batch['positions'])
    out, _ = jax.jit(functools.partial(attend, **keyed))(q, k, v)
    reference = jax.jit(functools.partial(plain.causal, window=window))
    start = 0
    for _, laid in packing.merge(examples, length):
        for places in laid.places:
            # Padded to one compiled size; what follows a token is not seen.
            at = np.pad(places + start, (0, 32 - len(places)))
            expected = reference(q[0, at], k[0, at], v[0, at])
            np.testing.assert_allclose(
                out[0, at][: len(places)], expected[: len(places)], atol=2e-6
            )
        start += len(laid.tokens)


@pytest.mark.parametrize('window, length', [(None, 75), (5, 80)])
def test_gradients_of_blocks_are_those_of_plain_attention(monkeypatch, window, length):
    monkeypatch.setattr(block_attention, 'BLOCKS', {'cpu': 8})
    batch = packed(pair_examples()[:2], {}, length=80)
    end, positions = (batch[name][:, :length] for name in ('end', 'positions'))
    end = jnp.minimum(end, length)
    rng = np.random.default_rng(0)
    q, mixed = jnp.asarray(rng.normal(size=(2, 1, length, 4, 8)), jnp.float32)
    k, v = jnp.asarray(rng.normal(size=(2, 1, length, 2, 8)), jnp.float32)
    here, there = jnp.arange(length)[:, None], jnp.arange(length)
    seen = (there <= here) & (here < end[:, None, :])
    if window:
        seen &= positions[:, None, :] > positions[:, :, None] - window
    real = (end > 0)[..., None, None]

    def ours(*qkv):
        out, _ = block_attention.packed(end, positions)(*qkv, None, window)
        assert out.shape == mixed.shape
        return jnp.sum(out * mixed)

    def reference(*qkv):
        return jnp.sum(jnp.where(real, plain.attention(*qkv, seen), 0) * mixed)

    found, expected = (
        jax.jit(jax.value_and_grad(f, (0, 1, 2)))(q, k, v) for f in (ours, reference)
    )
    words.close(found, expected, 2e-6)


@pytest.mark.parametrize('window', [None, 1, 2, 9, 10, 79])
def test_blocks_beyond_the_window_are_left_out(monkeypatch, window):
    monkeypatch.setattr(block_attention, 'BLOCKS', {'cpu': 8})
    text = np.arange(80).reshape(10, 1, 8)
    end, here = np.full_like(text, 80), np.arange(80)
    seen = here <= here[:, None]
    if window:
        seen &= here > here[:, None] - window
    needed = seen.reshape(10, 8, 10, 8).any(axis=(1, 3))
    count, *blocks = block_attention.pairs(end, text, window or block_attention.WHOLE)
    assert [x[:count].tolist() for x in blocks] == [x.tolist() for x in np.nonzero(needed)]
    shape = config(windows=(window,) * 3, num_layers=3)
    assert flops.work(shape, 'sft').seen(here) == 3 * seen.sum()
    assert compiled_training.scored_pairs(shape, 80) == 3 * needed.sum() * 64


def test_a_text_gives_the_same_beside_longer_ones():
    """With longrope, whose factors a row's longest text would choose for all in it."""
    rope = models.Rope('longrope', short=(1.0,) * 4, long=(4.0,) * 4, original=64)
    shape = config(family='phi3', qkv_bias=False, rope=rope, max_length=256)
    rng = np.random.default_rng(0)
    settings = words.sft_settings()
    compiled = Compiled(shape, settings, 'sft', parallel.one_device(), 1)
    params = layers.stack(params_of(shape))

    def loss(*texts):
        fields = {'targets': np.int32, 'weights': np.float32}
        items = [
            (
                packing.Example(
                    (text,),
                    (0,),
                    ({'targets': text, 'weights': np.ones(len(text), np.float32)},),
                ),
                packing.layout([text], [0]),
            )
            for text in texts
        ]
        micro = packing.Micro(1, 128, [list(range(len(items)))])
        return float(compiled.evaluate(params, packing.fill(micro, items, fields))['loss'])

    short, long = (rng.integers(0, 61, n).astype(np.int32) for n in (20, 100))
    assert loss(short, long) == pytest.approx(loss(short) + loss(long), rel=1e-5)
