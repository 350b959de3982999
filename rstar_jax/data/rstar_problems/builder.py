"""Builds them: from a file in a folder where there is one, else from where they are published.

    FOLDER/gsm8k_test.json, or a download -> layouts.problem_of
        -> FOLDER/tensorflow_datasets/rstar_problems/gsm8k/VERSION/*.array_record

Nothing here, and nothing of tensorflow-datasets that it uses, imports TensorFlow.
"""

import hashlib
import os
import pathlib
import socket
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from typing import Any

import filelock
import numpy as np
import tensorflow_datasets as tfds

from rstar_jax.data import files, layouts, problem_sets
from rstar_jax.data.problem import Problem
from rstar_jax.data.problem_sets import OURS, PREPARED, SETS, TFDS
from rstar_jax.settings.errors import UserError

FILES = 'files'  # in the data set's metadata: the sha256 of each file that it was made of


class RstarProblems(tfds.core.GeneratorBasedBuilder):
    """One configuration a problem set; see `prepared`."""

    VERSION = tfds.core.Version('1.0.0')
    BUILDER_CONFIGS = [  # noqa: RUF012 (the library's way)
        tfds.core.BuilderConfig(name=name) for name in SETS
    ]

    def __init__(self, *, paths: Sequence[pathlib.Path] = (), **options: Any):
        """paths: local files of the set; it is downloaded where there are none."""
        self._paths = list(paths)
        super().__init__(**options)

    @property
    def published(self) -> problem_sets.ProblemSet:
        return SETS[self.builder_config.name]

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text()
        return tfds.core.DatasetInfo(
            builder=self,
            description=f'{self.builder_config.name}: problems and their answers.',
            homepage=f'https://huggingface.co/datasets/{self.published.hub}',
            features=tfds.features.FeaturesDict(
                {
                    'index': tfds.features.Scalar(np.int64),
                    'question': text,
                    'answer': tfds.features.Sequence(text),
                    **dict.fromkeys(layouts.LABELS, text),
                }
            ),
            metadata=tfds.core.MetadataDict(),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
        paths, count = self._paths, None
        if not paths:
            paths = [pathlib.Path(p) for p in dl_manager.download(list(self.published.urls))]
            count = self.published.count
        self.info.metadata[FILES] = _digests(paths)
        return {self.published.split: self._generate_examples(paths, count)}

    def _generate_examples(
        self, paths: Sequence[pathlib.Path], count: int | None
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        number = 0
        for path, url in zip(paths, self._paths or self.published.urls):
            # A download is kept under a name of the library's, without its ending.
            for place, row in files.read_rows(path, pathlib.PurePath(url).suffix):
                problem = layouts.problem_of(row, place, number)
                number += 1
                if problem is not None:
                    yield problem.index, _features(problem)
        if count not in (None, number):
            raise UserError(
                f'{TFDS}{self.name}/{self.builder_config.name}',
                expected=f'{number} rows came from {self.published.urls[0]}, expected {count}',
                remedy='put a file of the set into data.folder',
            )


def prepared(name: str, folder: str | os.PathLike) -> RstarProblems:
    """The named set, prepared in `folder`: from its file there, else from the network.

    It is prepared once, and again when the file has changed.

    Raises:
      UserError: there is no such set, or neither a file of it nor a network.
    """
    if name not in SETS:
        raise UserError(
            f'{TFDS}{OURS}/{name}', expected=f'no such set; there are {", ".join(SETS)}'
        )
    folder = pathlib.Path(folder)
    path = problem_sets.file_in(folder, SETS[name].stems)
    paths = [path] if path else []
    options = {'data_dir': folder / PREPARED, 'file_format': 'array_record', 'config': name}
    (folder / PREPARED).mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(folder / PREPARED / f'.{name}.lock'):  # of several processes one
        builder = RstarProblems(paths=paths, **options)
        if builder.data_path.exists() and paths:
            if builder.info.metadata.get(FILES) != _digests(paths):
                builder.data_path.rmtree()
                builder = RstarProblems(paths=paths, **options)
        if not paths and not builder.data_path.exists():
            _check_network(name, folder)
        builder.download_and_prepare()
    return builder


def _check_network(name: str, folder: pathlib.Path) -> None:
    """Without a network the download would be tried for minutes."""
    host = urllib.parse.urlsplit(SETS[name].urls[0]).hostname
    if urllib.request.getproxies():  # they resolve names themselves
        return
    try:
        socket.getaddrinfo(host, None)
    except OSError as error:
        names = ', '.join(stem + problem_sets.ENDINGS[0] for stem in SETS[name].stems)
        raise UserError(
            f'{TFDS}{OURS}/{name}',
            expected=f'neither in {folder}/ ({names}, or another ending) nor to be downloaded',
            remedy=f'{host} cannot be reached ({error})',
        ) from None


def _features(problem: Problem) -> dict[str, Any]:
    answer = problem.answer
    labels = {label: str(problem.row.get(label, '')) for label in layouts.LABELS}
    return {
        'index': problem.index,
        'question': problem.question,
        'answer': [answer] if isinstance(answer, str) else answer,
        **labels,
    }


def _digests(paths: Sequence[pathlib.Path]) -> list[str]:
    digests = []
    for path in paths:
        with open(path, 'rb') as file:
            digests.append(hashlib.file_digest(file, 'sha256').hexdigest())
    return digests
