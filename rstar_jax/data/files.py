"""Files of records: ArrayRecord, JSON lists and JSONL; parquet files are read.

JSON is written whole or not at all. An ArrayRecord file is written under a temporary name, in a
block of `atomic.replacing` or until its whole set is there.
"""

import contextlib
import json
import os
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from array_record.python import array_record_module

from rstar_jax.job import atomic
from rstar_jax.settings.errors import UserError, one_line

# One record a group: any record can be read alone. zstd 3 writes faster than the
# default brotli, at nearly its size.
WRITER_OPTIONS = 'group_size:1,zstd:3'
READER_OPTIONS = 'readahead_buffer_size:0,max_parallelism:0'
READER_BUFFER = 1 << 16
READ_AT_ONCE = 64


class RecordWriter(contextlib.AbstractContextManager):
    """Writes one ArrayRecord file; use as a context manager, which closes it."""

    def __init__(self, path: str | os.PathLike):
        self._writer = array_record_module.ArrayRecordWriter(os.fspath(path), WRITER_OPTIONS)
        self.count = 0

    def write(self, record: bytes) -> None:
        self._writer.write(record)
        self.count += 1

    def close(self) -> None:
        self._writer.close()

    def __exit__(self, *_: object) -> None:
        self.close()


class RecordReader:
    """Random access to the records of one ArrayRecord file.

    Raises:
      FileNotFoundError: there is no such file.
      UserError: the file is not a whole ArrayRecord file.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = pathlib.Path(path)
        if not self.path.exists():
            raise FileNotFoundError(self.path)
        with self._damage():
            self._reader = array_record_module.ArrayRecordReader(
                os.fspath(path), READER_OPTIONS, file_reader_buffer_size=READER_BUFFER
            )
            if not self._reader.ok():
                self._reader.read([0])  # says what is wrong with it
                raise RuntimeError('unreadable')
            self._count = self._reader.num_records()

    @contextlib.contextmanager
    def _damage(self) -> Iterator[None]:
        try:
            yield
        except (RuntimeError, ValueError, IndexError) as error:
            expected = f'not a readable ArrayRecord file ({one_line(error, None)})'
            remedy = 'delete it, what it held is made again'
            raise UserError(str(self.path), expected=expected, remedy=remedy) from error

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, position: int) -> bytes:
        return self.read([position])[0]

    def read(self, positions: Sequence[int]) -> list[bytes]:
        """Several records: together they take a tenth of the time."""
        for position in positions:
            if not 0 <= position < self._count:
                raise IndexError(position)
        with self._damage():
            return self._reader.read(list(positions)) if positions else []

    def __iter__(self) -> Iterator[bytes]:
        for start in range(0, self._count, READ_AT_ONCE):
            yield from self.read(range(start, min(start + READ_AT_ONCE, self._count)))

    def close(self) -> None:
        self._reader.close()


def write_json_items(items: Iterable[Any], path: str | os.PathLike) -> int:
    """Writes items as they come, atomically; returns their number.

    As a JSON list, or as JSONL where `path` ends in '.jsonl'.
    """
    count, as_list = 0, not str(path).endswith('.jsonl')
    with atomic.replacing(path) as temporary, temporary.open('w', encoding='utf-8') as file:
        for item in items:
            if as_list:
                file.write(',\n' if count else '[\n')
            file.write(json.dumps(item, ensure_ascii=False))
            file.write('' if as_list else '\n')
            count += 1
        if as_list:
            file.write('\n]\n' if count else '[]\n')
    return count


def read_json_items(path: str | os.PathLike) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields (place, object) of a JSON list or, line by line, of a JSONL file.

    The place names the item in error messages: 'file.jsonl, line 3' or 'file.json, item 3', both
    counted from 1. Blank lines are skipped.

    Raises:
      UserError: no such file, an empty one, a line that is not JSON, an item that is no object.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        raise UserError(str(path), expected='is a folder', remedy='expected a JSON or JSONL file')
    if not path.exists():
        raise UserError(str(path), expected='no such file', remedy='expected JSON, JSONL, parquet')
    try:
        with path.open(encoding='utf-8-sig') as file:
            start = ''
            while not start and (line := file.readline()):
                start = line.strip()
            if not start:
                remedy = 'expected a JSON list or JSONL'
                raise UserError(str(path), expected='the file is empty', remedy=remedy)
            file.seek(0)
            places = _list_items(path, file) if start.startswith('[') else _lines(path, file)
            for place, item in places:
                if not isinstance(item, dict):
                    found = f'expected a JSON object, found {_shown(item)}'
                    raise UserError(place, expected=found)
                yield place, item
    except UnicodeDecodeError as error:
        expected = f'not UTF-8 text ({error.reason} at byte {error.start})'
        raise UserError(str(path), expected=expected) from None


def read_rows(path: str | os.PathLike, ending: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """As `read_json_items`, of parquet files too; ending: that which the file should have."""
    return _parquet(pathlib.Path(path)) if ending == '.parquet' else read_json_items(path)


def _parquet(path: pathlib.Path) -> Iterator[tuple[str, dict[str, Any]]]:
    import pyarrow
    import pyarrow.parquet

    if not path.is_file():
        raise UserError(str(path), expected='no such file', remedy='expected a parquet file')
    try:
        batches = pyarrow.parquet.ParquetFile(path).iter_batches()
        items = (item for batch in batches for item in batch.to_pylist())
        for number, item in enumerate(items, 1):
            yield f'{path}, row {number}', item
    except (pyarrow.ArrowException, OSError) as error:  # OSError: of a file that is damaged
        expected = f'not a whole parquet file ({one_line(error)})'
        raise UserError(str(path), expected=expected) from None


def _list_items(path: pathlib.Path, file: Iterable[str]) -> Iterator[tuple[str, Any]]:
    text = ''.join(file)
    try:
        items = _parsed(text, path)
    except json.JSONDecodeError as error:
        line = text.split('\n')[error.lineno - 1]
        raise _not_json(f'{path}, line {error.lineno}', line, error) from None
    for number, item in enumerate(items, 1):
        yield f'{path}, item {number}', item


def _lines(path: pathlib.Path, file: Iterable[str]) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            item = _parsed(line, f'{path}, line {number}')
        except json.JSONDecodeError as error:
            raise _not_json(f'{path}, line {number}', line, error) from None
        yield f'{path}, line {number}', item


def _parsed(text: str, place: object) -> Any:
    """The value; halves of characters in it ('\\ud83d', as texts end that were cut) become '?'."""
    try:
        value = json.loads(text)
        if '\\ud' in text.lower():
            whole = json.dumps(value, ensure_ascii=False).encode('utf-8', 'replace')
            value = json.loads(whole)
    except json.JSONDecodeError:
        raise
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits, 100,000 brackets
        raise UserError(str(place), expected=f'cannot be read ({error})') from None
    return value


def _not_json(place: str, line: str, error: json.JSONDecodeError) -> UserError:
    expected = f'not JSON ({error.msg}): {_shown(line.strip())}'
    return UserError(place, expected=expected, remedy='expected a list of objects, or one a line')


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return repr(text if len(text) <= 60 else text[:57] + '...')
