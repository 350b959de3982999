"""Every rule of curation on a tree small enough to check by hand, then at random."""

import collections
import dataclasses
import random

import numpy as np
import pytest

from rstar_jax import data
from rstar_jax.data import annotated, curation
from rstar_jax.settings.errors import UserError
from tests.data import reference, samples
from tests.data.samples import tree

# Texts far apart: any two differ in more than 20 characters.
A, B, C, D, E, F, G, H = (letter * 30 for letter in 'abcdefgh')


def responses(*trees, **rules):
    return [example['response'] for example in data.curate(trees, **rules)[0]]


# --- SFT ---------------------------------------------------------------------------------------


def test_two_best_by_mean_q():
    # means: a 0.6, b (0.4 + 1) / 2 = 0.7, c (0.8 + 0.1 + 1) / 3 = 0.63; w is wrong
    one = tree(
        [
            ('a', 0.2, [('1\n', 1.0, 'right')]),
            (' b', 0.4, [('2', 1.0, 'right'), ('w', -1.0, 'wrong')]),
            ('c', 0.8, [('3', 0.1, [('4', 1.0, 'right')])]),
        ]
    )
    assert data.curate([one])[0] == [
        {'query': 'How many?', 'response': 'b2'},
        {'query': 'How many?', 'response': 'c34'},
    ]


def test_ties_go_by_the_minimum_then_depth_first():
    # all means 0.7; minima: a 0.5, b 0.3, c 0.5, d 0.5
    one = tree(
        [
            ('b', 0.3, [('1', 0.8, [('x', 1.0, 'right')])]),
            ('a', 0.6, [('2', 0.5, [('x', 1.0, 'right')])]),
            ('c', 0.5, [('3', 0.6, [('x', 1.0, 'right')])]),
            ('d', 0.5, [('4', 0.6, [('x', 1.0, 'right')])]),
        ]
    )
    assert responses(one) == ['a2x', 'c3x']


def test_float32_noise_makes_no_difference():
    # 0.8 + 0.6 and 0.7 + 0.7 are not equal in floating point, but they are meant to be
    one = tree(
        [
            ('a', 0.8, [('1', 0.6, [('x', 1.0, 'right')])]),
            ('b', 0.70000001, [('2', 0.69999999, [('x', 1.0, 'right')])]),
        ]
    )
    assert responses(one, trajectories=1) == ['b2x']


def test_one_trajectory_of_each_program_is_kept():
    def solution(code, answer='5', q=1.0):
        return (
            f'<code>\n{code}\n<end_of_code>\n<output>5<end_of_output>',
            q,
            [(f'<answer>{answer}', 1.0, 'right')],
        )

    one = tree(
        [
            solution('# Add the two numbers\nx = 2+3\nprint(x)', 'so it is 5'),
            solution('x = 2 + 3\n\n# Then print\nprint(x)', '5'),
            solution('y = 3 + 2\nprint(y)'),
            solution('x = (2 + 3)\nprint(x)', 'it is 5', q=0.5),
            solution('not a program', 'a'),
            solution('not a program', 'b'),
        ]
    )
    kept = responses(one, trajectories=4, distinct=True)
    assert [text.split('\n')[1] for text in kept] == ['not a program', 'y = 3 + 2', 'x = 2 + 3']
    assert [text[-1] for text in kept] == ['a', '5', '5']
    assert len(responses(one, trajectories=9)) == 6


def test_programs_are_parsed_of_those_alone_that_may_be_kept(monkeypatch):
    """Parsing takes longer than all else; which are kept is as if all were compared at the end."""
    rng, parsed = random.Random(0), []

    def program(solution):
        parsed.append(solution)
        return solution[0]

    monkeypatch.setattr(curation, '_program', program)
    for _ in range(20):
        found = {f'{rng.choice("abcdef")}{i}': rng.random() for i in range(60)}
        best = {}
        for text in sorted(found, key=found.get, reverse=True):
            best.setdefault(text[0], text)
        one = tree([(text, q, [('', 1.0, 'right')]) for text, q in found.items()])
        assert responses(one, distinct=True) == [*best.values()][:2]
    assert len(parsed) < 20 * 60


def test_solutions_that_leave_the_form_can_be_left_out():
    program = '<code>\nprint(5)\n<end_of_code>\n<output>5<end_of_output>'
    one = tree(
        [
            (program, 0.9, [(f'{between}<answer>5<end_of_answer>', 1.0, 'right')])
            for between in ('utes\n', '\n', ' <end_of_code>\n')
        ]
        + [
            (program, -0.9, [(f'{between}<answer>6<end_of_answer>', -1.0, 'wrong')])
            for between in ('utes\n', '\n')
        ]
    )
    counts = collections.Counter()
    kept, pairs = data.curate(
        [one], 'trajectories', trajectory_side=4, well_formed=True, distinct=True, counts=counts
    )
    assert [e['response'] for e in kept] == [f'{program}\n<answer>5<end_of_answer>']
    assert counts['trajectories_malformed'] == 2
    assert len(responses(one)) == 2
    # Of a pair of wholes both keep to the form: it would tell the right one otherwise.
    wholes = [pair for pair in pairs if 'answer' in pair['pos']]
    assert [pair['pos'] for pair in wholes] == [f'{program}\n<answer>5<end_of_answer>']
    assert [pair['neg'] for pair in wholes] == [f'{program}\n<answer>6<end_of_answer>']


def test_trajectories_may_be_chosen_without_their_values():
    nodes = [(f'{i} ', 0.1 * i, [('7', 1.0, 'right'), ('8', -1.0, 'wrong')]) for i in range(9)]
    one = [tree(nodes, index=index) for index in range(20)]
    best = responses(*one)
    right = responses(*one, choice='right')
    any_ = responses(*one, choice='any')
    assert best == ['8 7', '7 7'] * 20
    assert len(right) == len(any_) == 40
    assert {text[-1] for text in right} == {'7'}
    assert len({text[0] for text in right}) > 5  # of low and of high values
    assert 10 < sum(text[-1] == '8' for text in any_) < 30
    assert right == responses(*one, choice='right')
    with pytest.raises(UserError, match='choice=some: needs one of best, right, any'):
        data.Rules(choice='some')


def test_error_is_dropped_and_not_replaced():
    one = tree(
        [
            ('an error here', 0.9, [('1', 1.0, 'right')]),
            ('b', 0.8, [('2', 1.0, 'right')]),
            ('c', 0.7, [('3', 1.0, 'right')]),
        ]
    )
    counts = collections.Counter()
    sft, _ = data.curate([one], counts=counts)
    assert [example['response'] for example in sft] == ['b2']
    assert counts['sft_dropped_error'] == counts['sft'] == 1
    for text, kept in (('NameError', ['NameError1']), ('x_errors', [])):
        assert responses(tree([(text, 0.9, [('1', 1.0, 'right')])])) == kept


def test_trees_of_one_problem_compete():
    one = tree([('a', 0.1, [('x', 1.0, 'right')]), ('b', 0.5, [('x', 1.0, 'right')])])
    two = tree([('c', 0.9, [('x', 1.0, 'right')]), ('d', 0.5, [('x', 1.0, 'right')])])
    other = tree([('o', 0.0, [('x', 1.0, 'right')])], index=1)
    assert responses(one, other, two) == ['cx', 'bx', 'ox']
    same_index = tree([('e', 0.9, [('x', 1.0, 'right')])], question='Another?')
    assert responses(one, same_index) == ['bx', 'ax', 'ex']


def test_no_correct_trajectory_gives_nothing():
    one = tree([(A, 0.9, [('x', -1.0, 'wrong')]), (B, 0.5, [('x', -1.0, 'code')])])
    assert data.curate([one]) == ([], [])


# --- trajectories ------------------------------------------------------------------------------


def trajectories(tmp_path, *trees, **rules):
    counts = data.curate_to(trees, tmp_path, **rules)
    made = list(data.load_examples(tmp_path, 'trajectories'))
    assert counts['trajectories'] == len(made)
    return made


def test_trajectories_have_the_steps_values_labels_and_outcome(tmp_path):
    one = tree(
        [
            ('a\n', 0.2, [('b ', 0.5, [('c', 1.0, 'right')]), ('d', -1.0, 'wrong')]),
            ('e', -0.75, [('f', -1.0, 'wrong'), ('g', -1.0, 'code'), ('h', 0.0, 'open')]),
            ('i', -1.0, 'deep'),
        ]
    )
    assert trajectories(tmp_path, one) == [
        {
            'query': 'How many?',
            'steps': ['a\n', 'b ', 'c'],
            'values': [0.2, 0.5, 1.0],
            'labels': [True, True, True],
            'correct': True,
        },
        {
            'query': 'How many?',
            'steps': ['a\n', 'd'],
            'values': [0.2, -1.0],
            'labels': [True, False],
            'correct': False,
        },
        {
            'query': 'How many?',
            'steps': ['e', 'f'],
            'values': [-0.75, -1.0],
            'labels': [False, False],
            'correct': False,
        },
    ]


def test_trajectories_are_few_different_and_from_all_over_the_trees(tmp_path):
    def one(letters, kind='right'):
        return tree(
            [(letter, 0.5, [('x', 1.0 if kind == 'right' else -1.0, kind)]) for letter in letters]
        )

    def kept(*trees):
        return ''.join(t['steps'][0] for t in trajectories(tmp_path, *trees))

    assert kept(one('abc')) == 'abc'
    assert kept(one('abcdefgh')) == 'aceg'
    assert kept(one('abcde'), one('bcfg', 'wrong'), one('ghia')) == 'acehbcfg'
    assert kept(one('ab'), one('cab')) == 'abc'
    # The values and labels of a trajectory found twice are those of the first tree.
    again = tree([('a', 0.9, [('x', 1.0, 'right')])])
    assert trajectories(tmp_path, one('a'), again)[0]['values'] == [0.5, 1.0]


def test_trajectories_with_errors_in_their_text_are_kept(tmp_path):
    assert len(trajectories(tmp_path, tree([('an error', 0.9, [('1', 1.0, 'right')])]))) == 1


# --- problems ----------------------------------------------------------------------------------


@pytest.mark.parametrize('share, kept', [(0.0, True), (1 / 3, True), (0.5, False)])
@pytest.mark.parametrize('mark', [{'synthetic': True}, {'source': 'synthetic_amc'}])
def test_synthetic_problems_with_few_correct_trajectories(mark, share, kept):
    def trees(**fields):
        return [
            tree([(A, 0.9, [('x', 1.0, 'right')]), (B, -0.9, [('x', -1.0, 'wrong')])], **fields),
            tree([(C, -0.9, [('x', -1.0, 'wrong')]), (D, -1.0, 'code')], **fields),
        ]

    counts = collections.Counter()
    sft, made = data.curate(trees(**mark), synthetic_correct=share, counts=counts)
    assert (len(sft), len(made)) == ((1, 1) if kept else (0, 0))
    assert counts['problems_dropped_synthetic'] == (not kept)
    assert len(data.curate(trees(), synthetic_correct=share)[0]) == 1
    assert counts['trajectories'] == (3 if kept else 0)


def test_what_was_seen_and_kept_is_counted():
    right, wrong = ('x', 1.0, 'right'), ('x', -1.0, 'wrong')
    trees = [
        tree([(A, 0.9, [right]), (B, -0.9, [wrong]), (C, -0.8, [wrong])]),
        tree([(D, -0.9, [wrong])]),
        tree([(E, -1.0, [wrong])], index=1),
    ]
    counts = collections.Counter()
    data.curate(trees, counts=counts)
    assert +counts == {
        'problems': 2, 'problems_solved': 1, 'trees': 3, 'trees_solved': 1, 'nodes_paired': 1,
        'trajectories_correct': 1, 'trajectories_wrong': 4, 'sft': 1, 'pairs': 2, 'trajectories': 5,
    }  # fmt: skip


# --- which answers are right -------------------------------------------------------------------


def answered(q, visits, value=0.0):
    one = tree([(A, 0.3, 'right')])
    one['rstar']['0.1'].update(q_value=q, visit_count=visits, value=value)
    return one


@pytest.mark.parametrize(
    'q, visits, value, right',
    [
        (1.0, 1, 0.0, True),
        (1.0, 1, -0.7, True),  # `value` may hold the PPM's opinion
        (-1.0, 1, 0.9, False),
        (0.05, 2, -0.9, True),  # score -0.9 and reward +1
        (-0.05, 2, 0.9, False),
        (0.0, 2, -1.0, True),  # saturated score -1 and reward +1
        (0.0, 2, 1.0, False),
    ],
)
def test_reward_tells_what_is_right(q, visits, value, right):
    assert bool(responses(answered(q, visits, value))) == right


@pytest.mark.parametrize('q, visits', [(0.8, 1), (-0.3, 1), (0.0, 0), (0.0, 2)])
def test_answers_without_reward_are_refused_or_graded(q, visits):
    one = answered(q, visits)
    with pytest.raises(UserError, match=r'tree of problem 0, node 0\.1: q_value') as caught:
        data.curate([one])
    assert '\n' not in str(caught.value)
    assert responses(one, grade=lambda answer, truth: answer == truth) == [A]
    assert responses(one, grade=lambda answer, truth: False) == []


def broken(change):
    one = tree([(A, 0.9, [('x', 1.0, 'right')])])
    change(one)
    return one


@pytest.mark.parametrize(
    'change, message',
    [
        (lambda t: t.pop('rstar'), "expected a field 'rstar'"),
        (lambda t: t['rstar'].pop('0'), "a root '0'"),
        (lambda t: t.pop('question'), "expected a field 'question'"),
        (lambda t: t['rstar'].pop('0.1'), 'node 0.1.1: its parent is not in the tree'),
        (lambda t: t['rstar']['0.1'].pop('q_value'), 'node 0.1: no usable'),
        (lambda t: t['rstar']['0.1'].update(q_value=float('inf')), 'node 0.1: no usable'),
        (lambda t: t['rstar']['0.1'].update(text=5), 'node 0.1: no usable'),
        (lambda t: t['rstar']['0.1'].update(final_answer=['5']), 'node 0.1: no usable'),
        (lambda t: t['rstar'].update(x={}), 'expected node tags'),
    ],
)
def test_malformed_trees(change, message):
    with pytest.raises(UserError, match='tree of problem 0') as caught:
        data.curate([broken(change)])
    assert message in str(caught.value)


def test_children_are_ordered_by_number():
    one = tree([(f'{i:2}' * 20, 0.9, [('x', 1.0, 'right')]) for i in range(1, 13)])
    shuffled = list(one['rstar'].items())
    random.Random(0).shuffle(shuffled)
    one['rstar'] = dict(shuffled)
    assert responses(one, trajectories=12) == [(f'{i:2}' * 20 + 'x').strip() for i in range(1, 13)]


# --- random trees ------------------------------------------------------------------------------


@pytest.mark.parametrize('ppm', [False, True])
def test_agrees_with_the_reference(ppm):
    kept = 0
    for seed in range(80):
        records = [samples.grown(3 * seed + t, seed, t, ppm) for t in range(1 + seed % 3)]
        trees = [record.to_interchange() for record in records]
        for form in ('steps', 'trajectories'):
            sft, made = data.curate(trees, form)
            assert sft == reference.sft(trees)
            assert made == [p for one in trees for p in reference.pairs(one, form)]
            assert data.curate(records, form) == (sft, made)
            kept += len(made)
    assert kept > 150


def test_steps_that_were_stopped_are_counted():
    """And the trajectories that go through them; a record of before does not tell."""
    record = samples.grown(3)
    plain, counts = collections.Counter(), collections.Counter()
    expected = data.curate([record], counts=plain)
    assert plain['steps_cut'] == plain['trajectories_cut'] == 0
    trajectories = [t.nodes for t in annotated.annotate(record).trajectories()]
    cut = np.zeros(len(record.texts), bool)
    cut[[trajectories[0][0], len(record.texts) - 1]] = True
    through = sum(bool(cut[list(nodes)].any()) for nodes in trajectories)
    assert 0 < through < len(trajectories)
    assert data.curate([dataclasses.replace(record, cut=cut)], counts=counts) == expected
    assert (counts['steps_cut'], counts['trajectories_cut']) == (2, through)


def test_streaming_gives_the_same(tmp_path):
    records = [samples.grown(s, index=s // 2, number=s % 2) for s in range(40)]
    random.Random(1).shuffle(records)
    with data.TreeStore(tmp_path / 'search', shard_trees=16) as store:
        for record in records:
            store.append(record)
        counts = data.curate_to(store, tmp_path / 'curate', 'trajectories')
    expected_counts = collections.Counter()
    records.sort(key=lambda r: r.key)
    sft, made = data.curate(records, 'trajectories', counts=expected_counts)
    assert list(data.load_examples(tmp_path / 'curate', 'sft')) == sft
    assert list(data.load_examples(tmp_path / 'curate', 'pairs')) == made
    assert counts == expected_counts
    assert (counts['sft'], counts['pairs'], counts['trees']) == (len(sft), len(made), 40)
    by_problem = [[r.to_interchange() for r in records if r.key[0] == i] for i in range(20)]
    expected = [example for trees in by_problem for example in reference.trajectories(trees)]
    assert list(data.load_examples(tmp_path / 'curate', 'trajectories')) == expected
    assert counts['trajectories'] == len(expected) > 100
    names = sorted(p.name for p in (tmp_path / 'curate').iterdir())
    one = '00000-of-00001.array_record'
    assert names == ['counts.json', f'pairs-{one}', f'sft-{one}', f'trajectories-{one}']


def test_streaming_wants_the_trees_of_a_problem_together(tmp_path):
    trees = (samples.grown(i, index=i % 2, number=i) for i in range(3))
    with pytest.raises(UserError, match='trees of problem 0 do not follow each other'):
        data.curate_to(trees, tmp_path)
    assert not list(tmp_path.iterdir())
