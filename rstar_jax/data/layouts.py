"""Rows of data sets as Problems, whatever their layout.

Ours, the released project's and GSM8K's rows have `question` and `answer`. Others (NuminaMath,
MetaMathQA, MATH, AIME, OlympiadBench, Omni-MATH, ...) call the question by another name, and have
an answer of its own, or one at the end of a solution; of these rows only what names a problem is
kept, since every tree carries its problem's fields.
"""

import decimal
import math
from typing import Any

from rstar_jax import steps
from rstar_jax.data.problem import Problem
from rstar_jax.settings.errors import UserError

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
        raise UserError(place, expected='problem without an answer', remedy=_found(row))
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


def _index(row: dict[str, Any], place: str, position: int) -> int:
    index = row.get('index')
    if index is None:
        return position
    if isinstance(index, bool) or not isinstance(index, int) or not -(2**63) <= index < 2**63:
        expected = f'index {index!r} is no integer'
        raise UserError(place, expected=expected, remedy='number all problems, or none')
    return index


def _question(row: dict[str, Any], place: str) -> str:
    question = next((row[key] for key in QUESTIONS if row.get(key)), None)
    if not isinstance(question, str) or not question.strip():
        raise UserError(place, expected='problem without a question', remedy=_found(row))
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


def _found(row: dict[str, Any]) -> str:
    keys = ', '.join(map(str, row)) or 'none'
    return f'expected non-empty fields question and answer, found the fields: {keys}'
