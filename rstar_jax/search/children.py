"""From sampled steps to children: programs run, answers graded, what is the same merged."""

import ast
import contextlib
import dataclasses
import functools
from collections.abc import Iterator

import numpy as np

from rstar_jax import execution, grading, steps
from rstar_jax.data.record import Status
from rstar_jax.search.config import Config
from rstar_jax.search.expander import Expander
from rstar_jax.search.nodes import HostTree, Node, Step
from rstar_jax.settings.errors import UserError
from rstar_jax.steps import marks

# After so many candidates without a single mark and no tree beyond its root, a search ends.
MARKLESS = 32
MARKS = (marks.STEP, marks.CODE, marks.ANSWER)
_CHANCE = 'MemoryError', 'RuntimeError: the '  # what may not happen again


@dataclasses.dataclass
class Workers:
    """The processes that run programs and grade answers beside the device."""

    pool: execution.Pool
    grader: grading.Grader

    @classmethod
    @contextlib.contextmanager
    def start(cls, config: Config) -> Iterator['Workers']:
        """Starts them with the limits of `config`; stops them at the end of the block."""
        limits = execution.Limits(seconds=config.code_seconds, memory_mb=config.code_memory_mb)
        count = config.workers or None
        with (
            execution.Pool(count, limits, config.isolation, announce) as pool,
            grading.Grader(workers=count) as grader,
        ):
            yield cls(pool, grader)


@functools.cache
def announce(line: str) -> None:
    """Prints a line once a process."""
    print(line, flush=True)


class Judge:
    """Decides what becomes of the candidates of a tree's cursor."""

    def __init__(self, config: Config, workers: Workers, expander: Expander):
        self.config, self.workers, self.encode = config, workers, expander.encode
        # Whoever has the last mark in pieces has learnt it with a newline in the last of them, and
        # has never seen one follow where the mark ends without. Mostly that is a general model.
        marked = config.prompt != 'few_shot' if expander.marked is None else expander.marked
        self.behind_output = '' if marked else '\n'
        # Candidates while none had a mark; None once there was one, or where none need come.
        self.markless: list[str] | None = []

    def begin(self, tree: HostTree, step: Step) -> None:
        """Takes in a sampled step, and starts what it needs: its program run, its answer graded."""
        if step.error is not None:
            raise step.error
        node = Node(step, step.text or '', step.tokens)
        tree.candidates[step.candidate] = node
        tree.sampled += step.sampled
        if not node.text.strip():
            return
        ends = step.kind == marks.ANSWER
        # Code may speak of a box, in the instruction's words: only one that is filled is an answer.
        box = steps.boxed(node.text, bare=ends)
        if box:
            node.answer = box
            if self.config.use_ground_truth:
                node.grade = self.workers.grader.submit(box, tree.problem.answer)
        elif not ends:
            node.code = steps.code_of(node.text)
            whole, before = self.config.failed_steps == 'again', tree.programs()
            # Where the code before failed, it would again: a loop without end for each candidate.
            failed = tree.cursor.output if before and tree.cursor.errors else ''
            if failed.startswith(_CHANCE):
                failed = ''
            node.run = self.workers.pool.submit([*before, node.code], whole, failed)

    def ready(self, tree: HostTree) -> bool:
        """Whether all is known that the tree's children depend on."""
        if any(node is None for node in tree.candidates):
            return False
        return not any(node.work for node in self._survivors(tree))

    def children(self, tree: HostTree) -> list[Node]:
        """The children of a tree that is ready; counts what they took."""
        children = self._survivors(tree)
        kept = set(map(id, children))
        for node in tree.candidates:
            if node.run is not None and id(node) not in kept:
                node.run.cancel()  # it waits for a worker, and nobody for it
        # Behind an answer none matters, and how far those came depends on what else is searched.
        first = self._first_answer(tree)
        counted = tree.candidates if first is None else tree.candidates[: first + 1]
        tree.spent += sum(node.step.sampled for node in counted)
        deep = len(tree.path) > self.config.max_depth
        for node in children:
            self._judge(tree, node)
            length = max(tree.path_tokens + len(node.tokens), node.step.context)
            full = length + self.config.step_tokens > self.config.path_tokens
            if node.is_open and (deep or full):
                node.status = Status.TOO_DEEP
        means = np.array([node.step.likelihood / max(node.step.sampled, 1) for node in children])
        known = ~np.isnan(means)  # a server may leave some out: they count as the usual one
        means = np.where(known, means, means[known].mean() if known.any() else 0.0)
        priors = np.exp(means - means.max(initial=0))
        for node, prior in zip(children, (priors / priors.sum()).tolist(), strict=True):
            node.prior = prior
        return children

    def look_for_marks(self, grown: list[tuple[HostTree, list[Node]]]) -> None:
        """Raises UserError where the first trees all end at their root, as no mark is written.

        grown: trees whose candidates have become these children.
        """
        if self.markless is None:
            return
        for tree, children in grown:
            written = any(node.step.kind in MARKS for node in tree.candidates)
            if written or any(node.status in (Status.OPEN, Status.ANSWER) for node in children):
                self.markless = None
                return
            texts = [node.step.text or '' for node in tree.candidates if not node.step.refused]
            self.markless += texts
        if len(self.markless) >= MARKLESS:
            raise UserError(
                'prompt',
                self.config.prompt,
                f'of the first {len(self.markless)} candidates none ends in a mark '
                f'({steps.STEP_END} and others), so every tree ends at its root; the first is '
                f'{self.markless[0][:60]!r}',
                'use a policy that was trained on the step form, or few_shot for another',
            )

    def _survivors(self, tree: HostTree) -> list[Node]:
        """Candidates that become children: identical texts merged, the first answer alone."""
        if (first := self._first_answer(tree)) is not None:
            return [tree.candidates[first]]
        unique: dict[str, Node] = {}
        for node in tree.candidates:
            if node.step.text is not None:
                # A mark's last token may take whitespace along, which says nothing.
                unique.setdefault(node.step.text.rstrip(), node)
        return list(unique.values())

    def _first_answer(self, tree: HostTree) -> int | None:
        """Which candidate's answer ends its siblings; None where none does."""
        if not self.config.first_answer_only:
            return None
        kinds = (node.step.kind for node in tree.candidates)
        return next((i for i, kind in enumerate(kinds) if kind == marks.ANSWER), None)

    def _judge(self, tree: HostTree, node: Node) -> None:
        """Fills in what is known of a child now."""
        text = node.step.text
        if node.answer:
            node.status = Status.ANSWER
            if node.grade is not None:
                node.correct = node.grade.result()
                node.reward = 1.0 if node.correct else -1.0
        elif node.run is None:
            node.status = Status.UNPARSABLE
        else:
            result = node.run.result()
            node.output = result.output if result.ok else result.error
            node.errors = 0 if result.ok else tree.cursor.errors + 1
            if node.errors >= self.config.error_threshold:
                node.status = Status.CODE_ERRORS
            elif self.config.repetition and _goes_round(tree, node):
                node.status = Status.UNPARSABLE
            if node.status == Status.CODE_ERRORS or steps.CODE_END in text:
                node.text = steps.with_output(text, node.output, self.behind_output)
                node.tokens = node.step.tokens + self.encode(node.text[len(text) :], text)


def _goes_round(tree: HostTree, node: Node) -> bool:
    """Whether a step was stopped as it repeats itself, or does what the two before it do."""
    before = [tree.nodes[i] for i in tree.path[1:][-2:]]
    done = {_done_again(one.code) for one in (*before, node)}
    again = len(before) == 2 and len(done) == 1 and done != {''}
    return again or node.step.kind == marks.REPEATED


def _done_again(code: str) -> str:
    """The statements of a step that may be done again and change nothing; '' if they may not.

    Steps that double a number three times say the same, and each of them changes it.
    """
    try:
        parsed = ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return ''
    names = [node for node in ast.walk(parsed) if isinstance(node, ast.Name)]
    read = {name.id for name in names if isinstance(name.ctx, ast.Load)}
    changed = {name.id for name in names if not isinstance(name.ctx, ast.Load)}
    calls = [node.value for node in parsed.body if isinstance(node, ast.Expr)]
    others = [call for call in calls if getattr(getattr(call, 'func', None), 'id', '') != 'print']
    added = any(isinstance(node, ast.AugAssign) for node in ast.walk(parsed))
    return '' if others or added or read & changed else ast.unparse(parsed)
