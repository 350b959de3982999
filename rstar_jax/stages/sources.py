"""Where the problems, models and settings of a round come from: paths, built-in ones, the workdir.

A model's path is a Hugging Face directory, a hub name, a .gguf file or a folder that a training
stage wrote; "previous" is what the round before made in this workdir, "tiny" is made on the spot.
A policy that only searches may be served elsewhere: http://HOST:PORT/v1.
"""

import collections
import dataclasses
import itertools
import pathlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
from ml_collections import ConfigDict

from rstar_jax import data, evals, models, parallel, search
from rstar_jax.data import arithmetic, files
from rstar_jax.data.overlap import Overlap
from rstar_jax.data.problem import Problem
from rstar_jax.job import ledger
from rstar_jax.job.bucket import Place
from rstar_jax.job.progress import Events
from rstar_jax.models import tiny, trained
from rstar_jax.settings import configs, kinds
from rstar_jax.settings.errors import UserError
from rstar_jax.settings.table import ARITHMETIC, NONE, TINY
from rstar_jax.stages import synthesis

ARITHMETIC_TESTS = 500  # never trained on, however many of them are used
ARITHMETIC_TRAIN = 1000  # where config.data.limit does not say
# Keys of the section `execution`, and what search.Config calls them.
EXECUTION = {
    'isolation': 'isolation',
    'seconds': 'code_seconds',
    'memory_mb': 'code_memory_mb',
    'workers': 'workers',
}
SEEDS_APART = 1_000_003  # of the searches of two rounds
SYNTHESIS_APART = SEEDS_APART // 2  # of a round's search and its new problems


@dataclasses.dataclass(frozen=True)
class Round:
    """One round of a run.

    Attributes:
      config: the round's own (`configs.for_round`).
      root: the workdir.
      number: 0 is what the run started from.
      events: where scalars go, by default nowhere.
      place: of the workdir in an object store, where it lies in one.
    """

    config: ConfigDict
    root: pathlib.Path
    number: int
    events: Events = dataclasses.field(default_factory=lambda: Events(None))
    place: Place | None = None

    def beat(self, stage: ledger.Stage) -> None:
        """Keeps on disk, and in the store, how far a stage has come; cheap."""
        stage.beat()
        if self.place is not None:
            self.place.push_if_due()

    @property
    def folder(self) -> pathlib.Path:
        """Where what the round makes goes."""
        return self.root / f'round{self.number}'

    @property
    def before(self) -> pathlib.Path:
        """The folder of the round whose models this one searches with; its own for round 0."""
        return self.root / f'round{max(0, self.number - 1)}'

    def folder_of(self, stage: str) -> pathlib.Path:
        """Where what a stage makes goes."""
        root = self.root / kinds.BASE if stage == kinds.BASE else self.folder
        return root / kinds.KINDS[stage].folder

    def later(self, stage: str) -> list[pathlib.Path]:
        """The folders that there are of a stage of later rounds, in the order of these."""
        later = [folder / stage for n, folder in ledger.rounds(self.root) if n > self.number]
        return [folder for folder in later if folder.exists()]


def problems(round_: Round, known: bool = False) -> list[Problem]:
    """The problems that the round searches: {index, question, answer}; see `split_problems`."""
    return split_problems(round_, known)[0]


def split_problems(
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
            '--config.data.problems=: needs problems: a JSON, JSONL or parquet file, or a name '
            'such as hf:AI-MO/NuminaMath-CoT or tfds:rstar_problems/gsm8k_train'
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
        found = data.load_problems(
            path,
            config.data.limit or None,
            folder=config.data.folder,
            selection=data.Selection(*chosen, solved),
            counts=counts,
        )
    kept, left_out = overlap(round_).split(found)
    made = list(unsolved(synthetic(round_, round_.number + (not known))))
    if not found and not made:
        raise UserError(
            f'--config.data.problems={path}: earlier rounds have solved every problem: raise '
            f'--config.data.solved={config.data.solved}, or 0 for all'
        )
    if found and not kept:
        raise UserError(
            f'--config.data.problems={path}: every problem is in a benchmark '
            f'({", ".join(sorted(set(left_out.values())))}): train on others, or on these all the '
            'same with --config.data.overlap=0'
        )
    kept += made
    counts['used'] = len(kept)
    counts['in a benchmark'] = len(left_out)
    return kept, left_out, counts


def solved_before(round_: Round) -> frozenset[int]:
    """data.question_id of the problems that earlier rounds have solved often enough."""
    if not round_.config.data.solved:
        return frozenset()
    found: collections.Counter = collections.Counter()
    for folder in earlier_searches(round_):
        with data.TreeStore(folder, writer=None) as store:
            found.update(facts.question for _, facts in store.facts() if facts.solved)
    return frozenset(key for key, n in found.items() if n >= round_.config.data.solved)


def earlier_searches(round_: Round) -> list[pathlib.Path]:
    """The folders of the trees of the rounds before, in their order."""
    folders = (round_.root / f'round{n}' / 'search' for n in range(1, round_.number))
    return [folder for folder in folders if folder.is_dir()]


def synthetic(round_: Round, end: int) -> list[Problem]:
    """The problems that policies have written, in the rounds before number `end`."""
    found = []
    for number in range(1, end):
        made = round_.root / f'round{number}' / 'synthesize' / synthesis.FILE
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
        raise UserError(
            f'{error} (looked for in the training problems; not with --config.data.overlap=0)'
        ) from None
    if config.data.problems == ARITHMETIC:
        found.pop(ARITHMETIC, None)
    return Overlap(found, config.data.overlap)


def search_seed(round_: Round) -> int:
    """The seed of the round's search: another in each, so that problems are not tried as before."""
    return round_.config.seed + SEEDS_APART * (round_.number - 1)


def synthesis_seed(round_: Round) -> int:
    """The seed of what the round writes: its search is not to find again what has voted there."""
    return search_seed(round_) + SYNTHESIS_APART


def world(config: ConfigDict) -> arithmetic.World:
    """The built-in problems and demonstrations."""
    return arithmetic.world(
        demonstrations=config.bootstrap.demonstrations,
        train=max(config.data.limit, ARITHMETIC_TRAIN),  # a round that searches more keeps all
        test=ARITHMETIC_TESTS,
        seed=config.seed,
    )


def search_config(config: ConfigDict, **changes: Any) -> search.Config:
    """The search engine's settings: sections search and execution, with `changes`."""
    fields = {field.name for field in dataclasses.fields(search.Config)}
    given = {key: value for key, value in config.search.items() if key in fields}
    given |= {EXECUTION[key]: value for key, value in config.execution.items()}
    return search.Config(**{**given, **changes})


def searching_model(
    round_: Round, kind: str
) -> models.Policy | models.PPM | search.Endpoint | None:
    """The policy or the PPM (`kind`) that the round searches with; None for no PPM.

    For round 0, what is evaluated.
    """
    config, path = round_.config, searching_path(round_, kind)
    if path is None:
        return None
    if kind == 'policy' and is_endpoint(path):
        return endpoint(config)
    if path == round_.before / kind:
        finished(path, kind, f'--config.{kind}.path={config[kind].path}')
    how = config.policy.dtype, searching_mesh(config), config.policy.weights
    return load_model(path, kind, *how)


def is_endpoint(path: str | pathlib.Path | None) -> bool:
    """Whether a model's path is the address of a server."""
    return isinstance(path, str) and path.startswith(('http://', 'https://'))


def endpoint(config: ConfigDict) -> search.Endpoint:
    """The server at policy.path."""
    return search.Endpoint(
        url=config.policy.path,
        model=config.policy.model,
        requests=config.policy.requests,
        seconds=config.policy.seconds,
    )


def searching_path(round_: Round, kind: str) -> str | pathlib.Path | None:
    """Where the policy or the PPM of the round's search is, or will be; None for no PPM."""
    path = round_.config[kind].path
    if path == configs.PREVIOUS or (kind == 'policy' and round_.config.bootstrap.demonstrations):
        return round_.before / kind
    return None if kind == 'ppm' and path in (NONE, '') else path


def asked(config: ConfigDict, workdir: str) -> Round:
    """What answers a question: there "previous" is the newest round that has a policy.

    With a first_round of 2 or more it is the one before that.
    """
    root, number = pathlib.Path(workdir), config.first_round
    if number <= 1:
        made = [n for n, folder in ledger.rounds(root) if trained.holds(folder / 'policy')]
        number = 1 + max(made, default=0)
    own = ConfigDict({**config.to_dict(), 'first_round': number})
    return Round(configs.for_round(own, number), root, number)


def searching_mesh(config: ConfigDict) -> jax.sharding.Mesh:
    """This host's devices, as the search uses them."""
    try:
        return parallel.local_mesh(tensor=config.search.tensor)
    except UserError as error:
        raise UserError(f'--config.search.{error}') from None


def first_policy(config: ConfigDict, dtype: str, mesh=None) -> models.Policy:
    """The model that the bootstrap trains: the built-in one, or the one at policy.path."""
    if config.policy.path == TINY:
        return tiny.policy(arithmetic.vocabulary(), seed=config.seed)
    return load_model(config.policy.path, 'policy', dtype, mesh)


def benchmarks(round_: Round, whole: bool = False) -> dict[str, list[Problem]]:
    """The problems to evaluate on, by the name of their benchmark; whole: beyond eval.limit too."""
    settings = round_.config.eval
    asked = ARITHMETIC in (name.strip() for name in settings.benchmarks.split(','))
    # As many problems as data.limit says are made with them: not where nobody asks.
    builtin = {ARITHMETIC: world(round_.config).test if asked else []}
    limit = None if whole else settings.limit
    return evals.benchmarks.load(settings.benchmarks, settings.folder, limit, builtin)


def base_path(round_: Round) -> str | pathlib.Path:
    """Where the model that SFT starts from is, or will be: base.path, or the run's first policy.

    Raises:
      UserError: nothing names one.
    """
    config = round_.config
    start = round_.root / 'round0' / 'policy'
    if config.base.path in ('', TINY) and (config.bootstrap.demonstrations or trained.holds(start)):
        return start
    first = (ledger.read_json(round_.root / 'config.json') or {}).get('round1', {})
    named = config.base.path, config.policy.path, first.get('base.path'), first.get('policy.path')
    for path in named:
        if path and path not in (configs.PREVIOUS, TINY) and not is_endpoint(path):
            return path
    raise UserError('--config.base.path=: needs the model that every round trains from')


def own_ppm(round_: Round, say: Callable[[str], None] = lambda text: None) -> pathlib.Path | None:
    """The PPM that the round has trained from its policy, or None.

    say: gets a line where there is one of an older policy.
    """
    policy, ppm = round_.folder / 'policy', round_.folder / 'ppm'
    if not trained.holds(ppm):
        return None
    if ledger.Stage(ppm, inputs=(policy,)).changed:
        say(f'{ppm} is left out, it was trained from an older policy: --stages=ppm makes it anew')
        return None
    return ppm


def check_model(path: str | pathlib.Path, kind: str, flag: str) -> Any:
    """Raises UserError where no policy or PPM can be read at `path`, without reading its weights.

    kind: 'policy' or 'ppm'. A name of the hub is fetched.

    Returns its tokenizer; None of what a training wrote.
    """
    if trained.holds(path):
        found = trained.about(path)['kind']
        if found != kind:
            raise UserError(f'{flag}={path}: holds a {found}, not a {kind}')
        return None
    if path == TINY:
        raise UserError(
            f'{flag}={TINY}: is made by the bootstrap alone: set --config.bootstrap.demonstrations'
        )
    if not str(path):
        raise UserError(
            f'{flag}=: needs a model: a Hugging Face directory, a hub name, a .gguf file or a '
            f'{kind} folder of a workdir'
        )
    folder = pathlib.Path(path)
    rounds = (folder, *(path for _, path in ledger.rounds(folder)))
    if parts := [one / kind for one in rounds if trained.holds(one / kind)]:
        made = parts[-1]
        raise UserError(f'{flag}={path}: a run, or a round of one, not a model: use {made}')
    try:
        if kind == 'policy' and models.is_ppm(path):
            raise UserError('holds a ppm, not a policy')
        if kind == 'ppm' and folder.is_dir() and not list(folder.glob('value_head.*')):
            raise UserError('a policy, not a PPM: has no value_head.bin')
        return models.check(path, kind == 'ppm')
    except UserError as error:
        raise UserError(f'{flag}={path}: {error}') from None


def load_model(
    path: str | pathlib.Path, kind: str, dtype: str, mesh=None, weights: str = ''
) -> models.Policy | models.PPM:
    """A policy or a PPM (`kind`) from any of the places of the module's docstring.

    weights: as of the setting `policy.weights`.
    """
    if path in ('', TINY):
        check_model(path, kind, f'--config.{kind}.path')
    return models.load_as(kind, path, dtype, mesh=mesh, weights=weights)


def finished(folder: pathlib.Path, what: str, flag: str) -> None:
    """Raises UserError where a training stage has not completed its folder."""
    if not (folder / 'done.json').exists():
        other = 'or name a model' if what in ('policy', 'ppm') else f'--stages={what} comes first'
        raise UserError(
            f'{flag}: {folder} holds no finished {what}: run that round in this workdir, {other}'
        )
