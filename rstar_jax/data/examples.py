"""A round's training data on disk: ArrayRecord files of JSON records.

    sft-00000-of-00001.array_record    pairs-00000-of-00002.array_record
    trajectories-00000-of-00001.array_record ...

Long sets are cut into several files, because a writer's memory grows with its file's records. The
files take their names together at the end; a set of which some are missing is refused.
"""

import bisect
import collections
import contextlib
import itertools
import json
import os
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from rstar_jax.data import files
from rstar_jax.job import atomic
from rstar_jax.settings.errors import UserError

KINDS = {
    'sft': ('query', 'response'),
    'pairs': ('prompt', 'pos', 'neg', 'pos_count', 'neg_count'),
    'trajectories': ('query', 'steps', 'values', 'labels', 'correct'),
}


# About 200 bytes of index a record are held until a file is closed.
FILE_EXAMPLES = 200_000


class Examples(Sequence[dict[str, Any]]):
    """Stored examples as a sequence that is read as it is used, at any place.

    `list(examples)` holds them all; 1.4 million pairs need not fit into memory.
    """

    def __init__(self, paths: Sequence[str | os.PathLike]):
        self._readers = [files.RecordReader(path) for path in paths]
        self._starts = [0, *itertools.accumulate(len(reader) for reader in self._readers)]

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, item):
        if isinstance(item, slice):
            return self.read(range(*item.indices(len(self))))
        return self.read([item + len(self) if item < 0 else item])[0]

    def read(self, positions: Sequence[int]) -> list[dict[str, Any]]:
        """Several at once, which is faster than one by one."""
        of_file: dict[int, list[int]] = collections.defaultdict(list)  # places in `positions`
        for place, position in enumerate(positions):
            if not 0 <= position < len(self):
                raise IndexError(position)
            of_file[bisect.bisect_right(self._starts, position) - 1].append(place)
        found: list[Any] = [None] * len(positions)
        for file, places in of_file.items():
            start = self._starts[file]
            records = self._readers[file].read([positions[place] - start for place in places])
            for place, record in zip(places, records):
                found[place] = json.loads(record)
        return found

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (json.loads(record) for reader in self._readers for record in reader)


class ExampleWriter(contextlib.AbstractContextManager):
    """Writes examples of one kind; the set appears when the block ends without an error.

    Raises:
      UserError: the kind is not known.
    """

    def __init__(self, directory: str | os.PathLike, kind: str, file_examples: int = FILE_EXAMPLES):
        self.directory = _checked(directory, kind)
        self.directory.mkdir(parents=True, exist_ok=True)
        self.count = 0
        self._kind, self._file_examples = kind, file_examples
        self._parts: list[pathlib.Path] = []
        self._writer: files.RecordWriter | None = None

    def write(self, example: dict[str, Any]) -> None:
        if self._writer is None or self._writer.count == self._file_examples:
            self._next_file()
        self._writer.write(json.dumps(example, ensure_ascii=False).encode())
        self.count += 1

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                if self._writer is None:
                    self._next_file()
                self._end_file()
                publish(self.directory, self._kind, self._parts)
            elif self._writer is not None:
                self._writer.close()
        finally:
            for part in self._parts:
                part.unlink(missing_ok=True)

    def _next_file(self) -> None:
        self._end_file()
        name = f'{atomic.TEMPORARY}{os.getpid()}-{self._kind}-{len(self._parts):05d}.part'
        self._parts.append(self.directory / name)
        self._writer = files.RecordWriter(self._parts[-1])

    def _end_file(self) -> None:
        if self._writer is not None:
            self._writer.close()
            atomic.sync(self._parts[-1])


def publish(directory: pathlib.Path, kind: str, parts: Sequence[pathlib.Path]) -> None:
    """Makes files the set of a kind in a folder, in their order, by new names."""
    number = len(parts)
    names = [f'{kind}-{i:05d}-of-{number:05d}.array_record' for i in range(number)]
    # Old files go first, lest old and new together look like a whole set; a single file takes
    # the place of a single one at once.
    for old in files_of(directory, kind):
        if number > 1 or old.name != names[0]:
            old.unlink()
    for part, name in zip(parts, names):
        part.replace(directory / name)
    atomic.sync(directory)


def store_examples(
    directory: str | os.PathLike, kind: str, examples: Iterable[dict[str, Any]]
) -> int:
    """Writes examples as they come; they appear whole or not at all. Returns their number.

    Args:
      directory: folder; made if absent. Examples of the same kind in it are replaced.
      kind: 'sft' ({query, response}), 'pairs' ({prompt, pos, neg, pos_count, neg_count}) or
        'trajectories' ({query, steps, values, labels, correct}, see curation.py).
      examples: any iterable.
    """
    with ExampleWriter(directory, kind) as out:
        for example in examples:
            out.write(example)
    return out.count


def load_examples(directory: str | os.PathLike, kind: str) -> Examples:
    """Opens what `store_examples` or `curate_to` wrote.

    Raises:
      UserError: nothing of this kind is there, or not all of its files are.
    """
    paths = files_of(_checked(directory, kind), kind)
    if not paths:
        raise UserError(f'{directory}: no {kind}*.array_record here; the curate stage makes them')
    number = int(paths[0].stem.rpartition('-')[2])
    expected = [f'{kind}-{i:05d}-of-{number:05d}.array_record' for i in range(number)]
    if [path.name for path in paths] != expected:
        raise UserError(
            f'{directory}: the {kind} files are not one whole set ({len(paths)} of {number}, or '
            'of several sets); run the curate stage again'
        )
    return Examples(paths)


def _checked(directory: str | os.PathLike, kind: str) -> pathlib.Path:
    if kind not in KINDS:
        raise UserError(f'examples of kind {kind!r}: expected one of {", ".join(KINDS)}')
    return pathlib.Path(directory)


def files_of(directory: pathlib.Path, kind: str) -> list[pathlib.Path]:
    """The files of a kind in a folder, in their order."""
    return sorted(directory.glob(f'{kind}-[0-9]*-of-[0-9]*.array_record'))
