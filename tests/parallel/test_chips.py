"""Peaks: the makers' where the chip is known, else measured, of all devices together."""

import types

import jax
import numpy as np
import pytest

from rstar_jax.parallel import chips, local_mesh, peak_flops


@pytest.mark.parametrize(
    ('kind', 'tera'),
    [
        ('TPU v4', 275),
        ('TPU v5 lite', 197),
        ('TPU v5e', 197),
        ('TPU v5', 459),
        ('TPU v5p', 459),
        ('TPU v6 lite', 918),
        ('TPU v6e', 918),
        ('TPU7x', 1153.5),
        ('NVIDIA B200', 2250),
        ('NVIDIA H100 80GB HBM3', 989),
        ('NVIDIA H100 PCIe', 756),
        ('NVIDIA A100-SXM4-80GB', 312),
        ('NVIDIA A10G', 70),
        ('NVIDIA L4', 121),
        ('Tesla T4', 65),
    ],
)
def test_a_chip_is_found_by_how_its_kind_begins(kind, tera):
    assert chips.find_chip(kind).flops == tera * 1e12


@pytest.mark.parametrize('kind', ['cpu', 'NVIDIA L40S', 'NVIDIA A10', 'TPU v9', 'NVIDIA'])
def test_others_are_not_known(kind):
    assert chips.find_chip(kind) is None


def test_the_devices_are_told_in_words(monkeypatch):
    assert chips.devices_in_use().startswith('cpu (')
    card = types.SimpleNamespace(platform='gpu', device_kind='Tesla T4')
    monkeypatch.setattr(jax, 'devices', lambda: [card] * 2)
    monkeypatch.setattr(jax, 'device_count', lambda: 2)
    assert chips.devices_in_use() == '2 x Tesla T4'


def test_the_table_is_of_16_bits_and_of_one_chip(monkeypatch):
    mesh = local_mesh(devices=jax.devices()[:4])
    monkeypatch.setitem(chips.CHIPS, 'cpu', chips.Chip(1.0, 5e9, 1.0))
    monkeypatch.setattr(chips, '_measured', lambda device, dtype: 7e9)
    # GPUs that have no bfloat16 train in float16.
    assert peak_flops(mesh, 'bfloat16') == peak_flops(mesh, 'float16') == 4 * 5e9
    # The fake devices are one processor.
    assert peak_flops(mesh, 'float32') == 7e9


def test_what_is_not_known_is_measured_once(monkeypatch):
    chips._measured.cache_clear()
    monkeypatch.setattr(chips, 'SECONDS', 1e-3)
    one, all_ = (local_mesh(devices=jax.devices()[:n]) for n in (1, 8))
    peak = peak_flops(one, np.float32)
    assert peak > 0 and peak_flops(all_, 'float32') == peak
    chips._measured.cache_clear()


def test_of_a_gpu_s_memory_jax_takes_a_part(monkeypatch):
    monkeypatch.setitem(chips.CHIPS, 'cpu', chips.Chip(100.0, 5e9, 1.0))
    for limit, memory in ((90, 90.0), (110, 100.0), (0, 100.0)):  # 0: it does not say
        monkeypatch.setattr(chips, 'device_bytes', lambda mesh, limit=limit: limit)
        assert chips.here('bfloat16') == chips.Chip(memory, 5e9, 1.0)


def test_a_chip_s_products_of_float32_are_measured(monkeypatch):
    """As of a T4, which searches in float32: its 65 TFLOP/s are of float16."""
    monkeypatch.setitem(chips.CHIPS, 'cpu', chips.Chip(100.0, 5e9, 1.0))
    monkeypatch.setattr(chips, '_product', lambda device, dtype: 7e8)
    assert [chips.here(dtype).flops for dtype in ('float16', 'float32')] == [5e9, 7e8]
