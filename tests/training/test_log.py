"""metrics.jsonl: written now and then, and always before what is gone on from."""

import itertools
import json
import math
import types

import numpy as np
import pytest

from rstar_jax import parallel, training
from rstar_jax.job import hosts
from rstar_jax.training import checkpoints, flops, log
from tests.training.words import log_of, sft_examples, sft_settings


@pytest.mark.parametrize('minutes', [0, 10])
def test_steps_are_on_disk_before_a_state_and_else_once_a_second(
    policy, tmp_path, monkeypatch, minutes
):
    monkeypatch.setattr(log, 'WRITE_SECONDS', math.inf)
    at_saves, at_steps, save = [], [], checkpoints.States.save

    def saving(states, step, state, about):
        at_saves.append((step, len(log_of(tmp_path))))
        save(states, step, state, about)

    def progress(numbers):
        if 'grad_norm' in numbers:
            at_steps.append(len(log_of(tmp_path)))

    monkeypatch.setattr(checkpoints.States, 'save', saving)
    settings = sft_settings(checkpoint_minutes=minutes)
    training.sft(policy, sft_examples(), settings, tmp_path, progress=progress)
    assert at_saves == ([] if minutes else [(step, step) for step in range(1, 6)])
    assert at_steps == ([0] * 6 if minutes else list(range(6)))
    assert [line['step'] for line in log_of(tmp_path)] == list(range(1, 7))


def test_what_ends_a_training_leaves_its_steps_on_disk(policy, tmp_path, monkeypatch):
    monkeypatch.setattr(log, 'WRITE_SECONDS', math.inf)

    def progress(numbers):
        if numbers['step'] == 3:
            raise KeyError('3')

    with pytest.raises(KeyError):
        training.sft(policy, sft_examples(), sft_settings(), tmp_path, progress=progress)
    assert [line['step'] for line in log_of(tmp_path)] == [1, 2, 3]


def test_lines_are_written_as_the_seconds_go(policy, tmp_path, monkeypatch):
    monkeypatch.setattr(log, 'WRITE_SECONDS', 0.0)
    seen = []

    def progress(numbers):
        if 'grad_norm' in numbers:
            seen.append(json.loads((tmp_path / 'metrics.jsonl').read_text().splitlines()[-1]))

    training.sft(policy, sft_examples(), sft_settings(), tmp_path, progress=progress)
    assert [line['step'] for line in seen] == list(range(1, 7))


# Lines that are left; what follows them, where the machine was lost while it wrote.
@pytest.mark.parametrize(('lines', 'rest'), [(0, ''), (1, ''), (3, '{"step": 4, "lo')])
def test_lines_that_are_lost_do_no_harm(policy, tmp_path, lines, rest):
    """The state of step 4 is there, its line is not: what is measured after it is told of it."""

    def run(progress=None):
        settings = sft_settings(held_out=0.4, epochs=3, checkpoint_minutes=0, measure_every=2)
        return training.sft(policy, sft_examples(14), settings, tmp_path, progress=progress)[1]

    def killed(numbers):
        if numbers['step'] == 4 and not {'grad_norm', 'held_out_loss'} & numbers.keys():
            raise KeyError(4)

    with pytest.raises(KeyError):
        run(killed)
    path = tmp_path / 'metrics.jsonl'
    kept = path.read_text().splitlines(keepends=True)[:lines]
    path.write_text(''.join(kept) + rest)
    metrics = run()
    found = log_of(tmp_path)
    assert [line['step'] for line in found] == [*range(1, lines + 1), 4, 5, 6]
    assert ['held_out_loss' in line for line in found[-3:]] == [True, False, True]
    assert math.isnan(found[-3]['loss'])
    assert math.isfinite(metrics['loss_first'] + metrics['loss_last'])


def test_processes_ask_each_other_once_a_step(policy, tmp_path, monkeypatch):
    asked, counts = [], []
    monkeypatch.setattr(hosts, 'greatest', lambda number: asked.append(number) or number)

    def progress(numbers):
        if 'grad_norm' in numbers:
            counts.append(len(asked))

    training.sft(policy, sft_examples(), sft_settings(), tmp_path, progress=progress)
    assert [after - before for before, after in itertools.pairwise(counts)] == [1] * 5


def test_figures_are_those_of_the_steps_alone(tmp_path, monkeypatch):
    """Of 20 seconds 4 were compilation, 6 were spent aside."""
    now, told = [100.0], []
    monkeypatch.setattr(log.time, 'monotonic', lambda: now[0])
    monkeypatch.setattr(parallel, 'peak_flops', lambda mesh, dtype: 1000.0)
    compiled = types.SimpleNamespace(mesh=parallel.one_device(), seconds=0.0, count=2)
    work = flops.Work(token=30, target=20, pair=1, windows=(None,))
    made = log.Log(tmp_path, [3, 1], compiled, sft_settings(), work, told.append)
    made.resume(0)
    with made.aside():
        now[0], compiled.seconds = now[0] + 7, 1.0
    now[0], compiled.seconds = now[0] + 13, 4.0
    batch = {'end': np.full((2, 60), 60), 'positions': np.zeros((2, 60), np.int32)}
    batch['end'][1, 40:] = 0
    batch['weights'] = np.ones((2, 25))
    made.count(batch)
    made.add({'step': 1, 'loss': 2.0, 'tokens': 100}, alone=200, places=125)
    found = made.summary()
    assert found['tokens_per_second'] == told[-1]['tokens_per_second'] == pytest.approx(10)
    assert found['mfu'] == pytest.approx((30 * 100 + 20 * 50 + 100) / 10 / 1000)
    assert told[-1]['seconds_left'] == pytest.approx(10 / 3)
    assert found['padding_share'] == pytest.approx(0.2)
    assert found['shared_prefix_tokens_share'] == 0.5
    assert (found['seconds'], found['compile_seconds'], found['tokens']) == (20, 4, 100)
