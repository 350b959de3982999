"""New problems out of known ones, by the policy itself (paper, section 3.4: synthetic problems).

    seed problems --policy--> texts of problems --policy, several times--> answers
        --enough of them agree--> {index, question, answer, synthetic: true}

A new problem's answer is the one that most of its solutions arrive at; no ground truth is known.
Texts and solutions are trees of one sample each, in stores like those of a search, so the stage
goes on where it was stopped.
"""

import collections
import dataclasses
import functools
import pathlib
import random
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import jax

from rstar_jax import data, grading, search, steps
from rstar_jax.data.overlap import Overlap
from rstar_jax.data.problem import Problem
from rstar_jax.job import hosts
from rstar_jax.job.leases import COUNTER, dealt
from rstar_jax.settings.errors import UserError

Search = Callable[..., Iterable[search.Record]]
T = TypeVar('T')

FILE = 'problems.json'
ROUND_INDEX = 1_000_000_000  # indices of a round's synthetic problems begin at so many times it
LEAST_WORDS = 5
WHOLE = 10**6  # words in a row: none but whole problems overlap


@dataclasses.dataclass(frozen=True)
class Config:
    """How problems are made.

    Attributes:
      problems: texts that are written; fewer are kept.
      shown: known problems that a text is written after.
      tokens: longest text.
      samples: solutions of each new problem.
      agree: so many of them have to have the same answer.
    """

    problems: int
    shown: int = 3
    tokens: int = 256
    samples: int = 10
    agree: int = 3

    def __post_init__(self) -> None:
        if self.agree > self.samples:
            raise UserError(
                f'--config.synthesize.agree={self.agree}: needs at most synthesize.samples='
                f'{self.samples}'
            )


def synthesize(
    known: Sequence[Problem],
    overlap: Overlap,
    config: Config,
    settings: search.Config,
    folder: pathlib.Path,
    run_search: Search,
    number: int = 1,
    seed: int = 0,
    leases: str = COUNTER,
) -> tuple[list[Problem], collections.Counter]:
    """Writes problems and keeps those whose answer is certain enough.

    Args:
      known: seed problems; none of the new ones is like one of them.
      overlap: finds what is in `known` or a benchmark; what is kept is added to it.
      settings: of the policy's solutions; its step_tokens and prompt do not count for the texts,
        its tokens for neither.
      folder: gets the stores `written` and `solved`.
      run_search: search.run with the policy: (problems, config=, seed=, trees=, skip=,
        leases=) -> Records.
      leases: how processes share them out, as of `leases.dealt`.
      number: of the round; with `seed` it decides what is shown.

    Returns:
      The problems, and counts: written, dropped for which reason, kept. Of several processes the
      first one has them; the others return no problems.
    """
    settings = dataclasses.replace(search.sampled(settings), use_ground_truth=False, tokens=0)
    sample = functools.partial(_sample, run_search=run_search, seed=seed, leases=leases)
    prompts = [_prompt(known, config, f'{seed} {number} {i}') for i in range(config.problems)]
    writing = dataclasses.replace(settings, prompt='whole', step_tokens=config.tokens)
    sample(prompts, writing, folder / 'written', 1)
    texts = _read(prompts, folder / 'written', 1, written)
    counts: collections.Counter = collections.Counter(written=len(prompts))
    drafts: list[Problem] = []
    for prompt in prompts:
        question = texts[prompt.index, 0]
        reason = _refused(question, overlap)
        counts[reason or 'new'] += 1
        if not reason:
            index = ROUND_INDEX * number + prompt.index
            drafts.append(Problem(index, question, '', source='synthetic', synthetic=True))
            overlap.add('new', drafts[-1])
    sample(drafts, settings, folder / 'solved', config.samples)
    if not hosts.is_first():
        return [], counts
    answers = _read(drafts, folder / 'solved', config.samples, lambda tree: tree.best_answer()[0])
    kept = []
    for draft in drafts:
        tried = (answers[draft.index, tree] for tree in range(config.samples))
        answer, votes = agreed([answer for answer in tried if answer])
        counts['answers differ' if votes < config.agree else 'kept'] += 1
        if votes >= config.agree:
            kept.append(dataclasses.replace(draft, answer=answer))
    return kept, counts


def tokens(folder: pathlib.Path) -> int:
    """How many were sampled for all that lies in `folder`."""
    total = 0.0
    for name in ('written', 'solved'):
        with data.TreeStore(folder / name, writer=None) as store:
            total += sum(facts.tokens for _, facts in store.facts())
    return int(total)


def agreed(answers: list[str]) -> tuple[str, int]:
    """The commonest answer, as it was first written, and how many are equivalent to it."""
    if not answers:
        return '', 0
    groups = grading.classes(answers)
    group, votes = collections.Counter(groups).most_common(1)[0]
    return answers[groups.index(group)], votes


def written(tree: search.Record) -> str:
    """The problem that a tree of one sample holds; '' where it was not brought to an end."""
    text = tree.texts[1].strip() if len(tree.texts) > 1 else ''
    if not text.endswith(steps.ANSWER_END):
        return ''
    return ' '.join(text.removesuffix(steps.ANSWER_END).split())


def _prompt(known: Sequence[Problem], config: Config, key: str) -> Problem:
    chosen = random.Random(key).sample(known, min(config.shown, len(known)))
    text = steps.writing_prompt([problem.question for problem in chosen])
    return Problem(int(key.split()[-1]), text, '')


def _refused(question: str, overlap: Overlap) -> str:
    """Why the text is no new problem; '' where it is one."""
    if not question:
        return 'not ended'
    marked = any(mark in question for mark in steps.TEMPLATE_MARKS)
    if marked or len(question.split()) < LEAST_WORDS:
        return 'no problem'
    place = overlap.find(question)
    return f'like one in {place}' if place else ''


def _sample(
    problems: Sequence[Problem],
    config: search.Config,
    folder: pathlib.Path,
    trees: int,
    *,
    run_search: Search,
    seed: int,
    leases: str,
) -> None:
    """Searches and stores the problems' trees that are not stored yet.

    Of several processes each searches its share.
    """
    wanted = {(problem.index, tree) for problem in problems for tree in range(trees)}
    with data.TreeStore(folder, writer=jax.process_index()) as store:
        done = frozenset(store.keys())
        if done and store[min(done)].seed not in (None, seed):
            raise UserError(
                f'{folder.parent}: begun by an earlier version, under another seed: delete it'
            )
        if wanted - done:
            items = search.items(problems, range(trees))
            name = '/'.join(folder.parts[-3:])
            found = run_search(
                problems,
                config=config,
                seed=seed,
                trees=trees,
                skip=done,
                leases=dealt(items, name, leases),
            )
            for record in found:
                store.append(record)
        store.meet()


def _read(
    problems: Sequence[Problem], folder: pathlib.Path, trees: int, of: Callable[[search.Record], T]
) -> dict[tuple[int, int], T]:
    """`of` each tree of the problems: whole ones would not fit."""
    wanted = [(problem.index, tree) for problem in problems for tree in range(trees)]
    with data.TreeStore(folder, writer=jax.process_index()) as store:
        return {record.key: of(record) for record in store.unordered(wanted)}
