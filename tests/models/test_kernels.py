"""Fast attention kernels against the plain reference (splash by Pallas' interpreter)."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rstar_jax.models import kernels


def inputs(length=256, heads=4, kv_heads=2, dim=24):
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = [(2, length, count, dim) for count in (heads, kv_heads, kv_heads)]
    return [jax.random.normal(key, shape) for key, shape in zip(keys, shapes)]


CASES = {
    'causal': {},
    'lengths': {'lengths': jnp.array([256, 100])},
}


@pytest.mark.parametrize('window', [None, 70])
@pytest.mark.parametrize('case', CASES)
def test_splash(case, window):
    q, k, v = inputs()
    run = jax.jit(lambda attend: attend(q, k, v, window=window)[0], static_argnums=0)
    expected = run(kernels.full(kernel='plain', **CASES[case]))
    ours = run(kernels.full(**CASES[case], kernel='splash', interpret=True))
    for row, length in enumerate(CASES[case].get('lengths', [256, 256])):
        np.testing.assert_allclose(ours[row, :length], expected[row, :length], atol=2e-6)


@pytest.mark.parametrize('window', [None, 7])
@pytest.mark.parametrize('case', CASES)
def test_arguments_of_the_gpu_kernel(case, window):
    """The same call with its XLA implementation, which runs here."""
    q, k, v = inputs()
    given = {'lengths': None} | CASES[case]
    ours = kernels._cudnn(q, k, v, **given, window=window, implementation='xla')
    expected, _ = kernels.full(kernel='plain', **CASES[case])(q, k, v, window=window)
    for row, length in enumerate(CASES[case].get('lengths', [256, 256])):
        np.testing.assert_allclose(ours[row, :length], expected[row, :length], atol=2e-6)


@pytest.mark.parametrize(
    ('capability', 'chosen'),
    [('8.0', 'cudnn'), ('12.0', 'cudnn'), ('7.5', 'plain'), ('gfx942', 'plain'), (None, 'plain')],
)
def test_choice(monkeypatch, capability, chosen):
    device = types.SimpleNamespace(compute_capability=capability)
    monkeypatch.setattr(jax, 'devices', lambda: [device])
    assert kernels.choose(256, 64, jnp.bfloat16, 'tpu') == 'splash'
    assert kernels.choose(100, 64, jnp.bfloat16, 'tpu') == 'plain'
    assert kernels.choose(100, 96, jnp.bfloat16, 'gpu') == chosen
    assert kernels.choose(100, 96, jnp.float32, 'gpu') == 'plain'
    assert kernels.choose(256, 64, jnp.float32, 'cpu') == 'plain'
