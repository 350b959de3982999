"""A finished tree as curation sees it: texts, Q values, and which of its answers are right.

**Which answers are right.** The interchange form has no field for it, so it is read off the reward,
as the released code does (`q_value == 1`, `q_value == -1`). While data is made an ANSWER node is
rewarded +1 or -1, once, and no walk ever passes through it, so its own Q is that reward and not an
estimate: with `visit_count` 1, `q_value` is exactly +1 or -1. A PPM scores the nodes that are no
answers, which therefore may show any Q and any `value`. A tree whose maker also let the PPM score
the answers (`visit_count` 2: a score in [-1, 1] and the reward) still tells, because the reward
outweighs the score: the sign of the sum is the reward's. `value` by itself never tells: it holds
the PPM score, or the first backed-up value, as the maker likes. Anything else, such as a tree
searched at test time, whose answers were rewarded with PPM scores, is refused, unless the caller
grades the answers anew. Records carry the grader's verdict, which is taken as it is;
one of a search without the ground truth has none, and all its answers count as wrong unless `grade`
is given.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from rstar_jax import steps
from rstar_jax.data.problem import Problem
from rstar_jax.data.record import Record
from rstar_jax.settings.errors import UserError

NOT_ANSWERS = frozenset(
    {steps.CODE_ERRORS_ANSWER, steps.TOO_DEEP_ANSWER, steps.UNPARSABLE_ANSWER, ''}
)
CORRECT, WRONG, NEITHER = 1, -1, 0

# Q values come through float32; counted in millionths, as integers, ties are ties and a margin of
# 0.7 - 0.2 is not below 0.5.
MILLION = 10**6

Grade = Callable[[str, Any], bool]


@dataclasses.dataclass(frozen=True)
class Annotated:
    """A tree of N nodes; node 0 is the root.

    Attributes:
      problem: that it is of.
      texts: N step texts, '' for the root.
      parent: N node numbers, -1 for the root.
      children: N lists of node numbers, in the order of expansion.
      q: N Q values in millionths, 0 where never visited.
      verdict: N of CORRECT and WRONG for ANSWER nodes, NEITHER for all others.
      cut: nodes whose step was stopped before its end; none where it is not known.
    """

    problem: Problem
    texts: list[str]
    parent: list[int]
    children: list[list[int]]
    q: list[int]
    verdict: list[int]
    cut: frozenset[int] = frozenset()

    def trajectories(self) -> Iterator['Trajectory']:
        """The paths that end in an answer, in depth-first order."""
        path: list[int] = []
        stack = [(child, 0) for child in reversed(self.children[0])]
        while stack:
            node, depth = stack.pop()
            del path[depth:]
            path.append(node)
            if self.verdict[node] != NEITHER:
                q = [self.q[i] for i in path]
                mean = round(sum(q) / len(q))
                yield Trajectory(tuple(path), self.verdict[node] == CORRECT, mean, min(q))
            stack.extend((child, depth + 1) for child in reversed(self.children[node]))

    def text(self, nodes: tuple[int, ...]) -> str:
        return ''.join(self.texts[i] for i in nodes)


@dataclasses.dataclass(frozen=True)
class Trajectory:
    """A path from the root's child down to an answer.

    Attributes:
      nodes: node numbers, the root not among them.
      correct: whether the answer is right.
      mean_q: mean Q of its steps, in millionths.
      min_q: lowest Q of its steps, in millionths.
    """

    nodes: tuple[int, ...]
    correct: bool
    mean_q: int
    min_q: int


def leading(trajectories: Iterable[Trajectory]) -> set[int]:
    """The nodes of one tree through which a right answer was reached.

    Math-Shepherd's hard estimate (arXiv 2312.08935) of which steps are good. It depends on outcomes
    alone, so it is the same with and without PPM scores on the nodes.
    """
    return {node for t in trajectories if t.correct for node in t.nodes}


def annotate(tree: dict[str, Any] | Record, grade: Grade | None = None) -> Annotated:
    """Reads a tree.

    Args:
      tree: interchange dict (problem fields and `rstar`) or Record.
      grade: (answer, ground truth) -> bool. When given it decides which answers are right, not the
        rewards: for trees that were searched without the ground truth.

    Raises:
      UserError: the tree is malformed, or an interchange tree does not say which answers are right.
    """
    if isinstance(tree, Record):
        return _from_record(tree, grade)
    return _from_interchange(tree, grade)


def _from_record(record: Record, grade: Grade | None) -> Annotated:
    parent = record.parent.tolist()
    children: list[list[int]] = [[] for _ in parent]
    for node, above in enumerate(parent):
        if above >= 0:
            children[above].append(node)
    verdict = [NEITHER] * len(parent)
    for node in record.answer_nodes:
        correct = record.correct[node]
        if grade:
            correct = grade(record.answers[node], record.problem.answer)
        verdict[node] = CORRECT if correct else WRONG
    q = np.rint(record.q_values.astype(np.float64) * MILLION).astype(np.int64).tolist()
    cut = frozenset() if record.cut is None else frozenset(record.cut.nonzero()[0].tolist())
    return Annotated(record.problem, record.texts, parent, children, q, verdict, cut)


def _from_interchange(tree: dict[str, Any], grade: Grade | None) -> Annotated:
    name = f'tree of problem {tree.get("index", "without index")}'
    nodes = tree.get('rstar')
    if not isinstance(nodes, dict) or '0' not in nodes:
        raise UserError(f"{name}: expected a field 'rstar' with nodes by tag and a root '0'")
    if not isinstance(tree.get('question'), str):
        raise UserError(f"{name}: expected a field 'question' with the problem's text")
    problem = Problem.of({key: value for key, value in tree.items() if key != 'rstar'})
    try:
        order = sorted(nodes, key=lambda tag: [int(part) for part in tag.split('.')])
    except ValueError:
        raise UserError(f"{name}: expected node tags such as '0.1.2'") from None
    number = {tag: i for i, tag in enumerate(order)}
    parent, children = [-1] * len(order), [[] for _ in order]
    texts, q, verdict = [''] * len(order), [0] * len(order), [NEITHER] * len(order)
    for i, tag in enumerate(order):
        node = nodes[tag]
        try:
            q[i] = round(float(node['q_value']) * MILLION) if node['visit_count'] else 0
            texts[i] = node['text'] or ''
            answer = node['final_answer'] or ''
            if not isinstance(texts[i], str) or not isinstance(answer, str):
                raise TypeError('expected text')
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise UserError(
                f'{name}, node {tag}: no usable text, q_value, visit_count or final_answer '
                f'({type(error).__name__}: {error})'
            ) from None
        if i:
            above = number.get(tag.rpartition('.')[0])
            if above is None:
                raise UserError(f'{name}, node {tag}: its parent is not in the tree')
            parent[i] = above
            children[above].append(i)
        if answer not in NOT_ANSWERS:
            if grade:
                verdict[i] = CORRECT if grade(answer, problem.answer) else WRONG
            else:
                verdict[i] = _rewarded(node, f'{name}, node {tag}')
    texts[0] = ''
    return Annotated(problem, texts, parent, children, q, verdict)


def _rewarded(node: dict[str, Any], name: str) -> int:
    """The reward of an ANSWER node; see the module's docstring."""
    q, visits = float(node['q_value']), node['visit_count']
    total = round(q * visits, 6)  # of the reward, and the score where there is one
    if visits == 1 and abs(total) == 1:
        return CORRECT if total > 0 else WRONG
    if visits == 2 and abs(total) <= 2:
        score = float(node.get('value') or 0)
        # A score that saturated at the opposite of the reward leaves nothing but the score itself.
        reward = total if total else -score
        if reward:
            return CORRECT if reward > 0 else WRONG
    raise UserError(
        f'{name}: q_value {q:g} of {visits} visits is no reward of +1 or -1; was this tree '
        'searched with use_ground_truth=False? Then pass grade=rstar_jax.grading.equivalent'
    )
