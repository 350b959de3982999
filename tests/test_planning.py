"""Plans: the search's own functions compiled on fake devices, sizes that add up, the table."""

import importlib.util

import jax
import numpy as np
import pytest

from rstar_jax import configs, models, parallel, planning, search
from rstar_jax.errors import UserError
from rstar_jax.models import published
from rstar_jax.search import decode, devices

SHAPE = models.Config('qwen2', 320, 64, 96, 1, 8, 2, 8, qkv_bias=True)
SETTINGS = search.Config(candidates=4, step_tokens=16, path_tokens=200, slots=8)


@pytest.fixture(scope='module')
def ample():
    return planning.plan_model(SETTINGS, jax.devices()[:2], 1e9, SHAPE)


def test_sizes_are_those_of_the_arrays(ample):
    """One chip, all trees: what the state really takes, counted array by array."""
    mesh = parallel.local_mesh(devices=jax.devices()[:1])
    params = models.decoder.init_params(SHAPE, jax.random.key(0), 'bfloat16')
    made = [
        params,
        models.init_ppm(models.Policy(SHAPE, None, params)).params,
        *(
            devices.make(mesh, f, SHAPE, rows, length, 'bfloat16')
            for f, rows, length in (
                (decode.empty_path, 6, 512),
                (decode.empty_cells, 24, 16),
                (decode.empty_slots, 8, 16),
                (decode.empty_path, 6, 512),
                (decode.empty_kv, 24, 16 + 64),
            )
        ),
    ]
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(made))
    tables = planning.MARK_STATES * (SHAPE.vocab_size + 1) + 4
    assert (ample.tensor, ample.trees, ample.slots) == (1, 6, 8)
    assert min(ample.decode, ample.score) >= held + tables
    state = planning._State(SETTINGS, mesh, SHAPE)
    assert state.resident(6) == held + tables
    assert ample.tree == state.resident(6) - state.resident(5)
    weights = sum(x.nbytes for x in jax.tree.leaves(made[:2]))
    assert ample.weights == weights
    # The products of one step of 8 sequences, embedding look-up left out.
    products = sum(x.size for x in jax.tree.leaves(params) if x.ndim == 2)
    products -= params['embed']['weight'].size
    assert 2 * 8 * products < ample.flops < 8 * 2 * 8 * products


class Compiled:
    """Stands for a function whose compilation is not what is tested."""

    def __init__(self, temporary):
        self.temp_size_in_bytes = temporary
        self.output_size_in_bytes = self.alias_size_in_bytes = self.generated_code_size_in_bytes = 0

    def compile(self):
        return self

    def memory_analysis(self):
        return self

    def cost_analysis(self):
        return {'flops': 1.0, 'bytes accessed': 1.0}


def test_little_memory_means_fewer_trees_then_more_chips_then_none(monkeypatch):
    refused = []

    def lowered(state, trees):
        if trees in refused:
            raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Ran out of memory')
        return Compiled(1000 * trees)

    monkeypatch.setattr(planning._State, '_decode', lowered)
    monkeypatch.setattr(planning._State, '_score', lambda *_: Compiled(0))
    one, two = (
        planning._State(SETTINGS, parallel.local_mesh(n, jax.devices()[:n]), SHAPE) for n in (1, 2)
    )
    for fits in (5, 3):
        memory = (one.resident(5) + 5000) / 0.95
        made = planning.plan_model(SETTINGS, jax.devices()[:2], memory, SHAPE)
        assert (made.tensor, made.trees) == (1, fits)
        assert made.decode == one.resident(fits) + 1000 * fits
        assert made.score == one.resident(fits)
        refused.append(5)
    memory = (two.resident(2) + 2000) / 0.95
    assert memory < one.resident(1)
    made = planning.plan_model(SETTINGS, jax.devices()[:2], memory, SHAPE)
    assert (made.tensor, made.trees) == (2, 2)
    assert planning.plan_model(SETTINGS, jax.devices()[:2], two.weights, SHAPE) is None


def test_keys_and_values_are_cut_over_tensor():
    one, two = (
        planning._State(SETTINGS, parallel.local_mesh(n, jax.devices()[:n]), SHAPE) for n in (1, 2)
    )
    kv = [state._policy(3)[1].kv for state in (one, two)]
    assert planning._bytes(kv[0]) == 2 * planning._bytes(kv[1])
    four = planning._State(SETTINGS, parallel.local_mesh(4, jax.devices()[:4]), SHAPE)
    assert planning._bytes(four._policy(3)[1].kv) == planning._bytes(kv[0])  # 2 heads, 4 chips


def test_the_table_has_a_row_for_each_model(monkeypatch, ample):
    class Chip:
        device_kind = 'TPU v5 lite'

    monkeypatch.setattr(planning, 'host_chips', lambda topology: [Chip()] * 4)
    monkeypatch.setattr(
        planning, 'plan_model', lambda settings, *_: ample if settings.tensor == 1 else None
    )
    config = configs.default()
    lines = list(planning.plan(config, 'v5e:2x4'))
    assert lines[0].startswith('v5e:2x4: 4 TPU v5 lite a host, each 15.75 GiB, 197 TFLOP/s')
    for name in published.PAPER:
        row = next(line for line in lines if line.startswith(f'{name} '))
        assert row.split()[1:4] == [str(ample.tensor), str(ample.trees), str(ample.most)]
    config.policy.path = 'Qwen/Qwen2.5-Math-7B-Instruct'
    lines = list(planning.plan(config, 'v5e:2x4'))
    assert [line.split()[0] for line in lines if 'math' in line] == ['qwen2.5-math-7b']
    config.search.tensor = 2
    assert any('7b    does not fit' in line for line in planning.plan(config, 'v5e:2x4'))
    Chip.device_kind = 'TPU v9'
    with pytest.raises(UserError, match='--plan=v9:2x2: TPU v9 is none of TPU v5 lite'):
        next(planning.plan(config, 'v9:2x2'))


def test_a_topology_that_there_is_not_is_one_line():
    with pytest.raises(UserError, match=r'--plan=v5e:0x0: expected a TPU slice .*\[plan\]') as e:
        planning.host_chips('v5e:0x0')
    assert '\n' not in str(e.value)


@pytest.mark.skipif(not importlib.util.find_spec('libtpu'), reason='needs the extra `plan`')
def test_a_real_slice(monkeypatch):
    chips = planning.host_chips('v5e:2x4')
    assert {chip.device_kind for chip in chips} == {'TPU v5 lite'}
    made = planning.plan_model(SETTINGS, chips, planning.CHIPS['TPU v5 lite'].memory, SHAPE)
    assert made.trees == 6 and np.isfinite(made.flops)
