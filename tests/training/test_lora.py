"""LoRA against full training's gradients, on disk, over meshes, and against PEFT."""

import json
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from rstar_jax import models, parallel, training
from rstar_jax.models import decoder as decoders
from rstar_jax.models import weights
from rstar_jax.parallel import global_mesh
from rstar_jax.settings.errors import UserError
from rstar_jax.training import checkpoints, examples, layers, lora, losses, packing, recompute, step
from rstar_jax.training.memory import merging
from tests.models import tiny_torch
from tests.training.words import Killed, killed_at, same

RANK = 3
MARKS = ['<code>', '<end_of_step>']
QWEN = {'family': 'qwen2', 'qkv_bias': True, 'tie_embeddings': True}
LLAMA = {'family': 'llama', 'qkv_bias': False, 'tie_embeddings': False}
PHI = LLAMA | {'family': 'phi3'}
SETTINGS = types.SimpleNamespace(dropout=0.0, squash='tanh', attention='auto', center=0.0)


def make_policy(rows=304, **changes):
    """Random and of no two equal sizes; a tokenizer of bytes, without marks."""
    values = {
        'vocab_size': rows,
        'embed_dim': 32,
        'mlp_dim': 56,
        'num_layers': 1,
        'num_heads': 4,
        'num_kv_heads': 2,
        'head_dim': 12,
        'eos_ids': (2,),
        'pad_id': 0,
    }
    config = models.Config(**values | QWEN | changes)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda p: jnp.asarray(rng.normal(p.ndim == 1, 0.15, p.shape), p.dtype),
        decoders.abstract_params(config),
    )
    return models.Policy(config, tiny_torch.tokenizer(), params)


def drawn(params, rows=(), seed=1):
    """(frozen, trained) of `params` as after some training: B and new rows have moved."""
    frozen, trained = lora.split(params, RANK, rows, 0)
    rng = np.random.default_rng(seed)
    moved = jax.tree.map(lambda p: jnp.asarray(rng.normal(p, 0.1), jnp.float32), trained)
    return jax.tree.map(jnp.asarray, frozen), moved


def merged(frozen, trained):
    return lora.merge(weights.flatten(jax.tree.map(jnp.copy, frozen)), trained)


def sft_data(count=8):
    return [{'query': f'{i}+{i}', 'response': f'<code>{2 * i}<end_of_step>'} for i in range(count)]


def pair_data(count=6):
    return [
        {'prompt': f'{i}', 'pos': f'{i}=b', 'neg': f'{i}=cc', 'pos_count': 1, 'neg_count': 1}
        for i in range(count)
    ]


def encoded_for(loss, tokenizer, length=128):
    if loss == 'sft':
        return examples.sft(sft_data(), tokenizer, length)
    if loss == 'pairwise':
        return examples.pairs(pair_data(), tokenizer, length)
    if loss == 'orm':
        rows = [{'query': f'{i}', 'steps': ['ab'], 'correct': i % 2 == 0} for i in range(6)]
        return examples.outcomes(rows, tokenizer, length)
    rows = [{'query': f'{i}', 'steps': ['ab', 'c'], 'values': [0.5, -0.5]} for i in range(6)]
    return examples.q_values(rows, tokenizer, length)


def settings(loss='sft', **changes):
    shape = {'batch_size': 4, 'length': 128, 'learning_rate': 1e-2, 'lora': RANK, 'held_out': 0.0}
    shape['dtype'] = 'float32'
    kind, own = ('sft', {'form': 0.0}) if loss == 'sft' else ('ppm', {'dropout': 0.0})
    return training.settings(kind, shape | own | changes)


def close(a, b, tolerance=1e-5):
    a, b = np.asarray(a), np.asarray(b)
    np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * np.abs(b).max())


def model_of(loss, changes=None):
    """A policy with new tokens, or a PPM whose head is not next to zero; the new tokens' rows."""
    start = make_policy(**changes or {})
    policy = models.add_tokens(start, MARKS)
    if loss == 'sft':
        return policy, policy.tokenizer.convert_tokens_to_ids(MARKS)
    ppm = models.init_ppm(policy)
    ppm.params['value_head']['weight'] = jnp.ones((1, 32)) / 8
    return ppm, ()


@pytest.mark.parametrize(
    'loss, changes, kept',
    [
        ('sft', QWEN, 2**40),
        ('sft', LLAMA | {'num_layers': 2}, 0),
        ('pairwise', LLAMA, 2**40),
        ('orm', QWEN, 2**40),
        ('pqm', QWEN, 0),
    ],
)
def test_gradients_are_those_of_full_training(loss, changes, kept):
    """Of the loss at W + SCALE B A by W: dB = SCALE dW A^T, dA = SCALE B^T dW, for every layer."""
    model, rows = model_of(loss, changes)
    frozen, trained = drawn(model.params, rows)
    encoded = encoded_for(loss, model.tokenizer)
    mesh = parallel.one_device()
    micros = packing.Micros(encoded, range(len(encoded)), settings(micro_batch=8), mesh)
    (batch,) = micros.batches

    def function(params):
        return losses.BY_NAME[loss](model.config, layers.stack(params), batch, None, SETTINGS)[0]

    full = merged(frozen, trained)
    with recompute.room(kept):
        low = jax.jit(jax.value_and_grad(lambda t: function(lora.joined(frozen, t))))
        value, grads = low(trained)
        expected, dense = jax.jit(jax.value_and_grad(function))(full)
    assert float(value) == pytest.approx(float(expected), rel=1e-5)
    grads, dense, trained = map(weights.flatten, (grads, dense, trained))
    paths = [path for path in dense if lora.DENSE.fullmatch(path)]
    assert len(paths) == 7 * model.config.num_layers
    for path in paths:
        module = path.removesuffix('/weight')
        a, b = trained.pop(f'{module}/lora_a'), trained.pop(f'{module}/lora_b')
        close(grads[f'{module}/lora_a'], lora.SCALE * b.T @ dense[path])
        close(grads[f'{module}/lora_b'], lora.SCALE * dense[path] @ a.T)
    if rows:
        tables = ['embed'] if changes is QWEN else ['embed', 'output']
        assert set(trained) == {f'{table}/new' for table in tables}
    else:
        assert set(trained) == {'value_head/weight', 'value_head/bias'}
    for path in trained:
        table = path.replace('/new', '/weight')
        close(grads[path], dense[table][np.array(rows)] if rows else dense[path])


@pytest.mark.parametrize('kept', [0, 2**40])
def test_no_gradient_of_a_frozen_weight_is_computed(kept):
    policy, rows = model_of('sft', LLAMA)
    frozen, trained = drawn(policy.params, rows)
    whole = merged(frozen, trained)
    names = ('tokens', 'positions', 'end', 'targets', 'weights')
    batch = {
        name: jnp.ones((2, 40), jnp.float32 if name == 'weights' else jnp.int32) for name in names
    }

    def products(params, *rest):
        def function(params, *rest):
            joined = lora.joined(*rest, params) if rest else params
            return losses.sft(policy.config, layers.stack(joined), batch, None, SETTINGS)[0]

        with recompute.room(kept):
            text = jax.jit(jax.grad(function)).lower(params, *rest).compile().as_text()
        shapes = re.findall(r'= f32\[([\d,]+)\]\S* dot\(', text)
        return {tuple(sorted(map(int, shape.split(',')))) for shape in shapes}

    sizes = {tuple(sorted(x.shape)) for x in jax.tree.leaves(frozen) if x.ndim == 2}
    assert len(sizes) == 4  # of q and o, k and v, the MLP, the tables
    assert sizes <= products(whole)
    assert not sizes & products(trained, frozen)


@pytest.mark.parametrize('loss', ['sft', 'pairwise'])
def test_killed_and_resumed_training_ends_with_the_same_bits(tmp_path, loss):
    policy, config = make_policy(), settings(loss, epochs=2, checkpoint_minutes=0)
    run, data = (training.sft, sft_data()) if loss == 'sft' else (training.ppm, pair_data())
    whole, _ = run(policy, data, config, tmp_path / 'whole')
    parts = tmp_path / 'parts'
    with pytest.raises(Killed):
        run(policy, data, config, parts, progress=killed_at(3))
    with checkpoints.States(parts) as states:
        kept = states.restore(3, None)
    assert {path.rpartition('/')[2] for path in weights.flatten(kept['params'])} == (
        {'lora_a', 'lora_b', 'new'} if loss == 'sft' else {'lora_a', 'lora_b', 'weight', 'bias'}
    )
    trained = sum(x.nbytes for x in jax.tree.leaves(kept['params']))
    assert sum(np.asarray(x).nbytes for x in jax.tree.leaves(kept)) == 3 * trained + 4 * 4
    changed = config.copy_and_resolve_references()
    changed.lora = RANK + 1
    with pytest.raises(UserError) as error:
        run(policy, data, changed, parts)
    assert error.value.argument == str(parts)
    resumed, _ = run(policy, data, config, parts)
    assert same(whole.params, resumed.params)
    for name in ('adapter_model.safetensors', 'adapter_config.json'):
        files = [folder / 'adapter' / name for folder in (tmp_path / 'whole', parts)]
        assert files[0].read_bytes() == files[1].read_bytes()
    load = models.load if loss == 'sft' else models.load_ppm
    assert same(load(parts, 'float32').params, whole.params)
    norm = (whole.params if loss == 'sft' else whole.params['decoder'])['norm']
    assert same(norm, policy.params['norm'])


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_state_has_the_bytes_of_what_is_trained(dtype):
    model, rows = model_of('sft', LLAMA)
    config = settings(dtype=dtype)
    compiled = step.Compiled(model.config, config, 'sft', parallel.one_device(), 4, rows)
    state = compiled.init(model.params)
    shapes = [p.shape for path, p in weights.flatten(model.params).items() if 'layers' in path]
    trained = sum(RANK * sum(shape) for shape in shapes if len(shape) == 2)
    trained += 2 * len(MARKS) * 32
    # Weights and two moments in float32; the count of Adam; count, steps and rate of the schedule.
    assert sum(x.nbytes for x in jax.tree.leaves(state)) == 3 * 4 * trained + 4 * 4
    frozen = weights.flatten(compiled.frozen)
    paths = weights.flatten(layers.stack(model.params))
    assert {decoders.of_bits(frozen[path]).dtype for path in paths} == {jnp.dtype(dtype)}
    encoded = encoded_for('sft', model.tokenizer)
    (batch,) = packing.Micros(encoded, range(8), settings(micro_batch=8), compiled.mesh).batches
    value = float(compiled.evaluate(state['params'], batch)['loss'])
    params = layers.stack(model.params)
    expected = jax.jit(lambda p: losses.sft(model.config, p, batch, None, SETTINGS)[0])(params)
    assert value == pytest.approx(float(expected), rel=1e-5 if dtype == 'float32' else 2e-2)


def test_frozen_weights_are_not_widened():
    """A step on few tokens takes less than the frozen weights would in float32."""
    shape = models.Config('qwen2', 512, 128, 512, 6, 2, 1, 64, tie_embeddings=True)
    config = settings(dtype='bfloat16')
    mesh = parallel.one_device()
    compiled = step.Compiled(shape, config, 'sft', mesh, 4, range(2))
    state = compiled.init(decoders.init_params(shape, jax.random.key(0)))
    names = ('tokens', 'positions', 'end', 'targets', 'weights')
    batch = {name: np.zeros((1, 16), 'f4' if name == 'weights' else 'i4') for name in names}
    frozen = sum(x.nbytes for x in jax.tree.leaves(compiled.frozen))
    held = compiled.held(state) + sum(x.nbytes for x in jax.tree.leaves(state['params']))
    assert compiled.prepare(state, [('step', batch)]) < held + frozen


def test_merging_has_no_stack_beside_the_merged_model(monkeypatch):
    shape = models.Config('qwen2', 512, 128, 512, 6, 2, 1, 64, tie_embeddings=True)
    mesh = parallel.one_device()
    compiled = step.Compiled(shape, settings(dtype='bfloat16'), 'sft', mesh, 4)
    state = compiled.init(decoders.init_params(shape, jax.random.key(0)))
    stacks = jax.tree.leaves(compiled.frozen)
    planned = merging(compiled.frozen)
    merge, most = lora.merge, []

    def merge_counted(frozen, trained):
        assert all(x.is_deleted() for x in stacks if x.ndim == 3)
        layer = max(x.nbytes for path, x in frozen.items() if 'layers' in path)
        assert layer * 6 == max(x.nbytes for x in stacks)
        merged = merge(frozen, trained)
        most.append(sum(x.nbytes for x in jax.tree.leaves(merged)))
        return merged

    monkeypatch.setattr(lora, 'merge', merge_counted)
    compiled.whole(state['params'])
    assert most == [planned]


def test_what_cannot_be_merged_in_the_end_is_refused_at_the_start(tmp_path, monkeypatch):
    start = make_policy(num_layers=2)
    frozen = sum(x.nbytes for x in jax.tree.leaves(start.params)) // 2
    monkeypatch.setattr(parallel, 'free_bytes', lambda mesh: frozen - 1000)
    with pytest.raises(UserError) as error:
        training.sft(start, sft_data(), settings(dtype='bfloat16', marks='text'), tmp_path)
    assert 'merged' in error.value.expected
    assert not (tmp_path / 'metrics.jsonl').exists()


def test_a_low_rank_learns_as_all_weights_do_at_ten_times_the_rate(tmp_path):
    found = {}
    for rank, rate in ((0, 1e-3), (16, 1e-2)):
        config = settings(lora=rank, learning_rate=rate, epochs=8, weight_decay=0.0)
        _, metrics = training.sft(make_policy(), sft_data(), config, tmp_path / str(rank))
        found[rank] = metrics['held_out_loss_before'] - metrics['held_out_loss_after']
        assert metrics['held_out_loss_before'] == pytest.approx(5.9, abs=0.5)
    assert found[16] > found[0] > 1


def test_meshes_change_nothing():
    model, rows = model_of('sft', LLAMA)
    encoded = encoded_for('sft', model.tokenizer)
    _, moved = drawn(model.params, rows)
    ended = []
    for mesh in (parallel.one_device(), global_mesh(fsdp=2, tensor=2)):
        config = settings(micro_batch=8, grad_clip=0.0)
        compiled = step.Compiled(model.config, config, 'sft', mesh, 4, rows)
        state = compiled.init(model.params)
        places = jax.tree.map(lambda x: x.sharding, state['params'])
        params = jax.device_put(layers.stack(moved), places)
        (batch,) = packing.Micros(encoded, range(8), config, mesh).batches
        grads, _ = compiled.accumulate(compiled.zeros(params), params, batch, 1 / 8, (0, 0))
        ended.append(jax.tree.map(np.array, (grads, compiled.whole(params))))
    for x, y in zip(*map(jax.tree.leaves, ended), strict=True):
        close(y, x)
    layer = places['layers']
    for block, name, a, b in (
        ('attention', 'q', (None, None, 'fsdp'), (None, 'tensor')),
        ('mlp', 'up', (None, None, 'fsdp'), (None, 'tensor')),
        ('mlp', 'down', (None, None, 'tensor'), (None, 'fsdp')),
    ):
        specs = [tuple(layer[block][name][part].spec) for part in ('lora_a', 'lora_b')]
        assert specs == [a, b]
    assert tuple(places['embed']['new'].spec) == (None, 'fsdp')


def peft_of(base, folder):
    """(transformers' model of `base`, with the adapter in `folder`)."""
    peft = pytest.importorskip('peft')
    models.save(base, folder / 'base')
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder / 'base')
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / 'adapter')
    if theirs.config.vocab_size < len(tokenizer):
        theirs.resize_token_embeddings(len(tokenizer))
    return peft.PeftModel.from_pretrained(theirs, folder / 'adapter').eval()


@pytest.mark.parametrize(
    'changes, rows', [(QWEN, 304), (QWEN, 260), (LLAMA, 260), (PHI, 304)], ids=str
)
def test_merged_export_equals_base_and_adapter_in_peft(tmp_path, changes, rows):
    """rows: 304 has room for the marks, 260 not."""
    start = make_policy(rows, **changes)
    policy = models.add_tokens(start, MARKS)
    new = policy.tokenizer.convert_tokens_to_ids(MARKS)
    frozen, trained = drawn(policy.params, new)
    lora.save(policy, trained, RANK, new, tmp_path / 'adapter')
    written = json.loads((tmp_path / 'adapter' / 'tokenizer_config.json').read_text())
    assert written['additional_special_tokens'] == MARKS  # transformers 4 reads it, too
    theirs = peft_of(start, tmp_path)
    policy.params = merged(frozen, trained)
    models.save(policy, tmp_path / 'merged')
    plain = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / 'merged')
    tokens = torch.tensor([[*range(40, 60), *new, 7]])
    with torch.no_grad():
        found, expected = theirs(tokens).logits, plain(tokens).logits
    assert found.shape == (1, 23, policy.config.vocab_size)
    close(found, expected)
    ours = policy.logits(jnp.asarray(tokens.numpy()), jnp.array([23]))
    close(ours, expected, 2e-5)


def test_a_ppms_adapter_is_on_its_policy(tmp_path):
    policy = make_policy()
    ppm = models.init_ppm(policy)
    frozen, trained = drawn(ppm.params)
    lora.save(ppm, trained, RANK, (), tmp_path / 'adapter')
    ppm.params = merged(frozen, trained)
    theirs = peft_of(policy, tmp_path)
    head = torch.load(tmp_path / 'adapter' / 'value_head.bin')
    tokens = torch.tensor([[50, 60, 70, 80]])
    with torch.no_grad():
        hidden = theirs(tokens, output_hidden_states=True).hidden_states[-1][0, -1]
        raw = hidden @ head['v_head.summary.weight'][0] + head['v_head.summary.bias'][0]
    score = ppm.scores(jnp.asarray(tokens.numpy()), jnp.array([4]))
    assert float(score[0]) == pytest.approx(float(torch.tanh(raw)), rel=1e-4)


def test_the_first_factors_are_those_of_the_seed_and_as_large_as_peft_has_them():
    params = make_policy().params
    first, again, other = (
        weights.flatten(lora.split(params, RANK, (), seed)[1]) for seed in (0, 0, 1)
    )
    for path, a in first.items():
        if path.endswith('lora_b'):
            assert not a.any()
            continue
        assert np.array_equal(a, again[path]) and not np.array_equal(a, other[path])
        assert 0.8 < np.abs(a).max() * a.shape[1] ** 0.5 <= 1
        assert np.abs(a.mean()) < 0.3 * a.shape[1] ** -0.5


def test_a_negative_rank_is_told(tmp_path):
    policy = make_policy()
    for train, data in ((training.sft, sft_data()), (training.ppm, pair_data())):
        with pytest.raises(UserError) as error:
            train(
                policy,
                data,
                settings('sft' if train is training.sft else 'pairwise', lora=-1),
                tmp_path,
            )
        assert error.value.told().startswith('lora')
