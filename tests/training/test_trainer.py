"""The trainer: learns, goes on exactly where it was stopped, the same on any mesh and split."""

import dataclasses
import json
import shutil
import signal
import types

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from rstar_jax import models, parallel, steps, training
from rstar_jax.job import interrupts
from rstar_jax.models import trained as files
from rstar_jax.parallel import global_mesh
from rstar_jax.settings.errors import UserError
from rstar_jax.training import checkpoints, examples, fit, layers, optimiser, packing, step, trainer
from tests.training.words import (
    Killed,
    close,
    killed_at,
    log_of,
    pair_examples,
    ppm_settings,
    same,
    sft_examples,
    sft_settings,
    trajectory_examples,
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
    assert min(metrics['tokens_per_second'], metrics['mfu']) > 0
    assert {'learning_rate', 'grad_norm', 'tokens_per_second', 'mfu'} <= seen[-2].keys()
    assert not (tmp_path / 'state').exists()


def test_finished_training_is_read_not_repeated(policy, tmp_path):
    trained, metrics = training.sft(policy, sft_examples(), sft_settings(), tmp_path)
    (tmp_path / 'state' / '3').mkdir(parents=True)  # it was killed as its states went
    again, metrics_again = training.sft(policy, sft_examples(), sft_settings(), tmp_path)
    assert same(trained.params, again.params) and metrics == metrics_again
    assert not (tmp_path / 'state').exists()
    assert again.config == trained.config
    assert again.tokenizer('a<code>b')['input_ids'] == trained.tokenizer('a<code>b')['input_ids']
    loaded = models.load(tmp_path, 'bfloat16')
    assert loaded.params['norm']['weight'].dtype == jnp.bfloat16
    moved = dataclasses.replace(policy, params=jax.tree.map(lambda x: 2 * x, policy.params))
    for start, seed in ((policy, 1), (moved, 0)):
        with pytest.raises(UserError) as error:
            training.sft(start, sft_examples(), sft_settings(seed=seed), tmp_path)
        assert error.value.argument == str(tmp_path)
    with pytest.raises(UserError) as error:
        training.sft(policy, sft_examples(11), sft_settings(), tmp_path)
    assert error.value.argument == str(tmp_path)


@pytest.mark.parametrize('others', [(), (5,)])
def test_the_token_that_ends_a_response_ends_texts_of_the_export(policy, tmp_path, others):
    start = dataclasses.replace(policy, config=policy.config.replace(eos_ids=others))
    start.generation = {'eos_token_id': list(others) or None, 'top_k': 20}
    training.sft(start, sft_examples(2), sft_settings(epochs=1), tmp_path / 'made')
    trained = models.load(tmp_path / 'made', 'float32')
    assert trained.generation == {'eos_token_id': start.generation['eos_token_id']}
    models.save(trained, tmp_path / 'export')
    for name in ('config.json', 'generation_config.json'):
        written = json.loads((tmp_path / 'export' / name).read_text())['eos_token_id']
        ends = written if isinstance(written, list) else [written]
        assert ends == [*others, policy.tokenizer.eos_token_id]
    assert start.config.eos_ids == others


@pytest.mark.parametrize('kind', ['sft', 'ppm'])
def test_killed_and_resumed_training_ends_with_the_same_bits(policy, tmp_path, kind):
    if kind == 'sft':
        run, data, settings = training.sft, sft_examples(), sft_settings(checkpoint_minutes=0)
    else:
        run, data = training.ppm, pair_examples(20)
        settings = ppm_settings(checkpoint_minutes=0, batch_size=12, head='fitted')
    whole, metrics = run(policy, data, settings, tmp_path / 'whole')
    parts = tmp_path / 'parts'
    for stop in (2, 5):  # in the middle of the first epoch and of the second
        with pytest.raises(Killed):
            run(policy, data, settings, parts, progress=killed_at(stop))
        assert [path.name for path in (parts / 'state').iterdir()] == [str(stop)]
    changed = settings.copy_and_resolve_references()
    changed.learning_rate = 1.0
    moved = jax.tree.map(lambda x: 2 * x, policy.params)
    moved = dataclasses.replace(policy, params=moved)
    for start, other in ((policy, changed), (moved, settings)):
        with pytest.raises(UserError) as error:
            run(start, data, other, parts)
        assert error.value.argument == str(parts)
    resumed, resumed_metrics = run(policy, data, settings, parts)
    assert same(whole.params, resumed.params)
    for name in metrics:
        if 'loss' in name or 'accuracy' in name or name == 'tokens':
            assert metrics[name] == resumed_metrics[name]
    assert log_of(parts) == log_of(tmp_path / 'whole')


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


def test_what_a_killed_process_has_left_half_written_goes(tmp_path):
    half = tmp_path / 'state' / '2.orbax-checkpoint-tmp'
    half.mkdir(parents=True)
    (half / 'data').write_bytes(b'half')
    with checkpoints.States(tmp_path) as states:
        assert states.newest() is None
        states.save(3, {'x': jnp.ones(2)}, {})
        assert states.newest() == (3, {})
    assert [path.name for path in half.parent.iterdir()] == ['3']


def test_a_disk_without_room_is_told_before_orbax_writes(policy, tmp_path, monkeypatch):
    disk = types.SimpleNamespace(f_blocks=9, f_bavail=1, f_frsize=1000)
    monkeypatch.setattr(checkpoints.os, 'statvfs', lambda folder: disk)
    with checkpoints.States(tmp_path) as states:
        states.save(1, {'x': jnp.ones(250)}, {})
        with pytest.raises(OSError) as error:
            states.save(2, {'x': jnp.ones(251)}, {})
        assert error.value.filename == str(tmp_path / 'state')
        assert states.newest() == (1, {})
    with pytest.raises(OSError) as error:
        files.save_model(policy, tmp_path / 'model')
    assert error.value.filename == str(tmp_path / 'model')
    disk.f_blocks = 0  # a file system that does not tell
    files.save_model(policy, tmp_path / 'model')


def test_saved_on_eight_devices_it_goes_on_there_and_on_fewer(policy, tmp_path):
    # At a larger rate AdamW makes of rounding in the smallest gradients more than is tolerated.
    settings = sft_settings(epochs=1, checkpoint_minutes=0, learning_rate=1e-4)
    whole, _ = training.sft(policy, sft_examples(), settings, tmp_path / 'whole')
    eight, four = (global_mesh(fsdp=2, tensor=2, devices=jax.devices()[:count]) for count in (8, 4))
    assert dict(eight.shape) == {'data': 2, 'fsdp': 2, 'tensor': 2}
    with pytest.raises(Killed):
        training.sft(
            policy, sft_examples(), settings, tmp_path / '1', mesh=eight, progress=killed_at(2)
        )
    for devices in ('4', '8'):
        shutil.copytree(tmp_path / '1', tmp_path / devices)
    for devices, mesh in (('1', None), ('4', four), ('8', eight)):
        found, _ = training.sft(policy, sft_examples(), settings, tmp_path / devices, mesh=mesh)
        close(found.params, whole.params, 1e-6)
        for line, expected in zip(log_of(tmp_path / devices), log_of(tmp_path / 'whole')):
            assert line['loss'] == pytest.approx(expected['loss'], rel=1e-6)


def stopping(training_, folder, number, at):
    """Runs a training that gets a signal; returns the Stopped that it ends with.

    at: (numbers of progress -> whether the signal comes now).
    """

    def progress(numbers):
        if at(numbers):
            signal.raise_signal(number)

    with interrupts.Interrupts(), pytest.raises(interrupts.Stopped) as stopped:
        training_(folder, progress)
    assert stopped.value.number == number
    return str(stopped.value)


def within(step):
    """In the step behind so many."""
    return lambda numbers: (
        numbers['step'] == step and not {'grad_norm', 'held_out_loss'} & {*numbers}
    )


def after(step):
    """When a step has ended, before what is measured there."""
    return lambda numbers: numbers['step'] == step and 'grad_norm' in numbers


@pytest.mark.parametrize(
    ('number', 'how', 'at', 'step'),
    [
        (signal.SIGTERM, 'preempted', within(1), 2),
        (signal.SIGINT, 'stopped', within(2), 3),
        (signal.SIGTERM, 'preempted', after(2), 2),
        (signal.SIGTERM, 'preempted', within(5), 6),
        (signal.SIGINT, 'stopped', after(6), 6),
    ],
    ids=['step', 'ctrl-c', 'measurement', 'last step', 'last measurement'],
)
def test_a_signal_saves_the_step_in_progress(stoppable, tmp_path, number, how, at, step):
    run, whole, log = stoppable
    line = stopping(run, tmp_path, number, at)
    assert line.startswith(f'{how} at step {step} of 6')
    assert [path.name for path in (tmp_path / 'state').iterdir()] == [str(step)]
    assert [line['step'] for line in log_of(tmp_path)] == list(range(1, step + 1))
    resumed, _ = run(tmp_path)
    assert same(whole.params, resumed.params)
    assert log_of(tmp_path) == log


@pytest.fixture(scope='module')
def stoppable(policy, tmp_path_factory):
    """(training of 6 steps in a folder, its result, its log); several micro batches a step."""

    def run(folder, progress=None):
        settings = sft_settings(held_out=0.4, epochs=3, measure_every=2)
        settings.length = 64
        return training.sft(policy, sft_examples(14), settings, folder, progress=progress)

    folder = tmp_path_factory.mktemp('whole')
    result, _ = run(folder)
    log = log_of(folder)
    assert ['held_out_loss' in line for line in log] == [False, True] * 3
    return run, result, log


def test_before_the_first_step_there_is_nothing_to_save(stoppable, tmp_path):
    run, _, _ = stoppable
    with interrupts.Interrupts(), pytest.raises(interrupts.Stopped):
        interrupts.ask(signal.SIGTERM)
        run(tmp_path)
    assert not (tmp_path / 'metrics.jsonl').exists()


def test_a_signal_ends_the_fit_of_a_head(policy, tmp_path):
    settings = ppm_settings(head='fitted', batch_size=4)
    with interrupts.Interrupts(), pytest.raises(interrupts.Stopped):
        interrupts.ask(signal.SIGTERM)
        training.ppm(policy, pair_examples(), settings, tmp_path)
    assert not (tmp_path / 'metrics.jsonl').exists()


def test_the_best_by_held_out_loss_is_kept(policy, tmp_path):
    data = pair_examples(12)

    def run(folder, progress=None, **changes):
        settings = ppm_settings(
            held_out=0.4, batch_size=4, epochs=3, learning_rate=0.03, schedule='cosine',
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
    assert same(layers.unstack(jax.tree.map(jnp.asarray, state['params'])), whole.params)
    for kill in (step, step + 1):
        with pytest.raises(Killed):
            run(tmp_path / 'parts', killed_at(kill))
        with pytest.raises(UserError) as error:
            run(tmp_path / 'parts', seed=1)
        assert error.value.argument == str(tmp_path / 'parts')
    parts, again = run(tmp_path / 'parts')
    assert same(parts.params, whole.params)
    assert log_of(tmp_path / 'parts') == log_of(tmp_path / 'whole')
    for name in ('best_step', 'held_out_loss_after', 'pair_accuracy_after'):
        assert again[name] == metrics[name]


@pytest.mark.parametrize(
    'changes',
    [{'keep': 'best'}, {'keep': 'best', 'measure_every': 1, 'held_out': 0.0}],
)
def test_the_best_needs_something_to_tell_it_by(policy, tmp_path, changes):
    for train, data, settings in (
        (training.sft, sft_examples(), sft_settings(**changes)),
        (training.ppm, pair_examples(4), ppm_settings(**changes)),
    ):
        with pytest.raises(UserError) as error:
            train(policy, data, settings, tmp_path)
        assert error.value.argument == 'keep'


def compiled_with_state(policy, settings, mesh=None, kind='sft'):
    """The functions of a training of two steps and the state that it begins with."""
    model = models.add_tokens(policy, steps.SFT_TOKENS)
    if kind == 'ppm':
        model = models.init_ppm(policy, 0)
        model.params['value_head']['weight'] = jnp.ones((1, 32)) / 8
    loss = 'sft' if kind == 'sft' else 'pairwise'
    mesh = mesh or parallel.one_device()
    compiled = step.Compiled(policy.config, settings, loss, mesh, 2)
    return compiled, compiled.init(model.params)


def gradients(policy, settings, mesh=None, kind='sft'):
    """(gradients of one step as numpy, their norm, its micro batches, the state after it)."""
    if kind == 'sft':
        encoded = examples.sft(sft_examples(), policy.tokenizer, settings.length)
    else:
        encoded = examples.pairs(pair_examples(8), policy.tokenizer, settings.length)
    mesh = mesh or parallel.one_device()
    compiled, state = compiled_with_state(policy, settings, mesh, kind)
    micros = packing.Micros(encoded, range(len(encoded)), settings, mesh)
    grads = compiled.zeros(state['params'])
    for batch in micros.batches:
        grads, _ = compiled.accumulate(grads, state['params'], batch, 1 / micros.weight, (0, 0))
    kept = jax.tree.map(np.array, grads)
    state, norm = compiled.update(state, grads)
    return kept, float(norm), micros, state


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
    gate = gate['layers']['mlp']['gate']['weight']
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


def test_a_held_out_loss_is_the_mean_of_all_tokens_however_many_are_read_at_once(policy):
    encoded = examples.sft(sft_examples(5), policy.tokenizer, 128)
    compiled, state = compiled_with_state(policy, sft_settings())
    whole, parts = (
        trainer.evaluate(compiled, state['params'], encoded, range(5), sft_settings(batch_size=n))
        for n in (5, 2)
    )
    assert parts['loss'] == pytest.approx(whole['loss'], rel=1e-5)
    assert parts['marks_due'].tolist() == whole['marks_due'].tolist()
    assert whole['marks_due'].sum() == sum(example.weight for example in encoded.take())


def test_dropout_follows_from_the_seed_the_step_and_the_micro_batch(policy):
    settings = ppm_settings(length=128, micro_batch=8, dropout=0.5)
    encoded = examples.pairs(pair_examples(8), policy.tokenizer, settings.length)
    found = []
    for seed, numbers in ((0, [(0, 0), (0, 0), (1, 0), (0, 1)]), (1, [(0, 0)])):
        settings.seed = seed
        compiled, state = compiled_with_state(policy, settings, kind='ppm')
        params = state['params']
        (batch,) = packing.Micros(encoded, range(len(encoded)), settings, compiled.mesh).batches
        for number in numbers:
            _, sums = compiled.accumulate(compiled.zeros(params), params, batch, 1.0, number)
            found.append(float(sums['loss']))
    assert found[0] == found[1] and len(set(found)) == 4


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


def test_ppm_learns_a_planted_preference(policy, tmp_path, monkeypatch):
    monkeypatch.setattr(fit, 'PPM_HELD_OUT', 10)
    settings = ppm_settings(epochs=4, learning_rate=1e-2, held_out=0.5)
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
    loaded = models.load_ppm(tmp_path, 'float32')
    assert loaded.squash == 'tanh' and same(loaded.params, ppm.params)
    prompt = steps.prompt('fff ggg hhh') + '<code>\n'
    texts = [prompt + text for text in ('# iii bbb jjj<end_of_step>', '# iii ccc jjj<end_of_step>')]
    tokens = jnp.asarray(ppm.tokenizer(texts)['input_ids'])
    good, bad = loaded.scores(tokens, jnp.full(2, tokens.shape[1]))
    assert -1 <= bad < good <= 1


def test_where_nothing_is_held_out_no_trajectory_is_read(policy, tmp_path):
    unread = (pytest.fail('was read') for _ in range(1))
    settings = ppm_settings(epochs=1, held_out=0.0)
    _, metrics = training.ppm(policy, pair_examples(2), settings, tmp_path, trajectories=unread)
    assert metrics['answer_pairs'] == 0


def test_a_loss_that_is_not_finite_names_the_step(policy, tmp_path):
    settings = sft_settings(learning_rate=1e30, grad_clip=0.0)
    with pytest.raises(UserError) as error:
        training.sft(policy, sft_examples(), settings, tmp_path)
    assert error.value.argument == 'learning_rate' and 'step 2 of 6' in error.value.expected


def test_what_does_not_fit_is_dropped_and_counted(policy, tmp_path):
    long = {'query': 'bbb', 'response': 'ccc ' * 200}
    encoded = examples.sft([long, *sft_examples(2)], policy.tokenizer, 128)
    assert (len(encoded), encoded.dropped) == (2, 1)
    with pytest.raises(UserError) as error:
        training.sft(policy, [long], sft_settings(), tmp_path)
    assert (error.value.argument, error.value.value) == ('length', 128)


def test_what_cannot_be_trained_is_named(policy, tmp_path):
    def ppm(**changes):
        training.ppm(policy, pair_examples(2), ppm_settings(**changes), tmp_path)

    def sft(examples=sft_examples(2), **changes):  # noqa: B008
        training.sft(policy, examples, sft_settings(**changes), tmp_path)

    for argument, call in (
        ('examples', lambda: sft([])),
        ('examples', lambda: sft([{'query': 'bbb'}])),
        ('schedule', lambda: sft(schedule='step')),
        ('loss', lambda: ppm(loss='dpo')),
        ('squash', lambda: ppm(squash='none')),
        ('keep', lambda: sft(keep='first')),
        ('dtype', lambda: sft(dtype='float16')),
        ('moments', lambda: ppm(moments='float8')),
    ):
        with pytest.raises(UserError) as error:
            call()
        assert error.value.told().startswith(argument)


def test_a_program_serves_trainings_of_any_length_and_rate(policy):
    """So rounds that differ in their number of examples compile once."""
    texts = []
    for changes in ({}, {'learning_rate': 3e-4, 'epochs': 7}):
        settings = sft_settings(micro_batch=8, **changes)
        *_, micros, _ = gradients(policy, settings)
        compiled = step.Compiled(
            policy.config, settings, 'sft', parallel.one_device(), 11 * settings.epochs
        )
        state = checkpoints.abstract(compiled.init(policy.params))
        batches = [(name, micros.batches[0]) for name in ('step', 'accumulate')]
        calls = compiled.calls(state, {}, batches)
        texts.append({key: compiled.lower(*call).as_text() for key, call in calls.items()})
        count = 11 * settings.epochs
        rates = [optimiser.learning_rate(settings, step, count) for step in (0, count)]
        assert rates == pytest.approx([settings.learning_rate, 0])
    assert len(texts[0]) == 3 and texts[0] == texts[1]


def test_rows_of_one_length_are_fewer_shapes(policy, tmp_path):
    found = []
    for one_size in (False, True):
        settings = ppm_settings(batch_size=3, dropout=0.0, one_size=one_size)
        folder = tmp_path / str(one_size)
        found.append(training.ppm(policy, pair_examples(), settings, folder)[1])
        found[-1]['losses'] = [line['loss'] for line in log_of(folder) if 'loss' in line]
    several, one = found
    assert one['losses'] == pytest.approx(several['losses'], rel=1e-3)
    assert one['compiles'] < several['compiles']
