"""Steps, nodes and trees in flight as the host sees them: texts, programs, outputs.

Which node comes next is decided on the device, see `tree`. A sampled Step becomes a Node: first a
candidate of its tree's cursor, then, if it is kept, one of the tree's `nodes`.
"""

import dataclasses
import math
import time
from concurrent.futures import Future

import numpy as np

from rstar_jax import steps
from rstar_jax.data.problem import Problem
from rstar_jax.data.record import TERMINAL_ANSWERS, Record, Status
from rstar_jax.search import tree as trees_lib
from rstar_jax.steps import marks


@dataclasses.dataclass(frozen=True)
class Step:
    """A candidate of a tree's cursor as it was sampled.

    Attributes:
      row: of its tree.
      candidate: its number among its siblings.
      text: None for a candidate that was stopped because it could not matter any more.
      tokens: of the policy; none where they are not known.
      kind: of the mark at which it ended, see `steps.marks`.
      sampled: its tokens, those that are not part of the step (a text's end) included.
      likelihood: the sum of its tokens' log-probabilities, under the temperature; nan where it is
        not known.
      context: tokens from the prompt's beginning to its end, where a server tells; else 0.
      error: why it could not be sampled; it ends the search of its problem.
    """

    row: int
    candidate: int
    text: str | None
    tokens: list[int]
    kind: int
    sampled: int = 0
    likelihood: float = 0.0
    context: int = 0
    error: Exception | None = None

    @property
    def refused(self) -> bool:
        """Whether there was no room for it where it should have been sampled."""
        return self.kind == marks.LIMIT and not (self.text or self.sampled)


ROOT_STEP = Step(row=-1, candidate=-1, text='', tokens=[], kind=0)


@dataclasses.dataclass
class Node:
    """A step: first one of the candidates, then perhaps a node of the tree.

    Attributes:
      step: as it was sampled.
      text, tokens: of the step, and of the executor's output where that is shown.
      tag: '0' for the root, '0.2' for its second child.
      answer, code, output: what it says, its program, and what that printed or its error.
      status, errors, correct: as in `Record`.
      reward, prior: as in `tree.Expansion`.
      run, grade: what is still being found out about it.
    """

    step: Step = ROOT_STEP
    text: str = ''
    tokens: list[int] = dataclasses.field(default_factory=list)
    tag: str = '0'
    answer: str = ''
    code: str = ''
    output: str = ''
    status: Status = Status.OPEN
    errors: int = 0
    correct: bool = False
    reward: float = 0.0
    prior: float = 0.0
    run: Future | None = None
    grade: Future | None = None

    @property
    def candidate(self) -> int:
        return self.step.candidate

    @property
    def is_open(self) -> bool:
        """Whether it may be walked into."""
        return self.status == Status.OPEN

    @property
    def work(self) -> list[Future]:
        """What is to be waited for."""
        return [x for x in (self.run, self.grade) if x is not None and not x.done()]


@dataclasses.dataclass
class HostTree:
    """One tree in flight.

    Attributes:
      problem: its index tells it from others in this search.
      number: which of the problem's trees it is.
      seed: of the sampling.
      prompt: the text in front of the first step.
      nodes: all so far, the root first; its tokens are the prompt's.
      path: the nodes from the root to the cursor, the one that is being expanded.
      candidates: of the cursor; None for those not sampled yet.
      sampled: tokens so far; `spent`, those of them that count against a budget.
      computed: known tokens that each model was run on.
      rollouts: done so far.
      tokens_left: that may be sampled.
      started: seconds, of the monotonic clock.
    """

    problem: Problem
    number: int
    seed: int
    prompt: str
    nodes: list[Node]
    path: list[int] = dataclasses.field(default_factory=list)
    candidates: list[Node | None] = dataclasses.field(default_factory=list)
    sampled: int = 0
    spent: int = 0
    computed: dict[str, int] = dataclasses.field(default_factory=lambda: {'policy': 0, 'ppm': 0})
    rollouts: int = 0
    tokens_left: float = math.inf
    started: float = dataclasses.field(default_factory=time.monotonic)

    @property
    def key(self) -> tuple[int, int]:
        return self.problem.index, self.number

    @property
    def seeds(self) -> tuple[int, int, int]:
        """What all keys of the tree's samples are made of."""
        problem = self.problem
        named = problem.index if problem.sampled_as is None else problem.sampled_as
        return self.seed, named, self.number

    @property
    def cursor(self) -> Node:
        return self.nodes[self.path[-1]]

    @property
    def prefix(self) -> str:
        """The partial solution down to the cursor."""
        return ''.join(self.nodes[i].text for i in self.path)

    @property
    def path_tokens(self) -> int:
        """Tokens of the prompt and the partial solution."""
        return sum(len(self.nodes[i].tokens) for i in self.path)

    def programs(self) -> list[str]:
        """Of the nodes down to the cursor, since the last `<end_of_code>`."""
        found: list[str] = []
        for i in reversed(self.path[1:]):
            if steps.CODE_END in self.nodes[i].text:
                break
            found.append(self.nodes[i].code)
        return found[::-1]

    def add(self, children: list[Node]) -> None:
        """Makes nodes the children of the cursor."""
        for number, child in enumerate(children, 1):
            child.tag = f'{self.cursor.tag}.{number}'
        self.nodes += children

    def record(self, arrays: trees_lib.Tree) -> Record:
        """The finished tree; arrays: of this tree alone, on the host."""
        size = int(arrays.size)
        names = ('parent', 'visits', 'value_sum', 'score', 'depth', 'status')
        held = {name: getattr(arrays, name)[:size] for name in names}
        answers = [
            TERMINAL_ANSWERS.get(Status(s), node.answer)
            for s, node in zip(held['status'].tolist(), self.nodes, strict=True)
        ]
        likelihood = np.array([node.step.likelihood for node in self.nodes], np.float32)
        return Record(
            problem=self.problem,
            tree=self.number,
            prompt=self.prompt,
            texts=[node.text for node in self.nodes],
            tokens=[node.tokens for node in self.nodes],
            **held,
            errors=np.array([node.errors for node in self.nodes], np.int32),
            answers=answers,
            code=[node.code for node in self.nodes],
            outputs=[node.output for node in self.nodes],
            correct=[node.correct for node in self.nodes],
            counters={
                'sampled_tokens': float(self.sampled),
                'spent_tokens': float(self.spent),
                'policy_computed': float(self.computed['policy'] + self.sampled),
                'ppm_computed': float(self.computed['ppm']),
                'seconds': time.monotonic() - self.started,
            },
            likelihood=None if np.isnan(likelihood).any() else likelihood,
            cut=np.array([node.step.kind in marks.CUT for node in self.nodes], bool),
            seed=int(self.seed),
        )
