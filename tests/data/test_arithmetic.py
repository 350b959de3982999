"""The quickstart's problems: right, disjoint, repeatable, and in the form of the step language."""

import contextlib
import io
import itertools

import pytest
from rapidfuzz.distance import Levenshtein

from rstar_jax import steps
from rstar_jax.data import arithmetic
from rstar_jax.errors import UserError

WORLD = arithmetic.world(demonstrations=300, train=150, test=90, seed=3)
MEANINGS = {
    verb: (kind.operator, kind.operand) for kind in arithmetic.KINDS for verb in kind.verbs('all')
}


def read(question: str) -> int:
    """Solves a question from its words alone: a second reading beside the generator's own."""
    first, *told, _ = [s.rstrip('.').split() for s in question.split('. ')]
    value = int(first[2])
    for _, _, verb, what in told:
        operator, operand = MEANINGS[verb]
        operand = operand or int(what)
        assert operator != '//' or value % operand == 0, question
        value = {
            '+': value + operand,
            '-': value - operand,
            '*': value * operand,
            '//': value // operand,
        }[operator]
        assert value > 0, question
    return value


def run(program: str) -> str:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(program, {})
    return out.getvalue().strip()


def test_answers_are_what_the_stories_tell():
    for problem in WORLD.train + WORLD.test:
        assert list(problem) == ['index', 'question', 'answer']
        assert problem['answer'] == str(read(problem['question']))
    assert [p['index'] for p in WORLD.train] == list(range(150))


def test_demonstrations_run_and_end_in_their_boxed_answer():
    for shown in WORLD.demonstrations:
        response = shown['response']
        answer = str(read(shown['query']))
        head, mark, tail = response.partition(steps.CODE_END)
        assert response.startswith(steps.CODE + '\n') and mark
        assert head.count(steps.STEP_END) == arithmetic.count_operations(shown['query'])
        assert run(steps.code_of(head)) == answer
        output, sentence = tail.strip().split('\n')
        assert output == f'{steps.OUTPUT}{answer}{steps.OUTPUT_END}'
        assert sentence.startswith(steps.ANSWER) and sentence.endswith(steps.ANSWER_END)
        assert steps.boxed(sentence) == answer


def test_each_step_alone_goes_on_from_the_one_before():
    story = next(s for s in WORLD.demonstrations if arithmetic.count_operations(s['query']) == 3)
    names: dict = {}
    for part in story['response'].partition(steps.CODE_END)[0].split(steps.STEP_END)[:-1]:
        exec(steps.code_of(part), names)
    thing = story['query'].split()[3].rstrip('.')
    assert names[thing] == read(story['query'])


def test_demonstrations_use_half_of_the_verbs_and_problems_all():
    def verbs(questions):
        return {word for q in questions for word in q.split() if word in MEANINGS}

    known = {verb for kind in arithmetic.KINDS for verb in kind.known}
    assert verbs(d['query'] for d in WORLD.demonstrations) == known
    assert verbs(p['question'] for p in WORLD.train) == set(MEANINGS)
    assert 2 * len(known) == len(MEANINGS)
    unknown = arithmetic.problems(50, verbs='unknown')
    assert not verbs(p['question'] for p in unknown) & known


def test_no_verb_has_two_meanings():
    verbs = [verb for kind in arithmetic.KINDS for verb in kind.verbs('all')]
    assert len(verbs) == len(set(verbs))


def test_no_question_occurs_twice():
    questions = [d['query'] for d in WORLD.demonstrations]
    questions += [p['question'] for p in WORLD.train + WORLD.test]
    assert len(questions) == len(set(questions)) == 540


def test_same_seed_same_world_other_seed_another():
    again = arithmetic.world(demonstrations=300, train=150, test=90, seed=3)
    assert again == WORLD
    other = arithmetic.world(demonstrations=300, train=150, test=90, seed=4)
    assert not {p['question'] for p in other.test} >= {p['question'] for p in WORLD.test}


def test_the_test_problems_do_not_depend_on_how_many_others_there_are():
    assert arithmetic.world(10, 20, 90, seed=3).test == WORLD.test


def test_numbers_of_operations_take_turns():
    counts = [arithmetic.count_operations(p['question']) for p in WORLD.test[:6]]
    assert counts == [1, 2, 3, 1, 2, 3]


def test_steps_of_different_kinds_make_preference_pairs():
    """Curation drops pairs of texts that differ by fewer than 20 edits."""
    for one, two in itertools.combinations(arithmetic.KINDS, 2):
        assert Levenshtein.distance(one.comment, two.comment) >= 20


def test_mistakes_are_one_line_errors():
    with pytest.raises(UserError, match='expected 0 or more'):
        arithmetic.problems(-1)
    with pytest.raises(UserError, match='known'):
        arithmetic.problems(1, verbs='some')
    with pytest.raises(UserError, match='no more than 36'):
        arithmetic.problems(10_000, operations=(0,))
