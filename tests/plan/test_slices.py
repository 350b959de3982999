"""Slices and models that a plan can be of."""

import pytest

from rstar_jax import models
from rstar_jax.models import tiny, trained
from rstar_jax.plan import slices
from rstar_jax.settings.errors import UserError


@pytest.mark.parametrize('name', ['v5e:0x0', 'v5e:2x', 'v5e', 'v9:2x2', ''])
def test_a_slice_that_there_is_not_is_named(name):
    with pytest.raises(UserError) as error:
        slices.slice_chips(name)
    assert (error.value.argument, error.value.value) == ('topology', name)


@pytest.mark.parametrize(
    ('name', 'options'),
    [
        ('v5e:2x4', {'chips_per_host_bounds': (2, 4, 1)}),
        ('v6e:2x4', {'chips_per_host_bounds': (2, 4, 1)}),
        ('v5e:1x1', {'chips_per_host_bounds': (1, 1, 1)}),
        ('v5e:4x4', {}),
        ('v4:2x2x1', {'chip_config_name': 'megacore'}),
    ],
)
def test_a_slice_is_as_jax_finds_it(name, options):
    assert slices.options(name) == options


def test_models_on_disk_are_planned_by_their_shape(tmp_path, monkeypatch):
    policy = tiny.policy(['print(1)\n x'], num_layers=1)
    trained.save_model(policy, tmp_path / 'trained')
    models.save(policy, tmp_path / 'hf')
    monkeypatch.setenv('HOME', str(tmp_path))
    for path in (f'{tmp_path}/trained', '~/trained', '~/hf/'):
        ((name, shape),) = slices.models_of(path).items()
        assert name == path.strip('/').rpartition('/')[2]
        assert shape.embed_dim == policy.config.embed_dim and shape.num_layers == 1
