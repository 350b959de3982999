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

from rstar_jax.data import files, problem_sets
from rstar_jax.data.problem_sets import HUB, TFDS
from rstar_jax.settings.errors import UserError, one_line

Row = tuple[str, dict[str, Any]]


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
    return files.read_rows(text, pathlib.PurePath(text).suffix)


def _hub(source: str, folder: pathlib.Path) -> Iterator[Row]:
    if importlib.util.find_spec('datasets') is None:
        raise UserError(
            source, expected='needs the package datasets', remedy='pip install datasets'
        )
    import datasets

    name, split = _with_split(source.removeprefix(HUB), 'train')
    name, _, config = name.partition(':')
    if not name:
        raise UserError(source, expected='names no dataset, as hf:AI-MO/NuminaMath-CoT does')
    path = folder / name
    try:
        rows = datasets.load_dataset(
            str(path) if path.is_dir() else name, config or None, split=split
        )
    except Exception as error:  # network, authorisation, no such name, configuration or split
        reason = f'{type(error).__name__}: {one_line(error)}'
        expected = f'neither in {path} nor had from the hub ({reason})'
        raise UserError(source, expected=expected) from None
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
        if name.partition('/')[0] == problem_sets.OURS:
            from rstar_jax.data.rstar_problems import builder as ours

            builder = ours.prepared(name.partition('/')[2], folder)
        else:
            builder = tfds.builder(
                name, data_dir=folder / problem_sets.PREPARED, file_format='array_record'
            )
            builder.download_and_prepare()
        split = split or next(iter(builder.info.splits))
        rows = builder.as_data_source(split)
    except UserError:
        raise
    except Exception as error:  # network, no such name or split, a builder that needs TensorFlow
        reason = f'{type(error).__name__}: {one_line(error)}'
        raise UserError(source, expected=f'cannot be prepared ({reason})') from None
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
