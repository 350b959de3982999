"""The quickstart's problems: right, disjoint, repeatable, and in the form of the step language."""

import collections
import contextlib
import io
import itertools
import operator
import re

import pytest

from rstar_jax import steps
from rstar_jax.data import arithmetic
from rstar_jax.settings.errors import UserError

WORLD = arithmetic.world(demonstrations=300, train=150, test=90, seed=3)
MEANINGS = {
    verb: [(kind.operator, kind.operand)] for kind in arithmetic.KINDS for verb in kind.verbs('all')
}
MEANINGS['moves'] = MEANINGS['trades'] = [('+', None), ('-', None)]
MEANINGS['alters'] = MEANINGS['changes'] = [('*', 2), ('*', 3), ('//', 2)]
APPLY = {'+': operator.add, '-': operator.sub, '*': operator.mul, '//': operator.floordiv}


def read(question: str) -> int:
    """Solves a question from its words alone: a second reading beside the generator's own."""
    first, *told, last, _ = [s.rstrip('.').split() for s in question.split('. ')]
    assert last[:-1] == ['Their', 'number', 'now', 'ends', 'in']
    values = []
    for meanings in itertools.product(*(MEANINGS[verb] for _, _, _, verb, _ in told)):
        value = int(first[2])
        for (sign, operand), (*_, what) in zip(meanings, told):
            value = APPLY[sign](value, operand or int(what))
        values.append(value)
    (answer,) = (value for value in values if value % 10 == int(last[-1]))
    assert answer > 0, question
    return answer


def run(program: str) -> str:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(program, {})
    return out.getvalue().strip()


def test_answers_are_what_the_stories_tell():
    for problem in WORLD.train + WORLD.test:
        assert list(problem.to_dict()) == ['index', 'question', 'answer']
        assert problem.answer == str(read(problem.question))
    assert [p.index for p in WORLD.train] == list(range(150))


def count_operations(question: str) -> int:
    return question.count(' On ')


def known(question: str) -> bool:
    told = set(re.findall(r'On \w+ \w+ (\w+) (?:them|\d+)\.', question))
    return told <= {verb for kind in arithmetic.KINDS for verb in kind.known}


def test_demonstrations_run_and_end_in_their_boxed_answer():
    right, lucky = [], 0
    for shown in WORLD.demonstrations:
        response = shown['response']
        head, mark, tail = response.partition(steps.CODE_END)
        assert response.startswith(steps.CODE + '\n') and mark
        assert head.count(steps.STEP_END) == count_operations(shown['query'])
        answer = run(steps.code_of(head))
        output, sentence = tail.strip().split('\n')
        assert output == f'{steps.OUTPUT}{answer}{steps.OUTPUT_END}'
        assert sentence.startswith(steps.ANSWER) and sentence.endswith(steps.ANSWER_END)
        value, fits = answer.split()
        assert steps.boxed(sentence) == value
        right.append(value == str(read(shown['query'])))
        assert fits == 'True' or not right[-1]
        lucky += fits == 'True' and not right[-1]
        assert right[-1] or not known(shown['query'])
    assert 0.5 < sum(right) / len(right) < 0.9
    assert lucky < 0.2 * (len(right) - sum(right))  # the check tells most mistakes


def test_demonstrations_tell_nothing_of_what_unknown_verbs_mean():
    kinds = {verb: kind for kind in arithmetic.KINDS for verb in kind.unknown}
    shown = arithmetic.world(demonstrations=6000, train=0, test=0, seed=1).demonstrations
    counts = collections.defaultdict(collections.Counter)
    for one in shown:
        verbs = re.findall(r'On \w+ \w+ (\w+) (?:them|\d+)\.', one['query'])
        for verb, comment in zip(
            verbs, re.findall(r'# \w+: \w+, (\w+)', one['response']), strict=True
        ):
            if verb in kinds:
                counts[kinds[verb].comment][comment] += 1
    assert set(counts) == {kind.comment for kind in arithmetic.KINDS}
    for found in counts.values():
        # Of so many as equally likely kinds: within four standard deviations.
        total, ways = sum(found.values()), len(found)
        spread = (total * (1 / ways) * (1 - 1 / ways)) ** 0.5
        assert ways in (2, 3)
        assert all(abs(n - total / ways) < 4 * spread for n in found.values()), found


def test_verbs_that_say_nothing_mean_all_that_fits_them():
    """And stories in which they occur have one answer, by the last digit: see `read`."""
    counts = collections.defaultdict(collections.Counter)
    for story in arithmetic._stories(3000, 5, ()):
        (kinds,) = story.readings
        assert kinds == tuple(kind for kind, _, _ in story.operations)
        for kind, verb, _ in story.operations:
            if verb in ('moves', 'trades', 'alters', 'changes'):
                counts[verb][kind.comment] += 1
    assert {verb: set(found) for verb, found in counts.items()} == {
        'moves': {'adding', 'removing'},
        'trades': {'adding', 'removing'},
        'alters': {'doubling', 'tripling', 'halving'},
        'changes': {'doubling', 'tripling', 'halving'},
    }
    for found in counts.values():
        assert min(found.values()) > 0.05 * sum(found.values()), found


def test_each_step_alone_goes_on_from_the_one_before():
    story = next(
        s for s in WORLD.demonstrations if count_operations(s['query']) == 3 and known(s['query'])
    )
    names: dict = {}
    for part in story['response'].partition(steps.CODE_END)[0].split(steps.STEP_END)[:-1]:
        exec(steps.code_of(part), names)
    thing = story['query'].split()[3].rstrip('.')
    assert names[thing] == read(story['query'])


def test_one_verb_of_each_kind_is_known_and_problems_use_all():
    def verbs(questions):
        return [word for q in questions for word in q.split() if word in MEANINGS]

    known = {verb for kind in arithmetic.KINDS for verb in kind.known}
    assert len(known) == len(arithmetic.KINDS)
    assert set(verbs(p.question for p in WORLD.train)) == set(MEANINGS)
    told = verbs(d['query'] for d in WORLD.demonstrations)
    assert set(told) == set(MEANINGS)
    told = [verb for verb in told if len(MEANINGS[verb]) == 1]
    assert 0.7 < sum(verb in known for verb in told) / len(told) < 0.8


def test_no_verb_has_two_meanings():
    verbs = [verb for kind in arithmetic.KINDS for verb in kind.verbs('all')]
    assert len(verbs) == len(set(verbs))


def test_no_question_occurs_twice():
    questions = [d['query'] for d in WORLD.demonstrations]
    questions += [p.question for p in WORLD.train + WORLD.test]
    assert len(questions) == len(set(questions)) == 540


def test_same_seed_same_world_other_seed_another():
    again = arithmetic.world(demonstrations=300, train=150, test=90, seed=3)
    assert again == WORLD
    other = arithmetic.world(demonstrations=300, train=150, test=90, seed=4)
    assert not {p.question for p in other.test} >= {p.question for p in WORLD.test}


def test_the_test_problems_do_not_depend_on_how_many_others_there_are():
    assert arithmetic.world(10, 20, 90, seed=3).test == WORLD.test


def test_numbers_of_operations_take_turns():
    counts = [count_operations(p.question) for p in WORLD.test[:6]]
    assert counts == [1, 2, 3, 1, 2, 3]


def test_mistakes_are_one_line_errors(monkeypatch):
    with pytest.raises(UserError, match='expected 0 or more'):
        arithmetic.problems(-1)
    monkeypatch.setattr(arithmetic, 'OPERATIONS', (0,))
    with pytest.raises(UserError, match='no more than 11'):
        arithmetic.problems(10_000)
