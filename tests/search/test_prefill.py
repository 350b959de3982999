"""Known tokens behind paths, in rows that follow each other, against whole texts."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rstar_jax import models, parallel
from rstar_jax.models import decoder, heads
from rstar_jax.models.config import Config as Shape
from rstar_jax.search.engine import devices, prefill, programs, state
from rstar_jax.search.engine.batch import Batch, Known

SHAPE = Shape('qwen2', 64, 32, 64, 2, 4, 2, 8)
KIND = np.dtype('float32')
TREES, ROOM, CELL = 4, 160, 32
MESH = parallel.local_mesh(devices=jax.devices()[:1])
WINDOWS = pytest.mark.parametrize('windows', [(), (7, None)])


def made(windows):
    """A PPM, and texts for the prefix, each tree's prompt and three of its steps."""
    shape = dataclasses.replace(SHAPE, windows=windows)
    params = {
        'decoder': decoder.init_params(shape, jax.random.key(0)),
        'value_head': heads.init_value_head(shape.embed_dim, jax.random.key(1)),
    }
    rng = np.random.default_rng(0)

    def text(length):
        return rng.integers(0, shape.vocab_size, length).tolist()

    lengths = [(9, 20, 5, 3), (30, 4, 17, 1), (16, 40, 2, 8), (1, 1, 33, 21)]
    return shape, params, text(10), [[text(n) for n in of] for of in lengths]


def batch(shape, segments):
    """Of (tree, tokens, start)."""
    one = Batch(1, shape, TREES)
    lasts = [one.put(0, *segment) for segment in segments]
    return one.known, lasts


def scores(shape, params, texts):
    """Of whole texts, as the PPM that is taken home computes them."""
    ppm = models.PPM(shape, None, params)
    tokens, lengths = np.zeros((len(texts), 128), np.int32), np.array([len(x) for x in texts])
    for i, text in enumerate(texts):
        tokens[i, : len(text)] = text
    return np.asarray(ppm.scores(tokens, lengths))


@WINDOWS
@pytest.mark.parametrize('rows', [(40, 4), (12, 16), (6, 64), (8, 36)])
def test_scores_are_those_of_whole_texts(windows, rows):
    """Of prompts in front of which something is shared (but for one), step behind step."""
    shape, params, shared, texts = made(windows)
    empty = state.empty_kv(shape, 1, 0, KIND)
    one = state.empty_path(shape, 1, len(shared), KIND)
    zero = np.zeros(1, np.int32)
    given = Known(zero, np.array([shared], np.int32), zero + len(shared), zero, zero)
    one = programs.EXTEND(MESH, config=shape)(params['decoder'], empty, one, given)
    before = np.full(TREES, len(shared), np.int32)
    before[2] = 0
    path = state.empty_path(shape, TREES, ROOM, KIND).replace(prefix=jnp.asarray(before))
    extend = programs.EXTEND(MESH, config=shape, mixed=True)
    append = programs.APPEND(MESH)
    score = programs.SCORE(MESH, config=shape, squash='tanh', mixed=True)
    so_far = [[*shared * bool(before[i]), *prompt] for i, (prompt, *_) in enumerate(texts)]

    order = 2, 0, 3, 1
    given, _ = batch(rows, [(i, texts[i][0], 0) for i in order])
    path = extend(params['decoder'], one.kv, path, given)
    assert path.length.tolist() == [len(prompt) for prompt, *_ in texts]

    cells = state.empty_kv(shape, 2 * TREES, CELL, KIND)
    for number in (1, 2, 3):
        steps = [of[number] for of in texts]
        given, lasts = batch(rows, [(i, steps[i], 2 * i + 1) for i in order])
        cells, found = score(params, one.kv, path, cells, given)
        for i in order:
            so_far[i] += steps[i]
        wanted = scores(shape, params, [so_far[i] for i in order])
        np.testing.assert_allclose(np.asarray(found)[lasts], wanted, atol=2e-6)
        # What a cell has no room for is computed once more.
        held = np.array([min(len(step), CELL) for step in steps], np.int32)
        every = np.arange(TREES, dtype=np.int32)
        path = append(path, cells, None, every, 2 * every + 1, np.asarray(path.length), held)
        rest = [(i, steps[i][CELL:], int(path.length[i])) for i in order if len(steps[i]) > CELL]
        if rest:
            given, _ = batch(rows, rest)
            path = extend(params['decoder'], one.kv, path, given)


def test_paths_are_read_all_at_once_or_row_by_row(monkeypatch):
    """As on TPUs: the same scores, and programs of their own."""
    monkeypatch.setattr(prefill, 'PATHS_BY_ROW', ('cpu',))
    devices.mapped.cache_clear()
    one_loop, of_trees = jax.lax.map, []
    monkeypatch.setattr(jax.lax, 'map', lambda *args: of_trees.append(1) or one_loop(*args))
    test_scores_are_those_of_whole_texts((7, None), (12, 16))
    assert of_trees
    devices.mapped.cache_clear()


@WINDOWS
def test_hidden_states_are_those_of_whole_texts(windows):
    """A prompt over three rows leaves the state behind its last token."""
    shape, params, _, texts = made(windows)
    policy = models.Policy(shape, None, params['decoder'])
    path = state.empty_path(shape, TREES, ROOM, KIND)
    prompts = [texts[1][0], texts[2][1]]
    given, _ = batch((12, 16), [(3, prompts[0], 0), (1, prompts[1], 0)])
    empty = state.empty_kv(shape, 1, 0, KIND)
    path = programs.EXTEND(MESH, config=shape)(params['decoder'], empty, path, given)
    for tree, prompt in zip((3, 1), prompts):
        logits = policy.logits(np.array([prompt]), np.array([len(prompt)]))[0, -1]
        network = decoder.bind(shape, params['decoder'])
        found = network.head(path.hidden[tree][None])[0]
        np.testing.assert_allclose(found, logits, atol=1e-5)
