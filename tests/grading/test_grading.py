"""Equivalence of answers: what is plain, what needs sympy, what must not hang."""

import pytest

from rstar_jax import grading


@pytest.fixture(scope='module')
def grader():
    with grading.Grader(workers=1, seconds=2) as grader:
        yield grader


@pytest.mark.parametrize(
    ('answer', 'truth'),
    [
        ('18.0', '18'),
        ('$18', '18'),
        ('0.5', r'\frac 12'),
        ('11*sqrt(2)', r'11\sqrt2'),
        (r'1+\sqrt{19}, 1-\sqrt{19}', r'1 \pm \sqrt{19}'),
        (r'3 < x \le 4', '(3,4]'),
        ('-10x + 14y - 22z = 8', '5x - 7y + 11z + 4 = 0'),
        ('(a*b + 2*a + 5*b + 10)', '(a+5)(b+2)'),
        (r'\frac{\sqrt{3}}{3}', r'\frac{1}{\sqrt{3}}'),
    ],
)
def test_equivalent_both_ways(grader, answer, truth):
    assert grader.equivalent(answer, truth)
    assert grader.equivalent(truth, answer)


@pytest.mark.parametrize(
    ('answer', 'truth'),
    [
        ('19', '18'),
        ('3.14', r'\pi'),
        ('.0000673', '.0000672'),
        ('(2,1)', '(1,2)'),
        ('(1,2]', '(1,2)'),
        ('5 m', '5 cm'),
        ('52_9', '52_8'),
        ('x + 1', 'y + 1'),
        ('', '3'),
        (r'\frac{1}{', '2'),
    ],
)
def test_not_equivalent(grader, answer, truth):
    assert not grader.equivalent(answer, truth)


def test_several_accepted_answers(grader):
    assert grader.equivalent('x+1', ['7', '1+x'])
    assert not grader.equivalent('x+1', ['7', 'x+2'])
    assert not grader.equivalent('x+1', [])


def test_classes_of_candidates(grader):
    answers = ['0.5', '1/2', '2', 'x+1', '1+x', r'\frac{2}{4}', '', '', '(1,2)', '[1,2]', 'x > 2']
    assert grader.classes([*answers, r'(2,\infty)']) == [0, 0, 1, 2, 2, 0, 3, 3, 4, 5, 6, 6]


def test_hopeless_pairs_end_in_time(grader):
    assert grader.submit('9^{9^{9^9}}', '3').result(60) is False
    assert grader.equivalent('x+2', '2+x')


def test_module_functions():
    pairs = [('1/2', '0.5'), ('a+b', 'b+a'), ('a+b', 'a-b')]
    assert grading.equivalent_many(pairs) == [True, True, False]
    assert grading.equivalent('1/2', ['3', '0.5'])
    assert grading.classes(['1', '1.0', 'one', 'won']) == [0, 0, 0, 1]
