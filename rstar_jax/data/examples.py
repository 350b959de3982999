"""SFT examples and preference pairs on disk: one ArrayRecord file a kind, records in JSON."""

import json
import os
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, overload

from rstar_jax.data import files
from rstar_jax.errors import UserError

KINDS = {
    'sft': ('query', 'response'),
    'pairs': ('prompt', 'pos', 'neg', 'pos_count', 'neg_count'),
}


class Examples(Sequence[dict[str, Any]]):
    """Stored examples as a sequence that is read as it is used, grain's random-access source.

    `list(examples)` holds them all; 1.4 million pairs need not fit into memory. Pickles as its
    path, so that worker processes open the file for themselves.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = pathlib.Path(path)
        self._reader = files.RecordReader(self.path)

    def __len__(self) -> int:
        return len(self._reader)

    @overload
    def __getitem__(self, item: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, item: slice) -> list[dict[str, Any]]: ...
    def __getitem__(self, item):
        if isinstance(item, slice):
            return [self[i] for i in range(*item.indices(len(self)))]
        return json.loads(self._reader[item + len(self) if item < 0 else item])

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return map(json.loads, self._reader)

    def __reduce__(self) -> tuple:
        return Examples, (self.path,)

    def __repr__(self) -> str:
        return f'Examples({os.fspath(self.path)!r}, {len(self)} examples)'


def path_of(directory: str | os.PathLike, kind: str) -> pathlib.Path:
    """The file of one kind ('sft' or 'pairs') in a folder."""
    if kind not in KINDS:
        raise UserError(f'examples of kind {kind!r}: expected one of {", ".join(KINDS)}')
    return pathlib.Path(directory) / f'{kind}.array_record'


def encode(example: dict[str, Any]) -> bytes:
    return json.dumps(example, ensure_ascii=False).encode()


def store_examples(
    directory: str | os.PathLike, kind: str, examples: Iterable[dict[str, Any]]
) -> int:
    """Writes examples as they come; the file appears whole or not at all. Returns their number.

    Args:
      directory: folder; made if absent. A file of the same kind in it is replaced.
      kind: 'sft' ({query, response}) or 'pairs' ({prompt, pos, neg, pos_count, neg_count}).
      examples: any iterable.
    """
    path = path_of(directory, kind)
    with files.replacing(path) as temporary, files.RecordWriter(temporary) as out:
        for example in examples:
            out.write(encode(example))
    return out.count


def load_examples(directory: str | os.PathLike, kind: str) -> Examples:
    """Opens what `store_examples` or `curate_to` wrote.

    Raises:
      UserError: nothing of this kind is there.
    """
    path = path_of(directory, kind)
    try:
        return Examples(path)
    except FileNotFoundError:
        raise UserError(f'{path}: no such file; the curate stage makes it') from None
