"""What trees of an evaluation come to: answers chosen, graded and counted, by strategy."""

import dataclasses
import math
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from rstar_jax import grading
from rstar_jax.data.problem import Problem
from rstar_jax.data.record import Record
from rstar_jax.evals import metrics, selection
from rstar_jax.search.endpoint import Endpoint
from rstar_jax.training import flops

Verdicts = dict[tuple[int, str], bool]
GREEDY = 'greedy'


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """An answer, the PPM's score of it (or nan) and the log-likelihood of its trajectory."""

    text: str
    score: float
    likelihood: float


@dataclasses.dataclass(frozen=True, slots=True)
class Outcome:
    """What the figures need of a tree: whole ones, t for each of many problems, would not fit.

    tokens: sampled, those of merged and dropped candidates included.
    computed: positions that policy and PPM were run on; nan where the tree does not tell.
    """

    candidate: selection.Candidate
    answers: tuple[Answer, ...]
    tokens: float
    computed: tuple[float, float]

    @classmethod
    def of(cls, record: Record) -> 'Outcome':
        nodes = record.answer_nodes
        known = record.likelihood is not None
        answers = tuple(
            Answer(
                record.answers[node],
                float(record.score[node]),
                float(record.likelihood[record.trajectory(node)].sum()) if known else math.nan,
            )
            for node in nodes
        )
        counters = record.counters
        computed = tuple(counters.get(f'{model}_computed', math.nan) for model in ('policy', 'ppm'))
        return cls(record.best_answer(), answers, counters['sampled_tokens'], computed)


@dataclasses.dataclass(frozen=True)
class Run:
    """What one strategy gave on one benchmark.

    Attributes:
      name: of the strategy.
      trees: of each problem, as they are numbered.
      scored: whether a PPM scored the trees.
      top: how many of a problem's trees vote in the majority, where they are scored.
      seconds: of all problems together.
      flops: likewise; None where they are not known.
    """

    name: str
    trees: list[list[Outcome]]
    scored: bool
    top: int
    seconds: float
    flops: float | None

    def lists(self) -> dict[str, list[list[str]]]:
        """For each mode, the answers that each problem is judged by."""
        if self.name == GREEDY:
            return {GREEDY: [[a.text for a in tree.answers] for (tree,) in self.trees]}
        if not self.scored:
            found = [[(a.text, 0.0) for t in trees for a in t.answers] for trees in self.trees]
            return {
                'majority': [[selection.majority(c, len(c))] for c in found],
                'any': [selection.answers(c) for c in found],
            }
        found = [[tree.candidate for tree in trees] for trees in self.trees]
        return {
            'best': [[selection.best(c)] for c in found],
            'majority': [[selection.majority(c, self.top)] for c in found],
            'weighted': [[selection.weighted(c)] for c in found],
            'pooled': [
                [selection.weighted([(a.text, a.score) for tree in trees for a in tree.answers])]
                for trees in self.trees
            ],
            'any': [selection.answers(c) for c in found],
        }

    def figures(self, problems: Sequence[Problem], verdicts: Verdicts) -> dict[str, Any]:
        flags = {
            mode: [
                any(verdicts[i, answer] for answer in answers if answer)
                for i, answers in enumerate(answers_of)
            ]
            for mode, answers_of in self.lists().items()
        }
        answered = [any(a.text for tree in trees for a in tree.answers) for trees in self.trees]
        tokens = sum(tree.tokens for trees in self.trees for tree in trees)
        count = len(problems)
        return {
            'trajectories': statistics.mean(map(len, self.trees)),
            **{mode: metrics.accuracy(flag) for mode, flag in flags.items()},
            'answered': metrics.accuracy(answered),
            'interval95': {mode: metrics.interval95(flag) for mode, flag in flags.items()},
            'solved': {
                mode: [p.index for p, right in zip(problems, flag) if right]
                for mode, flag in flags.items()
            },
            'tokens_per_problem': tokens / count,
            'seconds_per_problem': self.seconds / count,
            'flops_per_problem': None if self.flops is None else self.flops / count,
            'judge': None if self.name == GREEDY else self._judge(verdicts),
        }

    def _judge(self, verdicts: Verdicts) -> dict[str, Any]:
        found = [
            [(a, verdicts[i, a.text]) for tree in trees for a in tree.answers if a.text]
            for i, trees in enumerate(self.trees)
        ]
        pairs = []
        for answers in found:
            right = sum(flag for _, flag in answers)
            pairs.append(right * (len(answers) - right))
        made = {
            'answers': sum(map(len, found)),
            'pairs': sum(pairs),
            'problems': sum(map(bool, pairs)),
            'interval95': {},
        }
        for key, field in (('auc', 'score'), ('auc_likelihood', 'likelihood')):
            # Of some answers a server does not tell the likelihood.
            known = [
                [(value, flag) for a, flag in answers if not math.isnan(value := getattr(a, field))]
                for answers in found
            ]
            ranked = metrics.ranked_rightly(
                [[value for value, _ in answers] for answers in known],
                [[flag for _, flag in answers] for answers in known],
            )
            made[key] = ranked['share'] if ranked['pairs'] else None
            made[f'{key}_mean'] = ranked['mean'] if ranked['pairs'] else None
            if ranked['pairs']:
                made['interval95'][key] = ranked['interval95']
        return made


def flops_of(trees: Iterable[Outcome], policy: Any, ppm: Any) -> float | None:
    """FLOPs of the products with weights, 2 a weight and token; None where it is not known.

    A third of a training's, which has those of two gradients besides.
    """
    if isinstance(policy, Endpoint):  # nobody knows what it computes
        return None
    policy_work = flops.work(policy.config, 'sft')
    ppm_work = flops.work(ppm.config, 'pairwise').token if ppm is not None else 0
    total = 0.0
    for tree in trees:
        by_policy, by_ppm = tree.computed
        total += policy_work.token * by_policy + policy_work.target * tree.tokens
        total += by_ppm * ppm_work if ppm_work else 0
    return None if math.isnan(total) else total / 3


def grade(problems: Sequence[Problem], runs: Sequence[Run]) -> Verdicts:
    """Whether an answer to a problem, by its position, is right; each is graded once."""
    asked = dict.fromkeys(
        (i, answer.text)
        for run in runs
        for i, trees in enumerate(run.trees)
        for tree in trees
        for answer in tree.answers
        if answer.text
    )
    pairs = [(answer, problems[i].answer) for i, answer in asked]
    return dict(zip(asked, grading.equivalent_many(pairs) if pairs else []))
