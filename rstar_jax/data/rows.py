"""Rows of data sets, wherever they lie: files, the Hugging Face hub, tensorflow-datasets.

    problems.jsonl  problems.json  problems.parquet    a file
    hf:NAME[:CONFIG][@SPLIT]                           FOLDER/NAME, else the hub; by `datasets`
    tfds:NAME[/CONFIG][@SPLIT]                         prepared in FOLDER/tensorflow_datasets

A row is a dict; its place names it in error messages.
"""

import importlib.util
import os
import pathlib
from collections.abc import Iterator
from typing import Any

from rstar_jax.data import files
from rstar_jax.settings.errors import UserError, one_line

Row = tuple[str, dict[str, Any]]

HUB, TFDS = 'hf:', 'tfds:'
OURS = 'rstar_problems'  # the builder that comes with this package
PREPARED = 'tensorflow_datasets'  # where, in the folder


def is_named(source: str) -> bool:
    """Whether `source` names a data set and not a file."""
    return source.startswith((HUB, TFDS))


def read(source: str | os.PathLike, folder: str | os.PathLike = 'data') -> Iterator[Row]:
    """Yields (place, row) of a data set.

    Args:
      source: as in the module's text.
      folder: where data sets that are named are looked for and kept.

    Raises:
      UserError: there is no such file or data set, it cannot be had from the network, or it cannot
        be read.
    """
    text = os.fspath(source)
    if text.startswith(HUB):
        return _hub(text, pathlib.Path(folder))
    if text.startswith(TFDS):
        return _tfds(text, pathlib.Path(folder))
    return read_as(text, pathlib.PurePath(text).suffix)


def read_as(path: str | os.PathLike, ending: str) -> Iterator[Row]:
    """`read` of a file, whatever its name, by the ending that it should have."""
    return _parquet(pathlib.Path(path)) if ending == '.parquet' else files.read_json_items(path)


def _parquet(path: pathlib.Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    if not path.is_file():
        raise UserError(f'{path}: no such file; expected a parquet file')
    try:
        batches = pyarrow.parquet.ParquetFile(path).iter_batches()
        items = (item for batch in batches for item in batch.to_pylist())
        for number, item in enumerate(items, 1):
            yield f'{path}, row {number}', item
    except (pyarrow.ArrowException, OSError) as error:  # OSError: of a file that is damaged
        raise UserError(f'{path}: not a whole parquet file ({one_line(error)})') from None


def _hub(source: str, folder: pathlib.Path) -> Iterator[Row]:
    if importlib.util.find_spec('datasets') is None:
        raise UserError(f'{source}: needs the package datasets: pip install datasets')
    import datasets

    name, split = _with_split(source.removeprefix(HUB), 'train')
    name, _, config = name.partition(':')
    if not name:
        raise UserError(f'{source}: names no dataset; expected for example hf:AI-MO/NuminaMath-CoT')
    path = folder / name
    try:
        rows = datasets.load_dataset(
            str(path) if path.is_dir() else name, config or None, split=split
        )
    except Exception as error:  # network, authorisation, no such name, configuration or split
        reason = f'{type(error).__name__}: {one_line(error)}'
        raise UserError(f'{source}: neither in {path} nor had from the hub ({reason})') from None
    rows = rows.remove_columns([name for name, kind in rows.features.items() if _is_media(kind)])
    return ((f'{source}, row {number}', dict(row)) for number, row in enumerate(rows, 1))


def _is_media(kind: Any) -> bool:
    """Whether a column has pictures or sounds: nothing uses them, and reading decodes them."""
    if isinstance(kind, dict):
        return any(map(_is_media, kind.values()))
    if isinstance(kind, list):
        return any(map(_is_media, kind))
    if hasattr(kind, 'feature'):  # a list of it
        return _is_media(kind.feature)
    return getattr(kind, 'decode', False) and type(kind).__name__ != 'Json'


def _tfds(source: str, folder: pathlib.Path) -> Iterator[Row]:
    import tensorflow_datasets as tfds

    name, split = _with_split(source.removeprefix(TFDS), '')
    try:
        if name.partition('/')[0] == OURS:
            from rstar_jax.data.rstar_problems import builder as ours

            builder = ours.prepared(name.partition('/')[2], folder)
        else:
            builder = tfds.builder(name, data_dir=folder / PREPARED, file_format='array_record')
            builder.download_and_prepare()
        split = split or next(iter(builder.info.splits))
        rows = builder.as_data_source(split)
    except UserError:
        raise
    except Exception as error:  # network, no such name or split, a builder that needs TensorFlow
        reason = f'{type(error).__name__}: {one_line(error)}'
        raise UserError(f'{source}: cannot be prepared ({reason})') from None
    found = ((f'{source}, row {i + 1}', _plain(rows[i])) for i in range(len(rows)))
    # Its features have no way to say that there is none.
    return ((place, {k: v for k, v in row.items() if v not in ('', [])}) for place, row in found)


def _plain(value: Any) -> Any:
    """tensorflow-datasets' bytes and NumPy values as Python's."""
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, bytes):
        return value.decode('utf-8')
    if hasattr(value, 'tolist'):
        value = value.tolist()
    return [_plain(part) for part in value] if isinstance(value, list) else value


def _with_split(name: str, default: str) -> tuple[str, str]:
    name, _, split = name.partition('@')
    return name, split or default
