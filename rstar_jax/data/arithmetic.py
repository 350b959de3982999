"""Word problems made on the spot: the world in which the quickstart runs, no file and no download.

A story opens with a count and tells one to three operations, one a day; each kind of operation can
be told by several verbs. Last it tells the digit that the count ends in:

    Ann has 12 apples. On Monday Ann finds 7. On Tuesday Ann doubles them. Their number now ends in
    8. How many apples are there?

The demonstrations come from someone who knows one verb of each kind and takes each of the others,
at every meeting anew, for any kind of operation that fits the words around it. So a policy trained
on them knows the form of a solution and the verbs that the demonstrator knew, and of the others
that they mean something. What they mean nobody tells it. A search can try the operations and see
which answer is right, and what it found can be trained on: the ladder that self-evolution climbs,
in small. (Problems with more operations than were demonstrated would be no such ladder: a tiny
model solves none of them, however often it tries.)

Four further verbs (moves, trades; alters, changes) mean another operation in every story. No policy
can know which, but of all readings one alone ends in the digit told, and the program of a solution
compares: its output is `38 True`, or `10 False`. That a result is easier to check than to find is
what a process preference model lives on, and here it can be seen: a search that believes its PPM
tries another reading.

Days, small numbers and steps that repeat the verb are for the model's sake: with 0.8 million
parameters and a minute of training it has to find the operation that a step is about, and to copy a
number.
"""

import dataclasses
import itertools
import random
from collections.abc import Collection, Sequence

from rstar_jax import steps
from rstar_jax.data.problem import Problem
from rstar_jax.settings.errors import UserError

NAMES = ('Ann', 'Ben', 'Cleo', 'Dan', 'Eva', 'Finn', 'Gina', 'Hugo')
THINGS = ('apples', 'books', 'cards', 'eggs', 'pens', 'shells', 'stamps', 'stones')
DAYS = ('Monday', 'Tuesday', 'Wednesday')
OPERATIONS = (1, 2, 3)  # that a story may tell
MOST_START, MOST_OPERAND = 20, 9
LARGEST = 34  # counts below this may grow, so that most have two digits at most
KNOWN_SHARE = 0.75  # of the demonstrations' operations: so many are told by verbs that are known
UNCLEAR_SHARE = 0.2  # of the operations, before stories are left out whose digit decides nothing


@dataclasses.dataclass(frozen=True)
class Kind:
    """One kind of operation.

    Attributes:
      operator: of Python.
      operand: what stands right of the operator; None, a number that the story tells.
      comment: what a solution says about it.
      known: verbs that the demonstrator knows.
      unknown: verbs that he does not know.
    """

    operator: str
    operand: int | None
    comment: str
    known: tuple[str, ...]
    unknown: tuple[str, ...]

    def verbs(self, which: str) -> tuple[str, ...]:
        return {'all': self.known + self.unknown, 'known': self.known, 'unknown': self.unknown}[
            which
        ]


KINDS = (
    Kind('+', None, 'adding', ('finds',), ('earns', 'gains', 'buys')),
    Kind('-', None, 'removing', ('loses',), ('spends', 'burns', 'sells')),
    Kind('*', 2, 'doubling', ('doubles',), ('copies', 'mirrors', 'twins')),
    Kind('*', 3, 'tripling', ('triples',), ('trebles', 'ternates', 'trines')),
    Kind('//', 2, 'halving', ('halves',), ('splits', 'bisects', 'cleaves')),
)
UNCLEAR = {False: ('moves', 'trades'), True: ('alters', 'changes')}  # by: told by 'them'
MOST_REPEATS = 1000  # so many known questions in a row: there are no others


@dataclasses.dataclass(frozen=True)
class Story:
    """One word problem with its meaning: a start, then (kind, verb, operand) for each operation."""

    name: str
    thing: str
    start: int
    operations: tuple[tuple[Kind, str, int], ...]

    @property
    def question(self) -> str:
        sentences = [f'{self.name} has {self.start} {self.thing}.']
        for day, (kind, verb, operand) in zip(DAYS, self.operations):
            what = 'them' if kind.operand else f'{operand}'
            sentences.append(f'On {day} {self.name} {verb} {what}.')
        sentences.append(f'Their number now ends in {self.last_digit}.')
        return ' '.join(sentences) + f' How many {self.thing} are there?'

    @property
    def answer(self) -> int:
        return self._value([kind for kind, _, _ in self.operations])

    @property
    def last_digit(self) -> int:
        return self.answer % 10

    @property
    def readings(self) -> list[tuple[Kind, ...]]:
        """The kinds of operations that the verbs and the last digit leave open."""
        possible = [
            [kind] if verb in kind.verbs('all') else _alike(kind)
            for kind, verb, _ in self.operations
        ]
        return [
            kinds
            for kinds in itertools.product(*possible)
            if self._value(kinds) % 10 == self.last_digit
        ]

    def solution(self, kinds: Sequence[Kind] | None = None) -> str:
        """The solution by these kinds of operations (None: the right ones), one step an operation,
        the program's output included: the result, and whether it ends in the digit told."""
        kinds = kinds or [kind for kind, _, _ in self.operations]
        lines = [steps.CODE]
        left = str(self.start)
        for day, kind, (_, verb, number) in zip(DAYS, kinds, self.operations):
            lines.append(f'# {day}: {verb}, {kind.comment}')
            lines.append(f'{self.thing} = {left} {kind.operator} {kind.operand or number}')
            lines.append(steps.STEP_END)
            left = self.thing
        value = self._value(kinds)
        lines += [f'print({self.thing}, {self.thing} % 10 == {self.last_digit})', steps.CODE_END]
        lines.append(f'{steps.OUTPUT}{value} {value % 10 == self.last_digit}{steps.OUTPUT_END}')
        lines.append(f'{steps.ANSWER}\\boxed{{{value}}}{steps.ANSWER_END}')
        return '\n'.join(lines)

    def guessed(self, rng: random.Random) -> str:
        """The solution of someone who takes a verb that is not known for any kind told alike."""
        return self.solution(
            [
                kind if verb in kind.known else rng.choice(_alike(kind))
                for kind, verb, _ in self.operations
            ]
        )

    def _value(self, kinds: Sequence[Kind]) -> int:
        value = self.start
        for kind, (_, _, number) in zip(kinds, self.operations):
            value = _apply(kind, value, kind.operand or number)
        return value


@dataclasses.dataclass(frozen=True)
class World:
    """The quickstart's material; no question occurs twice, in one part or in two."""

    demonstrations: list[dict]
    train: list[dict]
    test: list[dict]


def world(demonstrations: int, train: int, test: int, seed: int = 0) -> World:
    """Makes demonstrations, mostly of known verbs, and train and test problems of all verbs.

    Raises:
      UserError: a count is negative, or there are not as many different questions.
    """
    used: set[str] = set()
    tests = problems(test, seed, exclude=used)
    used |= {p.question for p in tests}
    trains = problems(train, seed + 1, exclude=used)
    used |= {p.question for p in trains}
    shown = _stories(demonstrations, seed + 2, used, mostly_known=True)
    rng = random.Random(seed + 3)
    made = [{'query': s.question, 'response': s.guessed(rng)} for s in shown]
    return World(made, trains, tests)


def problems(count: int, seed: int = 0, exclude: Collection[str] = ()) -> list[Problem]:
    """Returns `count` different problems {index, question, answer} of all verbs.

    Args:
      count: how many; the numbers of operations take turns.
      seed: the same seed gives the same problems.
      exclude: questions that must not occur.

    Raises:
      UserError: `count` is negative, or there are not as many different questions.
    """
    stories = _stories(count, seed, exclude)
    return [Problem(i, s.question, str(s.answer)) for i, s in enumerate(stories)]


def vocabulary() -> list[str]:
    """Returns texts that hold every word of every problem and solution, for a tokenizer."""
    texts = []
    verbs = [(kind, verb) for kind in KINDS for verb in kind.verbs('all')]
    verbs += [(k, v) for k in (KINDS[0], KINDS[2]) for v in UNCLEAR[k.operand is not None]]
    for i, (kind, verb) in enumerate(verbs):
        told = ((kind, verb, kind.operand or 2),) * len(DAYS)
        story = Story(NAMES[i % len(NAMES)], THINGS[i % len(THINGS)], 4, told)
        texts += [steps.prompt(story.question), story.solution()]
        texts += [story.solution([other] * len(DAYS)) for other in _alike(kind)]
    return texts


def _stories(
    count: int, seed: int, exclude: Collection[str], mostly_known: bool = False
) -> list[Story]:
    """mostly_known: most of the verbs are known to the demonstrator."""
    if count < 0:
        raise UserError(f'{count} arithmetic problems: expected 0 or more')
    rng = random.Random(seed)
    seen = set(exclude)
    stories: list[Story] = []
    in_vain = 0
    while len(stories) < count:
        story = _story(rng, OPERATIONS[len(stories) % len(OPERATIONS)], mostly_known)
        in_vain += 1
        if len(story.readings) == 1 and story.question not in seen:
            seen.add(story.question)
            stories.append(story)
            in_vain = 0
        elif in_vain > MOST_REPEATS:
            raise UserError(
                f'{count} arithmetic problems: found no more than {len(stories)} different ones'
            )
    return stories


def _story(rng: random.Random, operations: int, mostly_known: bool) -> Story:
    start = value = rng.randint(3, MOST_START)
    told = []
    for _ in range(operations):
        which = 'all'
        if mostly_known:
            which = 'known' if rng.random() < KNOWN_SHARE else 'unknown'
        possible = [kind for kind in KINDS if _possible(kind, value)]
        kind, verb = rng.choice([(k, v) for k in possible for v in k.verbs(which)])
        if rng.random() < UNCLEAR_SHARE:
            verb = rng.choice(UNCLEAR[kind.operand is not None])
        most = min(MOST_OPERAND, value - 1) if kind.operator == '-' else MOST_OPERAND
        operand = kind.operand or rng.randint(2, most)
        told.append((kind, verb, operand))
        value = _apply(kind, value, operand)
    return Story(rng.choice(NAMES), rng.choice(THINGS), start, tuple(told))


def _possible(kind: Kind, value: int) -> bool:
    """Counts stay whole, positive, and small enough to be copied without a slip."""
    if kind.operator == '//':
        return value % 2 == 0
    if kind.operator == '-':
        return value >= 3
    return value < LARGEST


def _alike(kind: Kind) -> list[Kind]:
    """The kinds that are told in the same words: by a number, or by 'them'."""
    return [other for other in KINDS if (other.operand is None) == (kind.operand is None)]


def _apply(kind: Kind, value: int, operand: int) -> int:
    if kind.operator == '+':
        return value + operand
    if kind.operator == '-':
        return value - operand
    return value * operand if kind.operator == '*' else value // operand
