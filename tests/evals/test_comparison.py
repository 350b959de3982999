"""Rows of several seeds, pooled and told in words; worked out by hand."""

import itertools

import numpy as np
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
        row('form', 'MCTS', 1, range(12), 15, judge=0.7, in_time=fewer),
    ]
    mcts, greedy = comparison.table(rows)
    assert (mcts['row'], mcts['seeds'], mcts['problems'], mcts['right']) == ('MCTS', 2, 25, 0.72)
    assert mcts['interval95'] == metrics.interval95([True] * 18 + [False] * 7)
    assert (mcts['least'], mcts['most'], mcts['tokens']) == (0.6, 0.8, 150.0)
    assert mcts['judge'] == pytest.approx(0.8)
    assert (mcts['in_time']['right'], mcts['in_time']['trees']) == (0.1, 2)
    assert greedy['seeds'] == 1 and 'in_time' not in greedy


def test_where_the_method_loses_is_said():
    ours = {'form': 'MCTS'}
    better = [row('form', 'MCTS', 0, range(8)), row('form', 'greedy', 0, range(5))]
    assert comparison.notes(better, ours) == {'form': ['Nothing is above MCTS.']}
    as_many = [*better, row('form', 'beam', 0, range(2, 10))]
    assert comparison.notes(as_many, ours) == {'form': ['Nothing is above MCTS.']}
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


def test_a_problem_that_all_seeds_were_asked_counts_once():
    """Three seeds on a file's 16 problems, of which each seed solves the same eight."""
    same, own = {'asked': {'sums': [77, 16]}}, [{'asked': {'sums': [i, 16]}} for i in range(3)]
    (line,) = comparison.table([row('form', 'a', i, range(8), 16, **same) for i in range(3)])
    assert (line['problems'], line['right'], line['seeds']) == (16, 0.5, 3)
    assert line['interval95'] == [0.25, 0.75]  # of 16 coins, not of 48
    (line,) = comparison.table([row('form', 'a', i, range(8), 16, **own[i]) for i in range(3)])
    assert (line['problems'], line['right']) == (48, 0.5)
    assert line['interval95'] == metrics.interval95([True] * 24 + [False] * 24)
    # A problem is what all seeds made of it: one solved once, one twice, one always.
    made = [row('form', 'a', i, range(i, 3), 4, in_time=dict(solved=[]), **same) for i in range(3)]
    for seed in made:
        seed['asked'] = {'sums': [77, 4]}
    (line,) = comparison.table(made)
    assert (line['problems'], line['right']) == (4, pytest.approx(6 / 12))
    rng = np.random.default_rng(1)
    shares = rng.choice([1 / 3, 2 / 3, 1, 0], size=(20_000, 4)).mean(axis=1)
    assert line['interval95'] == pytest.approx(np.quantile(shares, [0.025, 0.975]), abs=0.09)
    assert line['interval95'] == metrics.wilson(0.5, 4)  # too few to be drawn again
    assert line['in_time']['interval95'] == metrics.interval95([False] * 4)


def test_seeds_that_share_problems_are_no_further_evidence():
    def loses(seeds, right, more, **asked):
        rows = [row('form', 'MCTS', seed, right, **asked) for seed in range(seeds)]
        rows += [row('form', 'beam', seed, more, **asked) for seed in range(seeds)]
        (text,) = comparison.notes(rows, {'form': 'MCTS'})['form']
        return text

    # Four of four problems fall alike in one of eight throws of their coins.
    one = loses(1, range(4), range(8))
    assert 'below, with no certain' in one and one.endswith("(p = 0.12, McNemar's test)")
    many = loses(6, range(4), range(8), asked={'sums': [77, 10]})
    assert 'below, with no certain' in many and '0 problems won, 4 lost (p = 0.1' in many
    assert many.endswith(', permutation test by problems; in 6 of 6 seeds)')
    assert 'MCTS LOSES' in loses(6, range(4), range(8))  # each seed has problems of its own
    clear = loses(2, [], range(8), asked={'sums': [77, 10]})
    assert 'MCTS LOSES' in clear and '0.0 against 80.0 %, 0 problems won, 8 lost (p = 0.0' in clear
    # Rows of an earlier version, which did not tell what was asked, among them.
    rows = [row('form', 'MCTS', 0, [0], asked={'sums': [77, 10]}), row('form', 'beam', 0, [0, 1])]
    (text,) = comparison.notes(rows, {'form': 'MCTS'})['form']
    assert '0 problems won, 1 lost (p = 1' in text


def test_what_one_seed_denies_is_no_certain_difference():
    """Seeds train models of their own, which may differ by more than problems do."""
    won = {0: (range(1), range(10)), 1: (range(1), range(10)), 2: (range(7), range(6))}
    rows = [row('form', 'MCTS', seed, mine) for seed, (mine, _) in won.items()]
    rows += [row('form', 'beam', seed, more) for seed, (_, more) in won.items()]
    (text,) = comparison.notes(rows, {'form': 'MCTS'})['form']
    assert text.startswith('MCTS is below, with no certain difference, beam')
    assert text.endswith("McNemar's test; in 2 of 3 seeds)") and '18 lost (p = 7' in text
    (text,) = comparison.notes([r for r in rows if r['seed'] < 2], {'form': 'MCTS'})['form']
    assert text.startswith('MCTS LOSES to beam')
    equal = [row('form', name, 2, range(5)) for name in ('MCTS', 'beam')]
    (text,) = comparison.notes([*(r for r in rows if r['seed'] < 2), *equal], {'form': 'MCTS'})[
        'form'
    ]
    assert text.startswith('MCTS LOSES to beam') and text.endswith('; in 2 of 3 seeds)')


def test_nothing_is_said_of_a_row_that_stands_alone():
    assert comparison.notes([row('form', 'MCTS', 0, [0])], {'form': 'MCTS'}) == {'form': []}


def test_the_chance_of_differences_is_that_of_all_signs():
    gaps = [3, -1, 2, 2, 1, -1, 3, 1]
    signs = np.array(list(itertools.product([-1, 1], repeat=len(gaps))))
    exact = np.mean(np.abs(signs @ gaps) >= sum(gaps))
    assert 0.03 < exact < 0.2
    assert comparison._chance(gaps) == pytest.approx(exact, abs=0.005)
    assert comparison._chance(gaps) == comparison._chance([-gap for gap in gaps])


def test_what_costs_less_is_not_said_to_be_for_as_many_tokens():
    rows = [row('form', 'MCTS', 0, [0], tokens=400.0), row('form', 'beam', 0, [0, 1], tokens=480.0)]
    rows.append(row('form', 'greedy', 0, [0, 1, 2], tokens=40.0))
    beam, greedy = comparison.notes(rows, {'form': 'MCTS'})['form']
    assert beam.startswith('MCTS is below, with no certain difference, beam for as many tokens: 10')
    assert greedy.startswith('MCTS is below, with no certain difference, greedy: 10.0 against 30.0')


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
