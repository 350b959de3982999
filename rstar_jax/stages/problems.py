"""The problems of a round: those that it searches, and those that it is measured by."""

import collections
import itertools
from collections.abc import Iterable, Iterator

from ml_collections import ConfigDict

from rstar_jax import data, evals
from rstar_jax.data import arithmetic, files
from rstar_jax.data.overlap import Overlap
from rstar_jax.data.problem import Problem
from rstar_jax.settings import errors
from rstar_jax.settings.errors import UserError
from rstar_jax.settings.table import ARITHMETIC
from rstar_jax.stages.round import Round

ARITHMETIC_TESTS = 500  # never trained on, however many of them are used
ARITHMETIC_TRAIN = 1000  # where config.data.limit does not say
WRITTEN = 'problems.json'  # in the folder `synthesize`, those that the policy has written
ROUND_INDEX = 1_000_000_000  # their indices begin at so many times the round's number
EVERY = 'train on others, or on these all the same with --config.data.overlap=0'


def problems(round_: Round, known: bool = False) -> list[Problem]:
    """The problems that the round searches: {index, question, answer}; see `split`."""
    return split(round_, known)[0]


def split(
    round_: Round, known: bool = False
) -> tuple[list[Problem], dict[int, str], collections.Counter]:
    """The problems that the round searches, {index: benchmark} of those left out of them, counts.

    Counted is how many were read, used, and dropped for which reason; see data.load_problems.

    known: those that are known before the round begins, in their place: without those that it
      writes itself, with those that earlier rounds have solved.
    """
    config = round_.config
    path = config.data.problems
    if not path:
        raise UserError(
            'data.problems',
            '',
            'needs problems: a JSON, JSONL or parquet file, or a name such as '
            'hf:AI-MO/NuminaMath-CoT or tfds:rstar_problems/gsm8k_train',
        )
    counts: collections.Counter = collections.Counter()
    solved = frozenset() if known else solved_before(round_)

    def unsolved(rows: Iterable[Problem]) -> Iterator[Problem]:
        for problem in rows:
            counts['rows'] += 1
            if data.question_id(problem.question) not in solved:
                yield problem
            else:
                counts['solved before'] += 1

    if path == ARITHMETIC:
        limit = config.data.limit or ARITHMETIC_TRAIN
        found = list(itertools.islice(unsolved(world(config).train), limit))
    else:
        chosen = config.data.sources, config.data.levels, config.data.answers
        with errors.of_setting('data'):
            selection = data.Selection(*chosen, solved)
        found = data.load_problems(
            path,
            config.data.limit or None,
            folder=config.data.folder,
            selection=selection,
            counts=counts,
        )
    kept, left_out = overlap(round_).split(found)
    made = list(unsolved(written(round_, round_.number + (not known))))
    if not found and not made:
        remedy = f'raise --config.data.solved={config.data.solved}, or 0 for all'
        raise UserError('data.problems', path, 'earlier rounds have solved every problem', remedy)
    if found and not kept:
        names = ', '.join(sorted(set(left_out.values())))
        raise UserError('data.problems', path, f'every problem is in a benchmark ({names})', EVERY)
    kept += made
    counts['used'] = len(kept)
    counts['in a benchmark'] = len(left_out)
    return kept, left_out, counts


def solved_before(round_: Round) -> frozenset[int]:
    """data.question_id of the problems that earlier rounds have solved often enough."""
    if not round_.config.data.solved:
        return frozenset()
    found: collections.Counter = collections.Counter()
    for folder in round_.earlier('search'):
        with data.TreeStore(folder, writer=None) as store:
            found.update(facts.question for _, facts in store.facts() if facts.solved)
    return frozenset(key for key, n in found.items() if n >= round_.config.data.solved)


def written(round_: Round, end: int) -> list[Problem]:
    """The problems that policies have written, in the rounds before number `end`."""
    found = []
    for number in range(1, end):
        made = round_.root / f'round{number}' / 'synthesize' / WRITTEN
        if made.exists():
            found += [Problem.of(row) for _, row in files.read_json_items(made)]
    return found


def overlap(round_: Round) -> Overlap:
    """Finds the problems of the round's benchmarks in others; none where data.overlap is 0.

    The built-in problems and those to test on have no question in common.
    """
    config = round_.config
    if not config.data.overlap or not config.eval.benchmarks:
        return Overlap({}, 1)
    try:
        found = benchmarks(round_, whole=True)
    except UserError as error:
        where = 'looked for in the training problems; not with --config.data.overlap=0'
        error.expected += f' ({where})'
        raise
    if config.data.problems == ARITHMETIC:
        found.pop(ARITHMETIC, None)
    return Overlap(found, config.data.overlap)


def world(config: ConfigDict) -> arithmetic.World:
    """The built-in problems and demonstrations."""
    return arithmetic.world(
        demonstrations=config.bootstrap.demonstrations,
        train=max(config.data.limit, ARITHMETIC_TRAIN),  # a round that searches more keeps all
        test=ARITHMETIC_TESTS,
        seed=config.seed,
    )


def benchmarks(round_: Round, whole: bool = False) -> dict[str, list[Problem]]:
    """The problems to evaluate on, by the name of their benchmark; whole: beyond eval.limit too."""
    settings = round_.config.eval
    asked = ARITHMETIC in (name.strip() for name in settings.benchmarks.split(','))
    # As many problems as data.limit says are made with them: not where nobody asks.
    builtin = {ARITHMETIC: world(round_.config).test if asked else []}
    limit = None if whole else settings.limit
    with errors.of_setting('eval'):
        return evals.benchmarks.load(settings.benchmarks, round_.config.data.folder, limit, builtin)


def names(benchmarks: Iterable[str]) -> str:
    """Of some problems, each once."""
    return ', '.join(sorted(set(benchmarks)))
