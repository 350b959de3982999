"""Rows of several seeds, pooled and told in words; worked out by hand."""

import pytest

from rstar_jax.evals import comparison, metrics


def row(group, name, seed, solved, problems=10, **further):
    return {
        'group': group,
        'row': name,
        'seed': seed,
        'problems': problems,
        'solved': [['sums', i] for i in solved],
        'any': None,
        'trees': 4,
        'tokens': 100.0 * (seed + 1),
        'seconds': 0.5,
        'judge': None,
    } | further


def test_benchmarks_are_pooled_by_their_problems():
    judge = {'pairs': 30, 'auc': 0.8}
    costs = {'trajectories': 2, 'tokens_per_problem': 10.0, 'seconds_per_problem': 1.0}
    one = {**costs, 'any': 0.5, 'solved': {'best': [3, 4]}, 'judge': judge}
    other = {**one, 'tokens_per_problem': 40.0, 'any': 1.0, 'judge': {'pairs': 10, 'auc': 0.4}}
    made = comparison.pooled({'a': (4, one), 'b': (8, other)}, 'best')
    assert made == {
        'problems': 12,
        'solved': [['a', 3], ['a', 4], ['b', 3], ['b', 4]],
        'any': pytest.approx((4 * 0.5 + 8) / 12),
        'trees': 2,
        'tokens': 30.0,
        'seconds': 1.0,
        'judge': pytest.approx(0.7),
    }
    greedy = {**costs, 'solved': {'greedy': []}, 'judge': None}
    made = comparison.pooled({'a': (4, greedy)}, 'greedy')
    assert made['any'] is None and made['judge'] is None


def test_a_table_has_one_line_for_all_seeds():
    fewer = {'solved': [['sums', 1]], 'trees': 2, 'tokens': 50.0, 'seconds': 0.25}
    fewer = row('form', '', 0, [1]) | fewer
    rows = [
        row('form', 'MCTS', 0, range(6), judge=0.9, in_time=fewer),
        row('form', 'greedy', 0, range(3)),
        row('form', 'MCTS', 1, range(8), judge=0.7, in_time=fewer),
    ]
    mcts, greedy = comparison.table(rows)
    assert (mcts['row'], mcts['seeds'], mcts['problems'], mcts['right']) == ('MCTS', 2, 20, 0.7)
    assert mcts['interval95'] == metrics.interval95([True] * 14 + [False] * 6)
    assert (mcts['least'], mcts['most'], mcts['tokens']) == (0.6, 0.8, 150.0)
    assert mcts['judge'] == pytest.approx(0.8)
    assert (mcts['in_time']['right'], mcts['in_time']['trees']) == (0.1, 2)
    assert greedy['seeds'] == 1 and 'in_time' not in greedy


def test_where_the_method_loses_is_said():
    ours = {'form': 'MCTS'}
    better = [row('form', 'MCTS', 0, range(8)), row('form', 'greedy', 0, range(5))]
    assert comparison.notes(better, ours) == {'form': ['Nothing is above MCTS.']}
    a_bit = [*better, row('form', 'beam', 0, range(9))]
    assert comparison.notes(a_bit, ours)['form'] == [
        'MCTS is below, with no certain difference, beam for as many tokens: 80.0 against 90.0 %, '
        "0 problems won, 1 lost (p = 1, McNemar's test)"
    ]
    # Three seeds, each with problems of its own; one that beam has not got to counts for neither.
    seeds = [row('form', 'MCTS', seed, [0, 1, 2]) for seed in range(3)]
    seeds += [row('form', 'beam', seed, [1, 2, 3, 4, 5, 6]) for seed in range(2)]
    (text,) = comparison.notes(seeds, ours)['form']
    assert text.startswith('MCTS is below') and '30.0 against 60.0 %, 2 problems won, 8' in text
    seeds += [row('form', 'beam', 2, [1, 2, 3, 4, 5, 6])]
    (text,) = comparison.notes(seeds, ours)['form']
    assert text.startswith('MCTS LOSES to beam for as many tokens: 30.0 against 60.0 %, 3 problems')


def test_equal_time_is_compared_by_itself():
    slow = row('form', 'MCTS', 0, range(9), in_time=row('', '', 0, range(1)))
    fast = row('form', 'majority', 0, range(8), in_time=row('', '', 0, range(8)))
    (text,) = comparison.notes([slow, fast], {'form': 'MCTS'})['form']
    assert text.startswith('MCTS LOSES to majority in the same time: 10.0 against 80.0 %, 0 prob')


def test_rollouts_are_compared_with_samples():
    samples = {'samples': row('', '', 0, range(3)), 'samples_in_time': row('', '', 0, range(9))}
    rows = [row('rollouts', '64', 0, range(2), **samples)]
    (first, second) = comparison.notes(rows, {})['rollouts']
    assert first.startswith(
        'MCTS (rollouts: 64) is below, with no certain difference, the majority of plain samples '
        'of as many tokens: 20.0 against 30.0 %'
    )
    assert second.startswith('MCTS (rollouts: 64) LOSES to the majority of plain samples of the')
