"""A run's trees for the page: a sample of each search, what it tells, and files for the viewer.

    TreeStore --sample--> Records --write--> report/trees/NAME.js, one a tree, loaded when asked for
                                  --add----> Steps: Q values and PPM scores, right and wrong ones

A page opened from a disk may load scripts beside it but fetch nothing, so a tree is a script: it
calls `tree(NAME, BASE64)` with JSON that zlib has compressed.
"""

import base64
import collections
import dataclasses
import json
import pathlib
import re
import zlib
from collections.abc import Collection, Iterator
from typing import Any

import numpy as np

from rstar_jax import grading
from rstar_jax.data.annotated import NEITHER, annotate, leading
from rstar_jax.data.pairs import spread
from rstar_jax.data.record import Record, Status
from rstar_jax.data.shards import SUFFIX
from rstar_jax.data.trees import TreeStore
from rstar_jax.report.run import BASE, Run

SOLVE = 'solve'  # folder of the trees of single questions
SHOWN = 2  # solved trees on the page itself, and unsolved ones
MOST_EMBEDDED = 300_000  # bytes of a tree that goes into the page itself
RIGHT, WRONG, UNKNOWN = 1, 0, -1


@dataclasses.dataclass(frozen=True)
class Source:
    """A folder of trees.

    Attributes:
      name: begins the names of its trees' files.
      label: for a person.
      folder: the TreeStore's.
      graded: whether its records tell which answers are right; those of an evaluation do not.
      round: its number; None for what belongs to no round.
    """

    name: str
    label: str
    folder: pathlib.Path
    graded: bool
    round: int | None = None


@dataclasses.dataclass(frozen=True)
class Entry:
    """One tree in the page's list.

    Attributes:
      name: of its file, without the ending.
      index, tree: which one it is.
      solved: RIGHT where some answer is right, WRONG where none is, UNKNOWN without a truth.
      nodes: how many, the root included.
      answer: that of the search; '' where there is none.
      question: the problem.
    """

    name: str
    index: int
    tree: int
    solved: int
    nodes: int
    answer: str
    question: str


@dataclasses.dataclass
class Steps:
    """Values of steps in right and in wrong solutions, tree by tree.

    A step is right when a right answer was reached through it in its tree; else, where a wrong one
    was, it is wrong.

    Attributes:
      q: Q values of steps that are no answers; for each tree, (values, which are right).
      scores: PPM scores of the same.
      answers: PPM scores of answers.
      endings: how the branches ended: Status -> count, right answers apart as -1.
    """

    q: list[tuple[list[float], list[bool]]] = dataclasses.field(default_factory=list)
    scores: list[tuple[list[float], list[bool]]] = dataclasses.field(default_factory=list)
    answers: list[tuple[list[float], list[bool]]] = dataclasses.field(default_factory=list)
    endings: collections.Counter = dataclasses.field(default_factory=collections.Counter)

    def add(self, record: Record) -> None:
        """Counts one tree in."""
        tree = annotate(record)
        trajectories = list(tree.trajectories())
        right = leading(trajectories)
        nodes = sorted({node for trajectory in trajectories for node in trajectory.nodes})
        inner = [node for node in nodes if tree.verdict[node] == NEITHER]
        scored = [node for node in nodes if not np.isnan(record.score[node])]
        for rows, values, chosen in (
            (self.q, record.q_values, inner),
            (self.scores, record.score, [node for node in inner if node in scored]),
            (self.answers, record.score, [node for node in scored if node not in inner]),
        ):
            if chosen:
                rows.append(([float(values[i]) for i in chosen], [i in right for i in chosen]))
        for status, correct in zip(record.status[1:].tolist(), record.correct[1:], strict=True):
            self.endings[-1 if correct else status] += 1


@dataclasses.dataclass(frozen=True)
class Sample:
    """What the page has of one source.

    Attributes:
      total: trees that there are; `entries` may be fewer.
      shown: a few of them for the page itself, as `told` gives them, with their scripts ('' where
        they are too large).
    """

    source: Source
    total: int
    entries: list[Entry]
    steps: Steps
    shown: list[tuple[Entry, dict[str, Any], str]]


def sources(run: Run) -> list[Source]:
    """Every folder of the run that holds trees, by round; single questions last."""
    found = []
    numbers = sorted({stage.round for stage in run.stages})
    for number in (None, *numbers):
        folder, label = f'round{number}', f'Round {number}'
        if number is None:
            folder, label = BASE, 'Base model'
        root = run.root / folder
        # An evaluation judges by a PPM that is newer than the one of the same round's search.
        found.append(Source(f'{folder}-search', f'{label}: search', root / 'search', True, number))
        for path in sorted(path for path in root.glob('eval/*/*') if path.is_dir()):
            benchmark, kind = path.parent.name, path.name
            name = re.sub(r'[^\w.-]', '_', f'{folder}-{benchmark}-{kind}')
            found.append(Source(name, f'{label}: {benchmark}, {kind}', path, False, number))
    found.append(Source(SOLVE, 'Questions', run.root / SOLVE, False))
    return [source for source in found if any(source.folder.glob(f'*{SUFFIX}'))]


_sampled: dict[pathlib.Path, tuple[tuple, Sample]] = {}


def write(
    run: Run, folder: pathlib.Path, most: int | None, problems: Collection[int] = ()
) -> list[Sample]:
    """Samples every source of a run; `folder` holds their files and no others then."""
    folder.mkdir(parents=True, exist_ok=True)
    samples = [sample(source, folder, most, problems) for source in sources(run)]
    kept = {f'{entry.name}.js' for one in samples for entry in one.entries}
    for path in folder.glob('*.js'):
        if path.name not in kept:
            path.unlink()
    return samples


def sample(
    source: Source, folder: pathlib.Path, most: int | None, problems: Collection[int] = ()
) -> Sample:
    """Reads trees of `source`, evenly spaced, and writes their files.

    Where the same was asked of the same files before, in this process, the answer is the same: a
    run writes its page after every stage.

    Args:
      folder: report/trees.
      most: how many at most; None, all.
      problems: trees of these problems are taken in any case.
    """
    # Of the folder alone: a large search has 50,000 files, whose times a shared disk tells singly.
    changed = source.folder.stat().st_mtime_ns
    names = sorted(path.name for path in source.folder.glob(f'*{SUFFIX}'))
    asked = changed, names, most, tuple(problems)
    if source.folder in _sampled and _sampled[source.folder][0] == asked:
        made = _sampled[source.folder][1]
        if all((folder / f'{entry.name}.js').exists() for entry in made.entries):
            return made
    entries, steps, shown = [], Steps(), _Shown()
    with TreeStore(source.folder, writer=None) as store:
        keys = sorted(store.keys())
        chosen = set(keys if most is None else spread(keys, most))
        chosen |= {key for key in keys if key[0] in problems}
        for record in _graded((store[key] for key in sorted(chosen)), source):
            entry, content = entry_of(record, source), told(record)
            script = script_of(entry.name, content)
            path = folder / f'{entry.name}.js'
            if not path.exists() or path.read_text('ascii') != script:
                path.write_text(script, 'ascii')
            entries.append(entry)
            if entry.solved != UNKNOWN:
                steps.add(record)
            shown.offer(record, (entry, content, script))
    made = Sample(source, len(keys), entries, steps, shown.chosen())
    _sampled[source.folder] = asked, made
    return made


def _graded(records: Iterator[Record], source: Source) -> Iterator[Record]:
    """The records, with `correct` as the grader sees it where the search was not told."""
    if source.graded:
        yield from records
        return
    grader = grading.shared()
    for record in records:
        truth = record.problem.answer
        if truth:
            verdicts = {
                answer: grader.submit(answer, truth)
                for answer, status in zip(record.answers, record.status.tolist(), strict=True)
                if status == Status.ANSWER
            }
            correct = [a in verdicts and verdicts[a].result() for a in record.answers]
            record = dataclasses.replace(record, correct=correct)
        yield record


def entry_of(record: Record, source: Source) -> Entry:
    """The tree's line in the list."""
    index, tree = record.key
    solved = UNKNOWN if not record.problem.answer else RIGHT if record.solved else WRONG
    answer, _ = record.best_answer()
    question = ' '.join(record.problem.question.split())
    name = f'{source.name}-{index}-{tree}'
    return Entry(name, index, tree, solved, len(record.texts), answer, question)


def told(record: Record) -> dict[str, Any]:
    """What the viewer shows of a tree, as JSON; lists go by node, node 0 is the root."""
    truth = record.problem.answer
    known = bool(truth)
    best = record.best_node()
    return {
        'problem': record.problem.index,
        'tree': record.tree,
        'question': record.problem.question,
        'truth': truth if isinstance(truth, str) else ' or '.join(map(str, truth or [])),
        'best': -1 if best is None else best,
        'parent': record.parent.tolist(),
        'visits': record.visits.tolist(),
        'q': [round(q, 4) for q in record.q_values.tolist()],
        'score': [None if s != s else round(s, 4) for s in record.score.tolist()],
        'status': [Status(s).name for s in record.status.tolist()],
        'right': [int(right) if known else UNKNOWN for right in record.correct],
        'texts': record.texts,
        'answers': [a if s == Status.ANSWER else '' for a, s in zip(record.answers, record.status)],
        'failed': [int(errors > 0) for errors in record.errors.tolist()],
        'outputs': [o if o not in t else '' for o, t in zip(record.outputs, record.texts)],
    }


def script_of(name: str, content: dict[str, Any]) -> str:
    """The script that gives a tree to the page."""
    packed = zlib.compress(json.dumps(content, ensure_ascii=False).encode('utf-8'))
    return f'tree({json.dumps(name)},"{base64.b64encode(packed).decode("ascii")}")\n'


class _Shown:
    """Picks a few trees of different problems: those with right and wrong answers come first."""

    def __init__(self) -> None:
        self._kinds: dict[str, list] = {'both': [], 'right': [], 'wrong': []}
        self._seen: set[int] = set()

    def offer(self, record: Record, item: tuple[Entry, dict[str, Any], str]) -> None:
        if record.key[0] in self._seen:
            return
        answers = {c for c, s in zip(record.correct, record.status) if s == Status.ANSWER}
        kind = self._kinds['both' if len(answers) == 2 else 'right' if any(answers) else 'wrong']
        if len(kind) < SHOWN:
            self._seen.add(record.key[0])
            entry, content, script = item
            kind.append((entry, content, script if len(script) <= MOST_EMBEDDED else ''))

    def chosen(self) -> list[tuple[Entry, dict[str, Any], str]]:
        both, right, wrong = self._kinds.values()
        return (both + right)[:SHOWN] + wrong
