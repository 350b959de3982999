"""New problems out of known ones, by the policy itself (paper, section 3.4: synthetic problems).

    seed problems --policy--> texts of problems --policy, several times--> answers
        --enough of them agree--> {index, question, answer, synthetic: true}

A new problem's answer is the one that most of its solutions arrive at; no ground truth is known.
Texts and solutions are trees of one sample each, in stores like those of a search, so the stage
goes on where it was stopped.
"""

import collections
import dataclasses
import pathlib
import random
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import jax

from rstar_jax import data, search, steps
from rstar_jax.data.overlap import Overlap
from rstar_jax.data.problem import Problem
from rstar_jax.data.record import Record
from rstar_jax.grading import votes
from rstar_jax.job import hosts
from rstar_jax.job.leases import COUNTER, dealt
from rstar_jax.job.progress import of_search
from rstar_jax.settings import errors
from rstar_jax.settings.errors import UserError
from rstar_jax.stages import checkpoints, problems, searches
from rstar_jax.stages.problems import ROUND_INDEX, WRITTEN
from rstar_jax.stages.round import Round
from rstar_jax.stages.search import Search
from rstar_jax.stages.stage import Ahead, Figures, Work

T = TypeVar('T')

LEAST_WORDS = 5
WHOLE = 10**6  # words in a row: none but whole problems overlap


class Synthesize(Search):
    """Has the policy write problems and answer them; keeps those whose answer is certain enough."""

    name = 'synthesize'
    folder = 'synthesize'
    uses = ()
    asked_by = 'synthesize.problems'
    precious = False

    def inputs(self, round_: Round) -> list[pathlib.Path]:
        return checkpoints.searching_paths(round_)

    def kept(self, round_: Round):
        kept = super(Search, self).kept(round_)
        if kept.done is not None and not kept.changed:
            # What was written stands, however many problems are searched.
            kept.settings = {k: v for k, v in kept.settings.items() if k != 'data.limit'}
        return kept

    def check(self, round_: Round, ahead: Ahead) -> list[str]:
        config = round_.config
        _rules(round_)
        if config.synthesize.problems and searches.by_ray(round_):
            raise UserError(
                'synthesize.problems',
                config.synthesize.problems,
                'not by workers on Ray',
                'first run --stages=synthesize with --config.job.leases=counter',
            )
        return super().check(round_, ahead)

    def run(self, round_: Round, work: Work) -> Figures:
        config = round_.config
        known = problems.problems(round_, known=True)  # a killed run may have written its own
        others = problems.benchmarks(round_, whole=True) if config.eval.benchmarks else {}
        policy = checkpoints.searching_model(round_, 'policy')

        def tell(now: dict[str, float]) -> None:
            work.beat()
            work.line.show(*of_search(now))

        def run_search(asked, share: search.Share, **given):
            share = dataclasses.replace(share, progress=tell)
            return search.run(asked, policy, share=share, **given)

        writer = Writer(
            Overlap({'training': known, **others}, config.data.overlap or WHOLE),
            _rules(round_),
            searches.search_config(config),
            work.folder,
            run_search,
            round_.number,
            searches.synthesis_seed(round_),
            config.job.leases,
        )
        made, counts = writer.write(known)
        if not hosts.is_first():
            return {}
        data.write_json_items(map(Problem.to_dict, made), work.folder / WRITTEN)
        return {**counts, 'tokens': tokens(work.folder)}

    def describe(self, figures: Figures) -> str:
        known = 'written', 'new', 'kept', 'tokens'
        dropped = [f'{n:,} {why}' for why, n in figures.items() if why not in known]
        text = (
            f'{figures.get("kept", 0):,} of {figures["written"]:,} written problems kept, '
            f'{figures["tokens"]:,} tokens generated'
        )
        return text + (f'; dropped: {", ".join(dropped)}' if dropped else '')

    def results(self, figures: Figures) -> dict[str, str]:
        return {}


@dataclasses.dataclass(frozen=True)
class Rules:
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
            raise UserError('agree', self.agree, f'needs at most samples={self.samples}')


def _rules(round_: Round) -> Rules:
    with errors.of_setting('synthesize'):
        return Rules(**round_.config.synthesize)


@dataclasses.dataclass(frozen=True)
class Writer:
    """Writes problems and keeps those whose answer is certain enough.

    Attributes:
      overlap: finds what is known or in a benchmark; what is new is added to it.
      rules: how problems are made.
      settings: of the policy's solutions; its step_tokens and prompt do not count for the texts,
        its tokens for neither.
      folder: gets the stores `written` and `solved`.
      run_search: search.run with the policy: (problems, config=, seed=, trees=, share=)
        -> Records.
      number: of the round; with `seed` it decides what is shown.
      seed: of the samples.
      leases: how processes share them out, as of `leases.dealt`.
    """

    overlap: Overlap
    rules: Rules
    settings: search.Config
    folder: pathlib.Path
    run_search: Callable[..., Iterable[Record]]
    number: int = 1
    seed: int = 0
    leases: str = COUNTER

    def write(self, known: Sequence[Problem]) -> tuple[list[Problem], collections.Counter]:
        """Returns the new problems, and counts: written, dropped for which reason, kept.

        Of several processes the first one has them; the others return no problems.

        known: seed problems; none of the new ones is like one of them.
        """
        rules, seed, number = self.rules, self.seed, self.number
        solving = dataclasses.replace(
            search.sampled(self.settings), use_ground_truth=False, tokens=0
        )
        prompts = [_prompt(known, rules, f'{seed} {number} {i}') for i in range(rules.problems)]
        writing = dataclasses.replace(solving, prompt='whole', step_tokens=rules.tokens)
        self._sample(prompts, writing, 'written', 1)
        texts = self._read(prompts, 'written', 1, written)
        counts: collections.Counter = collections.Counter(written=len(prompts))
        drafts: list[Problem] = []
        for prompt in prompts:
            question = texts[prompt.index, 0]
            reason = _refused(question, self.overlap)
            counts[reason or 'new'] += 1
            if not reason:
                index = ROUND_INDEX * number + prompt.index
                drafts.append(Problem(index, question, '', source='synthetic', synthetic=True))
                self.overlap.add('new', drafts[-1])
        self._sample(drafts, solving, 'solved', rules.samples)
        if not hosts.is_first():
            return [], counts
        answers = self._read(drafts, 'solved', rules.samples, lambda tree: tree.best_answer()[0])
        kept = []
        for draft in drafts:
            tried = (answers[draft.index, tree] for tree in range(rules.samples))
            answer, agree = agreed([answer for answer in tried if answer])
            counts['answers differ' if agree < rules.agree else 'kept'] += 1
            if agree >= rules.agree:
                kept.append(dataclasses.replace(draft, answer=answer))
        return kept, counts

    def _sample(
        self, asked: Sequence[Problem], config: search.Config, store_name: str, trees: int
    ) -> None:
        """Searches and stores the problems' trees that are not stored yet.

        Of several processes each searches its share.
        """
        wanted = {(problem.index, tree) for problem in asked for tree in range(trees)}
        folder = self.folder / store_name
        with data.TreeStore(folder, writer=jax.process_index()) as store:
            done = frozenset(store.keys())
            if done and store[min(done)].seed not in (None, self.seed):
                raise UserError(
                    str(self.folder),
                    expected='begun by an earlier version, under another seed',
                    remedy='delete it',
                )
            if wanted - done:
                items = search.items(asked, range(trees))
                leases = dealt(items, '/'.join(folder.parts[-3:]), self.leases)
                share = search.Share(skip=done, leases=leases)
                found = self.run_search(
                    asked, config=config, seed=self.seed, trees=trees, share=share
                )
                for record in found:
                    store.append(record)
            store.meet()

    def _read(
        self, asked: Sequence[Problem], store_name: str, trees: int, of: Callable[[Record], T]
    ) -> dict[tuple[int, int], T]:
        """`of` each tree of the problems: whole ones would not fit."""
        wanted = [(problem.index, tree) for problem in asked for tree in range(trees)]
        folder = self.folder / store_name
        with data.TreeStore(folder, writer=jax.process_index()) as store:
            return {record.key: of(record) for record in store.unordered(wanted)}


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
    found = votes.count(answers)
    return answers[found.winner], int(found.of(found.winner))


def written(tree: Record) -> str:
    """The problem that a tree of one sample holds; '' where it was not brought to an end."""
    text = tree.texts[1].strip() if len(tree.texts) > 1 else ''
    if not text.endswith(steps.ANSWER_END):
        return ''
    return ' '.join(text.removesuffix(steps.ANSWER_END).split())


def _prompt(known: Sequence[Problem], rules: Rules, key: str) -> Problem:
    chosen = random.Random(key).sample(known, min(rules.shown, len(known)))
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
