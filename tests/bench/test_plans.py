"""The bench of plans: a row and figures for each claim, and an error where one does not fit."""

import dataclasses
import types

import pytest

from rstar_jax import parallel
from rstar_jax.bench import plans
from rstar_jax.models import published
from rstar_jax.plan import topology
from rstar_jax.plan import trainings as trainings
from rstar_jax.settings.errors import UserError
from tests.test_planning import FITS

GIB = topology.GIB


@pytest.fixture
def planned(monkeypatch):
    """What `trainings.plan` is called with; it returns planned[0]."""
    chip = types.SimpleNamespace(device_kind='TPU v5 lite', process_index=0)
    monkeypatch.setattr(topology, 'slice_chips', lambda topology: [chip])
    monkeypatch.setattr(parallel, 'training_mesh', lambda *_: None)
    calls = [FITS]

    def plan(kind, settings, shape, mesh, memory):
        calls.append((kind, settings.batch_size, settings.length, settings.lora, shape, memory))
        return calls[0]

    monkeypatch.setattr(trainings, 'plan', plan)
    return calls


def test_figures_of_claims(planned, capsys):
    figures = plans.run(only='v5e:1x1')
    shape = published.SHAPES['qwen2.5-math-1.5b']
    asked = [('sft', 128, 4096, 16), ('ppm', 512, 2048, 16)]
    assert planned[1:] == [(*what, shape, 15.75 * GIB) for what in asked]
    name = 'v5e:1x1_qwen2.5-math-1.5b_sft_lora16'
    assert {key: figures[f'{name}_{key}'] for key in ('peak_gib', 'seconds', 'mfu')} == {
        'peak_gib': 9,
        'seconds': 2,  # by FLOPs, of which half are needed; by what is received, one
        'mfu': 0.5,
    }
    head, row, *_ = capsys.readouterr().out.splitlines()
    assert head.split()[:4] == ['slice', 'weights', 'model', 'stage']
    assert row.split()[:5] == ['v5e:1x1', 'lora16', 'qwen2.5-math-1.5b', 'sft', '1']


def test_a_claim_that_does_not_hold_is_an_error(planned):
    planned[0] = dataclasses.replace(FITS, work=None, peak=20 * GIB)
    with pytest.raises(RuntimeError, match=r'v5e:1x1_.*_sft_lora16: does not fit into 15.75 GiB'):
        plans.run(only='v5e:1x1')


def test_an_unknown_claim_is_one_line():
    with pytest.raises(UserError, match='--only=v7: expected how one of these begins: v5e:4x4_'):
        plans.run(only='v7')
