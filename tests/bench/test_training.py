"""The training bench on a tiny model: its figures, that both sides agree, and what it refuses."""

import dataclasses

import numpy as np
import pytest

from rstar_jax.bench import training
from rstar_jax.settings.errors import UserError

SMALL = training.Settings('tiny', 'float32', examples=2, nodes=1, repeats=1, lora=4)


@pytest.fixture(scope='module')
def figures():
    return training.run(SMALL)


def test_figures(figures):
    for name in ('sft', 'ppm'):
        ours, theirs = (figures[f'{name}_{x}tokens_per_second'] for x in ('', 'torch_'))
        assert figures[f'{name}_ratio_vs_torch'] == pytest.approx(ours / theirs)
        assert figures[f'{name}_loss_difference'] < 1e-3 > figures[f'{name}_norm_difference']
    for name in ('matmul_peak_share', 'ppm_matmul_peak_share', 'lora_matmul_peak_share'):
        assert figures[name] > 0
    assert figures['lora_tokens_per_second'] > 0
    # 4 sides behind a prefix are 8 rows of pairs.
    encoded = training.pair_data(np.random.default_rng(0), 1, 1024, 1)
    (example,) = encoded.take()
    prefix = len(example.sequences[0])
    while len({tuple(side[:prefix]) for side in example.sequences}) > 1:
        prefix -= 1
    steps = [len(side) - prefix for side in example.sequences]
    computed = prefix + sum(steps)
    assert figures['shared_prefix_tokens_share'] == pytest.approx(
        computed / (8 * prefix + 2 * sum(steps))
    )


def test_bytes_of_a_parameter(figures):
    """float32 and two moments and a gradient; with LoRA the frozen weight and little else."""
    assert figures['bytes_per_parameter'] == pytest.approx(16, abs=0.01)
    shape = training.shape_of('tiny')
    count = 1024 * 128 + 3 * (2 * 128 * 128 + 2 * 128 * 64 + 3 * 128 * 512 + 2 * 128) + 128
    dense = 3 * (2 * (128 + 128) + 2 * (128 + 64) + 3 * (128 + 512))
    assert shape.num_layers == 3
    expected = 4 + 16 * 4 * dense / count
    assert figures['lora_bytes_per_parameter'] == pytest.approx(expected, abs=0.01)
    assert figures['lora_gflops_per_token'] > 0
    assert figures['peak_gib_recomputed'] < figures['peak_gib']


def test_both_sides_agree_in_bfloat16():
    few = dataclasses.replace(SMALL, examples=1)
    task = training.Task(training.shape_of('tiny'), 'bfloat16', few, shorter=4)
    figures = training.compare(task)
    assert figures['sft_loss_difference'] < 2e-2 > figures['ppm_loss_difference']


def test_losses_that_differ_are_an_error():
    assert training.difference('the loss', 'float32', 1.0005, 1.0) == pytest.approx(5e-4)
    for value in (1.01, float('nan')):
        with pytest.raises(RuntimeError):
            training.difference('the loss', 'float32', value, 1.0)


def test_a_dtype_that_is_not_compared():
    with pytest.raises(UserError) as error:
        training.Settings(dtypes='float16')
    assert error.value.argument == '--dtypes'
