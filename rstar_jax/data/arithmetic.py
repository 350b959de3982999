"""Word problems made on the spot: the world in which the quickstart runs, no file and no download.

A story opens with a count and tells one to three operations; each kind of operation can be told by
many verbs, of which the demonstrations use one half:

    Ann has 12 apples. Then Ann finds 7. Then Ann doubles them. How many apples are there?

A policy trained on the demonstrations knows the form of a solution and half of the vocabulary. What
the other verbs mean nobody tells it. A search can try the operations and see which answer is right,
and what it found can be trained on: the ladder that self-evolution climbs, in small. (Problems with
more operations than were demonstrated would be no such ladder: a tiny model solves none of them,
however often it tries.)
"""

import dataclasses
import random
from collections.abc import Collection, Sequence

from rstar_jax import steps
from rstar_jax.errors import UserError

NAMES = ('Ann', 'Ben', 'Cleo', 'Dan', 'Eva', 'Finn', 'Gina', 'Hugo')
THINGS = ('apples', 'books', 'cards', 'eggs', 'pens', 'shells', 'stamps', 'stones')


@dataclasses.dataclass(frozen=True)
class Kind:
    """One kind of operation.

    Attributes:
      operator: of Python.
      operand: what stands right of the operator; None, a number that the story tells.
      comment: what a solution says about it. Any two kinds' comments are so different that two
        steps are never taken for near copies of each other when preference pairs are made.
      known: verbs that the demonstrations use.
      unknown: verbs that only the problems use.
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
    Kind(
        '+',
        None,
        'accumulating additional newcomers',
        ('finds', 'buys', 'receives', 'wins', 'collects', 'borrows'),
        ('earns', 'picks', 'gains', 'fetches', 'inherits', 'imports'),
    ),
    Kind(
        '-',
        None,
        'somebody departs, hence subtraction',
        ('loses', 'sells', 'drops', 'donates', 'breaks', 'ships'),
        ('wastes', 'spends', 'discards', 'misplaces', 'burns', 'exports'),
    ),
    Kind(
        '*',
        2,
        'everything exists twice now',
        ('doubles', 'duplicates', 'twins'),
        ('copies', 'mirrors', 'clones'),
    ),
    Kind(
        '*',
        3,
        'multiplication, threefold',
        ('triples', 'trebles', 'triplicates'),
        ('thirds', 'trines', 'ternates'),
    ),
    Kind(
        '//',
        2,
        'only half survives: divide',
        ('halves', 'bisects', 'splits'),
        ('cleaves', 'dimidiates', 'hemisects'),
    ),
)
VERBS = ('all', 'known', 'unknown')
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
        for kind, verb, operand in self.operations:
            what = 'them' if kind.operand else f'{operand}'
            sentences.append(f'Then {self.name} {verb} {what}.')
        return ' '.join(sentences) + f' How many {self.thing} are there?'

    @property
    def answer(self) -> int:
        value = self.start
        for kind, _, operand in self.operations:
            value = _apply(kind, value, operand)
        return value

    @property
    def solution(self) -> str:
        """The demonstrated solution, one step an operation, the program's output included."""
        lines = [steps.CODE]
        left = str(self.start)
        for i, (kind, _, operand) in enumerate(self.operations):
            lines.append(f'# Step {i + 1}: {kind.comment}')
            lines.append(f'{self.thing} = {left} {kind.operator} {operand}')
            lines.append(steps.STEP_END)
            left = self.thing
        lines += ['# Print the answer', f'print({self.thing})', steps.CODE_END]
        lines.append(f'{steps.OUTPUT}{self.answer}{steps.OUTPUT_END}')
        sentence = f'There are \\boxed{{{self.answer}}} {self.thing}.'
        lines.append(f'{steps.ANSWER}{sentence}{steps.ANSWER_END}')
        return '\n'.join(lines)


@dataclasses.dataclass(frozen=True)
class World:
    """The quickstart's material; no question occurs twice, in one part or in two."""

    demonstrations: list[dict]
    train: list[dict]
    test: list[dict]


def world(
    demonstrations: int, train: int, test: int, seed: int = 0, operations: Sequence[int] = (1, 2, 3)
) -> World:
    """Makes demonstrations (known verbs only) and train and test problems (all verbs).

    Raises:
      UserError: a count is negative, or there are not as many different questions.
    """
    used: set[str] = set()
    tests = problems(test, seed, operations, exclude=used)
    used |= {p['question'] for p in tests}
    trains = problems(train, seed + 1, operations, exclude=used)
    used |= {p['question'] for p in trains}
    shown = _stories(demonstrations, seed + 2, operations, 'known', used)
    return World([{'query': s.question, 'response': s.solution} for s in shown], trains, tests)


def problems(
    count: int,
    seed: int = 0,
    operations: Sequence[int] = (1, 2, 3),
    verbs: str = 'all',
    exclude: Collection[str] = (),
) -> list[dict]:
    """Returns `count` different problems {index, question, answer}.

    Args:
      count: how many; the numbers of operations take turns.
      seed: the same seed gives the same problems.
      operations: how many operations a story may tell.
      verbs: 'all', 'known' (those of the demonstrations) or 'unknown'.
      exclude: questions that must not occur.

    Raises:
      UserError: `count` is negative, or there are not as many different questions.
    """
    stories = _stories(count, seed, operations, verbs, exclude)
    return [
        {'index': i, 'question': s.question, 'answer': str(s.answer)} for i, s in enumerate(stories)
    ]


def count_operations(question: str) -> int:
    """Returns how many operations the story of `question` tells."""
    return question.count('Then ')


def vocabulary() -> list[str]:
    """Returns texts that hold every word of every problem and solution, for a tokenizer."""
    texts = []
    verbs = [(kind, verb) for kind in KINDS for verb in kind.verbs('all')]
    for i, (kind, verb) in enumerate(verbs):
        operand = kind.operand or 2
        story = Story(NAMES[i % len(NAMES)], THINGS[i % len(THINGS)], 4, ((kind, verb, operand),))
        texts += [steps.prompt(story.question), story.solution]
    return texts


def _stories(
    count: int, seed: int, operations: Sequence[int], verbs: str, exclude: Collection[str]
) -> list[Story]:
    if count < 0:
        raise UserError(f'{count} arithmetic problems: expected 0 or more')
    if verbs not in VERBS:
        raise UserError(f'arithmetic verbs {verbs!r}: expected one of {", ".join(VERBS)}')
    rng = random.Random(seed)
    seen = set(exclude)
    stories: list[Story] = []
    in_vain = 0
    while len(stories) < count:
        story = _story(rng, operations[len(stories) % len(operations)], verbs)
        in_vain += 1
        if story.question not in seen:
            seen.add(story.question)
            stories.append(story)
            in_vain = 0
        elif in_vain > MOST_REPEATS:
            raise UserError(
                f'{count} arithmetic problems: found no more than {len(stories)} different ones'
            )
    return stories


def _story(rng: random.Random, operations: int, verbs: str) -> Story:
    start = value = rng.randint(4, 60)
    vocabulary = [(kind, verb) for kind in KINDS for verb in kind.verbs(verbs)]
    told = []
    for _ in range(operations):
        kind, verb = rng.choice([(k, v) for k, v in vocabulary if _possible(k, value)])
        low, high = 2, min(40, value - 1) if kind.operator == '-' else 40
        operand = kind.operand or rng.randint(low, high)
        told.append((kind, verb, operand))
        value = _apply(kind, value, operand)
    return Story(rng.choice(NAMES), rng.choice(THINGS), start, tuple(told))


def _possible(kind: Kind, value: int) -> bool:
    """Counts stay whole, positive, and small enough to be copied without a slip."""
    if kind.operator == '//':
        return value % 2 == 0
    if kind.operator == '-':
        return value >= 4
    return value < 300


def _apply(kind: Kind, value: int, operand: int) -> int:
    if kind.operator == '+':
        return value + operand
    if kind.operator == '-':
        return value - operand
    return value * operand if kind.operator == '*' else value // operand
