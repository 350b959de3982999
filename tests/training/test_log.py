"""metrics.jsonl: written now and then, and always before what is gone on from."""

import itertools
import json
import math

import pytest

from rstar_jax import parallel, training
from rstar_jax.training import checkpoints, log
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


def test_processes_ask_each_other_once_a_step(policy, tmp_path, monkeypatch):
    asked, counts = [], []
    monkeypatch.setattr(parallel, 'greatest', lambda number: asked.append(number) or number)

    def progress(numbers):
        if 'grad_norm' in numbers:
            counts.append(len(asked))

    training.sft(policy, sft_examples(), sft_settings(), tmp_path, progress=progress)
    assert [after - before for before, after in itertools.pairwise(counts)] == [1] * 5
