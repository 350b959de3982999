"""Problem sets: JSON lists and JSONL of {index, question, answer}, GSM8K's own form included."""

import os
from collections.abc import Iterable
from typing import Any

from rstar_jax.data import files
from rstar_jax.errors import UserError

# GSM8K writes the worked solution, this mark, and the final answer into one field.
FINAL_MARK = '####'


def load_problems(path: str | os.PathLike, limit: int | None = None) -> list[dict[str, Any]]:
    """Reads a problem set.

    Args:
      path: a JSON list or JSONL file of objects with `question` and `answer`. Of an answer that
        holds '####' (GSM8K) only what follows the last one is kept. A number becomes its text; a
        list of texts (any of them is right) stays. Other fields are kept as they are.
      limit: read only so many problems, the first ones; what follows is not looked at.

    Returns:
      Dicts with at least `index` (int; the position in the file where the file has none),
      `question` and `answer`.

    Raises:
      UserError: no such file, an empty one, a line that is not JSON, a problem without question or
        answer, an index that is no integer or comes twice. The message names the place.
    """
    if limit is not None and limit < 1:
        raise UserError(f'limit={limit}: expected at least 1 problem, or None for all')
    problems: list[dict[str, Any]] = []
    places: dict[int, str] = {}
    for place, item in files.read_json_items(path):
        problem = {
            **item,
            'index': _index(item, place, len(problems)),
            'question': _question(item, place),
            'answer': _answer(item, place),
        }
        index = problem['index']
        if index in places:
            raise UserError(
                f'{place}: index {index} was already used by {places[index]}; '
                'every problem needs its own, or none of them one'
            )
        places[index] = place
        problems.append(problem)
        if len(problems) == limit:
            break
    if not problems:
        raise UserError(f'{path}: holds no problems; expected objects with question and answer')
    return problems


def export_problems(problems: Iterable[dict[str, Any]], path: str | os.PathLike) -> int:
    """Writes problems as a JSON list, or as JSONL where `path` ends in '.jsonl'."""
    return files.write_json_items(path, problems, as_list=not str(path).endswith('.jsonl'))


def _index(item: dict[str, Any], place: str, position: int) -> int:
    index = item.get('index')
    if index is None:
        return position
    if isinstance(index, bool) or not isinstance(index, int) or not -(2**63) <= index < 2**63:
        raise UserError(f'{place}: index {index!r}: expected an integer (or no index at all)')
    return index


def _question(item: dict[str, Any], place: str) -> str:
    question = item.get('question')
    if not isinstance(question, str) or not question.strip():
        raise UserError(f'{place}: problem without a question; {_found(item)}')
    return question


def _answer(item: dict[str, Any], place: str) -> str | list[str]:
    answer = item.get('answer')
    if isinstance(answer, int | float) and not isinstance(answer, bool):
        return str(answer)
    if isinstance(answer, list) and answer and all(isinstance(a, str) and a for a in answer):
        return answer
    if isinstance(answer, str):
        answer = answer.rpartition(FINAL_MARK)[2].strip()
        if answer:
            return answer
    raise UserError(f'{place}: problem without an answer; {_found(item)}')


def _found(item: dict[str, Any]) -> str:
    keys = ', '.join(map(str, item)) or 'none'
    return f'expected non-empty fields question and answer, found the fields: {keys}'
