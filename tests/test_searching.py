"""A round's search: its passes, and what is told of them."""

import collections
import dataclasses

import pytest

from rstar_jax import configs, data, ledger, search, searching, sources
from rstar_jax.progress import Events
from tests.search.test_scripted import random_score, random_texts

PROBLEMS = [{'index': i, 'question': f'q{i}', 'answer': str(i % 3)} for i in range(8)]


@pytest.fixture
def search_trees(monkeypatch, tmp_path):
    """Runs a small search in tmp_path, by a scripted policy: (events, **settings) -> figures."""

    class Counting(search.Scripted):
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
    assert figures['solved'] == len({r.problem['index'] for r in records if r.solved})
    assert figures['nodes'] == sum(len(r.texts) for r in records)
    assert figures['tokens'] == sum(r.counters['sampled_tokens'] for r in records) > 0
