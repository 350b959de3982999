"""The same training in plain torch, on transformers' own model: losses, gradients, parameters."""

import copy
import json

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from rstar_jax import models, parallel, steps, training
from rstar_jax.models import weights
from rstar_jax.training import examples, layers, packing, step
from tests.models import tiny_torch

EPOCHS, BATCH, RATE, DECAY, CLIP = 4, 8, 2e-3, 0.1, 2.3


@pytest.fixture
def network(request, tmp_path):
    """(a copy of the tiny torch model of that name, the policy that it is)."""
    tiny_torch.save(request.param, tmp_path / 'start')
    return copy.deepcopy(tiny_torch.model(request.param)), models.load(
        tmp_path / 'start', 'float32'
    )


def read(tensors, network, folder):
    """Tensors by their names in the torch model, as parameters of ours {path: array}."""
    made = copy.deepcopy(network).float()
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            parameter.copy_(tensors[name])
    made.save_pretrained(folder)
    tiny_torch.tokenizer().save_pretrained(folder)
    return weights.flatten(models.load(folder, 'float32').params)


def norm(x):
    return float(np.linalg.norm(np.asarray(x, np.float64)))


def sums(count):
    rng = np.random.default_rng(0)
    for _ in range(count):
        a, b = rng.integers(1, 10 ** rng.integers(1, 6), 2)
        yield {'query': f'{a}+{b}', 'response': f'<code>\nprint({a + b})\n<end_of_code>'}


def torch_sft(network, tokenizer, order):
    """Trains as the paper says, sequence by sequence; returns (loss, norm of gradients) a step."""
    matrices, vectors = ([p for p in network.parameters() if (p.ndim > 1) == m] for m in (1, 0))
    optimiser = torch.optim.AdamW(
        [{'params': matrices, 'weight_decay': DECAY}, {'params': vectors, 'weight_decay': 0.0}],
        lr=RATE,
    )
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.0, len(order))
    log = []
    for batch in order:
        prompts = [tokenizer(steps.prompt(e['query']))['input_ids'] for e in batch]
        answers = [tokenizer(e['response'])['input_ids'] + [tokenizer.eos_token_id] for e in batch]
        learnt = sum(map(len, answers))
        total = 0.0
        for prompt, answer in zip(prompts, answers):
            tokens = torch.tensor([prompt + answer])
            labels = torch.tensor([[-100] * len(prompt) + answer])
            logits = network(tokens).logits[0, :-1]
            loss = torch.nn.functional.cross_entropy(logits, labels[0, 1:], reduction='sum')
            (loss / learnt).backward()
            total += loss.item()
        found = torch.nn.utils.clip_grad_norm_(network.parameters(), CLIP)
        log.append((total / learnt, found.item()))
        optimiser.step()
        schedule.step()
        optimiser.zero_grad()
    return log


@pytest.mark.parametrize('network', ['qwen2_tied_window', 'olmo2', 'smollm3'], indirect=True)
def test_twenty_steps_of_sft_are_those_of_torch(network, tmp_path):
    """The losses to 1e-5; each tensor to 1e-4 of the way that it went (norm by norm)."""
    theirs, policy = network
    data = list(sums(40))
    config = training.settings('sft', dict(
        epochs=EPOCHS, batch_size=BATCH, length=160, micro_batch=1, learning_rate=RATE,
        weight_decay=DECAY, grad_clip=CLIP, dtype='float32', marks='text', held_out=0.0, form=0.0,
    ))  # fmt: skip
    trained, metrics = training.sft(policy, data, config, tmp_path / 'ours')
    log = [json.loads(line) for line in (tmp_path / 'ours' / 'metrics.jsonl').open()]
    assert metrics['steps'] == len(log) == 20 and metrics['dropped'] == 0
    assert all(line['micro_batches'] > 1 for line in log)
    counts = [1] * len(data)
    order = [
        [data[i] for i in step]
        for epoch in range(EPOCHS)
        for step in packing.batches(counts, BATCH, config.seed, epoch)
    ]
    expected = torch_sft(theirs, tiny_torch.tokenizer(), order)
    losses, norms = zip(*expected)
    np.testing.assert_allclose([line['loss'] for line in log], losses, rtol=1e-5)
    np.testing.assert_allclose([line['grad_norm'] for line in log], norms, rtol=1e-4)
    assert min(norms) < CLIP < max(norms)
    ended = read(theirs.state_dict(), theirs, tmp_path / 'theirs')
    start, found = weights.flatten(policy.params), weights.flatten(trained.params)
    assert found.keys() == ended.keys()
    for path, value in ended.items():
        assert norm(found[path] - value) < 1e-4 * norm(value - start[path]), path


@pytest.mark.parametrize('network', ['qwen2'], indirect=True)
@pytest.mark.parametrize('squash', ['tanh', 'tanh5'])
def test_loss_and_gradients_of_packed_pairs_are_those_of_torch(network, tmp_path, squash):
    """Both to 1e-5 of themselves, of each tensor its norm; torch in float64."""
    theirs, policy = network
    ppm = models.init_ppm(policy, 0, squash)
    rng = np.random.default_rng(0)
    head = {'weight': rng.normal(0, 0.2, (1, 36)), 'bias': np.array([0.3])}
    ppm.params['value_head'] = {k: jnp.asarray(v, jnp.float32) for k, v in head.items()}
    data = [
        {'prompt': steps.prompt(f'{i}+{i}') + '<code>\n', 'pos_count': 2, 'neg_count': 1 + i % 2}
        | {'pos': f'x = {2 * i}\n{j}', 'neg': f'x = {j}'}
        for i in range(3)
        for j in range(2)
    ]
    changes = dict(length=128, micro_batch=1, dtype='float32', dropout=0.0, squash=squash)
    config = training.settings('ppm', changes)
    encoded = examples.pairs(data, policy.tokenizer, config.length)
    mesh = parallel.one_device()
    compiled = step.Compiled(policy.config, config, 'pairwise', mesh, 2)
    params = compiled.init(ppm.params)['params']
    micros = packing.Micros(encoded, range(len(encoded)), config, mesh)
    assert len(micros.batches) > 1 and micros.tokens < micros.alone
    found, value = compiled.zeros(params), 0.0
    for batch in micros.batches:
        found, more = compiled.accumulate(found, params, batch, 1 / micros.weight, (0, 0))
        value += float(more['loss']) / micros.weight

    theirs = theirs.double()
    head = {k: torch.tensor(np.float32(v), dtype=torch.float64) for k, v in head.items()}
    for tensor in head.values():
        tensor.requires_grad_()
    scaled = {'tanh': torch.tanh, 'tanh5': lambda r: r}[squash]

    def reward(text):
        hidden = theirs.model(torch.tensor([policy.tokenizer(text)['input_ids']]))
        return scaled(hidden.last_hidden_state[0, -1] @ head['weight'][0] + head['bias'][0])

    share = [1 / (pair['pos_count'] * pair['neg_count']) for pair in data]
    loss = 0
    for pair, weight in zip(data, share):
        better, worse = (reward(pair['prompt'] + pair[side]) for side in ('pos', 'neg'))
        loss -= weight / sum(share) * torch.nn.functional.logsigmoid(better - worse)
    loss.backward()
    assert value == pytest.approx(loss.item(), rel=1e-5)
    gradients = {
        name: torch.zeros_like(p) if p.grad is None else p.grad
        for name, p in theirs.named_parameters()
    }
    expected = read(gradients, theirs, tmp_path / 'gradients')
    found = weights.flatten(layers.unstack(found))
    for name, tensor in head.items():
        expected[f'value_head/{name}'] = tensor.grad.numpy()
    assert norm(expected.pop('output/weight')) == 0  # no part of a PPM
    for path, value in expected.items():
        path = path if path.startswith('value_head/') else f'decoder/{path}'
        assert norm(found.pop(path) - value) <= 1e-5 * norm(value), path
    assert not found
