"""The formats that others read: trees, SFT and preference data of the released code, and TRL's.

Exports are written as they come and appear whole or not at all; they return the number of items.
SFT examples, {query, response}, and pairs, {prompt, pos, neg, pos_count, neg_count}, are written as
they are: `files.write_json_items`.
Imports are generators, so that a file need not fit into memory (JSONL; JSON lists must).
"""

import itertools
import os
from collections.abc import Iterable, Iterator
from typing import Any

from rstar_jax.data import files, rows
from rstar_jax.data.annotated import Annotated, Grade, annotate, leading
from rstar_jax.data.examples import KINDS
from rstar_jax.data.record import Record
from rstar_jax.data.trees import TreeStore
from rstar_jax.settings.errors import UserError

Path = str | os.PathLike
Item = dict[str, Any]


def export_trees(trees: Iterable[Item | Record], path: Path) -> int:
    """Writes trees as JSONL: the problem's fields and `rstar`, {tag: node}."""
    dicts = (tree.to_interchange() if isinstance(tree, Record) else tree for tree in trees)
    return files.write_json_items(dicts, path)


def import_trees(path: Path) -> Iterator[Item]:
    """Reads trees, as interchange dicts; lines without a tree (summaries) are skipped.

    Raises:
      UserError: not JSON; no tree in the file.
    """
    found = False
    for _, item in files.read_json_items(path):
        if 'rstar' in item:
            found = True
            yield item
    if not found:
        raise UserError(f"{path}: holds no trees; expected JSONL objects with a field 'rstar'")


def store_trees(trees: Iterable[Item], store: TreeStore, grade: Grade | None = None) -> int:
    """Puts interchange trees into a TreeStore; returns how many.

    The trees of one problem are numbered in the order in which they come, from 0. Which answers
    are correct is decided as in curation (data/annotated.py), by the reward or by `grade`.
    """
    numbers: dict[int, int] = {}
    count = 0
    for tree in trees:
        index = tree.get('index')
        if isinstance(index, bool) or not isinstance(index, int):
            raise UserError(f'tree with index {index!r}: expected an integer')
        annotated = annotate(tree, grade)
        record = Record.from_interchange(tree, numbers.get(index, 0))
        numbers[index] = record.tree + 1
        count += store.append(_with_verdicts(record, annotated))
    return count


def _with_verdicts(record: Record, annotated: Annotated) -> Record:
    """The record with the verdicts of annotated.py; both order nodes by tag, in different ways."""
    by_path = dict(zip(_paths(annotated.parent), annotated.verdict))
    record.correct[:] = [by_path[path] == 1 for path in _paths(record.parent.tolist())]
    return record


def _paths(parent: list[int]) -> list[tuple[int, ...]]:
    """Each node's place: the ordinals of the children on its way."""
    paths: list[tuple[int, ...]] = []
    born = [0] * len(parent)
    for above in parent:
        paths.append((*paths[above], born[above]) if above >= 0 else ())
        born[above] += above >= 0
    return paths


def import_sft(path: Path) -> Iterator[Item]:
    """Reads {query, response} from a JSON list or JSONL."""
    return _items(rows.read(path), dict.fromkeys(KINDS['sft'], str))


def import_preference(path: Path) -> Iterator[Item]:
    """Reads {prompt, pos, neg, pos_count, neg_count} from a JSON list or JSONL."""
    return _preference(path, rows.read(path))


def _preference(path: Path, found: Iterable[rows.Row]) -> Iterator[Item]:
    kinds = {'prompt': str, 'pos': str, 'neg': str, 'pos_count': int, 'neg_count': int}
    for item in _items(found, kinds):
        if item['pos_count'] < 1 or item['neg_count'] < 1:
            raise UserError(
                f'{path}: pos_count {item["pos_count"]}, neg_count {item["neg_count"]}: '
                'expected at least 1 each'
            )
        yield item


def import_pairs(path: Path) -> Iterator[Item]:
    """Reads pairs in the released form or, where its first item has `chosen`, in TRL's."""
    found = rows.read(path)
    first = list(itertools.islice(found, 1))
    found = itertools.chain(first, found)  # not from the start: a JSON list is read as a whole
    is_trl = any('chosen' in item for _, item in first)
    return _trl_preference(found) if is_trl else _preference(path, found)


def export_trl_preference(pairs: Iterable[Item], path: Path) -> int:
    """Writes TRL's preference form, JSONL of {prompt, chosen, rejected}; weights are not in it."""
    items = ({'prompt': p['prompt'], 'chosen': p['pos'], 'rejected': p['neg']} for p in pairs)
    return files.write_json_items(items, path)


def import_trl_preference(path: Path) -> Iterator[Item]:
    """Reads {prompt, chosen, rejected} as pairs of weight 1."""
    return _trl_preference(rows.read(path))


def _trl_preference(found: Iterable[rows.Row]) -> Iterator[Item]:
    for item in _items(found, {'prompt': str, 'chosen': str, 'rejected': str}):
        pos, neg = item['chosen'], item['rejected']
        yield {'prompt': item['prompt'], 'pos': pos, 'neg': neg, 'pos_count': 1, 'neg_count': 1}


def _stepwise(tree: Item | Record) -> Iterator[Item]:
    annotated = annotate(tree)
    trajectories = list(annotated.trajectories())
    leads = leading(trajectories)
    for trajectory in trajectories:
        yield {
            'prompt': annotated.problem.question,
            'completions': [annotated.texts[node] for node in trajectory.nodes],
            'labels': [node in leads for node in trajectory.nodes],
        }


def export_trl_stepwise(trees: Iterable[Item | Record], path: Path) -> int:
    """Writes TRL's stepwise form, JSONL of {prompt, completions, labels}.

    One for each trajectory that ends in an answer: `prompt` is the question, `completions` the
    steps' texts, and a step's label whether a correct answer was reached through it
    (annotated.leading).
    """
    return files.write_json_items((item for tree in trees for item in _stepwise(tree)), path)


def _items(found: Iterable[rows.Row], kinds: dict[str, type]) -> Iterator[Item]:
    """The named fields of each item, checked; others are left out."""
    for place, item in found:
        wrong = [key for key in kinds if not isinstance(item.get(key), kinds[key])]
        if wrong:
            expected = ', '.join(f'{key} ({kind.__name__})' for key, kind in kinds.items())
            raise UserError(f'{place}: no usable {wrong[0]}; expected the fields {expected}')
        yield {key: item[key] for key in kinds}


IMPORTS = {'sft': import_sft, 'pairs': import_pairs}
