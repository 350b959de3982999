"""One answer out of several trajectories."""

import math

import pytest

from rstar_jax.evals import selection

NONE = ('', -math.inf)


def test_best_takes_the_highest_score_and_the_first_of_equals():
    assert selection.best([('1', 0.2), ('2', 0.9), NONE, ('3', 0.9)]) == '2'
    assert selection.best([('1', -0.5), NONE]) == '1'
    assert selection.best([NONE, NONE]) == ''
    assert selection.best([]) == ''


def test_majority_counts_only_the_top_scores():
    votes = [('5', 0.9), ('6', 0.8), ('6', 0.7), ('5', -0.9), ('5', -0.8)]
    assert selection.majority(votes, top=3) == '6'
    assert selection.majority(votes, top=5) == '5'
    assert selection.majority(votes, top=1) == '5'


def test_trees_without_an_answer_have_no_vote_and_take_no_place():
    assert selection.majority([NONE] * 5 + [('7', -0.9)], top=2) == '7'
    assert selection.majority([NONE], top=4) == ''
    assert selection.weighted([NONE, ('7', -1.0)]) == '7'


def test_equal_counts_are_decided_by_the_best_score():
    assert selection.majority([('1', 0.1), ('2', 0.6), ('1', 0.5), ('2', 0.0)], top=4) == '2'


def test_equivalent_answers_vote_together_and_the_best_scored_spelling_wins():
    votes = [('3', 0.9), ('\\frac{1}{2}', 0.8), ('0.5', 0.7)]
    assert selection.majority(votes, top=3) == '\\frac{1}{2}'
    assert selection.weighted(votes) == '\\frac{1}{2}'


def test_weighted_sums_what_the_ppm_says():
    # (1 + score) / 2: 0.95 for '1'; 0.3 + 0.3 + 0.3 for '2'.
    assert selection.weighted([('2', -0.4), ('1', 0.9), ('2', -0.4), ('2', -0.4)]) == '1'
    # 0.6 for '1'; 0.4 + 0.4 for '2', though its scores themselves are below 0.
    assert selection.weighted([('2', -0.2), ('1', 0.2), ('2', -0.2)]) == '2'


def test_order_of_trees_does_not_matter_for_distinct_scores():
    votes = [('1', 0.3), ('2', 0.2), ('1', -0.1), ('3', 0.7), ('2', 0.6)]
    for choose in (
        selection.best,
        selection.weighted,
        lambda v: selection.majority(v, 4),
    ):
        assert choose(votes) == choose(votes[::-1])


def test_a_score_that_is_not_a_number_ranks_last():
    assert selection.best([('1', math.nan), ('2', -0.9)]) == '2'


def test_answers_for_any():
    assert selection.answers([('1', 0.0), NONE, ('2', 0.5)]) == ['2', '1']


@pytest.mark.parametrize(
    ('trajectories', 'top'), [(1, 4), (4, 4), (8, 4), (10, 5), (16, 8), (64, 8)]
)
def test_how_many_vote(trajectories, top):
    assert selection.top_of(trajectories) == top


def test_modes_that_vote_on_the_same_answers_compare_them_once(monkeypatch):
    asked, classes = [], selection.grading.classes
    monkeypatch.setattr(
        selection.grading, 'classes', lambda texts: asked.append(texts) or classes(texts)
    )
    votes = [('81', 0.9), ('82', 0.8), ('82.0', 0.7)]
    assert selection.majority(votes, top=3) == '82' and selection.weighted(votes) == '82'
    assert len(asked) == 1
