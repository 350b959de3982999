"""Problem sets read, selected and counted."""

import collections
import dataclasses
import fnmatch
import hashlib
import os
import re
from collections.abc import Collection
from typing import Any

from rstar_jax.data import layouts, rows
from rstar_jax.data.problem import Problem
from rstar_jax.data.shards import question_id
from rstar_jax.grading import normalise, plain
from rstar_jax.settings.errors import UserError

Counts = collections.Counter

ANSWER_KINDS = ('integer', 'number', 'choice', 'text', 'expression')


@dataclasses.dataclass(frozen=True)
class Selection:
    """Which problems of a set are used; every question is used once, whatever its layout.

    Attributes:
      sources: patterns by commas, such as 'amc_aime,olympiads' or 'MATH_*', of which the problem's
        source or its type must match one; empty: all.
      levels: '3-5' or '5', the difficulty as the set gives it; empty: all.
      answers: kinds of answer by commas, of ANSWER_KINDS; 'number' means integers too; empty: all.
      solved: `question_id` of those that are left out, as they have been solved often enough.
    """

    sources: str = ''
    levels: str = ''
    answers: str = ''
    solved: Collection[int] = frozenset()

    def __post_init__(self) -> None:
        for kind in _split(self.answers):
            if kind not in ANSWER_KINDS:
                known = ', '.join(ANSWER_KINDS)
                raise UserError('answers', self.answers, f'no kind {kind}; there are {known}')
        if self.levels:
            low, _, high = self.levels.partition('-')
            written = re.fullmatch(r'\d+(\.\d+)?(-\d+(\.\d+)?)?', self.levels)
            if not written or float(low) > float(high or low):
                raise UserError('levels', self.levels, 'expected a range, such as 3-5')

    def refused(self, problem: Problem) -> str:
        """Why the problem is not used; '' where it is."""
        if question_id(problem.question) in self.solved:
            return 'solved before'
        if patterns := _split(self.sources):
            names = [problem.source, str(problem.row.get('type', ''))]
            if not any(fnmatch.fnmatchcase(name, p) for name in names for p in patterns):
                return 'source'
        if self.levels:
            low, _, high = self.levels.partition('-')
            level = _level(problem.row.get('level'))
            if level is None or not float(low) <= level <= float(high or low):
                return 'level'
        if kinds := _split(self.answers):
            answer = problem.answer
            kind = answer_kind(answer if isinstance(answer, str) else answer[0])
            if kind not in kinds and not (kind == 'integer' and 'number' in kinds):
                return 'answer kind'
        return ''


def load_problems(
    source: str | os.PathLike,
    limit: int | None = None,
    *,
    folder: str | os.PathLike = 'data',
    selection: Selection | None = None,
    counts: Counts | None = None,
) -> list[Problem]:
    """Reads a problem set.

    Args:
      source: a JSON list, JSONL or parquet file, or a name: 'hf:AI-MO/NuminaMath-CoT',
        'tfds:rstar_problems/gsm8k' (see `rows`). Of an answer that holds '####' (GSM8K) only what
        follows the last one is kept. A number becomes its text; a list of texts (any of them is
        right) stays.
      limit: only so many problems, the first ones that are used; what follows is not looked at.
      folder: where data sets that are named are looked for and kept.
      selection: which problems are used; None: all, questions that come twice among them.
      counts: a Counter to which is added how many 'rows' were seen and 'used', and how many were
        dropped for which reason.

    Returns:
      Problems, all with an answer; `index` is the position in the set where it has none.

    Raises:
      UserError: no such set, an empty one, a line that is not JSON, a problem without question or
        answer, an index that is no integer or comes twice; its argument is the place.
    """
    if limit is not None and limit < 1:
        raise UserError('limit', limit, 'expected at least 1 problem, or None for all')
    counts = Counts() if counts is None else counts
    problems: list[Problem] = []
    places: dict[int, str] = {}
    questions: set[bytes] = set()
    for position, (place, row) in enumerate(rows.read(source, folder)):
        problem = layouts.problem_of(row, place, position)
        counts['rows'] += 1
        reason = 'no answer' if problem is None else selection and selection.refused(problem)
        if selection and not reason:
            question = _same(problem.question)
            reason = 'duplicate' if question in questions else ''
            questions.add(question)
        if reason:
            counts[reason] += 1
            continue
        if (other := places.setdefault(problem.index, place)) != place:
            expected = f'index {problem.index} was already used by {other}'
            raise UserError(place, expected=expected, remedy='each its own, or none of them one')
        problems.append(problem)
        if len(problems) == limit:
            break
    counts['used'] += len(problems)
    if not problems:
        why = 'expected objects with question and answer'
        if counts['rows']:
            why = f'{told(counts)}; see data.sources, levels, answers and solved'
        raise UserError(os.fspath(source), expected='holds no problems', remedy=why)
    return problems


def told(counts: Counts) -> str:
    """'9 of 12 problems used; dropped: 2 duplicate, 1 level'."""
    dropped = [f'{n:,} {why}' for why, n in counts.items() if why not in ('rows', 'used') and n]
    text = f'{counts["used"]:,} of {counts["rows"]:,} problems used'
    return text + (f'; dropped: {", ".join(dropped)}' if dropped else '')


def answer_kind(answer: str) -> str:
    """One of ANSWER_KINDS: what sort of thing the answer is."""
    text = normalise.clean(answer)
    value = plain.number(plain.split_unit(text)[0])
    if value is not None:
        return 'integer' if value.value.denominator == 1 else 'number'
    words = plain.words(text)
    if re.fullmatch(r'\(?[A-J]\)?', text if words is None else words):
        return 'choice'
    return 'expression' if words is None else 'text'


def _same(question: str) -> bytes:
    """The same 16 bytes for questions that differ in spaces and case only."""
    text = ' '.join(question.split()).casefold()
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def _level(level: Any) -> float | None:
    """5 of 5, '5' and 'Level 5'."""
    number = re.search(r'\d+(\.\d+)?', str(level))
    return float(number[0]) if number else None


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(',') if part.strip()]
