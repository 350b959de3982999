"""Meshes over the eight fake devices: shapes, axes, a real sharded sum, one-line errors."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from rstar_jax import models, parallel
from rstar_jax.settings.errors import UserError


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


@dataclasses.dataclass(frozen=True)
class Chip:
    """What a mesh is made of: a described v5e."""

    id: int
    slice_index: int
    platform: str = 'tpu'
    device_kind: str = 'TPU v5 lite'
    core_on_chip: int = 0
    process_index: int = 0
    client: None = None

    @property
    def coords(self):
        return self.id % 2, self.id % 8 // 2, 0


class Torus(Chip):
    """Of a slice of 16 x 16."""

    @property
    def coords(self):
        return self.id % 16, self.id // 16, 0


def chips(count, **changes):
    return [Chip(i, i // 8, **changes) for i in range(count)]


def test_data_goes_over_the_slices_of_a_tpu_and_nothing_else_does():
    for (fsdp, tensor), shape in {(None, 1): (2, 8, 1), (2, 2): (4, 2, 2)}.items():
        mesh = parallel.global_mesh(fsdp, tensor, chips(16))
        assert mesh.devices.shape == shape
        of = np.vectorize(lambda chip: chip.slice_index)(mesh.devices).reshape(2, 8)
        assert of.tolist() == [[0] * 8, [1] * 8]
    assert parallel.global_mesh(devices=chips(8)).devices.shape == (1, 8, 1)
    hosts = chips(16, platform='gpu', device_kind='NVIDIA H100')
    assert parallel.global_mesh(devices=hosts).devices.shape == (1, 16, 1)


@pytest.mark.parametrize(
    ('examples', 'heads', 'shape'),
    [
        (1024, (28, 4), (1, 1024, 1)),
        (512, (28, 4), (1, 512, 2)),
        (128, (28, 4), (1, 256, 4)),  # not beyond a host
        (300, (28, 4), (1, 256, 4)),
        (128, (12, 2), (1, 512, 2)),
        (128, (14, 2), (1, 512, 2)),
        (128, (9, 3), (1, 1024, 1)),
        (128, None, (1, 1024, 1)),
    ],
)
def test_a_mesh_has_no_more_rows_than_a_step_has_examples(examples, heads, shape):
    """Where a host of 4 and the heads let it."""
    hosts = [Chip(i, 0, 'gpu', 'NVIDIA H100', process_index=i // 4) for i in range(1024)]
    model = None
    if heads is not None:
        model = models.Config('qwen2', 64, 4096, 64, 1, *heads, 16)
    assert parallel.training_mesh(examples, model, hosts).devices.shape == shape


@pytest.mark.parametrize(
    ('count', 'width', 'examples', 'shape'),
    [
        (24, 3584, 128, (3, 8, 1)),
        (24, 1536, 128, (1, 24, 1)),
        (6, 896, 128, (3, 2, 1)),
        (3, 3584, 128, (3, 1, 1)),
        (24, 3584, 12, (3, 4, 2)),
    ],
)
def test_parameters_are_cut_over_as_many_devices_as_divide_their_width(
    count, width, examples, shape
):
    """The others hold copies: left to all, no device would have less than the whole."""
    model = models.Config('qwen2', 64, width, 64, 1, 28, 4, 16)
    hosts = [Chip(i, 0, 'gpu', 'NVIDIA H100', process_index=i // 2) for i in range(count)]
    mesh = parallel.training_mesh(examples, model, hosts)
    assert mesh.devices.shape == shape
    assert parallel.shares(model, count) == math.gcd(count, width)
    params = models.decoder.abstract_params(model)
    cut = models.sharding.spec('embed/weight', params['embed']['weight'].shape, mesh, model)
    assert mesh.shape['fsdp'] == 1 or 'fsdp' in cut


def test_devices_of_a_slice_that_do_not_divide_the_width_hold_copies_within_it():
    model = models.Config('qwen2', 64, 36, 64, 1, 8, 8, 16)
    mesh = parallel.training_mesh(128, model, chips(16))
    assert mesh.devices.shape == (4, 4, 1)
    of = np.vectorize(lambda chip: chip.slice_index)(mesh.devices).reshape(2, 8)
    assert of.tolist() == [[0] * 8, [1] * 8]


def test_the_mesh_of_few_examples_goes_over_slices():
    model = models.Config('qwen2', 64, 32, 64, 1, 8, 8, 16)
    assert parallel.training_mesh(4, model, chips(16)).devices.shape == (2, 2, 4)
    assert parallel.training_mesh(4, model).devices.shape == (1, 4, 2)  # of this machine


@pytest.mark.parametrize('tensor', [2, 4])
def test_devices_of_a_row_are_neighbours_in_a_torus(tensor):
    """Whose sides no axis of the mesh has."""
    side = [Torus(i, 0) for i in range(256)]
    mesh = parallel.global_mesh(tensor=tensor, devices=side)
    assert mesh.devices.shape == (1, 256 // tensor, tensor)
    for row in mesh.devices.reshape(-1, tensor):
        x, y, _ = np.array([chip.coords for chip in row]).T
        assert np.ptp(x) + np.ptp(y) == tensor - 1


@pytest.mark.parametrize(
    ('make', 'argument', 'value'),
    [
        (lambda: parallel.local_mesh(3), 'tensor', 3),
        (lambda: parallel.local_mesh(0), 'tensor', 0),
        (lambda: parallel.global_mesh(3, 2), 'fsdp', 3),
        (lambda: parallel.global_mesh(16, 1, chips(16)), 'fsdp', 16),  # of two slices
        (lambda: parallel.global_mesh(None, 16, chips(16)), 'tensor', 16),
        (lambda: parallel.global_mesh(devices=chips(12)), 'devices', None),
    ],
)
def test_a_size_that_does_not_divide_is_a_user_error(make, argument, value):
    with pytest.raises(UserError) as error:
        make()
    assert (error.value.argument, error.value.value) == (argument, value)
