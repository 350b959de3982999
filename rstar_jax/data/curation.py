"""Training data out of finished trees: SFT trajectories and preference pairs (ALGORITHM section 4).

    trees -> annotate -> per tree: its best trajectories, its pairs, its outcomes
                      -> per problem: the 2 best trajectories of all its trees; dropped or not
                      -> sft           {query, response}
                         pairs         {prompt, pos, neg, pos_count, neg_count}
                         trajectories  {query, steps, values, labels, correct}

What the rules leave open, and how it is read here:
- *Completion* below a step: the trajectory from that step (included) on, to a correct answer for a
  positive, to a wrong one for a negative. Its mean Q is over those steps; prefixes are shared.
- *Positives x negatives of a node*, the weight's denominator: those that were chosen for pairing
  (2 x 2, 4 x 1, ...), before pairs are dropped, as in the loss's factor 1/(2 x 2).
- With `final_step_pairs='trajectories'` steps that are answers take part in no step pair. Instead
  each tree with a correct and a wrong trajectory gives a pair of whole trajectories, or
  `trajectory_side` x `trajectory_side` of them. The step rules (margin, edit distance, completions)
  do not apply to these: that the one is right and the other wrong is known, not estimated.
- 'error' is looked for in the response as it is written, case included.

A pair's `prompt` is the SFT prompt of the question followed by the prefix, as in the released data:
`prompt + pos` is the very text that the PPM reads. `split_prompt` gives the two parts back.

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
import collections
import contextlib
import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any

from rapidfuzz.distance import Levenshtein

from rstar_jax import bounds, steps
from rstar_jax.data import examples, files
from rstar_jax.data.annotated import (
    MILLION,
    NEITHER,
    Annotated,
    Grade,
    Trajectory,
    annotate,
    leading,
)
from rstar_jax.errors import UserError
from rstar_jax.search.record import Record

Example = dict[str, Any]
Counts = collections.Counter

OUTCOMES = 4  # right trajectories of a problem for reward models, and wrong ones, at most


@dataclasses.dataclass(frozen=True)
class Rules:
    """What is kept (paper, section 3 and appendix).

    Attributes:
      final_step_pairs: 'steps', the final answer's step is paired like any other (released code),
        or 'trajectories', two whole trajectories (paper).
      trajectories: correct trajectories kept for SFT, per problem.
      choice: which: 'best', those of the highest mean Q; 'right', any correct ones, by chance, as
        rejection sampling takes them; 'any', correct or wrong, by chance.
      distinct: of correct trajectories that hold the same program (comments and layout aside) the
        best is kept, the shortest of several; as in rejection sampling (arXiv 2308.01825).
      well_formed: correct trajectories count only in the form of steps/language.py, closed and with
        nothing between their parts; a general model often leaves it.
      side: positives and negatives paired at a node, each.
      side_of_one: the same where the other side has only one.
      trajectory_side: right and wrong trajectories of a tree that are paired as wholes, each; the
        paper has 1.
      margin: pairs whose Q values differ by less are dropped.
      edit_distance: pairs whose texts differ by fewer characters (Levenshtein) are dropped.
      synthetic_correct: synthetic problems of whose answers a smaller share than this is correct,
        over all their trees, are dropped; 0 keeps all, the paper has 0.5. A problem is synthetic
        when its field `synthetic` is true or its `source` begins with 'synthetic' (NuminaMath).
    """

    final_step_pairs: str = 'steps'
    trajectories: int = 2
    choice: str = 'best'
    distinct: bool = False
    well_formed: bool = False
    side: int = 2
    side_of_one: int = 4
    trajectory_side: int = 1
    margin: float = 0.5
    edit_distance: int = 20
    synthetic_correct: float = 0.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            bounds.check(f'curate.{name}', value, name)


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
      UserError: a malformed tree, or one whose answers were not graded.
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
    files.write_json(pathlib.Path(directory) / 'counts.json', counts)
    return counts


def pair_weight(pair: Example) -> float:
    """Weight of a pair in the PPM's loss: 1 / (positives x negatives of its node)."""
    return 1 / (pair['pos_count'] * pair['neg_count'])


def split_prompt(prompt: str) -> tuple[str, str]:
    """Gives back (question, prefix) of a pair's `prompt`; (prompt, '') if it is in another form."""
    head, tail = steps.prompt('\0').split('\0')
    question, mark, prefix = prompt.partition(tail)
    if not mark or not question.startswith(head):
        return prompt, ''
    return question[len(head) :], prefix


@dataclasses.dataclass
class _Problem:
    """What the trees of one problem gave so far: its results, of outcomes all different ones."""

    problem: dict[str, Any]
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
                rank = _chance(f'{self.problem.get("index")} {count} {text}'), 0
            # Best first; the count keeps earlier trees, and depth-first order, ahead in ties.
            self._keep((*rank, len(text) if rules.distinct else 0, count, text), rules)
        self.pairs += pairs_of(tree, trajectories, rules, counts)
        counts['trees'] += 1
        counts['trees_solved'] += any(t.correct for t in trajectories)
        counts['steps_cut'] += len(tree.cut)
        counts['trajectories_cut'] += sum(not tree.cut.isdisjoint(t.nodes) for t in trajectories)

    def _keep(self, ranked: tuple[int, int, int, int, str], rules: Rules) -> None:
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
        if self._synthetic() and self.correct < rules.synthetic_correct * (
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
                sft.append({'query': self.problem['question'], 'response': response})
        made = {'sft': sft, 'pairs': self.pairs, 'trajectories': self._trajectories()}
        for kind, its_examples in made.items():
            counts[kind] += len(its_examples)
        return made

    def _trajectories(self) -> list[Example]:
        """Right ones first."""
        return [
            {
                'query': self.problem['question'],
                'steps': list(texts),
                'values': values,
                'labels': labels,
                'correct': bool(correct),
            }
            for correct in (1, 0)
            for texts, (values, labels) in _spread(list(self.outcomes[correct].items()), OUTCOMES)
        ]

    def _synthetic(self) -> bool:
        source = str(self.problem.get('source') or '')
        return bool(self.problem.get('synthetic')) or source.startswith('synthetic')


def pairs_of(
    tree: Annotated, trajectories: list[Trajectory], rules: Rules, counts: Counts
) -> list[Example]:
    """Preference pairs of one tree, node by node in depth-first order, whole trajectories last."""
    best: dict[int, int] = {}  # node -> mean Q of the best completion to a correct answer
    worst: dict[int, int] = {}
    for trajectory in trajectories:
        total = 0
        for length, node in enumerate(reversed(trajectory.nodes), 1):
            total += tree.q[node]
            mean = round(total / length)
            if trajectory.correct:
                best[node] = max(mean, best.get(node, mean))
            else:
                worst[node] = min(mean, worst.get(node, mean))
    start = steps.prompt(tree.problem['question'])
    pairs: list[Example] = []
    stack = [(0, start)]
    while stack:
        node, prompt = stack.pop()
        children = tree.children[node]
        pairs += _node_pairs(tree, children, prompt, best, worst, rules, counts)
        both = [child for child in children if child in best and child in worst]
        stack.extend((child, prompt + tree.texts[child]) for child in reversed(both))
    if rules.final_step_pairs == 'trajectories':
        pairs += _trajectory_pairs(tree, trajectories, start, rules, counts)
    return pairs


def _node_pairs(
    tree: Annotated,
    children: list[int],
    prompt: str,
    best: dict[int, int],
    worst: dict[int, int],
    rules: Rules,
    counts: Counts,
) -> list[Example]:
    """Pairs among the children of one node."""
    if rules.final_step_pairs == 'trajectories':
        children = [child for child in children if tree.verdict[child] == NEITHER]
    q = tree.q
    positives = sorted((c for c in children if c in best), key=lambda c: -q[c])
    negatives = sorted((c for c in children if c in worst), key=lambda c: q[c])
    if not positives or not negatives:
        return []
    counts['nodes_paired'] += 1
    side = [rules.side_of_one if len(x) == 1 else rules.side for x in (negatives, positives)]
    positives, negatives = positives[: side[0]], negatives[: side[1]]
    margin = round(rules.margin * MILLION)
    pairs = []
    for pos in positives:
        for neg in negatives:
            if not (q[pos] > q[neg] and best[pos] > worst[neg]):
                counts['pairs_not_ordered'] += 1
            elif q[pos] - q[neg] < margin:
                counts['pairs_dropped_margin'] += 1
            elif _alike(tree.texts[pos], tree.texts[neg], rules.edit_distance):
                counts['pairs_dropped_alike'] += 1
            else:
                sizes = len(positives), len(negatives)
                pairs.append(_pair(prompt, tree.texts[pos], tree.texts[neg], *sizes))
    return pairs


def _trajectory_pairs(
    tree: Annotated, trajectories: list[Trajectory], prompt: str, rules: Rules, counts: Counts
) -> list[Example]:
    """The correct trajectories of highest mean Q, each against the wrong ones of the lowest."""
    texts: dict[str, Trajectory] = {}
    for trajectory in trajectories:
        texts.setdefault(tree.text(trajectory.nodes), trajectory)

    def first(correct: bool) -> list[str]:
        sign = -1 if correct else 1
        found = [text for text, t in texts.items() if t.correct == correct]
        ranked = sorted(found, key=lambda x: (sign * texts[x].mean_q, sign * texts[x].min_q))
        return ranked[: rules.trajectory_side]

    positives, negatives = first(True), first(False)
    counts['pairs_of_trajectories'] += len(positives) * len(negatives)
    sizes = len(positives), len(negatives)
    return [_pair(prompt, pos, neg, *sizes) for pos in positives for neg in negatives]


def _pair(prompt: str, pos: str, neg: str, pos_count: int, neg_count: int) -> Example:
    return {
        'prompt': prompt,
        'pos': pos,
        'neg': neg,
        'pos_count': pos_count,
        'neg_count': neg_count,
    }


def _chance(text: str) -> int:
    """A number that is random, and the same for the same text."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())


def _spread(items: list, most: int) -> list:
    """At most `most` of `items`, evenly spaced, the first one among them."""
    count = min(most, len(items))
    return [items[i * len(items) // count] for i in range(count)]


def _program(solution: str) -> str:
    """The solution's code in one form, whatever its comments and layout."""
    code = steps.code_of(solution.partition(steps.ANSWER)[0])
    try:
        return ast.unparse(ast.parse(code))
    except (SyntaxError, ValueError):
        return code


def _alike(one: str, other: str, distance: int) -> bool:
    """Whether two texts are fewer than `distance` edits apart."""
    return distance > 0 and (Levenshtein.distance(one, other, score_cutoff=distance - 1) < distance)


def _name(tree: Annotated) -> tuple:
    return tree.problem.get('index'), tree.problem['question']


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
