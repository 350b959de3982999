"""The evaluation's figures, worked out by hand, and its restart."""

import json

import pytest

from rstar_jax import evals, search
from rstar_jax.errors import UserError
from rstar_jax.evals import metrics
from tests.evals.trees import tree

PROBLEMS = [{'index': 10 + i, 'question': f'question {i}', 'answer': str(i)} for i in range(4)]
CONFIG = evals.Config(search.Config(rollouts=2, candidates=3), trajectories=3)

# What each problem's trees find: (answer, score) of three trees.
FOUND = [
    [('0', 0.9), ('0', 0.8), ('7', -0.5)],  # right by all
    [('8', 0.9), ('1', 0.8), ('1.0', 0.7)],  # right by majority and weight
    [('2', 0.9), ('9', 0.1), ('9', 0.0)],  # right by best score; 0.95 against 0.55 + 0.5
    [None, ('5', 0.3), None],  # never right
]
ALONE = ['0', '8', '2', None]


class Searcher:
    """Stands in for search.run: gives the trees above, and dies after `lifetime` of them."""

    def __init__(self, lifetime=10**9):
        self.calls, self.made, self.lifetime = [], [], lifetime

    def __call__(self, problems, policy, ppm, *, config, seed, trees, skip, progress):
        self.calls.append((ppm, config, trees))
        for number in reversed(range(trees)):  # trees finish in any order
            for i, problem in enumerate(problems):
                if (problem['index'], number) in skip:
                    continue
                if len(self.made) == self.lifetime:
                    raise KeyboardInterrupt
                if ppm is None:
                    found, tokens = ALONE[i] and (ALONE[i], float('nan')), 5.0
                else:
                    found, tokens = FOUND[i][number], 100.0
                if progress:
                    progress({'trees_done': len(self.made)})
                # A worse answer beside it, and flags that must not be believed.
                answers = [('77', -1.0, True), (*found, False)] if found and ppm else []
                answers = answers or ([(*found, False)] if found else [])
                self.made.append((problem['index'], number, ppm))
                yield tree(problem, number, answers, tokens)


def evaluate(searcher, directory=None, ppm='ppm', config=CONFIG, **options):
    return evals.run(
        'policy',
        ppm,
        {'sums': PROBLEMS},
        config,
        7,
        directory=directory,
        run_search=searcher,
        **options,
    )


def test_results_are_those_worked_out_by_hand():
    searcher = Searcher()
    results = evaluate(searcher, round_number=2)
    figures = results['benchmarks']['sums']
    seconds = figures.pop('seconds_per_problem')
    interval = {
        right: metrics.interval95([True] * right + [False] * (4 - right)) for right in (2, 3)
    }
    assert seconds >= 0
    assert results == {
        'round': 2,
        'benchmarks': {
            'sums': {
                'problems': 4,
                'greedy': 0.5,
                'answered': 0.75,
                'greedy_solved': [10, 12],
                'search': {
                    'trajectories': 3,
                    'best': 0.5,
                    'majority': 0.5,
                    'weighted': 0.5,
                    'any': 0.75,
                },
                'interval95': {
                    'greedy': interval[2],
                    'best': interval[2],
                    'majority': interval[2],
                    'weighted': interval[2],
                    'any': interval[3],
                },
                'tokens_per_problem': 300.0,
            }
        },
    }


def test_the_greedy_run_and_the_search_are_two_runs():
    searcher = Searcher()
    evaluate(searcher)
    (no_ppm, alone, one), (ppm, judged, three) = searcher.calls
    assert (no_ppm, one, alone) == (None, 1, search.greedy(CONFIG.search))
    assert alone.temperature == 0 and alone.candidates == alone.rollouts == 1
    assert (ppm, three) == ('ppm', 3)
    assert not judged.use_ground_truth and judged.candidates == 3 and judged.rollouts == 2


@pytest.mark.parametrize('without', ['ppm', 'trajectories'])
def test_without_a_search_only_the_policy_is_reported(without):
    config = evals.Config(CONFIG.search, trajectories=0 if without == 'trajectories' else 3)
    results = evaluate(Searcher(), ppm=None if without == 'ppm' else 'ppm', config=config)
    figures = results['benchmarks']['sums']
    assert figures['greedy'] == 0.5 and figures['search'] is None
    assert list(figures['interval95']) == ['greedy']
    assert figures['tokens_per_problem'] == 5.0


def test_top_sets_how_many_vote():
    config = evals.Config(CONFIG.search, trajectories=3, top=1)
    found = evaluate(Searcher(), config=config)['benchmarks']['sums']['search']
    assert found['majority'] == found['best']


@pytest.mark.parametrize('lifetime', [0, 2, 4, 9, 15])
def test_a_killed_evaluation_goes_on(tmp_path, lifetime):
    expected = evaluate(Searcher())
    killed, after = Searcher(lifetime), Searcher()
    with pytest.raises(KeyboardInterrupt):
        evaluate(killed, tmp_path)
    assert not (tmp_path / 'results.json').exists()
    results = evaluate(after, tmp_path)
    assert not set(killed.made) & set(after.made)
    assert len(killed.made) + len(after.made) == 4 + 12
    for result in (expected, results):
        result['benchmarks']['sums'].pop('seconds_per_problem')
    assert results == expected
    again = Searcher()
    evaluate(again, tmp_path)
    assert not again.calls
    written = json.loads((tmp_path / 'results.json').read_text())
    assert written['benchmarks']['sums']['search'] == results['benchmarks']['sums']['search']


def test_seconds_of_a_killed_run_count(tmp_path):
    evaluate(Searcher(), tmp_path)
    place = tmp_path / 'sums' / 'search' / 'seconds.json'
    assert json.loads(place.read_text())['seconds'] > 0
    place.write_text('{"seconds": 40}')
    assert evaluate(Searcher(), tmp_path)['benchmarks']['sums']['seconds_per_problem'] == 10


def test_progress_names_benchmark_and_kind():
    seen = []
    evaluate(Searcher(), progress=seen.append)
    assert {(s['benchmark'], s['kind']) for s in seen} == {('sums', 'greedy'), ('sums', 'search')}
    assert seen[0]['trees_done'] == 0


def test_mistakes_are_one_line():
    with pytest.raises(UserError, match='benchmark none: has no problems'):
        evals.run('policy', None, {'none': []}, CONFIG)
    with pytest.raises(UserError, match='--config.eval.trajectories=-1: needs at least 0'):
        evals.Config(trajectories=-1)
