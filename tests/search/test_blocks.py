"""Decoding that reads the blocks of paths in use, against all paths as they lie."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rstar_jax import parallel
from rstar_jax.models import decoder
from rstar_jax.models.config import Config as Shape
from rstar_jax.search.config import Config
from rstar_jax.search.engine import layers, programs, sampling, state

SHAPE = Shape('qwen2', 64, 32, 64, 2, 4, 2, 8)
KIND = np.dtype('float32')
TREES, CANDIDATES, ROOM, STEP, SLOTS, PREFIX = 4, 3, 300, 16, 6, 20
LENGTHS = (0, 130, 290, 40)  # 0, 2, 3 and 1 blocks of 128; the third block ends with the room


def numbers(like, seed: int):
    """Random keys and values."""
    leaves, shape = jax.tree.flatten(like)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    made = [jax.random.normal(key, x.shape, x.dtype) for key, x in zip(keys, leaves)]
    return jax.tree.unflatten(shape, made)


def decoded(blocks, windows=(), running=(), count=5):
    """Cells after a chunk, those of `running` begun in one before; all are open."""
    mesh = parallel.local_mesh(devices=jax.devices()[:1])
    shape = dataclasses.replace(SHAPE, windows=windows)
    path = state.empty_path(shape, TREES, ROOM, KIND)
    before = np.array([PREFIX, PREFIX, 0, PREFIX], np.int32)
    path = path.replace(
        kv=numbers(path.kv, 1),
        prefix=jnp.asarray(before),
        length=jnp.array(LENGTHS, jnp.int32),
        hidden=numbers(path.hidden, 2),
    )
    prefix = numbers(state.empty_kv(shape, 1, PREFIX, KIND), 3)
    cells = state.empty_cells(shape, TREES * CANDIDATES, STEP, KIND)
    slots = state.empty_slots(shape, SLOTS, STEP, KIND)
    vocab = shape.vocab_size
    stops = state.Stops(jnp.zeros((1, vocab), 'uint8'), jnp.zeros(1, 'uint8'), np.int32(vocab))
    params = decoder.init_params(shape, jax.random.key(0))
    how = sampling.Settings.of(Config(temperature=1.0), (count, count))
    keys = np.arange(2 * TREES * CANDIDATES, dtype=np.uint32).reshape(-1, 2)
    turn = np.repeat(np.arange(TREES, dtype=np.int32), CANDIDATES)
    opened, first = np.ones(len(turn), bool), np.zeros(len(turn), bool)
    first[list(running)] = True
    for part, chosen in ((first, None), (opened & ~first, blocks)):
        if part.any():
            cells = programs.OPEN(mesh)(cells, part, keys, turn)
            variant = layers.Variant(shape, CANDIDATES, blocks=chosen, mixed=True)
            run = programs.DECODE(mesh, variant=variant)
            cells, slots, _ = run(params, stops, prefix, path, cells, slots, how)
    return cells


@pytest.mark.parametrize('windows', [(), (None, 60)])
@pytest.mark.parametrize('blocks', [6, 9])
def test_the_blocks_in_use_are_enough(blocks, windows):
    whole, ours = decoded(None, windows), decoded(blocks, windows)
    assert (np.asarray(ours.length) > 0).sum() == SLOTS
    np.testing.assert_array_equal(ours.tokens, whole.tokens)
    np.testing.assert_array_equal(ours.state, whole.state)
    np.testing.assert_allclose(ours.likelihood, whole.likelihood, rtol=1e-4)


def test_paths_of_no_room_for_a_block():
    """Of a prompt all in the prefix, or a few tokens behind it."""
    blocks = state.empty_kv(SHAPE, 3, 40, KIND)[0][0] + jnp.arange(3.0)[:, None, None, None]
    found = layers._blocks(blocks, jnp.array([2, 0]), jnp.array([0, 0]))
    assert found.shape == (2, 2, 40, 8)
    np.testing.assert_array_equal(found[:, 0, 0, 0], [2, 0])


def test_where_not_all_fit_those_in_slots_and_those_first_in_turn_do():
    """4 blocks: the third tree (3), which is being written, the first (0); not the second (2)."""
    third = 2 * CANDIDATES
    ours, whole = decoded(4, running=[third]), decoded(None, running=[third])
    written = np.asarray(ours.length).reshape(TREES, CANDIDATES) > 0
    np.testing.assert_array_equal(written.all(axis=1), [True, False, True, False])
    assert not written[1].any() and not written[3].any()
    same = np.repeat([True, False, False, False], CANDIDATES)
    same[third] = True
    np.testing.assert_array_equal(ours.tokens[same], whole.tokens[same])
    np.testing.assert_allclose(ours.likelihood[same], whole.likelihood[same], rtol=1e-4)
