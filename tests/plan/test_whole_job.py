"""The plan of a whole job: what a small run tells, limits of a slice, hours that add up."""

import dataclasses
import types

import jax
import pytest

from rstar_jax import data, models
from rstar_jax.job import ledger
from rstar_jax.parallel import chips
from rstar_jax.plan import searches as searches
from rstar_jax.plan import topology, whole_job
from rstar_jax.plan import trainings as trainings
from rstar_jax.settings import configs
from rstar_jax.settings.errors import UserError
from tests.evals.trees import tree

ASSUMED = whole_job.Assumed(decode=0.5, prefill=0.5, train=0.5, idle=0.0, start=0.0)
SHAPE = models.Config('qwen2', 320, 64, 96, 1, 8, 2, 8, qkv_bias=True)
FOUND = whole_job.Statistics(
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
SPEED = whole_job.Speed(decoded=2e5, read=5e5, steps={'sft': 2.0, 'ppm': 1.0}, hosts=4)


def config(**changes):
    made = configs.default()
    made.training.sft.epochs, made.training.ppm.epochs = 2, 1
    made.training.sft.batch_size, made.training.ppm.batch_size = 128, 500
    for key, value in changes.items():
        setattr(made.search, key, value)
    return made


def hours(config, speed=SPEED, **changes):
    found = dataclasses.replace(FOUND, **changes)
    return whole_job.hours(config, 3600, found, speed, ASSUMED, configs.STAGES)


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
            # The prompts begin alike; the longest path is 2 + 2 * 3 more.
            tokens = [[1, 2, 3, 10 + index, 20], *[[7] * (2 + index)] * (len(record.texts) - 1)]
            about = {'counters': dict(zip(names, counters)), 'tokens': tokens}
            store.append(dataclasses.replace(record, **about))
    ledger.write_json(round_ / 'search' / 'done.json', {'figures': {'slot_use': 0.8}})
    figures = {'problems': 2, 'sft': 4, 'pairs': 0}
    ledger.write_json(round_ / 'curate' / 'done.json', {'seconds': 5.0, 'figures': figures})
    trained = {'figures': {'tokens': 900, 'examples': 3, 'held_out': 1}}
    ledger.write_json(round_ / 'policy' / 'done.json', trained)
    ledger.write_json(tmp_path / 'config.json', {'round2': {'training.sft.epochs': 3}})
    strategies = {'greedy': 7.0, 'mcts': 60.0, 'dvts': 3.0}  # of the last one no trees are left
    row = {
        'problems': 10,
        'strategies': {name: {'tokens_per_problem': n} for name, n in strategies.items()},
    }
    ledger.write_json(round_ / 'eval' / 'results.json', {'benchmarks': {'sums': row}})
    for name, told in {'greedy': (35.0, 42.0, 0.0), 'mcts': (150.0, 160.0, 290.0)}.items():
        with data.TreeStore(round_ / 'eval' / 'sums' / name) as store:
            for index in range(2):
                problem = {'index': index, 'question': 'q', 'answer': '1'}
                counters = dict(zip(('sampled_tokens', 'policy_computed', 'ppm_computed'), told))
                record = tree(problem, 0, [('1', 0.5, True)])
                store.append(dataclasses.replace(record, counters=counters))
    ledger.write_json(tmp_path / 'round3-old' / 'curate' / 'done.json', {})  # no round
    number, found = whole_job.statistics(tmp_path)
    assert number == 2
    assert found == whole_job.Statistics(
        sampled=200.0,
        path=8,
        read=20.0,
        scored=100.0,
        solved=0.5,
        examples={'sft': 1.5},
        tokens={'sft': 100.0},
        curate=2.5,
        evaluated=700.0,
        trees=2,
        slot_use=0.8,
        # 7 for each 35 that greedy samples; 10 read and 290 scored for each 150.
        evaluated_read=70 * 0.2 + 600 * 2.0,
    )


@pytest.mark.parametrize(
    ('asked', 'trees', 'solved', 'sampled'),
    [
        ({}, 10, 0.6, 1000.0),
        ({'search.trees': 2}, 14, 0.8, (10 * 1000 + 4 * 4000) / 14),
        ({'search.mean_tokens': 2100}, 14, 0.8, (10 * 1000 + 4 * 4000) / 14),
    ],
)
def test_further_trees_of_unsolved_problems_are_no_part_of_the_means(
    tmp_path, asked, trees, solved, sampled
):
    round_ = tmp_path / 'round4'
    longer = [(range(10), 1000, 6), (range(6, 10), 4000, 8), (range(8, 10), 8000, 8)]
    with data.TreeStore(round_ / 'search') as store:
        for number, (indices, tokens, right) in enumerate(longer):
            for index in indices:
                problem = {'index': index, 'question': 'q', 'answer': '1'}
                answers = [('1', 0.5, index < right)]
                store.append(tree(problem, number, answers, tokens=float(tokens)))
    figures = {'problems': 10, 'sft': 8, 'pairs': 0}
    ledger.write_json(round_ / 'curate' / 'done.json', {'seconds': 1.0, 'figures': figures})
    ledger.write_json(tmp_path / 'config.json', {'round4': asked})
    _, found = whole_job.statistics(tmp_path)
    assert (found.trees, found.solved, found.sampled) == (trees, solved, pytest.approx(sampled))


def plans(mesh):
    """A search and a training whose limits are easy to compute with."""
    search = searches.Plan(
        **{field.name: 1 for field in dataclasses.fields(searches.Plan)}
        | {'groups': 4, 'slots': 8, 'weights': 4e9, 'flops': 1e12, 'floor': 1e9, 'step': 0.0}
    )
    work = trainings.Work(exchanged={}, seconds=0.0)
    return search, trainings.Plan(dict(mesh.shape), {}, 10**9, 0, 1e12, 2e12, work)


@pytest.mark.parametrize(
    ('platform', 'step'),
    [('tpu', 0.01), ('cpu', 0.011)],  # the longer of computing and reading; both
)
def test_speeds_follow_from_the_plans_limits(monkeypatch, platform, step):
    devices = [types.SimpleNamespace(platform=platform, process_index=0)] * 8
    asked = {}
    search, training = plans(whole_job.parallel.global_mesh(devices=jax.devices()[:8]))

    def plan_search(settings, host, memory, shape, trees, dtype):
        asked['search'] = settings.path_tokens, len(host), trees, dtype
        return search

    def plan(kind, settings, shape, mesh, memory, size):
        asked[kind] = size
        return training

    monkeypatch.setattr(searches, 'plan', plan_search)
    monkeypatch.setattr(topology, 'host_chips', lambda chips: chips[:4])
    monkeypatch.setattr(trainings, 'plan', plan)
    monkeypatch.setattr(whole_job.parallel, 'training_mesh', lambda *_: None)
    made = whole_job.compiled(config(), 3600, FOUND, devices, 2**34, SHAPE, configs.STAGES)
    params = models.decoder.init_params(SHAPE, jax.random.key(0))
    del params['output']
    assert made.parameters == sum(x.size for x in jax.tree.leaves(params))
    chip = chips.Chip(memory=2**34, flops=1e14, bandwidth=1e12)
    speed = whole_job.limits(made, devices, chip)
    # Two hosts of 4 groups of 8 slots.
    assert speed.decoded == pytest.approx(2 * 4 * 8 / step)
    measured = dataclasses.replace(made, search=dataclasses.replace(search, step=0.5))
    assert whole_job.limits(measured, devices, chip).decoded == pytest.approx(2 * 4 * 8 / 0.5)
    assert speed.read == pytest.approx(8 * 1e14 / 2 / made.parameters)
    assert speed.hosts == 1
    # 2e12 FLOPs, and a GB read and written.
    assert speed.steps == pytest.approx({'sft': 0.022, 'ppm': 0.022})
    assert asked['sft'] == 500 and asked['ppm'] == 250
    path, host, trees, dtype = asked['search']
    assert (path, host, trees) == (512, 4, 450)
    several = config(trees=8, mean_tokens=2000)
    whole_job.compiled(several, 3600, FOUND, devices, 2**34, SHAPE, ('search',))
    assert asked['search'][2] == 900
    if platform == 'tpu':
        assert dtype == searches.DTYPE
    else:  # the machine's own
        assert dtype.name in ('bfloat16', 'float32')


def test_limits_of_this_machine_are_measured():
    found = chips.here('float32')
    assert found.memory > 2**28 and found.links == 0
    assert 1e7 < found.flops < 1e14
    assert 1e7 < found.bandwidth < 1e13


def test_without_a_small_run_the_error_is_one_line(tmp_path):
    with pytest.raises(UserError, match='holds no round that has curated: plan from a small run'):
        list(whole_job.plan(configs.default(), 'v5e:2x4', 10, str(tmp_path), configs.STAGES))
    with pytest.raises(UserError, match='needs one topology, 1 problem'):
        list(whole_job.plan(configs.default(), 'v5e:2x4,v5e:4x4', 10, '.', configs.STAGES))


@pytest.mark.parametrize('stages', [('export',), ('ppm', 'eval')])
def test_stages_of_which_the_small_run_tells_nothing(tmp_path, monkeypatch, stages):
    told = dataclasses.replace(FOUND, examples={'sft': 2.0}, tokens={'sft': 500.0}, evaluated=0.0)
    monkeypatch.setattr(whole_job, 'statistics', lambda workdir: (1, told))
    monkeypatch.setattr(topology, 'slice_chips', lambda topology: jax.devices())
    monkeypatch.setattr(whole_job, 'find_chip', lambda kind: chips.Chip(1e12, 1e11, 1e10, 0))
    made = configs.default()
    made.policy.path = 'Qwen/Qwen2.5-Math-1.5B'
    with pytest.raises(UserError, match=f'^--stages={",".join(stages)}: .*search, curate, sft$'):
        list(whole_job.plan(made, 'v5e:2x4', 10, str(tmp_path), stages))
