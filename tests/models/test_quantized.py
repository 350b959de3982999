"""Weights in 8 bits: near the model they come from, searched with like any other."""

import dataclasses

import jax
import numpy as np
import pytest

from rstar_jax import models, parallel, search
from rstar_jax.models import sharding, tiny
from rstar_jax.settings.errors import UserError
from tests.search import favoured, test_engine


def made(tied):
    policy = tiny.policy(['print(1)\n x = 1 + 2 \\boxed{3} apples Tom'], num_layers=2)
    if not tied:
        output = {'weight': jax.random.normal(jax.random.key(1), (320, 128)) / 10}
        config = dataclasses.replace(policy.config, tie_embeddings=False)
        policy = dataclasses.replace(
            policy, config=config, params={**policy.params, 'output': output}
        )
    return policy


def widened(params):
    """The float32 weights that int8 ones stand for."""
    if 'scale' in params:
        rest = {name: x for name, x in params.items() if name != 'scale'}
        wide = jax.numpy.asarray(params['weight'], 'float32') * params['scale'][:, None]
        return {**rest, 'weight': wide}
    return {name: widened(x) if isinstance(x, dict) else x for name, x in params.items()}


def reference(narrow):
    config = dataclasses.replace(narrow.config, int8=False)
    return dataclasses.replace(narrow, config=config, params=widened(narrow.params))


@pytest.mark.parametrize('tied', [True, False])
def test_weights_are_rounded_and_logits_follow(tied):
    policy = made(tied)
    tokens = np.random.default_rng(0).integers(0, 320, (4, 24))
    lengths = np.full(4, 24)
    exact = np.asarray(policy.logits(tokens, lengths))
    array = policy.params['layers']['0']['attention']['q']['weight']
    weight, table = np.asarray(array), np.asarray(policy.params['embed']['weight'])
    narrow = models.quantized(policy)
    assert array.is_deleted()
    part = narrow.params['layers']['0']['attention']['q']
    assert part['weight'].dtype == np.int8 and narrow.params['output']['weight'].dtype == np.int8
    error = np.abs(np.asarray(part['weight']) * np.asarray(part['scale'])[:, None] - weight)
    assert (error <= 0.501 * np.abs(weight).max(axis=1, keepdims=True) / 127).all()
    np.testing.assert_array_equal(narrow.params['embed']['weight'], table)
    found = np.asarray(narrow.logits(tokens, lengths))
    wide = reference(narrow).logits(tokens, lengths)
    np.testing.assert_allclose(found, wide, rtol=1e-4, atol=1e-4)
    difference = np.sqrt(np.mean((found - exact) ** 2)) / exact.std()
    print(f'logits differ by {difference:.1e} of their standard deviation')
    assert 0 < difference < 0.05


def test_scores_follow_and_scales_are_cut_like_weights():
    ppm = models.init_ppm(made(True), seed=1)
    head = {'weight': 0.3 * jax.random.normal(jax.random.key(0), (1, 128)), 'bias': np.zeros(1)}
    ppm = dataclasses.replace(ppm, params={**ppm.params, 'value_head': head})
    tokens, lengths = np.arange(40).reshape(2, 20), np.array([20, 11])
    narrow = models.quantized(ppm)
    wide = reference(narrow).scores(tokens, lengths)
    np.testing.assert_allclose(narrow.scores(tokens, lengths), wide, atol=1e-4)
    mesh = parallel.local_mesh(2, jax.devices()[:2])
    placed = sharding.shard(narrow.params, mesh, narrow.config)
    part = placed['decoder']['layers']['0']['mlp']['gate']
    shapes = [part[name].addressable_data(0).shape for name in ('weight', 'scale')]
    assert shapes == [(256, 128), (256,)]


def test_it_searches():
    policy = models.quantized(favoured.favour(made(True)))
    config = test_engine.CONFIG
    with search.Workers.start(config) as workers:
        ours = test_engine.grow(policy, None, workers, problems=test_engine.PROBLEMS[:1])
        naive = test_engine.Naive(policy, None, config)
        theirs = search.run(
            test_engine.PROBLEMS[:1],
            expander=naive,
            config=config,
            share=search.Share(workers=workers),
        )
        test_engine.assert_same(ours, {record.key: record for record in theirs}, exact=False)


def test_a_model_in_8_bits_is_not_saved(tmp_path):
    policy = made(tied=True)
    ppm = models.init_ppm(dataclasses.replace(policy, params=jax.tree.map(np.array, policy.params)))
    for model, save in ((policy, models.save), (ppm, models.save_ppm)):
        with pytest.raises(UserError):
            save(models.quantized(model), tmp_path)
    assert not list(tmp_path.iterdir())
