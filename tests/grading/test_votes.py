"""Votes: answers that mean the same count together."""

from rstar_jax.grading import votes


def test_equivalent_answers_vote_together():
    found = votes.count(['3', '1/2', '0.5', '2'])
    assert found.winner == 1 and found.lead == 1
    assert [found.of(place) for place in range(4)] == [1, 2, 2, 1]


def test_of_equals_the_first_wins_and_leads_by_nothing():
    found = votes.count(['7', '8', '8', '7'])
    assert (found.winner, found.lead) == (0, 0)
    assert votes.count(['7']).lead == 1


def test_weights_count_in_place_of_answers():
    assert votes.count(['1', '2', '2'], [0.9, 0.2, 0.3]).winner == 0
