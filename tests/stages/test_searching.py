"""A round's search: its passes, and what is told of them; the models of an evaluation."""

import collections
import dataclasses
import pathlib
import types

import pytest

from rstar_jax import data, rounds, search
from rstar_jax.data.problem import Problem
from rstar_jax.job import hosts, ledger
from rstar_jax.job.progress import Events
from rstar_jax.settings import configs, kinds
from rstar_jax.settings.errors import UserError
from rstar_jax.stages import order, searching, sources, synthesis
from tests.data import samples
from tests.search.test_scripted import random_score, random_texts

PROBLEMS = [Problem(i, f'q{i}', str(i % 3)) for i in range(8)]


@pytest.fixture
def search_trees(monkeypatch, tmp_path):
    """Runs a small search in tmp_path, by a scripted policy: (events, **settings) -> figures."""

    class Counting(search.scripted):
        def collect(self, running):
            return [dataclasses.replace(step, sampled=3) for step in super().collect(running)]

    def searcher(*_):
        def run(problems, *models, leases, **given):
            return search.run(problems, expander=Counting(random_texts, random_score), **given)

        return run, None, None

    def run(events, **settings):
        config = configs.default()
        config.search.update(rollouts=1, candidates=2, max_depth=2, **settings)
        stage = ledger.Stage(tmp_path, {}, ())
        stage.begin()
        with searching.Line('search') as line:
            return searching.search_trees(sources.Round(config, tmp_path, 1, events), stage, line)

    monkeypatch.setattr(searching, '_searcher', searcher)
    monkeypatch.setattr(sources, 'split_problems', lambda _: (PROBLEMS, {}, collections.Counter()))
    return run


def test_what_is_told_of_later_passes_follows_what_was_told_before(search_trees, tmp_path):
    """In TensorBoard, where a pass that began at 0 again would lie over the one before."""
    steps = []

    class Events:
        def add(self, prefix, scalars, step):
            steps.append(step)

    figures = search_trees(Events(), more_rollouts=(2, 3))
    with data.TreeStore(tmp_path) as store:
        assert figures['trees'] == len(store) > len(PROBLEMS)
    assert steps == sorted(steps)
    assert steps[-1] == figures['trees']


@pytest.mark.parametrize('settings', [{'more_rollouts': (2, 3)}, {'mean_tokens': 40}], ids=str)
def test_no_tree_is_read_for_the_figures(search_trees, tmp_path, monkeypatch, settings):
    """Nor for what the passes go by; the first of several processes has the figures."""
    with monkeypatch.context() as patch:
        patch.setattr(data.TreeStore, '__getitem__', lambda self, key: 1 / 0)
        figures = search_trees(Events(None), **settings)
        patch.setattr(searching.parallel, 'is_first', lambda: False)
        assert search_trees(Events(None), **settings) == {}
    with data.TreeStore(tmp_path) as store:
        records = list(store)
    assert len(records) == figures['trees'] > figures['problems'] == len(PROBLEMS)
    assert figures['solved'] == len({r.problem.index for r in records if r.solved})
    assert figures['so_far'] == {key: figures[key] for key in ('problems', 'solved')}
    assert figures['nodes'] == sum(len(r.texts) for r in records)
    assert figures['tokens'] == sum(r.counters['sampled_tokens'] for r in records) > 0


def test_processes_go_on_when_all_of_them_see_the_same_trees(monkeypatch, tmp_path):
    """A shared disk may tell this one late of what another one has found."""
    told, waited = [], []
    monkeypatch.setattr(hosts, 'gathered', lambda n: told.append(n) or [n, told[0]])
    assert hosts.alike([(0, 0), (1, 0)])  # what the other one sees

    def sleep(seconds):
        waited.append(seconds)
        if len(waited) == 3:
            other.append(samples.grown(1, index=1))

    monkeypatch.setattr(hosts, 'time', types.SimpleNamespace(sleep=sleep))
    with data.TreeStore(tmp_path, 0) as own, data.TreeStore(tmp_path, 1) as other:
        own.append(samples.grown(0, index=0))
        own.meet()
        assert own.keys() == {(0, 0), (1, 0)} and len(waited) == 3
        told[0] += 1  # a disk of its own
        with pytest.raises(UserError, match='after 60 s the processes still see different trees: '):
            own.meet()
    assert sum(waited) == 3 + 60


def test_what_is_solved_is_counted_with_what_was_left_out_of_the_round(tmp_path):
    config, own = configs.default(), 10**9
    made = tmp_path / 'round2' / 'synthesize' / synthesis.FILE
    made.parent.mkdir(parents=True)
    data.write_json_items([samples.grown(0, own).problem.to_dict()], made)
    right = {1: {0: True, 1: False, 2: False, 3: True}, 2: {1: True, 2: False, 4: False, own: True}}
    for number, found in right.items():
        with data.TreeStore(tmp_path / f'round{number}' / 'search') as store:
            for index, correct in found.items():
                record = samples.grown(0, index)
                record = dataclasses.replace(record, correct=[correct] * len(record.texts))
                assert record.solved == correct
                store.append(record)
    for least, expected in ((0, (3, 1)), (1, (5, 3)), (2, (5, 3))):
        config.data.solved = least
        round_ = sources.Round(config, tmp_path, 2, Events(None))
        with data.TreeStore(tmp_path / 'round2' / 'search', writer=None) as store:
            figures = searching._so_far(round_, store)
        assert (figures['problems'], figures['solved']) == expected


def test_all_that_draws_goes_by_the_seed_of_the_run(monkeypatch, tmp_path):
    config, seeds = configs.default(), {}
    config.seed, config.last_round = 5, 2
    round_ = sources.Round(configs.for_round(config, 2), tmp_path, 2, Events(None))

    def searcher(*_):
        def run(problems, *models, seed, **_):
            seeds['search'] = seed
            yield from ()

        return run, None, None

    def evaluate(policy, judge, benchmarks, config, seed, **_):
        seeds['eval'] = seed
        return {'benchmarks': {}}

    def train(policy, examples, settings, folder, **_):
        seeds[folder.name] = settings.seed
        return policy, {}

    monkeypatch.setattr(searching, '_searcher', searcher)
    monkeypatch.setattr(searching, 'evaluated_models', lambda *_: (None, None))
    monkeypatch.setattr(sources, 'split_problems', lambda _: (PROBLEMS, {}, collections.Counter()))
    monkeypatch.setattr(sources, 'benchmarks', lambda _: {})
    monkeypatch.setattr(rounds.evals, 'run', evaluate)
    monkeypatch.setattr(rounds.training, 'sft', train)
    monkeypatch.setattr(rounds.training, 'ppm', train)
    line = types.SimpleNamespace(say=print)
    for name in ('search', 'eval'):
        rounds.STAGES[name](round_, order.stage_of(round_, name), line)
    for name in ('sft', 'ppm'):
        rounds._train(round_, order.stage_of(round_, name), line, name, None, [])
    assert seeds == {'search': sources.search_seed(round_), 'eval': 5, 'policy': 5, 'ppm': 5}


def test_a_search_does_not_go_on_with_other_problems(tmp_path):
    with data.TreeStore(tmp_path) as store:
        store.append(dataclasses.replace(samples.grown(0), problem=PROBLEMS[3]))
        searching._check_problems(PROBLEMS, store, 'some.json')
        searching._check_problems(PROBLEMS[:3], store, 'some.json')  # it is not searched any more
        other = dataclasses.replace(PROBLEMS[3], question='another')
        with pytest.raises(UserError, match=r'some.json: problem 3 is another than the one that'):
            searching._check_problems([*PROBLEMS[:3], other], store, 'some.json')


def test_a_ppm_of_an_older_policy_is_left_out(monkeypatch, tmp_path):
    round_ = sources.Round(configs.default(), tmp_path, 1, None)
    policy, ppm = (order.stage_of(round_, name) for name in ('sft', 'ppm'))
    for stage in (policy, ppm):
        stage.begin()
        ledger.write_json(stage.folder / 'model.json', {})
        stage.finish({})
    exported, told = [], []

    def export(path, folder, **_):
        assert folder.name == path.name
        exported.append(path.name)

    monkeypatch.setattr(rounds.exporting, 'export_model', export)
    stage = order.stage_of(round_, 'export')
    line = types.SimpleNamespace(say=told.append)
    assert searching.evaluated_paths(round_) == (policy.folder, ppm.folder)
    assert order.stage_of(round_, 'eval').inputs == (policy.folder, ppm.folder)
    assert rounds.export(round_, stage, line) == {'policy': 'policy', 'ppm': 'ppm'} and not told
    policy.finish({})  # anew
    assert searching.evaluated_paths(round_, False, told.append) == (policy.folder, None)
    assert order.stage_of(round_, 'eval').inputs == (policy.folder,)
    assert rounds.export(round_, stage, line) == {'policy': 'policy'}
    assert told == 2 * [
        f'{ppm.folder} is left out, it was trained from an older policy: --stages=ppm makes it anew'
    ]
    assert exported == ['policy', 'ppm', 'policy']


@pytest.mark.parametrize(('number', 'base'), [(0, False), (0, True), (1, False)])
def test_all_that_is_measured_is_in_8_bits_as_what_searches(monkeypatch, tmp_path, number, base):
    config = configs.default()
    config.policy.path, config.ppm.path, config.base.path = 'instruct', 'judge', 'base'
    config.policy.weights = 'int8'
    for name in ('policy', 'ppm'):
        for file in ('model.json', 'done.json'):
            ledger.write_json(tmp_path / 'round1' / name / file, {'kind': name, 'id': name})
    for module, loads in ((sources.models, 'load'), (sources.checkpoints, 'load_policy')):
        for name in (loads, 'load_ppm'):
            monkeypatch.setattr(module, name, lambda path, *_, **__: str(path))
    monkeypatch.setattr(sources.models, 'quantized', lambda model: f'{model} in 8 bits')
    monkeypatch.chdir(tmp_path)
    round_ = sources.Round(config, pathlib.Path(), number, None)
    policy, ppm = searching.evaluated_models(round_, base)
    assert policy.endswith(' in 8 bits') and (base or ppm.endswith(' in 8 bits'))
    stage = order.stage_of(round_, kinds.BASE if base else 'eval')
    assert stage.settings['policy.weights'] == 'int8'

    def job(*, weights, policy, ppm, **_):
        assert pathlib.Path(policy).is_absolute() == (number == 1)  # a name is no folder
        raise RuntimeError(f'weights={weights}')

    monkeypatch.setattr(searching.elastic, 'Job', job)
    config.job.leases = 'ray'
    run = searching.evaluating(round_, base, print)
    given = {'config': search.Config(), 'seed': 0, 'trees': 1, 'skip': (), 'progress': None}
    with pytest.raises(RuntimeError, match='weights=int8'):
        next(run(PROBLEMS, policy, ppm, **given))
