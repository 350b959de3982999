"""Meshes over the eight fake devices: shapes, axes, a real sharded sum, one-line errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from rstar_jax import parallel
from rstar_jax.errors import UserError


@pytest.mark.parametrize('tensor', [1, 2, 8])
def test_local_mesh_uses_every_device_once(tensor):
    mesh = parallel.local_mesh(tensor)
    assert mesh.axis_names == ('data', 'tensor')
    assert mesh.devices.shape == (8 // tensor, tensor)
    assert {device.id for device in mesh.devices.flat} == {d.id for d in jax.local_devices()}


@pytest.mark.parametrize(
    ('fsdp', 'tensor', 'shape'),
    [(None, 1, (1, 8, 1)), (None, 2, (1, 4, 2)), (2, 2, (2, 2, 2)), (1, 1, (8, 1, 1))],
)
def test_global_mesh_shapes(fsdp, tensor, shape):
    mesh = parallel.global_mesh(fsdp, tensor)
    assert mesh.axis_names == ('data', 'fsdp', 'tensor')
    assert mesh.devices.shape == shape
    assert len({device.id for device in mesh.devices.flat}) == 8


def test_shard_map_over_data_needs_no_collective_and_sees_its_own_rows():
    mesh = parallel.local_mesh(2)
    by_row = NamedSharding(mesh, PartitionSpec('data'))
    rows = jax.device_put(jnp.arange(8.0).reshape(8, 1), by_row)
    per_row = jax.jit(
        jax.shard_map(
            lambda x: x * 10 + jax.lax.axis_index('data'),
            mesh=mesh,
            in_specs=PartitionSpec('data'),
            out_specs=PartitionSpec('data'),
        ),
        out_shardings=by_row,
    )
    expected = np.arange(8.0).reshape(8, 1) * 10 + np.repeat(np.arange(4), 2)[:, None]
    np.testing.assert_array_equal(per_row(rows), expected)
    text = per_row.lower(rows).compile().as_text()
    assert not any(
        name in text for name in ('all-reduce', 'all-gather', 'collective-', 'all-to-all')
    )


def test_global_mesh_shards_a_product():
    mesh = parallel.global_mesh(fsdp=2, tensor=2)
    weight = np.arange(32.0, dtype=np.float32).reshape(8, 4)
    x = np.ones((4, 4), np.float32)
    placed = jax.device_put(weight, NamedSharding(mesh, PartitionSpec('tensor', 'fsdp')))
    batch = jax.device_put(x, NamedSharding(mesh, PartitionSpec('data')))
    product = jax.jit(lambda w, x: x @ w.T)(placed, batch)
    np.testing.assert_allclose(product, x @ weight.T)
    assert placed.addressable_shards[0].data.shape == (4, 2)


@pytest.mark.parametrize(
    ('make', 'message'),
    [
        (lambda: parallel.local_mesh(3), 'tensor=3: needs a divisor of the 8 devices of this host'),
        (lambda: parallel.local_mesh(0), 'tensor=0: needs a divisor'),
        (lambda: parallel.global_mesh(3, 2), 'fsdp=3: needs a divisor of the 4 devices left'),
    ],
)
def test_a_size_that_does_not_divide_is_a_user_error(make, message):
    with pytest.raises(UserError, match=message):
        make()
