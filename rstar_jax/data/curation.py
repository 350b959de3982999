"""Training data out of finished trees: SFT trajectories and preference pairs.

    trees -> annotate -> per tree: its best trajectories, its pairs, its outcomes
                      -> per problem: the 2 best trajectories of all its trees; dropped or not
                      -> sft           {query, response}
                         pairs         {prompt, pos, neg, pos_count, neg_count}
                         trajectories  {query, steps, values, labels, correct}

'error' is looked for in a response as it is written, case included. `pairs` tells how pairs are
made.

*Trajectories* are what reward models learn from that know no pairs (ORM, PQM, PRM): a question, the
texts of the steps down to an answer, of each step its Q value in its tree and whether a right
answer was reached through it there (annotated.leading), and whether the answer is right. Of the
different right trajectories of a problem OUTCOMES are written, and of the wrong ones as many:
evenly spaced over all of them in the order of trees and, in a tree, depth first. So they come from
all parts of the trees and from no end of the Q values, and the shares of right and wrong are as
equal as the trees allow.
"""

import ast
import bisect
import contextlib
import dataclasses
import hashlib
import heapq
import json
import math
import os
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from rstar_jax import steps
from rstar_jax.data import examples
from rstar_jax.data.annotated import MILLION, Annotated, Grade, Trajectory, annotate, leading
from rstar_jax.data.pairs import Counts, Example, Rules, pairs_of, solution_pairs, spread
from rstar_jax.data.problem import Problem
from rstar_jax.data.record import Record
from rstar_jax.data.trees import TreeStore
from rstar_jax.job import atomic
from rstar_jax.settings.errors import UserError

COUNTS = 'counts.json'
OUTCOMES = 4  # right trajectories of a problem for reward models, and wrong ones, at most


def in_order(
    stores: Sequence[TreeStore], first: float = -math.inf, end: float = math.inf
) -> Iterator[Record]:
    """The trees of several stores, those of one problem together, in the order of the stores.

    first, end: of problems with an index from `first` on and below `end`.
    """

    def keyed(number: int) -> Iterator[tuple[tuple[int, str, int], Record]]:
        for key in sorted(stores[number].keys()):
            if first <= key[0] < end:
                record = stores[number][key]
                yield (record.problem.index, record.problem.question, number), record

    streams = [keyed(number) for number in range(len(stores))]
    for _, record in heapq.merge(*streams, key=lambda item: item[0]):
        yield record


def curate(
    trees: Iterable[dict[str, Any] | Record],
    final_step_pairs: str = 'steps',
    *,
    grade: Grade | None = None,
    counts: Counts | None = None,
    **rules: Any,
) -> tuple[list[Example], list[Example]]:
    """Makes training data; for what does not fit into memory there is `curate_to`.

    Args:
      trees: interchange dicts or Records, in any order; trees of one problem (same index and
        question) compete for its SFT trajectories.
      final_step_pairs: 'steps' or 'trajectories', see Rules.
      grade: decides which answers are right; by default the rewards in the tree do (annotated.py).
      counts: a Counter to which the numbers of what was seen, kept and dropped are added.
      **rules: other fields of Rules.

    Returns:
      (sft, pairs): {query, response} and {prompt, pos, neg, pos_count, neg_count}, grouped by
      problem, problems in the order of their first tree.

    Raises:
      UserError: a malformed tree, or one of interchange form whose answers were not graded.
    """
    rules_ = Rules(final_step_pairs, **rules)
    counts = Counts() if counts is None else counts
    problems: dict[tuple, _Problem] = {}
    for tree in (annotate(tree, grade) for tree in trees):
        problem = problems.setdefault(_name(tree), _Problem(tree.problem))
        problem.add(tree, rules_, counts)
    sft: list[Example] = []
    pairs: list[Example] = []
    for problem in problems.values():
        made = problem.finish(rules_, counts)
        sft += made['sft']
        pairs += made['pairs']
    return sft, pairs


def curate_to(
    trees: Iterable[dict[str, Any] | Record],
    directory: str | os.PathLike,
    final_step_pairs: str = 'steps',
    *,
    grade: Grade | None = None,
    **rules: Any,
) -> Counts:
    """Makes training data tree by tree, into `KIND-*.array_record` of all kinds (examples.KINDS).

    Memory holds one problem's data at a time, and some 100 bytes of book-keeping a problem. The
    files appear, with `counts.json`, when all is done.

    Args:
      trees: as of `curate`, but the trees of one problem must follow each other; a TreeStore gives
        them so.
      directory: folder of the results; read them with `load_examples`.

    Raises:
      UserError: as `curate`; or a problem comes back after another one.
    """
    rules_ = Rules(final_step_pairs, **rules)
    counts: Counts = Counts()
    with contextlib.ExitStack() as stack:
        writers = {
            kind: stack.enter_context(examples.ExampleWriter(directory, kind))
            for kind in examples.KINDS
        }
        for problem in _consecutive(trees, rules_, grade, counts):
            for kind, made in problem.finish(rules_, counts).items():
                for example in made:
                    writers[kind].write(example)
    atomic.write_json(pathlib.Path(directory) / COUNTS, counts, ensure_ascii=False)
    return counts


def join(parts: Sequence[pathlib.Path], directory: pathlib.Path) -> Counts:
    """Moves what `curate_to` has made of some problems after the others into one folder.

    There it is what `curate_to` makes of all of them, but for how many files it lies in.
    """
    counts: Counts = Counts()
    for part in parts:
        for name, number in json.loads((part / COUNTS).read_text(encoding='utf-8')).items():
            counts[name] += number
    for kind in examples.KINDS:
        made = [path for part in parts for path in examples.files_of(part, kind)]
        examples.publish(directory, kind, made)
    atomic.write_json(directory / COUNTS, counts, ensure_ascii=False)
    return counts


@dataclasses.dataclass
class _Problem:
    """What the trees of one problem gave so far: its results, of outcomes all different ones."""

    problem: Problem
    best: list[tuple[int, int, int, int, str]] = dataclasses.field(default_factory=list)
    pairs: list[Example] = dataclasses.field(default_factory=list)
    # Of wrong (0) and of right (1) trajectories: texts of the steps -> Q values, labels.
    outcomes: tuple[dict[tuple[str, ...], tuple[list[float], list[bool]]], ...] = dataclasses.field(
        default_factory=lambda: ({}, {})
    )
    correct: int = 0
    wrong: int = 0

    def add(self, tree: Annotated, rules: Rules, counts: Counts) -> None:
        trajectories = list(tree.trajectories())
        leads = leading(trajectories)
        for trajectory in trajectories:
            self._keep_outcome(tree, trajectory, leads)
            self.correct += trajectory.correct
            self.wrong += not trajectory.correct
            if not trajectory.correct and rules.choice != 'any':
                continue
            text, count = tree.text(trajectory.nodes), self.correct + self.wrong
            if rules.well_formed and not steps.well_formed(text):
                counts['trajectories_malformed'] += 1
                continue
            rank = -trajectory.mean_q, -trajectory.min_q
            if rules.choice != 'best':
                rank = _chance(f'{self.problem.index} {count} {text}'), 0
            # Best first; the count keeps earlier trees, and depth-first order, ahead in ties.
            self._keep((*rank, len(text) if rules.distinct else 0, count, text), rules)
        self.pairs += pairs_of(tree, trajectories, rules, counts)
        counts['trees'] += 1
        counts['trees_solved'] += any(t.correct for t in trajectories)
        counts['steps_cut'] += len(tree.cut)
        counts['trajectories_cut'] += sum(not tree.cut.isdisjoint(t.nodes) for t in trajectories)

    def _keep(self, ranked: tuple[int, int, int, int, str], rules: Rules) -> None:
        if len(self.best) == rules.trajectories and ranked > self.best[-1]:
            return  # most of them: programs are parsed for the others alone
        if rules.distinct:
            program = _program(ranked[-1])
            same = [other for other in self.best if _program(other[-1]) == program]
            if same and same[0] < ranked:
                return
            self.best = [other for other in self.best if other not in same]
        bisect.insort(self.best, ranked)
        del self.best[rules.trajectories :]

    def _keep_outcome(self, tree: Annotated, trajectory: Trajectory, leads: set[int]) -> None:
        nodes, kept = trajectory.nodes, self.outcomes[trajectory.correct]
        texts = tuple(tree.texts[i] for i in nodes)
        if texts not in kept:
            kept[texts] = [tree.q[i] / MILLION for i in nodes], [i in leads for i in nodes]

    def finish(self, rules: Rules, counts: Counts) -> dict[str, list[Example]]:
        """Returns the problem's examples of each kind."""
        counts['problems'] += 1
        counts['problems_solved'] += self.correct > 0
        counts['trajectories_correct'] += self.correct
        counts['trajectories_wrong'] += self.wrong
        if self.problem.synthetic and self.correct < rules.synthetic_correct * (
            self.correct + self.wrong
        ):
            counts['problems_dropped_synthetic'] += 1
            return {kind: [] for kind in examples.KINDS}
        sft = []
        for *_, text in self.best:
            response = text.strip()
            if 'error' in response:
                counts['sft_dropped_error'] += 1
            else:
                sft.append({'query': self.problem.question, 'response': response})
        pairs = self.pairs
        if rules.final_step_pairs == 'problem':
            # Of the same text in other steps once.
            wrong, right = (list(dict.fromkeys(map(''.join, kept))) for kept in self.outcomes)
            pairs = pairs + solution_pairs(self.problem, right, wrong, rules, counts)
        made = {'sft': sft, 'pairs': pairs, 'trajectories': self._trajectories()}
        for kind, its_examples in made.items():
            counts[kind] += len(its_examples)
        return made

    def _trajectories(self) -> list[Example]:
        """Right ones first."""
        return [
            {
                'query': self.problem.question,
                'steps': list(texts),
                'values': values,
                'labels': labels,
                'correct': bool(correct),
            }
            for correct in (1, 0)
            for texts, (values, labels) in spread(list(self.outcomes[correct].items()), OUTCOMES)
        ]


def _chance(text: str) -> int:
    """A number that is random, and the same for the same text."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())


def _program(solution: str) -> str:
    """The solution's code in one form, whatever its comments and layout."""
    code = steps.code_of(solution.partition(steps.ANSWER)[0])
    try:
        return ast.unparse(ast.parse(code))
    except (SyntaxError, ValueError):
        return code


def _name(tree: Annotated) -> tuple:
    return tree.problem.index, tree.problem.question


def _consecutive(
    trees: Iterable[dict[str, Any] | Record], rules: Rules, grade: Grade | None, counts: Counts
) -> Iterator[_Problem]:
    """Gathers the trees that follow each other on one problem."""
    seen: set[int] = set()
    name, problem = None, None
    for tree in (annotate(tree, grade) for tree in trees):
        if problem is None or _name(tree) != name:
            if problem is not None:
                yield problem
            name, problem = _name(tree), _Problem(tree.problem)
            if hash(name) in seen:
                raise UserError(
                    f'trees of problem {name[0]} do not follow each other; bring them into a '
                    'TreeStore first (data.store_trees), which gives them in order'
                )
            seen.add(hash(name))
        problem.add(tree, rules, counts)
    if problem is not None:
        yield problem
