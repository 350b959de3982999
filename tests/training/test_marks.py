"""Marks that are new tokens: learnt at a fine-tuning's rate, measured, carried to transformers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from rstar_jax import models, parallel, steps, training
from rstar_jax.models import decoder as decoders
from rstar_jax.parallel import global_mesh
from rstar_jax.settings.errors import UserError
from rstar_jax.training import corpus, examples, losses, packing, step
from tests.models import tiny_torch

ROWS = 151_680  # of Qwen2.5's embedding


def make_policy(rows, dim=32, spread=0.3, tie=False):
    """Random, logits as far apart as those of real models; a tokenizer of bytes, without marks."""
    config = models.Config(
        family='qwen2',
        vocab_size=rows,
        embed_dim=dim,
        mlp_dim=64,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        qkv_bias=True,
        tie_embeddings=tie,
        eos_ids=(2,),
        pad_id=0,
    )
    rng = np.random.default_rng(0)

    def draw(path, shape):
        scale = spread if path[0].key == 'layers' else 0.3
        centre = float(len(shape.shape) == 1)
        return jnp.asarray(centre + scale * rng.standard_normal(shape.shape, np.float32))

    params = jax.tree_util.tree_map_with_path(draw, decoders.abstract_params(config))
    return models.Policy(config, tiny_torch.tokenizer(), params)


@pytest.fixture(scope='module')
def small():
    return make_policy(304)


def solutions(count):
    return [
        {
            'query': f'{i}+{i}',
            'response': f'<code>\nx = {i}\n<end_of_step>\nprint(x)\n<end_of_code>\n'
            f'<output>{2 * i}<end_of_output>\n<answer>\\boxed{{{2 * i}}}<end_of_answer>',
        }
        for i in range(count)
    ]


def settings(**changes):
    shape = {'dtype': 'float32', 'batch_size': 4, 'length': 256, 'held_out': 0.1}
    return training.settings('sft', shape | changes)


def predicted(policy, example):
    """(what is due, what is likeliest) after each token of the prompt and the response."""
    prompt = policy.tokenizer(steps.prompt(example['query']))['input_ids']
    due = policy.tokenizer(example['response'])['input_ids'] + [policy.tokenizer.eos_token_id]
    tokens = jnp.asarray([prompt + due])
    logits = policy.logits(tokens, jnp.array([tokens.shape[1]]))
    return due, jnp.argmax(logits[0, len(prompt) - 1 : -1], axis=-1).tolist()


def test_marks_are_learnt_in_a_real_vocabulary_at_the_papers_rate(tmp_path, monkeypatch):
    """A row that begins as the mean of all and learns at 7e-6 is never the likeliest of so many.

    The layers say little, so that what comes before a mark is told by its last token.
    """
    monkeypatch.setattr(losses, 'CHUNK_TOKENS', 32)  # little is learnt of each row
    policy = make_policy(ROWS, 64, spread=0.02)
    # A row of 64 weights moves a logit a quarter as far as one of 896.
    config = settings(epochs=2, marks_rate=0.2, form=0.0, held_out=0.0)
    assert config.learning_rate == 7e-6
    response = ''.join(map(''.join, zip('abcdefg', steps.TEMPLATE_MARKS)))
    data = [{'query': str(i), 'response': response} for i in range(28)]
    trained, metrics = training.sft(policy, data[:24], config, tmp_path)
    ids = {mark: trained.tokenizer.convert_tokens_to_ids(mark) for mark in steps.TEMPLATE_MARKS}
    found = {mark: [] for mark in ids}
    for example in data[24:]:
        due, first = predicted(trained, example)
        for mark, token in ids.items():
            found[mark].append(first[due.index(token)] == token)
    assert {mark: np.mean(right) for mark, right in found.items()} == dict.fromkeys(ids, 1.0)
    if 'form_after' in metrics:
        assert all(n == 0 for mark, (n, _) in metrics['form_before'].items() if mark in ids)
        assert all(n == due for mark, (n, due) in metrics['form_after'].items() if mark in ids)


def test_new_rows_alone_learn_at_their_rate(small):
    policy = models.add_tokens(small, steps.SFT_TOKENS)
    new = list(range(len(small.tokenizer), len(policy.tokenizer)))
    encoded = examples.sft(solutions(8), policy.tokenizer, 256)
    ended = []
    for mesh in (parallel.one_device(), global_mesh(fsdp=2, tensor=2)):
        config = settings(learning_rate=1e-5, marks_rate=0.1, weight_decay=0.0)
        compiled = step.Compiled(policy.config, config, 'sft', mesh, 10, new)
        state = compiled.init(policy.params)
        micros = packing.Micros(encoded, range(8), config, mesh)
        grads = compiled.zeros(state['params'])
        for batch in micros.batches:
            grads, _ = compiled.accumulate(grads, state['params'], batch, 1 / micros.weight, (0, 0))
        # The first step of AdamW is the rate, whatever the gradient.
        moving = {name: np.array(grads[name]['weight']) for name in ('embed', 'output')}
        state, _ = compiled.update(state, grads)
        ended.append(jax.tree.map(np.array, state['params']))
        for name, gradient in moving.items():
            before = np.array(policy.params[name]['weight'])
            moved = np.abs(ended[-1][name]['weight'] - before)
            clear = np.abs(gradient) > 1e-5
            size = np.sqrt(np.mean(before**2))
            rates = np.full((policy.config.vocab_size, 1), 1e-5)
            rates[new] = 0.1 * size
            expected = np.broadcast_to(rates, moved.shape)
            assert clear[new].any() and np.delete(clear, new, 0).any()
            np.testing.assert_allclose(moved[clear], expected[clear], rtol=0.02)
    for x, y in zip(*map(jax.tree.leaves, ended), strict=True):
        np.testing.assert_allclose(x, y, atol=2e-5)


@pytest.mark.parametrize('marks', ['tokens', 'text'])
def test_form_is_counted_on_held_out_problems(small, tmp_path, marks):
    config = settings(epochs=3, held_out=0.25, form=0.0, marks=marks, learning_rate=1e-2)
    trained, metrics = training.sft(small, solutions(12), config, tmp_path)
    assert metrics['held_out'] == 3 and metrics['examples'] == 9
    expected = {mark: [0, 0] for mark in examples.MARKS}
    _, held = corpus.hold_out(examples.sft(solutions(12), trained.tokenizer, 256), 0.25, 0)
    for i in held:
        example = solutions(12)[i]
        due, first = predicted(trained, example)
        names = []
        for mark in steps.TEMPLATE_MARKS if marks == 'text' else ():
            begin = example['response'].index(mark)  # a token is a byte
            names += [(begin + offset, mark) for offset in range(len(mark))]
        for place, token in enumerate(due):
            text = trained.tokenizer.decode([token])
            if marks == 'tokens' and text in expected:
                names.append((place, text))
        names.append((len(due) - 1, examples.END_OF_TEXT))
        for place, name in names:
            expected[name][0] += first[place] == due[place]
            expected[name][1] += 1
    assert metrics['form_after'] == expected
    vocabulary = len(small.tokenizer) + (len(steps.SFT_TOKENS) if marks == 'tokens' else 0)
    assert len(trained.tokenizer) == vocabulary


def test_one_problem_is_trained_on_and_measured(small, tmp_path):
    _, metrics = training.sft(small, solutions(1), settings(form=0.0), tmp_path)
    assert metrics['held_out'] == 0 and metrics['examples'] == 1
    assert metrics['form_after'][steps.ANSWER][1] == 1


def test_a_form_that_was_not_learnt_ends_the_training(small, tmp_path):
    config = settings(epochs=1, marks_rate=1e-6)
    for _ in range(2):  # a second run does not take the policy for a good one
        with pytest.raises(UserError) as error:
            training.sft(small, solutions(8), config, tmp_path)
        assert error.value.argument == str(tmp_path) and 'form=0' in error.value.remedy
    config.form = 0.0
    before = (tmp_path / 'metrics.jsonl').stat().st_mtime_ns
    training.sft(small, solutions(8), config, tmp_path)
    assert (tmp_path / 'metrics.jsonl').stat().st_mtime_ns == before  # nothing is trained again


def test_a_ppm_starts_from_marks_that_differ(small):
    policy = models.add_tokens(small, steps.SFT_TOKENS)
    ppm = models.init_ppm(policy)
    ppm.params['value_head']['weight'] = jnp.ones((1, 32))
    ids = policy.tokenizer.convert_tokens_to_ids([*steps.TEMPLATE_MARKS])
    scores = ppm.scores(jnp.array([[5, 6, token] for token in ids]), jnp.full(len(ids), 3))
    assert len(set(np.asarray(scores).tolist())) == len(ids)


@pytest.mark.parametrize('tie', [False, True])
def test_transformers_writes_the_same_text_marks_included(tmp_path, tie):
    policy = make_policy(304, tie=tie)
    config = settings(epochs=60, learning_rate=1e-2, form=0.0, held_out=0.0, weight_decay=0.0)
    trained, _ = training.sft(policy, solutions(4), config, tmp_path / 'policy')
    models.save(trained, tmp_path / 'export')
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / 'export')
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / 'export')
    for example in solutions(4):
        prompt = steps.prompt(example['query'])
        tokens = trained.tokenizer(prompt)['input_ids']
        assert tokenizer(prompt)['input_ids'] == tokens
        with torch.no_grad():
            out = theirs.generate(torch.tensor([tokens]), max_new_tokens=80, do_sample=False)
        written = tokenizer.decode(out[0, len(tokens) :])
        ours = predicted(trained, example)[1]
        assert written == trained.tokenizer.decode(ours)
        assert written == example['response'] + tokenizer.eos_token
