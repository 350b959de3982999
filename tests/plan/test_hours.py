"""The plan of a whole job: what a small run tells, limits of a slice, hours that add up."""

import dataclasses
import types

import jax
import pytest

from rstar_jax import data, models
from rstar_jax import settings as configs
from rstar_jax.job import ledger
from rstar_jax.models import tiny
from rstar_jax.parallel import chips
from rstar_jax.plan import hours as hours_
from rstar_jax.plan.compiled_search import SearchPlan
from rstar_jax.plan.compiled_training import TrainingPlan, Work
from rstar_jax.plan.small_run import Statistics
from rstar_jax.settings.errors import UserError
from tests.evals.trees import tree

ASSUMED = hours_.Assumed(decode=0.5, prefill=0.5, train=0.5, idle=0.0, start=0.0)
FOUND = Statistics(
    sampled=1000.0,
    path=300,
    read=200.0,
    scored=800.0,
    solved=0.75,
    examples={'sft': 2.0, 'pairs': 3.0},
    tokens={'sft': 500.0, 'pairs': 250.0},
    curate=0.01,
    evaluated=36e6,
    trees=64,
)
SPEED = hours_.Speed(decoded=2e5, read=5e5, steps={'sft': 2.0, 'ppm': 1.0}, hosts=4)


def config(**changes):
    made = configs.default()
    made.training.sft.epochs, made.training.ppm.epochs = 2, 1
    made.training.sft.batch_size, made.training.ppm.batch_size = 128, 500
    for key, value in changes.items():
        setattr(made.search, key, value)
    return made


def hours(config, speed=SPEED, **changes):
    found = dataclasses.replace(FOUND, **changes)
    return hours_.hours(hours_.Job(config, 3600, found), speed, ASSUMED)


def test_hours_follow_from_tokens_and_limits():
    rows = hours(config())
    # 3600 trees of 1000 tokens at half of 2e5 a second, and 1000 read or scored at half of 5e5.
    assert rows['search'] == pytest.approx(1000 / 1e5 + 1000 / 2.5e5)
    assert rows['curate'] == pytest.approx(0.01 / 4)
    # Two passes over 2 examples of each problem in batches of 128; steps take twice their limit.
    assert rows['sft'] == pytest.approx(2 * 56.25 * 2.0 * 2 / 3600)
    assert rows['ppm'] == pytest.approx(10800 / 500 * 1.0 * 2 / 3600)
    assert rows['eval'] == pytest.approx(36e6 / 1e5 / 3600)
    fitted = config()
    fitted.training.ppm.head = 'fitted'
    more = hours(fitted)['ppm'] - rows['ppm']  # some of the pairs are read first
    assert more == pytest.approx(8192 / 500 / 3 * 1.0 * 2 / 3600)
    rows = hours(config(), evaluated_read=72e6)
    assert rows['eval'] == pytest.approx((36e6 / 1e5 + 72e6 / 2.5e5) / 3600)


def test_more_trees_and_harder_problems_take_longer():
    once = hours(config())['search']
    assert hours(config(trees=2))['search'] == pytest.approx(2 * once)
    more = config(rollouts=16, more_rollouts=(64, 128))
    assert hours(more)['search'] == pytest.approx(once * (1 + 0.25 * (4 + 8)))
    assert hours(more, solved=1.0)['search'] == pytest.approx(once)
    # The last 360 trees in flight end one by one, and leave a third of the slots idle meanwhile.
    speed = dataclasses.replace(SPEED, flight=360)
    assert hours(config(), speed, slot_use=2 / 3)['search'] == pytest.approx(1.05 * once)
    # 64 trees are four waves of 16: all that was idle was so in the last one.
    speed = dataclasses.replace(SPEED, flight=16)
    few = hours(config(), speed, slot_use=2 / 3)['search']
    assert few == pytest.approx(once * (1 + 16 * 0.5 * 4 / 3600))
    assert hours(config(trees=8, mean_tokens=3100))['search'] == pytest.approx(3 * once)
    assert 'eval' not in hours(config(), evaluated=0.0)


def test_shares_and_chip_hours_add_up():
    lines = list(hours_.table({'search': 3.0, 'sft': 1.0}, 64))
    assert [line.split() for line in lines[1:]] == [
        ['search', '3.00', '192', '75.0', '%'],
        ['sft', '1.00', '64', '25.0', '%'],
        ['round', '4.00', '256', '100.0', '%'],
    ]


@pytest.mark.parametrize(
    ('platform', 'step'),
    [('tpu', 0.01), ('cpu', 0.011)],  # the longer of computing and reading; both
)
def test_speeds_follow_from_the_plans_limits(platform, step):
    devices = [types.SimpleNamespace(platform=platform, process_index=0)] * 8
    one = {field.name: 1 for field in dataclasses.fields(SearchPlan)}
    easy = {'groups': 4, 'slots': 8, 'weights': 4e9, 'flops': 1e12, 'floor': 1e9, 'step': 0.0}
    search, mesh = SearchPlan(**one | easy | {'tensor': 1}), {'data': 1, 'fsdp': 8, 'tensor': 1}
    trained = TrainingPlan(mesh, {}, 10**9, 0, 1e12, 2e12, Work(exchanged={}, seconds=0.0))
    plan = hours_.JobPlan(search, {'sft': trained, 'ppm': trained}, 1000)
    chip = chips.Chip(memory=2**34, flops=1e14, bandwidth=1e12)
    speed = hours_.limits(plan, devices, chip)
    assert speed.decoded == pytest.approx(8 * 8 / step)  # a group of 8 slots on each chip
    measured = dataclasses.replace(plan, search=dataclasses.replace(search, step=0.5))
    assert hours_.limits(measured, devices, chip).decoded == pytest.approx(8 * 8 / 0.5)
    assert speed.read == pytest.approx(8 * 1e14 / 2 / 1000)
    assert speed.hosts == 1
    # 2e12 FLOPs, and a GB read and written.
    assert speed.steps == pytest.approx({'sft': 0.022, 'ppm': 0.022})


def test_the_whole_job_on_this_machine(tmp_path):
    """Of a small run of 20 problems: a search and an SFT, compiled and measured here."""
    models.save(tiny.policy(['print(1)\n x = 1'], num_layers=1), tmp_path / 'model')
    made, round_ = small(tmp_path / 'model'), tmp_path / 'run' / 'round1'
    with data.TreeStore(round_ / 'search') as store:
        for index in range(20):
            problem = {'index': index, 'question': f'q{index}', 'answer': '1'}
            store.append(tree(problem, 0, [('1', 0.5, True)], tokens=50.0))
    figures = {'problems': 20, 'sft': 20, 'pairs': 0}
    ledger.write_json(round_ / 'curate' / 'done.json', {'seconds': 5.0, 'figures': figures})
    trained = {'figures': {'tokens': 900, 'examples': 20, 'held_out': 1}}
    ledger.write_json(round_ / 'policy' / 'done.json', trained)
    settings = {'round1': {'training.sft.epochs': 1}}
    ledger.write_json(tmp_path / 'run' / 'config.json', settings)
    run, stages = str(tmp_path / 'run'), ('search', 'curate', 'sft')
    lines = list(hours_.whole_job(made, 'here', 400, run, stages))
    assert [line.split()[0] for line in lines[-4:]] == ['search', 'curate', 'sft', 'round']
    assert f'model on here, {jax.device_count()} chips, 400 problems' in lines[-6]
    for topology, problems, argument in (('here', 0, 'problems'), ('a,b', 9, 'topology')):
        with pytest.raises(UserError) as error:
            next(hours_.whole_job(made, topology, problems, run, stages))
        assert error.value.argument == argument
    with pytest.raises(UserError) as error:
        next(hours_.whole_job(made, 'here', 400, run, ('ppm', 'eval')))
    assert error.value.argument == 'stages'


def small(model):
    """A config of a search and trainings that are compiled in seconds."""
    made = configs.default()
    made.policy.path = str(model)
    made.policy.dtype = made.training.dtype = 'float32'
    made.search.candidates, made.search.rollouts = 2, 2
    made.search.step_tokens, made.search.path_tokens = 16, 200
    made.training.sft.batch_size, made.training.sft.length = 8, 128
    return made


def test_limits_of_this_machine_are_measured():
    found = chips.here('float32')
    assert found.memory > 2**28 and found.links == 0
    assert 1e7 < found.flops < 1e14
    assert 1e7 < found.bandwidth < 1e13
