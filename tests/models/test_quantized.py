"""Weights in 8 bits: near the model they come from, searched with like any other."""

import dataclasses

import jax
import numpy as np
import pytest

from rstar_jax import models, parallel, search
from rstar_jax.models import sharding, tiny
from tests.search import test_engine


def made(tied):
    policy = tiny.policy(['print(1)\n x = 1 + 2 \\boxed{3} apples Tom'], num_layers=2)
    if not tied:
        output = {'weight': jax.random.normal(jax.random.key(1), (320, 128)) / 10}
        config = dataclasses.replace(policy.config, tie_embeddings=False)
        policy = dataclasses.replace(
            policy, config=config, params={**policy.params, 'output': output}
        )
    return policy


@pytest.mark.parametrize('tied', [True, False])
def test_logits_are_near(tied):
    policy = made(tied)
    tokens = np.random.default_rng(0).integers(0, 320, (4, 24))
    lengths = np.full(4, 24)
    exact = np.asarray(policy.logits(tokens, lengths))
    layer = policy.params['layers']['0']['attention']['q']['weight']
    weight = np.asarray(layer)
    narrow = models.quantized(policy)
    assert layer.is_deleted()
    half = narrow.params['layers']['0']['attention']['q']
    assert half['weight'].dtype == np.int8 and narrow.params['output']['weight'].dtype == np.int8
    error = np.abs(np.asarray(half['weight']) * np.asarray(half['scale'])[:, None] - weight)
    assert (error <= 0.51 * np.abs(weight).max(axis=1, keepdims=True) / 127).all()
    found = np.asarray(narrow.logits(tokens, lengths))
    difference = np.abs(found - exact).max() / exact.std()
    print(f'logits differ by up to {difference:.1e} of their standard deviation')
    assert 0 < difference < 0.1


def test_scores_are_near_and_scales_are_cut_like_weights():
    ppm = models.init_ppm(made(True), seed=1)
    head = {'weight': 0.3 * jax.random.normal(jax.random.key(0), (1, 128)), 'bias': np.zeros(1)}
    ppm = dataclasses.replace(ppm, params={**ppm.params, 'value_head': head})
    tokens, lengths = np.arange(40).reshape(2, 20), np.array([20, 11])
    exact = np.asarray(ppm.scores(tokens, lengths))
    narrow = models.quantized(ppm)
    np.testing.assert_allclose(narrow.scores(tokens, lengths), exact, atol=0.05)
    mesh = parallel.local_mesh(2, jax.devices()[:2])
    placed = sharding.shard(narrow.params, mesh, narrow.config)
    part = placed['decoder']['layers']['0']['mlp']['gate']
    shapes = [part[name].addressable_data(0).shape for name in ('weight', 'scale')]
    assert shapes == [(256, 128), (256,)]


def test_it_searches():
    policy = models.quantized(test_engine._favour(made(True)))
    config = test_engine.CONFIG
    with search.Workers.start(config) as workers:
        ours = test_engine.grow(policy, None, workers, problems=test_engine.PROBLEMS[:1])
        naive = test_engine.Naive(policy, None, config)
        theirs = search.run(
            test_engine.PROBLEMS[:1], expander=naive, config=config, workers=workers
        )
        test_engine.assert_same(ours, {record.key: record for record in theirs}, exact=False)
