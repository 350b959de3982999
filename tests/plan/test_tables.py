"""The lines of --plan, and what it refuses."""

import dataclasses

import pytest

from rstar_jax import settings as configs
from rstar_jax.parallel.chips import CHIPS
from rstar_jax.parallel.memory import GIB
from rstar_jax.plan import collectives, tables
from rstar_jax.plan.compiled_search import SearchPlan
from rstar_jax.plan.compiled_training import TrainingPlan, Work
from rstar_jax.settings.errors import UserError

V5E = CHIPS['TPU v5 lite']
SEARCH = SearchPlan(
    tensor=2,
    groups=4,
    slots=64,
    trees=30,
    most=40,
    weights=3 * GIB,
    planned=12 * GIB,
    tree=GIB // 10,
    decode=10 * GIB,
    score=11 * GIB,
    flops=64e9,
    traffic=64e6,
    floor=8_190_000_000,
    step=0.0,
    seconds=20.0,
)
TRAINING = TrainingPlan(
    mesh={'data': 1, 'fsdp': 8, 'tensor': 1},
    micros={(8, 4096): 16},
    held=5 * GIB,
    peak=9 * GIB,
    needed=197e12,
    computed=394e12,
    work=Work({'all-gather': collectives.Exchange(5, 4e11)}, 77.0),
)


def test_the_row_of_a_search():
    words = tables.search_row('model', SEARCH, V5E).split()
    assert words[:10] == ['model', '2', '30', '40', '64', '3.00', '12.00', '10.00', '11.00', '0.10']
    # By FLOPs 256 sequences a step of 64e9 / 197e12 s, by reading one of 10 ms.
    assert words[10:] == ['20', '1.00', '1', '788,000,', '25,600']
    assert 'does not fit' in tables.search_row('model', None, V5E)


def test_the_row_of_a_training():
    row = tables.training_row('model', 'sft', TRAINING, V5E)
    assert row.split()[:8] == ['model', 'sft', '8', '16', 'x', '8x4096', '5.00', '9.00']
    # Two seconds by FLOPs, of which one is needed, two by what is received.
    assert ' 0.20, 0.39 ' in row and ' 2.00, 2.00 ' in row and ' 50% ' in row
    assert row.endswith('77  all-gather 400.0')
    over = dataclasses.replace(TRAINING, peak=20 * GIB, work=None)
    assert '20.00  does not fit into 15.75 GiB' in tables.training_row('model', 'ppm', over, V5E)
    cut = dataclasses.replace(TRAINING, mesh={'data': 1, 'fsdp': 256, 'tensor': 4})
    assert tables.training_row('m', 'sft', cut, V5E).split()[2] == '256x4'


@pytest.mark.parametrize(
    ('topologies', 'stages', 'argument'),
    [
        (',', ['sft'], 'topology'),
        ('here', ['sft'], 'topology'),
        ('v5e:2x', ['sft'], 'topology'),
        ('v5e:2x4', ['eval'], 'stages'),
    ],
)
def test_what_cannot_be_planned_is_named(topologies, stages, argument):
    with pytest.raises(UserError) as error:
        next(tables.on_slices(configs.default(), topologies, stages))
    assert error.value.argument == argument
