"""Drafted tokens: what they are, and that they change nothing but how many steps it takes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rstar_jax import models, parallel
from rstar_jax.data.problem import Problem
from rstar_jax.models import decoder
from rstar_jax.search import Config
from rstar_jax.search.engine import devices, drafts, programs, sampling, sizes, state
from rstar_jax.search.engine.layers import Variant
from rstar_jax.search.nodes import HostTree, Node
from rstar_jax.steps import marks
from tests.search.test_blocks import numbers

SHAPE = models.Config('qwen2', 40, 32, 48, 2, 4, 2, 8, qkv_bias=True)
TREES, CANDIDATES, SLOTS, ROOM, STEP, PREFIX = 3, 2, 4, 96, 30, 7
LENGTHS = (40, 9, 64)
MARKS = slice(5, None, 18)  # tokens that end a step
KIND = jnp.float32


def guessed(path: list[int], step: list[int], count: int = 4) -> list[int]:
    """What is drafted behind a step behind a path."""
    latest = np.full((2, state.LATEST), drafts.NONE, np.int32)
    latest[1, state.LATEST - len(path) :] = path
    cells = state.empty_cells(SHAPE, 2 * CANDIDATES, STEP, KIND)
    slots = state.empty_slots(SHAPE, 1, STEP, KIND)
    tokens = cells.tokens.at[3, : len(step)].set(jnp.array(step, jnp.int32))
    made = state.empty_path(SHAPE, 2, ROOM, KIND).replace(latest=jnp.asarray(latest))
    slots = slots.replace(cell=jnp.array([3]), length=jnp.array([len(step)]))
    cells = cells.replace(tokens=tokens)
    return np.asarray(drafts.behind(made, cells, slots, CANDIDATES, count))[0].tolist()


@pytest.mark.parametrize(
    ('path', 'step', 'found'),
    [
        ([7, 8, 9, 10, 11, 12], [8, 9], [10, 11, 12, 8]),
        ([1, 2, 3, 4, 9, 2, 3, 5], [1, 2, 3], [4, 9, 2, 3]),  # three alike before the latest two
        ([2, 3, 4, 6, 7, 2, 3, 5, 8, 9], [3], [5, 8, 9, 3]),  # the latest of as many
        ([1, 2], [20, 21, 22, 20, 21, 22, 20], [21, 22, 20, 21]),  # round and round
        ([6], [20, 20], [20, 20, 20, 20]),
        ([1, 2, 3], [4], [drafts.NONE] * 4),
        ([], [4], [drafts.NONE] * 4),
    ],
)
def test_what_followed_the_last_place_that_is_alike(path, step, found):
    assert guessed(path, step) == found


def test_what_lies_behind_a_step_is_not_looked_at():
    """Of the step before in that cell."""
    cells = state.empty_cells(SHAPE, CANDIDATES, STEP, KIND)
    cells = cells.replace(tokens=cells.tokens.at[0, :5].set(jnp.array([4, 6, 7, 4, 8])))
    slots = state.empty_slots(SHAPE, 1, STEP, KIND)
    slots = slots.replace(cell=jnp.array([0]), length=jnp.array([2]))
    path = state.empty_path(SHAPE, 1, ROOM, KIND)
    assert np.asarray(drafts.behind(path, cells, slots, CANDIDATES, 2)).tolist() == [[-1, -1]]


def test_the_latest_tokens_of_a_path():
    tree = HostTree(Problem(0, ''), 0, 0, '', [Node(tokens=[1, 2, 3])], path=[0])
    assert drafts.latest(tree).tolist() == [-1] * (state.LATEST - 3) + [1, 2, 3]
    long = list(range(state.LATEST - 1))
    tree.nodes += [Node(tokens=[9]), Node(tokens=long)]
    tree.path = [0, 2]
    assert drafts.latest(tree).tolist() == [3, *long]
    tree.path = [0, 1]
    assert drafts.latest(tree)[-5:].tolist() == [-1, 1, 2, 3, 9]
    tree.nodes[1].tokens = list(range(state.LATEST + 50))
    assert drafts.latest(tree).tolist() == list(range(50, state.LATEST + 50))


def decoded(ahead, temperature=0.0, windows=(), seed=0, **settings):
    """Cells, and iterations, live slots and tokens of a chunk in which all of them end."""
    mesh = parallel.local_mesh(devices=jax.devices()[:1])
    shape = dataclasses.replace(SHAPE, windows=windows)
    path = state.empty_path(shape, TREES, ROOM, KIND)
    before = np.array([PREFIX, 0, PREFIX], np.int32)
    latest = jax.random.randint(jax.random.key(4), path.latest.shape, 0, shape.vocab_size)
    path = path.replace(
        kv=numbers(path.kv, 1),
        prefix=jnp.asarray(before),
        length=jnp.array(LENGTHS, jnp.int32),
        hidden=numbers(path.hidden, 2),
        latest=latest,
    )
    prefix = numbers(state.empty_kv(shape, 1, PREFIX, KIND), 3)
    cells = state.empty_cells(shape, TREES * CANDIDATES, STEP, KIND)
    slots = state.empty_slots(shape, SLOTS, STEP, KIND)
    after = np.zeros((2, shape.vocab_size), np.uint8)
    after[:, MARKS] = 1
    stops = state.Stops(after, np.array([marks.NONE, marks.STEP], np.uint8), shape.vocab_size)
    params = decoder.init_params(shape, jax.random.key(seed))
    keys = np.arange(2 * TREES * CANDIDATES, dtype=np.uint32).reshape(-1, 2)
    turn = np.repeat(np.arange(TREES, dtype=np.int32), CANDIDATES)
    cells = programs.OPEN(mesh)(cells, np.ones(len(turn), bool), keys, turn)
    variant = Variant(shape, CANDIDATES, mixed=True, ahead=ahead, **settings)
    how = sampling.Settings.of(Config(temperature=temperature), (200, 200))
    run = programs.DECODE(mesh, variant=variant)
    cells, _, done = run(params, stops, prefix, path, cells, slots, how)
    assert (np.asarray(cells.state) == state.DONE).all()
    return cells, np.asarray(done)[0]


@pytest.mark.parametrize('ahead', [1, 3, 7])
@pytest.mark.parametrize(
    'settings',
    [
        {},
        {'temperature': 0.2},
        {'temperature': 1.0},
        {'windows': (None, 12)},
        {'near': 8},
        {'blocks': 3},
        {'repetition': 9},
    ],
    ids=str,
)
def test_the_same_steps_in_fewer_iterations(ahead, settings):
    (plain, before), (ours, after) = decoded(0, **settings), decoded(ahead, **settings)
    written = np.arange(STEP) < np.asarray(plain.length)[:, None]
    np.testing.assert_array_equal(ours.length, plain.length)
    np.testing.assert_array_equal(ours.end, plain.end)
    np.testing.assert_array_equal(
        np.where(written, ours.tokens, 0), np.where(written, plain.tokens, 0)
    )
    np.testing.assert_allclose(ours.likelihood, plain.likelihood, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(ours.hidden, plain.hidden, rtol=1e-3, atol=1e-4)
    for ours_kv, plain_kv in zip(jax.tree.leaves(ours.kv), jax.tree.leaves(plain.kv)):
        where = written[:, None, :, None]
        np.testing.assert_allclose(
            np.where(where, ours_kv, 0), np.where(where, plain_kv, 0), rtol=1e-3, atol=1e-4
        )
    assert after[2] == before[2] == before[1] == np.asarray(plain.length).sum()
    assert after[1] <= before[1]
    if settings.get('temperature', 0.0) == 0:
        assert after[0] < before[0]


def test_steps_end_at_marks_and_at_the_limit_among_drafts():
    """What the test above compares is of both kinds, and drafts are right now and then."""
    ends, shares = set(), []
    for seed in range(4):
        cells, done = decoded(3, seed=seed)
        ends |= set(np.asarray(cells.end).tolist())
        shares.append(done[2] / done[1])
    assert {marks.STEP, marks.LIMIT} <= ends, ends
    assert max(shares) > 1.5, shares


def test_so_many_are_drafted_that_rows_are_used():
    most = [sizes.drafts(16, n, 7)[-1] for n in (64, 16, 9, 8, 4, 2, 1)]
    assert most == [0, 0, 0, 1, 3, 7, 7]
    assert sizes.drafts(16, 2, 7) == [0, 1, 3, 7] and sizes.drafts(16, 2, 4) == [0, 1, 3, 4]
    assert sizes.drafts(16, 2, 0) == sizes.drafts(0, 2, 7) == [0]
    costs = [sizes.CPU.step_cost(n, 8, 1, most) for n, most in ((16, 0), (8, 1), (4, 3), (2, 7))]
    assert costs == sorted(costs, reverse=True)


def test_no_drafts_where_paths_are_read_for_many_candidates():
    """On accelerators, too: nine long paths for 32 candidates each, and a few short ones."""

    def cheapest(slots, blocks, candidates):
        drafts = sizes.drafts(128, slots, 7)
        return min(drafts, key=lambda n: sizes.TPU.step_cost(slots, blocks, candidates, n))

    assert cheapest(16, 9 * 33, 32) == cheapest(16, 24 * 33, 8) == 0
    assert cheapest(4, 2 * 4, 8) == 7 and cheapest(16, 8, 8) == 3 and cheapest(100, 8, 8) == 0


def test_latest_tokens_lie_beside_their_paths():
    mesh = parallel.local_mesh(devices=jax.devices()[:2])
    path = devices.make(mesh, state.empty_path, SHAPE, TREES, ROOM, KIND)
    assert path.latest.shape == (2 * TREES, state.LATEST)
    assert (np.asarray(path.latest) == drafts.NONE).all()
