"""A reward model's head that is fitted before the training begins."""

import tracemalloc

import jax
import numpy as np
import pytest

from rstar_jax import models, parallel, training
from rstar_jax.parallel import global_mesh
from rstar_jax.training import examples, head, losses, step, trainer
from tests.training.words import (
    close,
    pair_examples,
    ppm_settings,
    same,
    trajectory_examples,
)

ENCODERS = {'pairwise': 'pairs', 'orm': 'outcomes', 'pqm': 'q_values', 'prm': 'step_labels'}


def rows(rng, count, weight, noise):
    """Inputs of very different spreads, and targets that are linear in them but for noise."""
    spreads = np.array([1.0, 30.0, 0.1, 1.0, 1.0])
    inputs = rng.normal(size=(count, 5)) * spreads
    return inputs, inputs @ weight + noise * rng.normal(size=count), rng.uniform(0.5, 2, count)


@pytest.mark.parametrize('centred', [False, True])
def test_it_finds_what_is_there(centred):
    rng, weight = np.random.default_rng(0), np.array([1.0, -0.05, 8.0, 0.0, 0.0])
    folds = [rows(rng, 60, weight, 0.01) for _ in range(5)]
    if centred:
        folds = [(x + 7, y + 3, w) for x, y, w in folds]
    # Of rows that come in several parts.
    parts = [[[x[k::2] for x in fold] for k in range(2)] for fold in folds]
    found = head.least_squares([sum(head.sums(*p) for p in fold) for fold in parts], centred)
    inputs, targets, _ = (np.concatenate(parts) for parts in zip(*folds))
    values = inputs @ found['weight'][0] + found['bias']
    np.testing.assert_allclose(values, targets, atol=0.1)
    assert (found['bias'] != 0) == centred
    assert found['weight'].dtype == found['bias'].dtype == np.float32


def test_the_penalty_is_the_one_that_tells_left_out_folds_best():
    rng, weight = np.random.default_rng(1), np.array([0.3, 0.0, 0.0, 0.2, 0.0])
    folds = [rows(rng, 4, weight, 2.0) for _ in range(5)]
    found = head.least_squares([head.sums(*fold) for fold in folds], centred=False)
    inputs, _, weights = (np.concatenate(parts) for parts in zip(*folds))
    spread = np.sqrt(np.average(inputs**2, axis=0, weights=weights))

    def fitted(parts, strength):
        x, y, w = (np.concatenate(p) for p in zip(*parts))
        x, root = x / spread, np.sqrt(w)[:, None]
        penalty = strength * np.trace((root * x).T @ (root * x)) / 5
        above = np.concatenate([root * x, np.sqrt(penalty) * np.eye(5)])
        right = np.concatenate([root[:, 0] * y, np.zeros(5)])
        return np.linalg.lstsq(above, right, rcond=None)[0]

    def error(strength):
        total = 0.0
        for k, (x, y, w) in enumerate(folds):
            others = folds[:k] + folds[k + 1 :]
            total += w @ (y - x / spread @ fitted(others, strength)) ** 2
        return total

    best = min(head.STRENGTHS, key=error)
    assert best not in (head.STRENGTHS[0], head.STRENGTHS[-1])
    np.testing.assert_allclose(found['weight'][0], fitted(folds, best) / spread, rtol=1e-5)


def test_where_nothing_differs_it_stays_at_nothing():
    nothing = head.sums(np.zeros((2, 3)), np.ones(2), np.ones(2))
    found = head.least_squares([nothing] * 2, centred=False)
    assert not found['weight'].any() and not found['bias'].any()
    alone = head.sums(np.ones((2, 3)), np.ones(2), np.ones(2))
    assert 0 < head.least_squares([alone], centred=False)['weight'].sum() < 1
    # Means that float64 rounds are no spread.
    alike = head.sums(np.full((3, 4), 3.3), np.array([1.0, 0.0, 1.0]), np.full(3, 0.7))
    found = head.least_squares([alike] * 3, centred=True)
    assert not found['weight'].any() and found['bias'] == pytest.approx(2 / 3)


def setting(policy, loss, mesh=None, **changes):
    settings = ppm_settings(loss=loss, batch_size=4, **changes)
    ppm = models.init_ppm(policy, 0, settings.squash)
    data = pair_examples(12) if loss == 'pairwise' else trajectory_examples()[:24]
    encoded = getattr(examples, ENCODERS[loss])(data, policy.tokenizer, settings.length)
    mesh = mesh or parallel.one_device()
    compiled = step.Compiled(ppm.config, settings, loss, mesh, 3)
    return settings, encoded, compiled, compiled.init(ppm.params)['params']


def fit(settings, encoded, compiled, params, loss, tell=lambda done, of: None):
    return head.fitted(compiled, params, encoded, range(len(encoded)), loss, settings, tell)


@pytest.mark.parametrize('squash', ['tanh', 'tanh5'])
@pytest.mark.parametrize('loss', list(ENCODERS))
def test_what_it_is_fitted_to_is_what_the_loss_reads(policy, loss, squash):
    settings, encoded, compiled, params = setting(policy, loss, squash=squash)
    told = []
    found = fit(settings, encoded, compiled, params, loss, lambda *now: told.append(now))
    every = range(len(encoded))
    before = trainer.evaluate(compiled, params, encoded, every, settings)
    with_it = compiled.with_head(params, found)
    after = trainer.evaluate(compiled, with_it, encoded, every, settings)
    # Words that stand anywhere are not linear in the last token's state: it is better, no more.
    assert after['loss'] < 0.97 * before['loss']
    count = sum(encoded.counts)
    assert told[0] == (0, count) and told[-1] == (count, count)
    if loss == 'pairwise':  # which tells nothing of where values are
        assert abs(after['level']) < 0.02
    # Another head of the same size is worse.
    turned = {**found, 'weight': -found['weight']}
    turned = trainer.evaluate(
        compiled, compiled.with_head(params, turned), encoded, every, settings
    )
    assert turned['loss'] > before['loss']


@pytest.mark.parametrize('loss', ['pairwise', 'prm'])
def test_it_is_fitted_to_all_that_is_learnt_and_to_nothing_else(policy, loss):
    settings, encoded, compiled, params = setting(policy, loss)
    read = list(head._read(compiled, params, encoded, range(len(encoded)), loss, settings))
    inputs, targets, weights, *_ = (np.concatenate(parts) for parts in zip(*read))
    assert weights.sum() == pytest.approx(sum(example.weight for example in encoded.take()))
    assert np.abs(inputs).max(axis=1).min() > 0
    right = (targets > 0).sum()
    assert right == (len(targets) if loss == 'pairwise' else 12 * 2 + 12 * 2)
    assert set(np.abs(targets)) == {1.0}


def test_it_holds_the_states_of_one_step_at_most(policy, monkeypatch):
    settings, encoded, compiled, params = setting(policy, 'pairwise')
    settings.batch_size, size = 1, 1000 * 32 * 8

    def read(*_):
        states = np.random.default_rng(0).normal(size=(1000, 32))
        yield states, np.ones(1000), np.ones(1000), states

    monkeypatch.setattr(head, '_read', read)
    tracemalloc.start()
    fit(settings, encoded, compiled, params, 'pairwise')
    assert len(encoded) * size > tracemalloc.get_traced_memory()[1] > size
    tracemalloc.stop()


@pytest.mark.parametrize(('lora', 'devices'), [(0, 8), (4, 8), (4, 1)])
def test_meshes_and_lora_change_nothing(policy, lora, devices):
    settings, encoded, compiled, params = setting(policy, 'pairwise')
    expected = fit(settings, encoded, compiled, params, 'pairwise')
    mesh = global_mesh(fsdp=2, tensor=2) if devices == 8 else None
    cut = setting(policy, 'pairwise', mesh, lora=lora)
    found = fit(*cut, 'pairwise')
    close(found, expected, 1e-4)
    _, _, compiled, params = cut
    held = compiled.with_head(params, found)['value_head']['weight']
    assert held.sharding == params['value_head']['weight'].sharding


def test_not_more_than_so_many_are_read_and_no_problem_is_in_two_folds(policy, monkeypatch):
    monkeypatch.setattr(head, 'HEAD_MOST', 9)
    _, encoded, _, _ = setting(policy, 'pairwise')
    folds = head._dealt(encoded, range(len(encoded)), 0)
    counts = [sum(encoded.counts[i] for i in fold) for fold in folds]
    assert 9 <= sum(counts) <= 10 and len(folds) == 5 and min(counts) > 0
    questions = [{encoded.questions[i] for i in fold} for fold in folds]
    assert len(set.union(*questions)) == sum(map(len, questions))
    assert head._dealt(encoded, [0, 1], 0) != folds


def test_a_training_begins_with_it(policy, tmp_path):
    data, trajectories = pair_examples(), trajectory_examples()

    def run(name, **changes):
        settings = ppm_settings(epochs=1, learning_rate=1e-9, held_out=0.5, **changes)
        folder = tmp_path / name
        return training.ppm(policy, data, settings, folder, trajectories=trajectories)

    random, before = run('random', head='random')
    fitted, after = run('fitted', head='fitted')
    assert after['held_out_loss_before'] < before['held_out_loss_before']
    assert after['pair_accuracy_before'] > before['pair_accuracy_before']
    assert after['answer_accuracy_before'] > 0.6
    assert not same(random.params['value_head'], fitted.params['value_head'])
    assert same(jax.tree.map(np.shape, random.params), jax.tree.map(np.shape, fitted.params))


def test_the_best_may_be_what_it_began_with(policy, tmp_path):
    settings = ppm_settings(
        head='fitted', held_out=0.5, keep='best', measure_every=1, epochs=1, learning_rate=30.0
    )
    ppm, metrics = training.ppm(policy, pair_examples(), settings, tmp_path / 'whole')
    assert metrics['best_step'] == 0
    assert metrics['held_out_loss_after'] == metrics['held_out_loss_before']
    changed = settings.copy_and_resolve_references()
    changed.learning_rate = 1e-9
    start, _ = training.ppm(policy, pair_examples(), changed, tmp_path / 'start')
    close(ppm.params, start.params, 1e-6)


def test_the_scale_is_that_of_values_in_use():
    for squash, logit in losses.LOGIT.items():
        settings = ppm_settings(squash=squash)
        raw = head._raw(np.array([0.0, 1.0]), 'orm', settings)
        np.testing.assert_allclose(raw * logit, [-2, 2])
        np.testing.assert_allclose(head._raw(np.array([0.5]), 'pqm', settings), 1 / logit)
