"""Plans: the search's own functions compiled on fake devices, sizes that add up, the table."""

import importlib.util

import jax
import numpy as np
import pytest

from rstar_jax import configs, models, parallel, planning, search
from rstar_jax.errors import UserError
from rstar_jax.models import published
from rstar_jax.search import arrays, copies, devices, memory, sizes, tree

SHAPE = models.Config('qwen2', 320, 64, 96, 1, 8, 2, 8, qkv_bias=True)
SETTINGS = search.Config(rollouts=2, candidates=4, step_tokens=16, path_tokens=200, slots=8)

CHOSEN = memory.Plan(trees=6, slots=8, kept=1024, tree=0, slot=0, prefill=0, token=0, free=0)


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
                (arrays.empty_path, 6, 200 + copies.COPIED),
                (arrays.empty_cells, 24, 16),
                (arrays.empty_slots, 8, 16),
                (arrays.empty_path, 6, 200 + copies.COPIED),
                (arrays.empty_kv, 24, 16 + 64),
                *[(arrays.empty_kv, 6, CHOSEN.kept + copies.COPIED)] * 2,
            )
        ),
        devices.make(mesh, tree.init, 6, SETTINGS.nodes),
    ]
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(made))
    held += planning.MARK_STATES * (SHAPE.vocab_size + 1) + 4
    assert (ample.tensor, ample.trees, ample.slots) == (1, 6, 8)
    assert min(ample.decode, ample.score) > held
    assert planning._State(SETTINGS, mesh, SHAPE).resident(CHOSEN) == held
    assert ample.weights == sum(x.nbytes for x in jax.tree.leaves(made[:2]))
    # The products of one step of 8 sequences, embedding look-up left out.
    products = sum(x.size for x in jax.tree.leaves(params) if x.ndim == 2)
    products -= params['embed']['weight'].size
    assert 2 * 8 * products < ample.flops < 8 * 2 * 8 * products
    caches = sum(x.nbytes for x in jax.tree.leaves((made[2].kv, made[4].kv)))
    unread = params['embed']['weight'].nbytes
    assert ample.floor == sum(x.nbytes for x in jax.tree.leaves(params)) - unread + caches
    assert ample.floor < ample.traffic


class Compiled:
    """Stands for a function whose compilation is not what is tested."""

    temp_size_in_bytes = 1000
    output_size_in_bytes = alias_size_in_bytes = generated_code_size_in_bytes = 0

    def compile(self):
        return self

    def memory_analysis(self):
        return self

    def cost_analysis(self):
        return {'flops': 1.0, 'bytes accessed': 1.0}


def test_little_memory_means_fewer_trees_then_more_chips_then_none(monkeypatch, ample):
    monkeypatch.setattr(planning._State, '_decode', lambda *_: Compiled())
    monkeypatch.setattr(planning._State, '_score', lambda *_: Compiled())
    monkeypatch.setattr(sizes, 'largest_call', lambda *_, **__: 1)  # its need would hide the trees'

    def plan(memory):
        return planning.plan_model(SETTINGS, jax.devices()[:2], memory, SHAPE)

    one, two = (
        planning._State(SETTINGS, parallel.local_mesh(n, jax.devices()[:n]), SHAPE) for n in (1, 2)
    )
    found = [plan(one.weights + room) for room in range(-60_000, 1_000_000, 60_000)]
    trees = {(made.tensor, made.trees) for made in found if made}
    assert {(1, 3), (1, 6)} <= trees and max(n for _, n in trees) == 6
    assert plan(1e9).decode == one.resident(CHOSEN) + 1000
    assert found[-1].most > found[-1].trees
    shared = next(made for made in found if made)
    assert shared.tensor == 2 and shared.weights == two.weights < one.weights
    assert found[0] is None


def test_weights_that_leave_room_for_one_tree_are_shared(monkeypatch):
    monkeypatch.setattr(sizes, 'largest_call', lambda *_, **__: 1)
    heavy = SHAPE.replace(mlp_dim=4096)
    meshes = [parallel.local_mesh(n, jax.devices()[:2]) for n in (1, 2)]
    one, two = (planning._State(SETTINGS, mesh, heavy) for mesh in meshes)
    planned = []
    for room in (300_000, 360_000):
        assert one.choose(one.weights + room) and two.choose(one.weights + room)
        planned.append((one.chosen.trees, two.chosen.trees))
        made = planning.plan_model(SETTINGS, jax.devices()[:2], one.weights + room, heavy)
        planned.append((made.tensor, made.groups, made.trees))
    # One tree has no use for all slots; two have, and then the smaller groups are as fast.
    assert planned == [(1, 6), (2, 1, 6), (2, 6), (1, 2, 2)]


def test_keys_and_values_are_cut_over_tensor():
    one, two = (
        planning._State(SETTINGS, parallel.local_mesh(n, jax.devices()[:n]), SHAPE) for n in (1, 2)
    )
    kv = [state._policy(3, 8)[1].kv for state in (one, two)]
    one, two = map(parallel.bytes_on_a_device, kv)
    assert one == 2 * two
    four = planning._State(SETTINGS, parallel.local_mesh(4, jax.devices()[:4]), SHAPE)
    assert parallel.bytes_on_a_device(four._policy(3, 8)[1].kv) == one  # 2 heads, 4 chips


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
