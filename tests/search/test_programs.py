"""What a search compiles: state that is donated is changed where it lies."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rstar_jax import parallel
from rstar_jax.models import decoder, heads
from rstar_jax.models.config import Config as Shape
from rstar_jax.search import tree
from rstar_jax.search.config import Config
from rstar_jax.search.engine import devices, programs, sampling, state
from rstar_jax.search.engine.batch import Known
from rstar_jax.search.engine.layers import Variant

SHAPE = Shape('qwen2', 128, 32, 64, 2, 2, 1, 16)
TREES, CANDIDATES, ROOM, STEP, SLOTS = 256, 2, 288, 288, 4
KIND = jnp.dtype(jnp.float32)


def arguments(mesh) -> dict:
    """What the programs take, by name, as shapes; the caches are large and all else is small."""

    def made(f, *sizes):
        return devices.shapes(mesh, f, SHAPE, *sizes)

    def numbers(*shape):
        return jax.ShapeDtypeStruct(shape, jnp.int32)

    params = decoder.abstract_params(SHAPE)
    head = jax.eval_shape(lambda: heads.init_value_head(SHAPE.embed_dim, jax.random.key(0)))
    path, cells = (
        made(f, rows, room, KIND)
        for f, rows, room in (
            (state.empty_path, TREES, ROOM),
            (state.empty_cells, TREES * CANDIDATES, STEP),
        )
    )
    kept, prefix = (made(state.empty_kv, n, room, KIND) for n, room in ((TREES, ROOM), (1, 0)))
    row = numbers(1)
    known = Known(row, numbers(1, 32), row, row, row)
    table = jax.ShapeDtypeStruct((1, SHAPE.vocab_size), jnp.uint8)
    stops = state.Stops(table, jax.ShapeDtypeStruct((1,), jnp.uint8), np.int32(1))
    slots = made(state.empty_slots, SLOTS, STEP, KIND)
    drawn = sampling.Settings.of(Config(top_p=0.9), (8, 8))
    trunk = {'decoder': params, 'value_head': head}
    return {
        'DECODE': (params, stops, prefix, path, cells, slots, drawn),
        'EXTEND': (params, prefix, path, known),
        'SCORE': (trunk, prefix, path, cells.kv, known),
        'APPEND': (path, cells.kv, cells.hidden, *[row] * 4),
        'COPY': (kept, cells.kv, *[row] * 5),
        'COPY back': (path.kv, kept, *[row] * 5),
        'COPY inside': (path.kv, None, *[row] * 5),
    }


def test_a_tree_is_read_from_its_own_device():
    """Nothing of the others' is moved: what comes back lies there alone."""
    mesh = parallel.local_mesh(tensor=2, devices=jax.devices()[:8])
    trees = devices.make(mesh, tree.init, 3, 4)
    numbers = devices.split(mesh, np.arange(12, dtype=np.int32))
    trees = trees.replace(rollout=numbers)
    for row in range(12):
        one = programs.tree_of(trees, row)
        assert int(one.rollout) == row
        (device,) = one.rollout.devices()
        assert device in mesh.devices[row // 3]


@pytest.mark.parametrize(
    ('name', 'settings'),
    [
        ('DECODE', {'variant': Variant(SHAPE, CANDIDATES)}),
        ('EXTEND', {'config': SHAPE}),
        ('SCORE', {'config': SHAPE, 'squash': 'tanh'}),
        ('APPEND', {}),
        ('COPY', {}),
        ('COPY back', {}),
        ('COPY inside', {}),
    ],
)
def test_no_cache_is_copied(name, settings):
    """Not even one layer's keys: on a full device there is no room for it."""
    mesh = parallel.local_mesh(devices=jax.devices()[:1])
    program = getattr(programs, name.split()[0])(mesh, **settings)
    compiled = program.lower(*arguments(mesh)[name]).compile()
    a_layer = TREES * ROOM * SHAPE.num_kv_heads * SHAPE.head_dim * KIND.itemsize
    assert compiled.memory_analysis().temp_size_in_bytes < a_layer
