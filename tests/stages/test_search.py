"""A round's search: its passes, and what is told of them; the models of an evaluation."""

import collections
import dataclasses
import types

import pytest

from rstar_jax import data, search
from rstar_jax import export as exporting
from rstar_jax import settings as configs
from rstar_jax.data.problem import Problem
from rstar_jax.job import hosts, ledger
from rstar_jax.job.progress import Events
from rstar_jax.settings.errors import UserError
from rstar_jax.stages import BY_NAME, Round, searches
from rstar_jax.stages import problems as own_problems
from rstar_jax.stages import search as search_stage
from tests.data import samples
from tests.search.test_scripted import random_score, random_texts
from tests.stages import doing

PROBLEMS = [Problem(i, f'q{i}', str(i % 3)) for i in range(8)]


@pytest.fixture
def search_trees(monkeypatch, tmp_path):
    """Runs a small search in tmp_path, by a scripted policy: (events, **settings) -> figures."""

    class Counting(search.scripted):
        def collect(self, running):
            return [dataclasses.replace(step, sampled=3) for step in super().collect(running)]

    def searcher(*_):
        def run(problems, *models, share, **given):
            expander = Counting(random_texts, random_score)
            share = dataclasses.replace(share, leases=None)
            return search.run(problems, expander=expander, share=share, **given)

        return run, None, None

    def run(events, **settings):
        config = configs.default()
        config.search.update(rollouts=1, candidates=2, max_depth=2, **settings)
        stage = ledger.Stage(tmp_path, {}, ())
        stage.begin()
        return doing.work(Round(config, tmp_path, 1, events), 'search', stage)

    monkeypatch.setattr(searches, 'searcher', searcher)
    monkeypatch.setattr(own_problems, 'split', lambda _: (PROBLEMS, {}, collections.Counter()))
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
        patch.setattr(hosts, 'is_first', lambda: False)
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
    made = tmp_path / 'round2' / 'synthesize' / own_problems.WRITTEN
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
        round_ = Round(config, tmp_path, 2, Events(None))
        with data.TreeStore(tmp_path / 'round2' / 'search', writer=None) as store:
            figures = search_stage._so_far(round_, store)
        assert (figures['problems'], figures['solved']) == expected


def test_a_ppm_of_an_older_policy_is_left_out(monkeypatch, tmp_path):
    round_ = Round(configs.default(), tmp_path, 1, None)
    policy, ppm = (doing.kept(round_, name) for name in ('sft', 'ppm'))
    for stage in (policy, ppm):
        stage.begin()
        ledger.write_json(stage.folder / 'model.json', {})
        stage.finish({})
    exported, told = [], []

    def export(path, folder, **_):
        assert folder.name == path.name
        exported.append(path.name)

    monkeypatch.setattr(exporting, 'export_model', export)
    assert BY_NAME['eval'].paths(round_) == (policy.folder, ppm.folder)
    assert doing.kept(round_, 'eval').inputs == (policy.folder, ppm.folder)
    assert doing.work(round_, 'export') == {'policy': 'policy', 'ppm': 'ppm'}
    policy.finish({})  # anew
    assert BY_NAME['eval'].paths(round_, told.append) == (policy.folder, None)
    assert doing.kept(round_, 'eval').inputs == (policy.folder,)
    assert doing.work(round_, 'export') == {'policy': 'policy'}
    assert len(told) == 1 and str(ppm.folder) in told[0]
    assert exported == ['policy', 'ppm', 'policy']


def test_a_search_does_not_go_on_with_other_problems(search_trees, tmp_path, monkeypatch):
    search_trees(Events(None))
    fewer = PROBLEMS[:3], {}, collections.Counter()
    monkeypatch.setattr(own_problems, 'split', lambda _: fewer)
    search_trees(Events(None))  # the others are not searched any more
    other = [dataclasses.replace(PROBLEMS[0], question='another')], {}, collections.Counter()
    monkeypatch.setattr(own_problems, 'split', lambda _: other)
    with pytest.raises(UserError) as error:
        search_trees(Events(None))
    assert error.value.argument == 'data.problems'
