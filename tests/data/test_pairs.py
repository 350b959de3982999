"""Preference pairs of trees small enough to check by hand."""

import pytest

from rstar_jax import data, steps
from rstar_jax.settings.errors import UserError
from tests.data.samples import tree

START = steps.prompt('How many?')
# Texts far apart: any two differ in more than 20 characters.
A, B, C, D, E, F, G, H = (letter * 30 for letter in 'abcdefgh')


def pairs(one, *arguments, **rules):
    made = data.curate([one], *arguments, **rules)[1]
    assert all(list(p) == ['prompt', 'pos', 'neg', 'pos_count', 'neg_count'] for p in made)
    return [(p['pos'][0], p['neg'][0], p['pos_count'], p['neg_count']) for p in made]


def test_two_by_two_best_against_worst():
    one = tree(
        [
            (A, 0.5, [('x', 1.0, 'right')]),
            (B, 0.9, [('x', 1.0, 'right')]),
            (C, 0.8, [('x', 1.0, 'right')]),
            (D, -0.5, [('x', -1.0, 'wrong')]),
            (E, -0.8, [('x', -1.0, 'wrong')]),
            (F, -0.7, [('x', -1.0, 'wrong')]),
        ]
    )
    assert pairs(one) == [
        ('b', 'e', 2, 2),
        ('b', 'f', 2, 2),
        ('c', 'e', 2, 2),
        ('c', 'f', 2, 2),
    ]


def test_four_where_the_other_side_has_one():
    right = [(text, 0.9 - i / 10, [('x', 1.0, 'right')]) for i, text in enumerate([A, B, C, D, E])]
    wrong = [(text, i / 10 - 0.9, [('x', -1.0, 'wrong')]) for i, text in enumerate([A, B, C, D, E])]
    assert pairs(tree([*right, (G, -0.5, [('x', -1.0, 'wrong')])])) == [
        (letter, 'g', 4, 1) for letter in 'abcd'
    ]
    assert pairs(tree([(G, 0.5, [('x', 1.0, 'right')]), *wrong])) == [
        ('g', letter, 1, 4) for letter in 'abcd'
    ]


def test_code_errors_and_too_many_steps_are_neither():
    one = tree(
        [
            (A, 0.9, [('x', 1.0, 'right')]),
            (B, -1.0, 'code'),
            (C, -1.0, 'deep'),
            (D, -1.0, 'unparsable'),
            (E, -0.9, [('x', -1.0, 'code'), ('y', -1.0, 'deep')]),
            (F, -0.9, 'open'),
        ]
    )
    assert pairs(one) == []


def test_walk_goes_down_where_both_are_below():
    # root: a has both, b only right. Below a: c right, d both. Below d: answers.
    one = tree(
        [
            (
                A,
                0.4,
                [
                    (C, 0.9, [('x', 1.0, 'right')]),
                    (D, -0.3, [(G, 1.0, 'right'), (H, -1.0, 'wrong')]),
                ],
            ),
            (B, 1.0, [(E, 1.0, 'right'), (F, 0.7, 'open')]),
        ]
    )
    sft, made = data.curate([one])
    # at the root: positives b, a; negative a: (b, a) counts with margin 0.6, (a, a) does not
    # below a: positives c, d; negative d: (c, d); below d: the two answers
    assert [(p['prompt'], p['pos'], p['neg'], p['pos_count'], p['neg_count']) for p in made] == [
        (START, B, A, 2, 1),
        (START + A, C, D, 2, 1),
        (START + A + D, G, H, 1, 1),
    ]
    assert [steps.split_prompt(p['prompt']) for p in made] == [
        ('How many?', ''),
        ('How many?', A),
        ('How many?', A + D),
    ]
    assert len(sft) == 2


@pytest.mark.parametrize(
    'pos, neg, kept',
    [(0.5, 0.0, True), (0.7, 0.2, True), (0.49, 0.0, False), (0.0, 0.4, False), (0.3, 0.3, False)],
)
def test_margin(pos, neg, kept):
    one = tree([(A, pos, [('x', 1.0, 'right')]), (B, neg, [('x', -1.0, 'wrong')])])
    assert pairs(one) == ([('a', 'b', 1, 1)] if kept else [])


def test_pairs_are_ordered_whatever_the_margin():
    one = tree(
        [
            (A, 0.3, [('x', 1.0, 'right')]),
            (B, 0.3, [('x', -1.0, 'wrong')]),
            (C, 0.2, [('x', -1.0, 'wrong')]),
            (D, 0.4, [('x', -1.0, 'wrong')]),
        ]
    )
    assert pairs(one, margin=0.0) == [('a', 'c', 1, 3)]


@pytest.mark.parametrize('changed, kept', [(19, False), (20, True)])
def test_edit_distance(changed, kept):
    one, other = 'a' * 40, 'b' * changed + 'a' * (40 - changed)
    made = tree([(one, 0.8, [('x', 1.0, 'right')]), (other, -0.5, [('x', -1.0, 'wrong')])])
    assert bool(pairs(made)) == kept


def test_best_completion_must_exceed_the_worst():
    # below a: mean (0.6 - 0.9 - 0.9 + 1) / 4 = -0.05; below b: (0 + 0.9 + 0.9 - 1) / 4 = 0.2
    low = [('m', -0.9, [('n', -0.9, [('x', 1.0, 'right')])])]
    high = [('m', 0.9, [('n', 0.9, [('x', -1.0, 'wrong')])])]
    assert pairs(tree([(A, 0.6, low), (B, 0.0, high)])) == []
    # one better completion below a is enough: (0.6 + 1) / 2; one worse below b as well
    assert pairs(tree([(A, 0.6, [*low, ('y', 1.0, 'right')]), (B, 0.0, high)])) != []
    assert pairs(tree([(A, 0.6, low), (B, 0.0, [*high, ('y', -1.0, 'wrong')])])) != []
    # Means, not sums: below a (0.6 + 1) / 2, below b (0 + 0.9 + 0.9 + 0.9 - 1) / 5. And 0 is not
    # above 0: (0.6 - 0.8 - 0.8 + 1) / 4, (0 + 1 - 1) / 3.
    long = [('l', 0.9, high)]
    assert pairs(tree([(A, 0.6, [('x', 1.0, 'right')]), (B, 0.0, long)])) == [('a', 'b', 1, 1)]
    low = [('m', -0.8, [('n', -0.8, [('x', 1.0, 'right')])])]
    assert pairs(tree([(A, 0.6, low), (B, 0.0, [('m', 1.0, [('x', -1.0, 'wrong')])])])) == []


def test_equal_q_keeps_the_order_of_expansion():
    one = tree(
        [(text, 0.9, [('x', 1.0, 'right')]) for text in (B, A, C)]
        + [(text, -0.9, [('x', -1.0, 'wrong')]) for text in (E, D, F)]
    )
    assert [p[:2] for p in pairs(one)] == [('b', 'e'), ('b', 'd'), ('a', 'e'), ('a', 'd')]


def test_final_step_pairs():
    one = tree(
        [
            (A, 0.2, [(C, 1.0, 'right'), (D, -1.0, 'wrong'), (H, -1.0, 'wrong')]),
            (B, 0.9, [(E, 1.0, 'right')]),
            (G, -0.8, [(F, -1.0, 'wrong')]),
        ]
    )
    assert pairs(one, 'steps') == [
        # root: positives b, a; negatives g, a
        ('b', 'g', 2, 2),
        ('b', 'a', 2, 2),
        ('a', 'g', 2, 2),
        ('c', 'd', 1, 2),
        ('c', 'h', 1, 2),
    ]
    made = data.curate([one], final_step_pairs='trajectories')[1]
    assert [p['pos'][0] + p['neg'][0] for p in made] == ['bg', 'ba', 'ag', 'bg']
    # correct with the highest mean: b e (0.95); wrong with the lowest: g f (-0.9)
    assert made[-1] == {
        'prompt': START,
        'pos': B + E,
        'neg': G + F,
        'pos_count': 1,
        'neg_count': 1,
    }
    # Right: b e (0.95), a c (0.6); wrong: g f (-0.9), a d (-0.4), a h, of the same mean as a d.
    made = data.curate([one], 'trajectories', trajectory_side=2)[1][3:]
    texts = [(p['pos'], p['neg']) for p in made]
    assert texts == [(right, wrong) for right in (B + E, A + C) for wrong in (G + F, A + D)]
    assert {(p['pos_count'], p['neg_count']) for p in made} == {(2, 2)}
    assert len(data.curate([one], 'trajectories', trajectory_side=9)[1]) == 3 + 2 * 3
    # Of equal means (2 / 3) the right one whose lowest value is higher: 0.5 and 0.2.
    even = tree(
        [
            (D, 0.2, [(E, 0.8, [(F, 1.0, 'right')])]),
            (A, 0.5, [(B, 0.5, [(C, 1.0, 'right')])]),
            (G, -1.0, 'wrong'),
        ]
    )
    (pair,) = data.curate([even], 'trajectories')[1]
    assert (pair['pos'], pair['neg']) == (A + B + C, G)
    with pytest.raises(UserError, match='final_step_pairs=both: needs one of steps, t'):
        data.curate([one], 'both')
    with pytest.raises(UserError, match='trajectory_side=0'):
        data.curate([one], trajectory_side=0)


def sample(text, outcome):
    return tree([(text, 1.0 if outcome == 'right' else -1.0, outcome)])


def test_solutions_of_all_trees_of_a_problem_are_paired():
    right = [sample('r' * n, 'right') for n in (1, 2, 3, 3)]  # the last is no other solution
    wrong = [sample('w' * n, 'wrong') for n in (1, 2, 3, 4, 5, 6)]
    assert data.curate(right + wrong, 'trajectories')[1] == []

    def lengths(trees, side):
        made = data.curate(trees, 'problem', trajectory_side=side)[1]
        counts = {(len({p['pos'] for p in made}), len({p['neg'] for p in made}))}
        assert {(p['pos_count'], p['neg_count']) for p in made} <= counts
        assert {p['prompt'] for p in made} <= {START}
        return [(len(p['pos']), len(p['neg'])) for p in made]

    assert lengths(right + wrong, 1) == [(1, 1)]
    # Two of three, and of six, evenly spread, whatever their order among each other.
    assert lengths(right + wrong, 2) == [(1, 1), (1, 4), (2, 1), (2, 4)]
    assert lengths(wrong + right, 2) == [(1, 1), (1, 4), (2, 1), (2, 4)]
    assert len(lengths(right + wrong, 9)) == 3 * 6
    assert lengths(right, 4) == lengths(wrong, 4) == []
    halves = tree([('r', 0.5, [('rr', 1.0, 'right')])])  # the third again, in two steps
    assert len(lengths([*right, halves, *wrong], 9)) == 3 * 6
    assert data.curate(right + wrong, 'problem', well_formed=True)[1] == []
    form = '<code>\nprint(5)\n<end_of_code>\n<output>5<end_of_output>\n<answer>5<end_of_answer>'
    formed, other = sample(form, 'right'), form.replace('5', '6')
    assert data.curate([*right, formed, *wrong], 'problem', well_formed=True)[1] == []
    trees = [*right, formed, *wrong, sample(other, 'wrong')]
    made = data.curate(trees, 'problem', well_formed=True)[1]
    assert [(p['pos'], p['neg']) for p in made] == [(form, other)]


def test_steps_are_paired_within_their_tree():
    one = tree(
        [
            (A, 0.2, [(C, 1.0, 'right'), (D, -1.0, 'wrong')]),
            (G, -0.8, [(F, -1.0, 'wrong')]),
        ]
    )
    whole = data.curate([one], 'trajectories')[1]
    made = data.curate([one, sample(H, 'right')], 'problem')[1]
    assert made[:1] == whole[:1]  # a over g, at the root
    assert [(p['pos'], p['neg']) for p in made[1:]] == [(A + C, A + D)]
