"""A search's own functions, compiled on fake devices: sizes that add up, groups that fit."""

import dataclasses
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rstar_jax import models, parallel, search
from rstar_jax.models import published
from rstar_jax.parallel.chips import CHIPS
from rstar_jax.parallel.memory import GIB
from rstar_jax.plan import compiled_search, slices
from rstar_jax.search import tree
from rstar_jax.search.engine import batch, devices, programs, state

SHAPE = models.Config('qwen2', 320, 64, 96, 1, 8, 2, 8, qkv_bias=True)
SETTINGS = search.Config(rollouts=2, candidates=4, step_tokens=16, path_tokens=200, slots=8)
KEPT = 1024  # tokens of each tree


@pytest.fixture(scope='module')
def ample():
    return compiled_search.plan_search(SETTINGS, jax.devices()[:2], 1e9, SHAPE)


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
                (state.empty_path, 6, 200 + state.COPIED),
                (state.empty_cells, 24, 16),
                (state.empty_slots, 8, 16),
                (state.empty_path, 6, 200 + state.COPIED),
                (state.empty_kv, 24, 96),  # 16 + 64, in thirty-twos
                *[(state.empty_kv, 6, KEPT + state.COPIED)] * 2,
            )
        ),
        devices.make(mesh, tree.init, 6, SETTINGS.nodes),
    ]
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(made))
    held += compiled_search.MARK_STATES * (SHAPE.vocab_size + 1) + 4
    assert (ample.tensor, ample.trees, ample.slots) == (1, 6, 8)
    assert min(ample.decode, ample.score) > held
    group = compiled_search.Group(SETTINGS, mesh, SHAPE)
    assert group.choose(1e9) and group.resident() == held
    assert ample.weights == sum(x.nbytes for x in jax.tree.leaves(made[:2]))
    # The products of one step of 8 sequences, embedding look-up left out.
    products = sum(x.size for x in jax.tree.leaves(params) if x.ndim == 2)
    products -= params['embed']['weight'].size
    assert 2 * 8 * products < ample.flops < 8 * 2 * 8 * products
    caches = sum(x.nbytes for x in jax.tree.leaves((made[2].kv, made[4].kv)))
    unread = params['embed']['weight'].nbytes
    assert ample.floor == sum(x.nbytes for x in jax.tree.leaves(params)) - unread + caches
    assert ample.floor < ample.traffic
    assert ample.step > 0  # measured, as these devices are at hand


def test_all_slots_write_in_the_step_that_is_measured():
    planned = compiled_search.Group(SETTINGS, parallel.local_mesh(devices=jax.devices()[:2]), SHAPE)
    assert planned.choose(1e9)
    compiled, done = planned.lower_decode().compile(), []

    def decode(*arrays):
        results = compiled(*arrays)
        done.append(np.asarray(results[-1]).tolist())
        return results

    assert planned.measure(decode) > 0
    assert done == 3 * [2 * [[4, 4 * 8, 4 * 8]]]  # calls, devices: steps, live slots and tokens


LARGE = published.SHAPES['qwen2.5-math-1.5b']


def test_more_memory_means_more_trees():
    group = compiled_search.Group(
        search.Config(candidates=4), parallel.local_mesh(devices=jax.devices()[:1]), LARGE
    )
    assert not group.choose(group.weights)
    trees = []
    for room in (4, 8, 12):
        assert group.choose(group.weights + room * GIB)
        trees.append(group.chosen.trees)
    assert trees[0] > 0 and trees == sorted(set(trees))


def test_weights_that_leave_little_room_are_shared():
    """By as few chips as are about as fast; where no chips hold them, there is no plan."""
    settings, chips = search.Config(candidates=4), jax.devices()[:4]
    one = compiled_search.Group(settings, parallel.local_mesh(devices=chips[:1]), LARGE)

    def shared(room: int) -> int:
        group = compiled_search.choose_group(settings, chips, one.weights + room * GIB, LARGE)
        return group.mesh.shape['tensor'] if group else 0

    assert [shared(room) for room in (-4, 0, 8)] == [0, 2, 1]


def test_keys_and_values_are_cut_over_tensor():
    settings, held = dataclasses.replace(SETTINGS, trees_in_flight=3), []
    for n in (1, 2, 4):
        group = compiled_search.Group(settings, parallel.local_mesh(n, jax.devices()[:n]), SHAPE)
        assert group.choose(1e9)
        _, _, _, path, *_ = group.decoded
        held.append(parallel.bytes_on_a_device(path.kv))
    one, two, four = held
    assert one == 2 * two == four  # 2 heads, 4 chips


needs_slices = pytest.mark.skipif(
    not importlib.util.find_spec('libtpu'), reason='needs the extra `plan`'
)


@needs_slices
def test_a_real_slice():
    chips = slices.host_chips(slices.slice_chips('v5e:2x4'))
    assert {chip.device_kind for chip in chips} == {'TPU v5 lite'} and len(chips) == 8
    assert len(slices.slice_chips('v5e:1x1')) == 1
    assert len(slices.host_chips(slices.slice_chips('v5e:4x4'))) == 4
    made = compiled_search.plan_search(SETTINGS, chips, CHIPS['TPU v5 lite'].memory, SHAPE)
    assert made.trees == 6 and np.isfinite(made.flops)
    # As many trees as there is room for, of a model with layers of 0.5B parameters.
    large = models.Config('qwen2', 50_000, 896, 4864, 12, 14, 2, 64, qkv_bias=True)
    made = compiled_search.plan_search(search.Config(candidates=4), chips, 8 * GIB, large)
    assert 0.9 * made.planned <= max(made.decode, made.score) <= made.planned < 8 * GIB


@needs_slices
def test_calls_on_a_real_slice_copy_no_paths():
    """Of known tokens: 16 rows of 40 trees' paths, which XLA would copy whole in parts."""
    shape = models.Config('qwen2', 512, 256, 512, 1, 4, 2, 128)
    mesh = parallel.local_mesh(1, slices.slice_chips('v5e:1x1'))
    group = compiled_search.Group(search.Config(path_tokens=4096), mesh, shape)
    assert group.choose(16 * GIB, trees=40)
    integers, tokens = (devices.shapes(mesh, jnp.zeros, size, jnp.int32) for size in (16, (16, 16)))
    score = programs.SCORE(mesh, config=shape, squash='tanh')
    known = batch.Known(integers, tokens, *[integers] * 3)
    compiled = score.lower(*group.scored, known).compile()
    paths = parallel.bytes_on_a_device(group.scored[2].kv)
    assert compiled.memory_analysis().temp_size_in_bytes < paths / 10
    assert compiled.cost_analysis()['bytes accessed'] < 5 * paths
