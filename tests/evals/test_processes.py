"""An evaluation that several processes share."""

import dataclasses
import time
import types

import pytest

from rstar_jax.data import TreeStore
from rstar_jax.job import hosts
from tests.evals.test_evaluation import CONFIG, PROBLEMS, Searcher, evaluate, kind_of


def test_trees_of_other_processes_take_their_time(tmp_path):
    """This process gets none, and waits."""

    class Elsewhere(Searcher):
        def __call__(self, *arguments, **options):
            kind = kind_of(options['config'], arguments[2])
            time.sleep(0.2)
            with TreeStore(tmp_path / 'sums' / kind, writer=1) as store:
                for record in super().__call__(*arguments, **options):
                    problem = PROBLEMS[record.problem.index]
                    store.append(dataclasses.replace(record, problem=problem))
            yield from ()

    config = dataclasses.replace(CONFIG, strategies=('greedy',))
    row = evaluate(Elsewhere(), tmp_path, None, config)['benchmarks']['sums']
    assert row['seconds_per_problem'] * len(PROBLEMS) >= 0.2
    assert row['greedy'] == evaluate(Searcher(), None, None, config)['benchmarks']['sums']['greedy']


@pytest.mark.parametrize('late', ['greedy', 'guided'])
def test_what_others_found_counts_though_the_disk_tells_late_of_it(tmp_path, monkeypatch, late):
    """Figures of what is seen at first would be wrong ones, and stay."""
    found = []

    class Elsewhere(Searcher):
        def __call__(self, *arguments, **options):
            for record in super().__call__(*arguments, **options):
                if kind_of(options['config'], arguments[2]) != late:
                    yield record
                    continue
                problem = PROBLEMS[record.problem.index]
                found.append(dataclasses.replace(record, problem=problem))

    def sleep(seconds):
        name = 'greedy' if late == 'greedy' else 'mcts'
        with TreeStore(tmp_path / 'sums' / name, writer=1) as store:
            while found:
                store.append(found.pop())

    monkeypatch.setattr(hosts, 'gathered', lambda n: [n, n + bool(found)])
    monkeypatch.setattr(hosts, 'time', types.SimpleNamespace(sleep=sleep))
    row = evaluate(Elsewhere(), tmp_path)['benchmarks']['sums']
    assert (row['greedy'], row['search']['any']) == (0.5, 0.75)
