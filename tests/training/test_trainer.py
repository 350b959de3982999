"""The trainer: learns, goes on exactly where it was stopped, the same on any mesh and split."""

import dataclasses
import functools
import json
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from rstar_jax import interrupts, models, parallel, steps, training
from rstar_jax.errors import UserError
from rstar_jax.models import decoder as decoders
from rstar_jax.models import tiny
from rstar_jax.parallel import global_mesh
from rstar_jax.training import checkpoints, examples, trainer

WORDS = [3 * chr(ord('a') + i) for i in range(24)]  # one token each


@pytest.fixture(scope='module')
def policy():
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
    config = training.default_sft()
    shape = dict(epochs=2, batch_size=4, length=128, learning_rate=1e-2, held_out=0.0, form=0.0)
    config.update({'dtype': 'float32'} | shape | changes)
    return config


def ppm_settings(**changes):
    config = training.default_ppm()
    shape = dict(epochs=3, batch_size=16, length=96, learning_rate=3e-3)
    config.update({'dtype': 'float32'} | shape | changes)
    return config


def same(a, b):
    return all(
        np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def test_sft_memorises_and_leaves_its_start_alone(policy, tmp_path):
    before = jax.tree.map(np.array, policy.params)
    seen = []
    settings = sft_settings(epochs=40, batch_size=3, weight_decay=0.0)
    trained, metrics = training.sft(
        policy, sft_examples(6), settings, tmp_path, progress=seen.append
    )
    assert metrics['steps'] == 80 and metrics['examples'] == 6 and metrics['dropped'] == 0
    assert metrics['loss_first'] > 3
    assert metrics['loss_last'] < 0.1
    assert same(before, policy.params)
    example = sft_examples(6)[3]
    prompt = trained.tokenizer(steps.prompt(example['query']))['input_ids']
    answer = trained.tokenizer(example['response'])['input_ids'] + [trained.tokenizer.eos_token_id]
    tokens = jnp.asarray([prompt + answer])
    logits = trained.logits(tokens, jnp.array([tokens.shape[1]]))
    found = jnp.argmax(logits[0, len(prompt) - 1 : -1], axis=-1).tolist()
    assert found == answer
    lines = [json.loads(line) for line in (tmp_path / 'metrics.jsonl').read_text().splitlines()]
    assert [line['step'] for line in lines] == list(range(1, 81))
    assert lines[0]['learning_rate'] == pytest.approx(1e-2)
    assert lines[40]['learning_rate'] == pytest.approx(0.5e-2)
    assert seen[-1]['step'] == 80 and seen[-1]['seconds_left'] == 0
    assert 0 < metrics['shared_prefix_tokens_share'] <= 1
    of_all = (metrics['tokens_per_second'], metrics['mfu'])
    assert all(line['mfu'] / line['tokens_per_second'] > 0 for line in lines) and min(of_all) > 0
    assert {'learning_rate', 'grad_norm', 'tokens_per_second', 'mfu'} <= seen[-1].keys()
    assert not (tmp_path / 'state').exists()


def test_finished_training_is_read_not_repeated(policy, tmp_path):
    trained, metrics = training.sft(policy, sft_examples(), sft_settings(), tmp_path)
    again, metrics_again = training.sft(policy, sft_examples(), sft_settings(), tmp_path)
    assert same(trained.params, again.params) and metrics == metrics_again
    assert again.config == trained.config
    assert again.tokenizer('a<code>b')['input_ids'] == trained.tokenizer('a<code>b')['input_ids']
    loaded = checkpoints.load_policy(tmp_path, 'bfloat16')
    assert loaded.params['norm']['weight'].dtype == jnp.bfloat16
    with pytest.raises(UserError, match='another training'):
        training.sft(policy, sft_examples(), sft_settings(seed=1), tmp_path)
    with pytest.raises(UserError, match='holds a policy, not a ppm'):
        checkpoints.load_ppm(tmp_path)


class Killed(Exception):
    pass


def killed_at(step):
    def progress(numbers):
        # Within the step, before its update.
        if numbers['step'] == step and not {'grad_norm', 'held_out_loss'} & numbers.keys():
            raise Killed

    return progress


@pytest.mark.parametrize('kind', ['sft', 'ppm'])
def test_killed_and_resumed_training_ends_with_the_same_bits(policy, tmp_path, kind, monkeypatch):
    if kind == 'sft':
        in_background = functools.partialmethod(checkpoints.States.__init__, background=True)
        monkeypatch.setattr(checkpoints.States, '__init__', in_background)
        run, data, settings = training.sft, sft_examples(), sft_settings(checkpoint_minutes=0)
    else:
        run, data = training.ppm, pair_examples(20)
        settings = ppm_settings(checkpoint_minutes=0, batch_size=12)
    whole, metrics = run(policy, data, settings, tmp_path / 'whole')
    parts = tmp_path / 'parts'
    for step in (2, 5):  # in the middle of the first epoch and of the second
        with pytest.raises(Killed):
            run(policy, data, settings, parts, progress=killed_at(step))
        assert [path.name for path in (parts / 'state').iterdir()] == [str(step)]
    with pytest.raises(UserError, match='other settings'):
        changed = settings.copy_and_resolve_references()
        changed.learning_rate = 1.0
        run(policy, data, changed, parts)
    resumed, resumed_metrics = run(policy, data, settings, parts)
    assert same(whole.params, resumed.params)
    for name in metrics:
        if 'loss' in name or 'accuracy' in name:
            assert metrics[name] == resumed_metrics[name]
    logs = [log_of(folder) for folder in (tmp_path / 'whole', parts)]
    for line in (*logs[0], *logs[1]):
        assert line.pop('tokens_per_second') > 0 < line.pop('mfu')  # by the clock
    assert logs[0] == logs[1]


def log_of(folder):
    return [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]


@pytest.mark.parametrize('devices', [1, 8])
def test_a_state_saved_while_steps_go_on_is_the_state_of_its_step(tmp_path, devices):
    """On CPUs numpy's arrays are the devices' own memory, which the next step is given."""
    mesh = global_mesh(devices=jax.devices()[:devices])
    where = jax.NamedSharding(mesh, jax.P(('data', 'fsdp')))
    state = {str(i): jnp.full((1024, 2048), i, jnp.float32, device=where) for i in range(4)}
    step = jax.jit(lambda state: jax.tree.map(lambda x: x + 1, state), donate_argnums=0)
    with checkpoints.States(tmp_path, background=True) as states:
        for number in range(1, 7):
            before, state = state, step(state)
            assert number > 1 or all(x.is_deleted() for x in before.values())
            if number % 2:
                states.save(number, state, {})
                like = checkpoints.abstract(state)
        states.wait()
        assert states.newest() == (5, {})
        restored = states.restore(5, like)
    for i, value in restored.items():
        np.testing.assert_array_equal(value, np.full((1024, 2048), int(i) + 5, np.float32))


def test_saved_on_eight_devices_it_goes_on_on_fewer(policy, tmp_path):
    # At a larger rate AdamW makes of rounding in the smallest gradients more than is tolerated.
    settings = sft_settings(epochs=1, checkpoint_minutes=0, learning_rate=1e-4)
    whole, _ = training.sft(policy, sft_examples(), settings, tmp_path / 'whole')
    eight, four = (global_mesh(fsdp=2, tensor=2, devices=jax.devices()[:count]) for count in (8, 4))
    assert dict(eight.shape) == {'data': 2, 'fsdp': 2, 'tensor': 2}
    with pytest.raises(Killed):
        training.sft(
            policy, sft_examples(), settings, tmp_path / '1', mesh=eight, progress=killed_at(2)
        )
    shutil.copytree(tmp_path / '1', tmp_path / '4')
    for devices, mesh in (('1', None), ('4', four)):
        found, _ = training.sft(policy, sft_examples(), settings, tmp_path / devices, mesh=mesh)
        close(found.params, whole.params, 1e-6)
        for line, expected in zip(log_of(tmp_path / devices), log_of(tmp_path / 'whole')):
            assert line['loss'] == pytest.approx(expected['loss'], rel=1e-6)


def stopping(training_, folder, number, at):
    """Runs a training that gets a signal; returns the Stopped that it ends with.

    at: (call -> whether the signal comes now), of each call of Compiled's functions.
    """
    real, calls = trainer.Compiled._run, []

    def run(compiled, name, *arguments):
        calls.append(name)
        if at(calls):
            signal.raise_signal(number)
        return real(compiled, name, *arguments)

    with pytest.MonkeyPatch.context() as patch, interrupts.Interrupts():
        patch.setattr(trainer.Compiled, '_run', run)
        with pytest.raises(interrupts.Stopped) as stopped:
            training_(folder)
    assert stopped.value.number == number
    return str(stopped.value)


def evaluates_after(steps):
    """In the first of the evaluations, named after their loss, after so many steps."""
    return lambda calls: calls[-1] == 'sft' and calls.count('update') == steps


def updates(steps):
    return lambda calls: calls[-1] == 'update' and calls.count('update') == steps


@pytest.mark.parametrize(
    ('number', 'how', 'at', 'step'),
    [
        (signal.SIGTERM, 'preempted', updates(2), 2),
        (signal.SIGINT, 'stopped', updates(3), 3),
        (signal.SIGTERM, 'preempted', evaluates_after(2), 2),
        (signal.SIGTERM, 'preempted', updates(6), 6),
        (signal.SIGINT, 'stopped', evaluates_after(6), 6),
    ],
    ids=['step', 'ctrl-c', 'measurement', 'last step', 'last measurement'],
)
def test_a_signal_saves_the_step_in_progress(stoppable, tmp_path, number, how, at, step):
    run, whole, log = stoppable
    line = stopping(run, tmp_path, number, at)
    assert line == f'{how} at step {step} of 6: state saved; run the same command again to go on'
    assert [path.name for path in (tmp_path / 'state').iterdir()] == [str(step)]
    assert [line['step'] for line in log_of(tmp_path)] == list(range(1, step + 1))
    resumed, _ = run(tmp_path)
    assert same(whole.params, resumed.params)
    assert log_of(tmp_path) == log


@pytest.fixture(scope='module')
def stoppable(policy, tmp_path_factory):
    """(training of 6 steps in a folder, its result, its log); several micro batches a step."""

    def run(folder):
        settings = sft_settings(held_out=0.4, epochs=3, measure_every=2)
        settings.length = 64
        return training.sft(policy, sft_examples(14), settings, folder)

    folder = tmp_path_factory.mktemp('whole')
    result, _ = run(folder)
    log = log_of(folder)
    assert ['held_out_loss' in line for line in log] == [False, True] * 3
    return run, result, log


def test_before_the_first_step_there_is_nothing_to_save(stoppable, tmp_path):
    run, _, _ = stoppable
    line = stopping(run, tmp_path, signal.SIGTERM, evaluates_after(0))
    assert line == 'preempted; run the same command again to go on'
    assert not (tmp_path / 'metrics.jsonl').exists()


def test_the_best_by_held_out_loss_is_kept(policy, tmp_path):
    data = pair_examples(12)

    def run(folder, progress=None, **changes):
        settings = ppm_settings(
            held_out=0.4, batch_size=4, epochs=3, learning_rate=1.0, schedule='cosine',
            checkpoint_minutes=0, measure_every=1, keep='best',
        )  # fmt: skip
        settings.update(changes)
        return training.ppm(policy, data, settings, folder, progress=progress)

    whole, metrics = run(tmp_path / 'whole')
    losses = [line['held_out_loss'] for line in log_of(tmp_path / 'whole')]
    step = metrics['best_step']
    assert 1 < step < len(losses) == metrics['steps']
    assert metrics['held_out_loss_after'] == min(losses) == losses[step - 1] < losses[-1]
    assert metrics['pair_accuracy_after'] == log_of(tmp_path / 'whole')[step - 1]['pair_accuracy']
    assert not (tmp_path / 'whole' / 'best').exists()
    # It is what a training that keeps its last has after that step.
    with pytest.raises(Killed):
        run(tmp_path / 'last', killed_at(step), keep='last')
    with ocp.StandardCheckpointer() as reader:
        state = reader.restore(tmp_path / 'last' / 'state' / str(step) / 'state')
    assert same(state['params'], whole.params)
    for kill in (step, step + 1):
        with pytest.raises(Killed):
            run(tmp_path / 'parts', killed_at(kill))
        with pytest.raises(UserError, match='other settings'):
            run(tmp_path / 'parts', seed=1)
    parts, again = run(tmp_path / 'parts')
    assert same(parts.params, whole.params)
    assert log_of(tmp_path / 'parts') == log_of(tmp_path / 'whole')
    for name in ('best_step', 'held_out_loss_after', 'pair_accuracy_after'):
        assert again[name] == metrics[name]


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'keep': 'first'}, "keep='first': expected last or best"),
        ({'keep': 'best'}, 'keep=best: needs measure_every, the steps between two measurements'),
        (
            {'keep': 'best', 'measure_every': 1, 'held_out': 0.0},
            'keep=best: no problem is held out to measure: raise held_out',
        ),
    ],
)
def test_the_best_needs_something_to_tell_it_by(policy, tmp_path, changes, message):
    with pytest.raises(UserError, match=f'^{message}$'):
        training.sft(policy, sft_examples(), sft_settings(**changes), tmp_path)
    with pytest.raises(UserError, match=f'^{message}$'):
        training.ppm(policy, pair_examples(4), ppm_settings(**changes), tmp_path)


def compiled_with_state(policy, settings, mesh=None, kind='sft'):
    """The functions of a training of two steps and the state that it begins with."""
    model = models.add_tokens(policy, steps.SFT_TOKENS)
    if kind == 'ppm':
        model = models.init_ppm(policy, 0)
        model.params['value_head']['weight'] = jnp.ones((1, 32)) / 8
    loss = 'sft' if kind == 'sft' else 'pairwise'
    mesh = mesh or checkpoints.one_device()
    compiled = trainer.Compiled(policy.config, settings, loss, mesh, 2)
    return compiled, compiled.init(model.params)


def gradients(policy, settings, mesh=None, kind='sft'):
    """(gradients of one step as numpy, their norm, its micro batches, the state after it)."""
    if kind == 'sft':
        encoded = examples.sft(sft_examples(), policy.tokenizer, settings.length)
    else:
        encoded = examples.pairs(pair_examples(8), policy.tokenizer, settings.length)
    mesh = mesh or checkpoints.one_device()
    compiled, state = compiled_with_state(policy, settings, mesh, kind)
    micros = trainer.Micros(encoded, range(len(encoded.examples)), settings, mesh)
    grads = compiled.zeros(state['params'])
    for batch in micros.batches:
        grads, _ = compiled.accumulate(grads, state['params'], batch, 1 / micros.weight, (0, 0))
    kept = jax.tree.map(np.array, grads)
    state, norm = compiled.update(state, grads)
    return kept, float(norm), micros, state


def close(a, b, tolerance):
    scale = max(np.abs(x).max() for x in jax.tree.leaves(b))
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize('kind', ['sft', 'ppm'])
def test_accumulation_and_meshes_change_nothing(policy, kind):
    settings = sft_settings() if kind == 'sft' else ppm_settings(length=128, dropout=0.0)
    settings.micro_batch = 8
    whole, norm, micros, _ = gradients(policy, settings, kind=kind)
    assert len(micros.batches) == 1
    assert norm == pytest.approx(
        np.sqrt(sum(float(np.sum(g.astype(np.float64) ** 2)) for g in jax.tree.leaves(whole))),
        rel=1e-5,
    )
    settings.micro_batch = 1
    parts, _, micros, _ = gradients(policy, settings, kind=kind)
    assert len(micros.batches) > 1
    close(parts, whole, 1e-5)
    mesh = global_mesh(fsdp=2, tensor=2)
    assert dict(mesh.shape) == {'data': 2, 'fsdp': 2, 'tensor': 2}
    cut, _, micros, state = gradients(policy, settings, mesh, kind)
    assert all(batch['tokens'].shape[0] % 4 == 0 for batch in micros.batches)
    close(cut, whole, 1e-5)
    parts = jax.tree.leaves(state['optimiser'], is_leaf=lambda x: hasattr(x, 'mu'))
    moments = next(part for part in parts if hasattr(part, 'mu'))
    where = jax.tree.map(lambda p: p.sharding, state['params'])
    assert where == jax.tree.map(lambda p: p.sharding, moments.mu)
    gate = state['params'] if kind == 'sft' else state['params']['decoder']
    gate = gate['layers']['0']['mlp']['gate']['weight']
    assert gate.addressable_shards[0].data.size * 4 == gate.size


@pytest.mark.parametrize('kind', ['sft', 'ppm'])
def test_a_step_of_one_micro_batch_is_the_sum_of_its_parts(policy, kind):
    settings = sft_settings() if kind == 'sft' else ppm_settings(length=128)
    settings.micro_batch = 8
    _, norm, micros, expected = gradients(policy, settings, kind=kind)
    compiled, state = compiled_with_state(policy, settings, kind=kind)
    (batch,) = micros.batches
    before = {x.unsafe_buffer_pointer() for x in jax.tree.leaves(state['params'])}
    state, sums, found = compiled.step(state, batch, 1 / micros.weight, (0, 0))
    assert float(found) == pytest.approx(norm, rel=1e-6) and sums['loss'] > 0
    close(state, expected, 1e-6)
    after = {x.unsafe_buffer_pointer() for x in jax.tree.leaves(state['params'])}
    assert len(before & after) > len(after) // 2  # donated: the new weights lie where the old lay


@pytest.mark.parametrize('kind', ['sft', 'ppm'])
def test_what_a_training_starts_from_can_be_released(policy, tmp_path, kind):
    start = dataclasses.replace(policy, params=jax.tree.map(jnp.copy, policy.params))
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(start.params))
    held = []

    def progress(numbers):
        held[-1] = max(held[-1], sum(array.nbytes for array in jax.live_arrays()))

    if kind == 'sft':
        run, data, settings = training.sft, sft_examples(), sft_settings()
    else:
        run, data, settings = training.ppm, pair_examples(10), ppm_settings(epochs=1)
    held.append(0)
    expected, _ = run(policy, data, settings, tmp_path / 'kept', progress=progress)
    expected = jax.tree.map(np.array, expected.params)
    held.append(0)
    found, _ = run(start, data, settings, tmp_path, release=True, progress=progress)
    assert same(found.params, expected)
    assert held[0] - held[1] >= size
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(policy.params))


@pytest.mark.parametrize(('moments', 'bytes_of_one'), [('float32', 8), ('bfloat16', 6)])
def test_moments_take_the_bytes_that_they_should(policy, moments, bytes_of_one):
    settings = sft_settings(moments=moments)
    compiled = trainer.Compiled(policy.config, settings, 'sft', checkpoints.one_device(), 2)
    state = compiled.init(policy.params)
    count = sum(leaf.size for leaf in jax.tree.leaves(policy.params))
    counters = 2 * 4  # of Adam and of the schedule
    assert parallel.bytes_on_a_device(state['optimiser']) == bytes_of_one * count + counters


def test_what_does_not_fit_is_refused_before_the_first_step(policy, tmp_path, monkeypatch):
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(policy.params))
    for room, message in ((size, 'the moments of AdamW take'), (3 * size, 'a micro batch takes')):
        monkeypatch.setattr(parallel, 'free_bytes', lambda mesh, room=room: room)
        with pytest.raises(UserError, match=f'{message} .* GiB are free on a device: lower length'):
            training.sft(policy, sft_examples(), sft_settings(), tmp_path / str(room))
        assert not (tmp_path / str(room) / 'metrics.jsonl').exists()


def test_ppm_learns_a_planted_preference(policy, tmp_path):
    settings = ppm_settings(epochs=4, learning_rate=1e-2, held_out=0.25)
    trajectories = trajectory_examples()
    ppm, metrics = training.ppm(
        policy, pair_examples(), settings, tmp_path, trajectories=trajectories
    )
    assert metrics['held_out_pairs'] == 20 and metrics['examples'] == 60
    assert metrics['answer_pairs'] == 10  # of the same problems
    assert metrics['answer_accuracy_after'] > 0.9 > metrics['answer_accuracy_before']
    assert metrics['pair_accuracy_before'] < 0.8
    assert metrics['pair_accuracy_after'] == 1
    assert metrics['loss_last'] < metrics['loss_first']
    assert metrics['held_out_loss_after'] < metrics['held_out_loss_before']
    assert metrics['shared_prefix_tokens_share'] < 0.6
    first, last = (log_of(tmp_path)[i] for i in (0, -1))
    assert first['margin'] == pytest.approx(0, abs=1e-2)
    assert last['accuracy'] == 1 and last['margin'] > 1  # of tanh(r), which ends at 2
    loaded = checkpoints.load_ppm(tmp_path)
    assert loaded.squash == 'tanh' and same(loaded.params, ppm.params)
    prompt = steps.prompt('fff ggg hhh') + '<code>\n'
    texts = [prompt + text for text in ('# iii bbb jjj<end_of_step>', '# iii ccc jjj<end_of_step>')]
    tokens = jnp.asarray(ppm.tokenizer(texts)['input_ids'])
    good, bad = loaded.scores(tokens, jnp.full(2, tokens.shape[1]))
    assert -1 <= bad < good <= 1


@pytest.mark.parametrize('loss', ['orm', 'pqm', 'prm'])
def test_losses_of_trajectories_learn(policy, tmp_path, loss):
    settings = ppm_settings(
        loss=loss, epochs=6, batch_size=16, learning_rate=1e-2, micro_batch=1, held_out=0.25
    )
    trajectories = trajectory_examples()
    ppm, metrics = training.ppm(policy, trajectories, settings, tmp_path, trajectories=trajectories)
    assert (metrics['examples'], metrics['held_out'], metrics['answer_pairs']) == (60, 20, 10)
    assert metrics['held_out_loss_after'] < 0.5 * metrics['held_out_loss_before']
    assert metrics['answer_accuracy_after'] == 1
    if loss != 'pqm':
        assert metrics['accuracy_after'] > 0.9
    # As the search reads it: at the end of a step.
    texts = [steps.prompt(t['query']) + ''.join(t['steps']) for t in trajectories[:2]]
    tokens = [ppm.tokenizer(text)['input_ids'] for text in texts]
    good, bad = (float(ppm.scores(jnp.asarray([ids]), jnp.array([len(ids)]))[0]) for ids in tokens)
    assert -1 <= bad < 0 < good <= 1
    loaded = checkpoints.load_ppm(tmp_path)
    assert loaded.squash == 'tanh' and same(loaded.params, ppm.params)


def test_what_is_learnt_of_a_trajectory(policy):
    trajectory = {
        'query': 'bbb',
        'steps': ['<code>\nccc', 'ddd eee<end_of_step>', 'fff'],
        'values': [0.25, -0.5, -1.0],
        'labels': [True, False, False],
        'correct': False,
    }
    ends = np.cumsum([len(policy.tokenizer(s)['input_ids']) for s in trajectory['steps']])
    start = len(policy.tokenizer(steps.prompt('bbb'))['input_ids']) - 1
    for encoder, learnt in (
        (examples.outcomes, {2: 0}),
        (examples.q_values, {0: 0.25, 1: -0.5, 2: -1}),
        (examples.step_labels, {0: 1, 1: 0, 2: 0}),
    ):
        encoded = encoder([trajectory], policy.tokenizer, 64)
        (example,) = encoded.examples
        (tokens,), (field,) = example.sequences, example.fields
        text = steps.prompt('bbb') + ''.join(trajectory['steps'])
        assert policy.tokenizer.decode(tokens) == text
        places = [start + ends[i] for i in learnt]
        assert np.nonzero(field['weights'])[0].tolist() == places
        assert field['targets'][places].tolist() == list(learnt.values())
        assert example.shareable == (places[0],) and encoded.questions == [steps.prompt('bbb')]
    for key, kind, encoder in (
        ('steps', 'list', examples.outcomes),
        ('correct', 'flag', examples.outcomes),
        ('values', 'list', examples.q_values),
        ('labels', 'list', examples.step_labels),
    ):
        lacking = {name: value for name, value in trajectory.items() if name != key}
        with pytest.raises(UserError, match=f"needs the {kind} '{key}'"):
            encoder([lacking], policy.tokenizer, 64)
    with pytest.raises(UserError, match='3 steps but 1 values'):
        examples.q_values([trajectory | {'values': [1.0]}], policy.tokenizer, 64)


@pytest.mark.parametrize('length', [512, 64])
def test_right_answers_are_paired_with_the_wrong_ones_of_their_problem(policy, length):
    made = [
        {'query': query, 'steps': ['aaa', f'{word} ' * 30], 'correct': correct}
        for query in ('bbb', 'ccc', 'ddd', 'eee')
        for word, correct in (('fff', True), ('ggg', True), ('hhh', False), ('iii', False))
        if query != 'eee' or correct  # has no wrong one
    ]
    asked = {steps.prompt(query) for query in ('bbb', 'ddd', 'eee')}
    encoded = examples.answer_pairs(made, asked, policy.tokenizer, length)
    found = {
        (question, *(policy.tokenizer.decode(example.sequences[i])[-4:-1] for i in pair))
        for question, example in zip(encoded.questions, encoded.examples)
        for pair in example.pairs
    }
    assert found == {
        (steps.prompt(query), right, wrong)
        for query in ('bbb', 'ddd')
        for right in ('fff', 'ggg')
        for wrong in ('hhh', 'iii')
    }
    assert sum(example.count for example in encoded.examples) == len(found)
    assert (len(encoded.examples) == 2) == (length == 512)


def test_a_loss_that_is_not_finite_names_the_step(policy, tmp_path):
    settings = sft_settings(learning_rate=1e30, grad_clip=0.0)
    with pytest.raises(UserError, match=r'^step 2 of 6: loss is .*lower learning_rate'):
        training.sft(policy, sft_examples(), settings, tmp_path)


def test_what_does_not_fit_is_dropped_and_counted(policy, tmp_path):
    long = {'query': 'bbb', 'response': 'ccc ' * 200}
    encoded = examples.sft([long, *sft_examples(2)], policy.tokenizer, 128)
    assert (len(encoded.examples), encoded.dropped) == (2, 1)
    with pytest.raises(UserError, match='no example fits into length=128'):
        training.sft(policy, [long], sft_settings(), tmp_path)
    with pytest.raises(UserError, match='no examples'):
        training.sft(policy, [], sft_settings(), tmp_path)
    with pytest.raises(UserError, match="needs the text 'response'"):
        training.sft(policy, [{'query': 'bbb'}], sft_settings(), tmp_path)
    with pytest.raises(UserError, match='expected linear or cosine'):
        training.sft(policy, sft_examples(2), sft_settings(schedule='step'), tmp_path)
    with pytest.raises(UserError, match="^loss='dpo': expected one of pairwise, orm, pqm, prm$"):
        training.ppm(policy, [], ppm_settings(loss='dpo'), tmp_path)


def test_targets_are_the_response_and_the_end_of_text(policy):
    tokenizer = policy.tokenizer
    example = {'query': 'bbb ccc', 'response': '<code>\nw3<end_of_code>'}
    (encoded,) = examples.sft([example], tokenizer, 128).examples
    (tokens,), (field,) = encoded.sequences, encoded.fields
    text = steps.prompt('bbb ccc') + example['response'] + tokenizer.eos_token
    assert tokenizer.decode(tokens) == text
    learnt = field['targets'][field['weights'] > 0]
    assert tokenizer.decode(learnt) == example['response'] + tokenizer.eos_token
    assert encoded.shareable == (len(tokenizer(steps.prompt('bbb ccc'))['input_ids']) - 1,)


def test_pairs_of_one_prefix_stay_together(policy):
    prompt = steps.prompt('bbb') + '<code>\nw3<end_of_step>'
    pairs = [
        {'prompt': prompt, 'pos': p, 'neg': n, 'pos_count': 2, 'neg_count': 2}
        for p in ('eee', 'fff ggg')
        for n in ('hhh', 'iii')
    ]
    encoded = examples.pairs([*pairs, {**pairs[0], 'prompt': 'jjj'}], policy.tokenizer, 64)
    both, bare = encoded.examples
    assert (len(both.sequences), both.count, bare.count) == (4, 4, 1)
    assert both.pair_weights.tolist() == [0.25] * 4
    texts = [policy.tokenizer.decode(s) for s in both.sequences]
    assert [[texts[i] for i in pair] for pair in both.pairs] == [
        [prompt + p['pos'], prompt + p['neg']] for p in pairs
    ]
    assert policy.tokenizer.decode(bare.sequences[0]) == steps.prompt('jjj') + 'eee'
    assert encoded.questions == [steps.prompt('bbb'), steps.prompt('jjj')]
    chosen, held = examples.hold_out(encoded, 0.1, 0)
    assert len(held) == 1 and sorted(chosen + held) == [0, 1]
    assert examples.hold_out(encoded, 0.0, 0) == ([0, 1], [])
