"""Problem sets to evaluate on: by name, looked up in a folder, or by path."""

import os
import pathlib
from collections.abc import Mapping, Sequence

from rstar_jax.data import problem_sets
from rstar_jax.data.problem import Problem
from rstar_jax.data.problems import load_problems
from rstar_jax.settings.errors import UserError

Problems = list[Problem]

# Configurations of data sets that say nothing of what is in them.
PLAIN = ('', 'main', 'default')


def load(
    benchmarks: str | Sequence[str],
    folder: str | os.PathLike = 'data',
    limit: int | None = None,
    builtin: Mapping[str, Problems] | None = None,
) -> dict[str, Problems]:
    """Reads the problems of each benchmark.

    Args:
      benchmarks: names or paths, a sequence or one string with commas. A name's file is looked for
        in `folder`; a path is anything with a separator or an ending, and goes by its stem. Data
        sets are named as in `data.rows`: 'hf:...', 'tfds:...'; of the hub's, 'test' is read where
        no split is named.
      folder: holds math500.json, gsm8k_test.json, ...; `problem_sets` has the names, and any other
        file there can be named by its stem as well.
      limit: only the first so many problems of each; None or 0, all.
      builtin: problems that need no file, by name.

    Returns:
      {name: problems}, in the order given.

    Raises:
      UserError: no such benchmark (known names are listed), two of the same name, or as
        `load_problems`.
    """
    if isinstance(benchmarks, str):
        benchmarks = benchmarks.split(',')
    found: dict[str, Problems] = {}
    for benchmark in (b.strip() for b in benchmarks if b.strip()):
        if benchmark.startswith((problem_sets.HUB, problem_sets.TFDS)):
            name = _name_of(benchmark)
            whole = '@' in benchmark or not benchmark.startswith(problem_sets.HUB)
            source = benchmark if whole else f'{benchmark}@test'
            problems = load_problems(source, limit or None, folder=folder)
        elif builtin and benchmark in builtin:
            name, problems = benchmark, list(builtin[benchmark])[: limit or None]
        else:
            name, path = _file_of(benchmark, pathlib.Path(folder), builtin or {})
            problems = load_problems(path, limit or None)
        if name in found:
            expected, remedy = f'{name} comes twice', 'give each file a name of its own'
            raise UserError('benchmarks', ','.join(benchmarks), expected, remedy)
        found[name] = problems
    return found


def _name_of(named: str) -> str:
    """The last part of a data set's name; of 'hf:openai/gsm8k:main@test' gsm8k."""
    _, _, name = named.partition('@')[0].partition(':')
    name, _, config = name.partition(':')
    return name.rpartition('/')[2] if config in PLAIN else config.rpartition('/')[2]


def _file_of(
    benchmark: str, folder: pathlib.Path, builtin: Mapping[str, Problems]
) -> tuple[str, pathlib.Path]:
    path = pathlib.Path(benchmark)
    if benchmark.endswith(problem_sets.ENDINGS) or os.sep in benchmark:
        if not path.is_file():
            raise UserError('benchmarks', benchmark, 'no such file')
        return path.stem, path
    known = benchmark in problem_sets.BENCHMARKS
    stems = problem_sets.SETS[benchmark].stems if known else (benchmark,)
    if found := problem_sets.file_in(folder, stems):
        return benchmark, found
    if known:
        expected = f'no {stems[0]}.json, .jsonl or .parquet in {folder}/'
        remedy = (
            'put it there, set data.folder, give a path, or have it downloaded as '
            f'tfds:rstar_problems/{benchmark}'
        )
        raise UserError('benchmarks', benchmark, expected, remedy)
    others = sorted(p.stem for p in folder.glob('*') if p.suffix in problem_sets.ENDINGS)
    names = ', '.join(dict.fromkeys([*builtin, *problem_sets.BENCHMARKS, *others]))
    remedy = f'known are {names}, or give the path of a file'
    raise UserError('benchmarks', benchmark, 'no such benchmark', remedy)
