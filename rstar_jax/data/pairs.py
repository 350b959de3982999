"""Preference pairs of a tree, node by node, and the rules of curation.

What the rules leave open, and how it is read here:
- *Completion* below a step: the trajectory from that step (included) on, to a correct answer for a
  positive, to a wrong one for a negative. Its mean Q is over those steps; prefixes are shared.
- *Positives x negatives of a node*, the weight's denominator: those that were chosen for pairing
  (2 x 2, 4 x 1, ...), before pairs are dropped, as in the loss's factor 1/(2 x 2).
- With `final_step_pairs='trajectories'` steps that are answers take part in no step pair. Instead
  each tree with a correct and a wrong trajectory gives a pair of whole trajectories, or
  `trajectory_side` x `trajectory_side` of them, those of the highest and lowest mean Q. The step
  rules (margin, edit distance, completions) do not apply to these: that the one is right and the
  other wrong is known, not estimated. So it is of solutions of different trees, too: with
  `final_step_pairs='problem'` they come from all trees of the problem, evenly spread over the
  different ones, for mean Q values of different trees cannot be compared. Plain samples, each a
  tree of one solution, give pairs only so.

A pair's `prompt` is the SFT prompt of the question followed by the prefix, as in the released data:
`prompt + pos` is the very text that the PPM reads. `steps.split_prompt` gives the two parts back.
"""

import collections
import dataclasses
from collections.abc import Sequence
from typing import Any

from rapidfuzz.distance import Levenshtein

from rstar_jax import steps
from rstar_jax.data.annotated import MILLION, NEITHER, Annotated, Trajectory
from rstar_jax.data.problem import Problem
from rstar_jax.settings import table

Example = dict[str, Any]
Counts = collections.Counter


@dataclasses.dataclass(frozen=True)
class Rules:
    """What is kept (paper, section 3 and appendix).

    Attributes:
      final_step_pairs: 'steps', the final answer's step is paired like any other (released code);
        'trajectories', two whole trajectories of a tree (paper); or 'problem', two of any trees of
        the problem.
      trajectories: correct trajectories kept for SFT, per problem.
      choice: which: 'best', those of the highest mean Q; 'right', any correct ones, by chance, as
        rejection sampling takes them; 'any', correct or wrong, by chance.
      distinct: of correct trajectories that hold the same program (comments and layout aside) the
        best is kept, the shortest of several; as in rejection sampling (arXiv 2308.01825).
      well_formed: correct trajectories are kept, and right and wrong ones paired as wholes, only in
        the form of steps/language.py, closed and with nothing between their parts; a general model
        often leaves it. Of both sides, as form would tell them apart if only one kept to it.
      side: positives and negatives paired at a node, each.
      side_of_one: the same where the other side has only one.
      trajectory_side: right and wrong trajectories of a tree, or of a problem, that are paired as
        wholes, each; the paper has 1.
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
            if f'curate.{name}' in table.SETTINGS:
                table.check(f'curate.{name}', value)


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
    start = steps.prompt(tree.problem.question)
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
    if rules.final_step_pairs != 'steps':
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
        if rules.well_formed:
            found = [text for text in found if steps.well_formed(text)]
        ranked = sorted(found, key=lambda x: (sign * texts[x].mean_q, sign * texts[x].min_q))
        return ranked[: rules.trajectory_side]

    return _all_pairs(prompt, first(True), first(False), counts)


def solution_pairs(
    problem: Problem,
    right: Sequence[str],
    wrong: Sequence[str],
    rules: Rules,
    counts: Counts,
) -> list[Example]:
    """Pairs of whole solutions of a problem, from whatever trees: right ones against wrong ones."""
    if rules.well_formed:
        right, wrong = (list(filter(steps.well_formed, texts)) for texts in (right, wrong))
    positives, negatives = (spread(texts, rules.trajectory_side) for texts in (right, wrong))
    return _all_pairs(steps.prompt(problem.question), positives, negatives, counts)


def _all_pairs(
    prompt: str, positives: Sequence[str], negatives: Sequence[str], counts: Counts
) -> list[Example]:
    sizes = len(positives), len(negatives)
    counts['pairs_of_trajectories'] += len(positives) * len(negatives)
    return [_pair(prompt, pos, neg, *sizes) for pos in positives for neg in negatives]


def spread(items: Sequence, most: int) -> list:
    """At most `most` of `items`, evenly spaced, the first one among them."""
    count = min(most, len(items))
    return [items[i * len(items) // count] for i in range(count)]


def _pair(prompt: str, pos: str, neg: str, pos_count: int, neg_count: int) -> Example:
    return {
        'prompt': prompt,
        'pos': pos,
        'neg': neg,
        'pos_count': pos_count,
        'neg_count': neg_count,
    }


def _alike(one: str, other: str, distance: int) -> bool:
    """Whether two texts are fewer than `distance` edits apart."""
    return distance > 0 and (Levenshtein.distance(one, other, score_cutoff=distance - 1) < distance)
