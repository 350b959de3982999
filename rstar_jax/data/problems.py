"""Problems out of data sets of many layouts: {index, question, answer}, selected and counted.

Ours, the released project's and GSM8K's rows have `question` and `answer`. Others (NuminaMath,
MetaMathQA, MATH, AIME, OlympiadBench, Omni-MATH, ...) call the question by another name, and have
an answer of its own, or one at the end of a solution; of these rows only what names a problem is
kept, since every tree carries its problem's fields.
"""

import collections
import dataclasses
import decimal
import fnmatch
import hashlib
import math
import os
import re
from collections.abc import Collection
from typing import Any

from rstar_jax import steps
from rstar_jax.data import rows
from rstar_jax.data.problem import Problem
from rstar_jax.data.trees import question_id
from rstar_jax.grading import normalise, plain
from rstar_jax.settings.errors import UserError

Counts = collections.Counter

# GSM8K writes the worked solution, this mark, and the final answer into one field.
FINAL_MARK = '####'
META_MARK = 'The answer is:'  # MetaMathQA's solutions end so
QUESTIONS = ('question', 'problem', 'query', 'Problem', 'Question')
ANSWERS = ('answer', 'final_answer', 'Answer', 'expected_answer')
SOLUTIONS = ('solution', 'response', 'Solution', 'solutions')
LABELS = {
    'source': ('source', 'data_source'),
    'level': ('level', 'difficulty'),
    'type': ('type', 'subject', 'problem_type', 'subfield'),
}
NO_ANSWERS = ('proof', 'notfound')  # NuminaMath 1.5, in place of an answer
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
                raise UserError(
                    f'--config.data.answers={self.answers}: no kind {kind}; there are '
                    f'{", ".join(ANSWER_KINDS)}'
                )
        if self.levels:
            low, _, high = self.levels.partition('-')
            written = re.fullmatch(r'\d+(\.\d+)?(-\d+(\.\d+)?)?', self.levels)
            if not written or float(low) > float(high or low):
                raise UserError(
                    f'--config.data.levels={self.levels}: expected a range, such as 3-5'
                )

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
        answer, an index that is no integer or comes twice. The message names the place.
    """
    if limit is not None and limit < 1:
        raise UserError(f'limit={limit}: expected at least 1 problem, or None for all')
    counts = Counts() if counts is None else counts
    problems: list[Problem] = []
    places: dict[int, str] = {}
    questions: set[bytes] = set()
    for position, (place, row) in enumerate(rows.read(source, folder)):
        problem = problem_of(row, place, position)
        counts['rows'] += 1
        reason = 'no answer' if problem is None else selection and selection.refused(problem)
        if selection and not reason:
            question = _same(problem.question)
            reason = 'duplicate' if question in questions else ''
            questions.add(question)
        if reason:
            counts[reason] += 1
            continue
        index = problem.index
        if index in places:
            raise UserError(
                f'{place}: index {index} was already used by {places[index]}; '
                'every problem needs its own, or none of them one'
            )
        places[index] = place
        problems.append(problem)
        if len(problems) == limit:
            break
    counts['used'] += len(problems)
    if not problems:
        why = 'expected objects with question and answer'
        if counts['rows']:
            why = f'{told(counts)}; --config.data.sources, levels, answers and solved choose'
        raise UserError(f'{source}: holds no problems; {why}')
    return problems


def told(counts: Counts) -> str:
    """'9 of 12 problems used; dropped: 2 duplicate, 1 level'."""
    dropped = [f'{n:,} {why}' for why, n in counts.items() if why not in ('rows', 'used') and n]
    text = f'{counts["used"]:,} of {counts["rows"]:,} problems used'
    return text + (f'; dropped: {", ".join(dropped)}' if dropped else '')


def problem_of(row: dict[str, Any], place: str, position: int) -> Problem | None:
    """The problem in a row of any layout; None where it has a solution but no answer (proofs).

    position: its index, where the row has none.

    Raises:
      UserError: no question, or neither an answer nor a solution.
    """
    index = _index(row, place, position)
    question = _question(row, place)
    solution = next((row[key] for key in SOLUTIONS if row.get(key)), None)
    given = next((row[key] for key in ANSWERS if row.get(key) not in (None, '', [])), None)
    answer = _answer(given)
    if answer in NO_ANSWERS:
        return None
    if answer is None and isinstance(solution, str):
        answer = _concluded(solution)
    if answer is None:
        if solution is not None:
            return None
        raise UserError(f'{place}: problem without an answer; {_found(row)}')
    problem = {'index': index, 'question': question, 'answer': answer}
    if solution is None and 'question' in row and 'answer' in row:
        kept = {key: value for key, value in row.items() if _can_be_kept(value)}
        return Problem.of({**kept, **_labels(row), **problem})
    problem |= _labels(row)
    if isinstance(row.get('synthetic'), bool):
        problem['synthetic'] = row['synthetic']
    return Problem.of(problem)


def _labels(row: dict[str, Any]) -> dict[str, Any]:
    """What the row tells of LABELS, under our names."""
    labels = {}
    for label, keys in LABELS.items():
        found = next((row[key] for key in keys if row.get(key) not in (None, '')), None)
        if isinstance(found, str | int | float) and _can_be_kept(found):
            labels[label] = found
    return labels


def _can_be_kept(value: Any) -> bool:
    """Whether a tree can be stored, and exported, with it: no date, no integer beyond 64 bits."""
    if isinstance(value, list):
        return all(map(_can_be_kept, value))
    if isinstance(value, dict):
        return all(isinstance(k, str) and _can_be_kept(v) for k, v in value.items())
    if isinstance(value, int):
        return -(2**63) <= value < 2**63
    if isinstance(value, float):  # JSON has no NaN, as pandas writes that there is none
        return math.isfinite(value)
    return value is None or isinstance(value, str)


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


def _index(row: dict[str, Any], place: str, position: int) -> int:
    index = row.get('index')
    if index is None:
        return position
    if isinstance(index, bool) or not isinstance(index, int) or not -(2**63) <= index < 2**63:
        raise UserError(f'{place}: index {index!r}: expected an integer (or no index at all)')
    return index


def _question(row: dict[str, Any], place: str) -> str:
    question = next((row[key] for key in QUESTIONS if row.get(key)), None)
    if not isinstance(question, str) or not question.strip():
        raise UserError(f'{place}: problem without a question; {_found(row)}')
    return question


def _answer(answer: Any) -> str | list[str] | None:
    if isinstance(answer, str):
        return answer.rpartition(FINAL_MARK)[2].strip() or None
    if isinstance(answer, list):
        texts = [one if isinstance(one, str) else _number(one) for one in answer]
        return (texts if len(texts) > 1 else texts[0]) if texts and all(texts) else None
    return _number(answer)


def _number(answer: Any) -> str | None:
    """A number's text; sets that hold numbers write 27 as 27.0."""
    if isinstance(answer, bool) or not isinstance(answer, int | float | decimal.Decimal):
        return None
    if isinstance(answer, int):  # of any size, beyond that of floats
        return str(answer)
    if not math.isfinite(answer):  # as pandas and JSON write that there is none
        return None
    return str(int(answer) if answer == int(answer) else answer)


def _concluded(solution: str) -> str | None:
    """The answer at which a worked solution arrives."""
    answer = steps.boxed(solution)
    for mark in (META_MARK, FINAL_MARK):
        if answer is None and mark in solution:
            answer = solution.rpartition(mark)[2].strip().rstrip('.')
    return answer or None


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


def _found(row: dict[str, Any]) -> str:
    keys = ', '.join(map(str, row)) or 'none'
    return f'expected non-empty fields question and answer, found the fields: {keys}'
