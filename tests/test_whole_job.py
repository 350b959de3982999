"""The plan of a whole job: what a small run tells, limits of a slice, hours that add up."""

import dataclasses

import pytest

from rstar_jax import configs, data, ledger, whole_job
from rstar_jax.data import files
from rstar_jax.errors import UserError
from tests.evals.trees import tree

ASSUMED = whole_job.Assumed(decode=0.5, prefill=0.5, train=0.5, idle=0.0, start=0.0)
FOUND = whole_job.Statistics(
    sampled=1000.0,
    read=200.0,
    scored=800.0,
    solved=0.75,
    examples={'sft': 2.0, 'pairs': 3.0},
    tokens={'sft': 500.0, 'pairs': 250.0},
    curate=0.01,
    evaluated=36e6,
    trees=64,
)
SPEED = whole_job.Speed(
    decoded=2e5, flops=1e15, parameters=1e9, steps={'sft': (2.0, 10_000), 'ppm': (1.0, 5000)}
)


def config(**changes):
    made = configs.default()
    made.training.sft.epochs, made.training.ppm.epochs = 2, 1
    for key, value in changes.items():
        setattr(made.search, key, value)
    return made


def hours(config, **changes):
    found = dataclasses.replace(FOUND, **changes)
    return whole_job.hours(config, 3600, found, SPEED, ASSUMED, configs.STAGES)


def test_hours_follow_from_tokens_and_limits():
    rows = hours(config())
    # 3600 trees of 1000 tokens at half of 2e5 a second, and 1000 read or scored at 2e9 FLOPs each.
    assert rows['search'] == pytest.approx(1000 / 1e5 + 1000 * 2e9 / 5e14)
    assert rows['curate'] == pytest.approx(0.01)
    # Two passes over 2 examples of 500 tokens, steps of 10,000 that take twice their limit.
    assert rows['sft'] == pytest.approx(2 * 2 * 500 / 10_000 * 2.0 * 2)
    assert rows['ppm'] == pytest.approx(3 * 250 / 5000 * 1.0 * 2)
    assert rows['eval'] == pytest.approx(36e6 / 1e5 / 3600)


def test_more_trees_and_harder_problems_take_longer():
    once = hours(config())['search']
    assert hours(config(trees=2))['search'] == pytest.approx(2 * once)
    more = config(rollouts=16, more_rollouts=(64, 128))
    assert hours(more)['search'] == pytest.approx(once * (1 + 0.25 * (4 + 8)))
    assert hours(more, solved=1.0)['search'] == pytest.approx(once)
    assert 'eval' not in hours(config(), evaluated=0.0)


def test_shares_and_chip_hours_add_up():
    lines = list(whole_job.table({'search': 3.0, 'sft': 1.0}, 64))
    assert [line.split() for line in lines[1:]] == [
        ['search', '3.00', '192', '75.0', '%'],
        ['sft', '1.00', '64', '25.0', '%'],
        ['round', '4.00', '256', '100.0', '%'],
    ]


def test_a_small_run_tells_what_trees_are_like(tmp_path):
    round_ = tmp_path / 'round2'
    with data.TreeStore(round_ / 'search') as store:
        for index, counters in enumerate([(100.0, 130.0, 90.0), (300.0, 310.0, 110.0)]):
            names = 'sampled_tokens', 'policy_computed', 'ppm_computed'
            problem = {'index': index, 'question': 'q', 'answer': '1'}
            record = tree(problem, 0, [('1', 0.5, index == 1)])
            store.append(dataclasses.replace(record, counters=dict(zip(names, counters))))
    figures = {'problems': 2, 'sft': 4, 'pairs': 0}
    ledger.write_json(round_ / 'curate' / 'done.json', {'seconds': 5.0, 'figures': figures})
    trained = {'figures': {'tokens': 1200}}
    ledger.write_json(round_ / 'policy' / 'done.json', trained)
    ledger.write_json(tmp_path / 'config.json', {'round2': {'training.sft.epochs': 3}})
    row = {'problems': 10, 'strategies': {'greedy': {'tokens_per_problem': 7.0}}}
    files.write_json(round_ / 'eval' / 'results.json', {'benchmarks': {'sums': row}})
    number, found = whole_job.statistics(tmp_path)
    assert number == 2
    assert found == whole_job.Statistics(
        sampled=200.0,
        read=20.0,
        scored=100.0,
        solved=0.5,
        examples={'sft': 2.0},
        tokens={'sft': 100.0},
        curate=2.5,
        evaluated=70.0,
        trees=2,
    )


def test_without_a_small_run_the_error_is_one_line(tmp_path):
    with pytest.raises(UserError, match='holds no round that has curated: plan from a small run'):
        list(whole_job.plan(configs.default(), 'v5e:2x4', 10, str(tmp_path), configs.STAGES))
    with pytest.raises(UserError, match='needs one topology, 1 problem'):
        list(whole_job.plan(configs.default(), 'v5e:2x4,v5e:4x4', 10, '.', configs.STAGES))
