"""Where the problems, models and settings of a round come from: paths, built-in ones, the workdir.

A model's path is a Hugging Face directory, a hub name, a .gguf file or a folder that a training
stage wrote; "previous" is what the round before made in this workdir, "tiny" is made on the spot.
"""

import collections
import dataclasses
import pathlib
from typing import Any

import jax
from ml_collections import ConfigDict

from rstar_jax import configs, data, evals, ledger, models, parallel, search
from rstar_jax.data import arithmetic
from rstar_jax.errors import UserError
from rstar_jax.models import tiny
from rstar_jax.models.checkpoint import default_dtype
from rstar_jax.progress import Events
from rstar_jax.training import checkpoints

ARITHMETIC = 'arithmetic'  # the built-in problems, in place of a file
ARITHMETIC_TESTS = 500  # never trained on, however many of them are used
ARITHMETIC_TRAIN = 1000  # where config.data.limit does not say
# Keys of the section `execution`, and what search.Config calls them.
EXECUTION = {
    'isolation': 'isolation',
    'seconds': 'code_seconds',
    'memory_mb': 'code_memory_mb',
    'workers': 'workers',
}
TINY = 'tiny'
NONE = 'none'


@dataclasses.dataclass(frozen=True)
class Round:
    """One round of a run.

    Attributes:
      config: the round's own (`configs.for_round`).
      root: the workdir.
      number: 0 is what the run started from.
      events: where scalars go.
    """

    config: ConfigDict
    root: pathlib.Path
    number: int
    events: Events

    @property
    def folder(self) -> pathlib.Path:
        """Where what the round makes goes."""
        return self.root / f'round{self.number}'

    @property
    def before(self) -> pathlib.Path:
        """The folder of the round whose models this one searches with; its own for round 0."""
        return self.root / f'round{max(0, self.number - 1)}'


def problems(round_: Round) -> list[dict[str, Any]]:
    """The problems that the round searches: {index, question, answer}."""
    return read_problems(round_)[0]


def read_problems(round_: Round) -> tuple[list[dict[str, Any]], collections.Counter]:
    """`problems`, and how many were read, used, and dropped for which reason."""
    config = round_.config
    if config.data.problems == ARITHMETIC:
        made = world(config).train
        return made, collections.Counter(rows=len(made), used=len(made))
    if not config.data.problems:
        raise UserError(
            '--config.data.problems=: needs problems: a JSON, JSONL or parquet file, or a name '
            'such as hf:AI-MO/NuminaMath-CoT or tfds:rstar_problems/gsm8k_train'
        )
    counts: collections.Counter = collections.Counter()
    found = data.load_problems(
        config.data.problems,
        config.data.limit or None,
        folder=config.data.folder,
        selection=data.Selection(config.data.sources, config.data.levels, config.data.answers),
        counts=counts,
    )
    return found, counts


def world(config: ConfigDict) -> arithmetic.World:
    """The built-in problems and demonstrations."""
    limit = config.data.limit or ARITHMETIC_TRAIN
    made = arithmetic.world(
        demonstrations=config.bootstrap.demonstrations,
        train=max(limit, ARITHMETIC_TRAIN),  # a round that searches more keeps all the others
        test=ARITHMETIC_TESTS,
        seed=config.seed,
    )
    return dataclasses.replace(made, train=made.train[:limit])


def search_config(config: ConfigDict, **changes: Any) -> search.Config:
    """The search engine's settings: sections search and execution, with `changes`."""
    fields = {field.name for field in dataclasses.fields(search.Config)}
    given = {key: value for key, value in config.search.items() if key in fields}
    given |= {EXECUTION[key]: value for key, value in config.execution.items()}
    return search.Config(**{**given, **changes})


def searching_policy(round_: Round) -> models.Policy:
    """The policy that the round searches with (for round 0, the one that is evaluated)."""
    config = round_.config
    path = config.policy.path
    if path == configs.PREVIOUS or _bootstrapped(config):
        path = round_.before / 'policy'
        finished(path, 'policy', f'--config.policy.path={config.policy.path}')
    return load_policy(path, config.policy.dtype, _searching_mesh(config))


def searching_ppm(round_: Round) -> models.PPM | None:
    """The PPM that guides the round's search, or None."""
    path = round_.config.ppm.path
    if path in (NONE, ''):
        return None
    if path == configs.PREVIOUS:
        folder = round_.before / 'ppm'
        finished(folder, 'ppm', f'--config.ppm.path={path}')
        path = folder
    return load_ppm(path, round_.config.policy.dtype, _searching_mesh(round_.config))


def _searching_mesh(config: ConfigDict) -> jax.sharding.Mesh:
    return parallel.local_mesh(tensor=config.search.tensor)


def first_policy(config: ConfigDict, dtype: str, mesh=None) -> models.Policy:
    """The model that the bootstrap trains: the built-in one, or the one at policy.path."""
    if config.policy.path == TINY:
        return tiny.policy(arithmetic.vocabulary(), seed=config.seed)
    return load_policy(config.policy.path, dtype, mesh)


def benchmarks(round_: Round) -> dict[str, list[dict[str, Any]]]:
    """The problems to evaluate on, by the name of their benchmark."""
    settings = round_.config.eval
    builtin = {ARITHMETIC: world(round_.config).test}
    return evals.benchmarks.load(settings.benchmarks, settings.folder, settings.limit, builtin)


def evaluated_models(round_: Round) -> tuple[models.Policy, models.PPM | None]:
    """What an evaluation measures: the models that the round made, of round 0 what it is given."""
    if round_.number == 0:
        return searching_policy(round_), searching_ppm(round_)
    how = round_.config.policy.dtype, _searching_mesh(round_.config)
    policy, ppm = round_.folder / 'policy', round_.folder / 'ppm'
    finished(policy, 'policy', f'round {round_.number} eval')
    return load_policy(policy, *how), load_ppm(ppm, *how) if holds_model(ppm) else None


def evaluation_config(round_: Round) -> evals.Config:
    """How an evaluation searches; what a round has trained knows the step form without examples."""
    settings = round_.config.eval
    changes = {} if round_.number == 0 else {'prompt': 'sft'}
    sampled = settings.strategy == 'sampled'
    searches = search_config(
        round_.config,
        strategy='mcts' if sampled else settings.strategy,
        rollouts=settings.rollouts,
        candidates=settings.candidates,
        temperature=settings.temperature,
        **changes,
    )
    searches = search.sampled(searches) if sampled else searches
    return evals.Config(searches, trajectories=settings.trajectories, top=settings.top)


def base_policy(round_: Round, dtype: str, mesh=None) -> models.Policy:
    """The model that SFT starts from: base.path, or else the policy of the first round."""
    config = round_.config
    path = config.base.path
    start = round_.root / 'round0' / 'policy'
    if path in ('', TINY) and holds_model(start):
        return load_policy(start, dtype, mesh)
    if not path and config.policy.path not in (configs.PREVIOUS, TINY):
        path = config.policy.path
    if not path:
        kept = ledger.read_json(round_.root / 'config.json') or {}
        first = kept.get('round1', {})
        path = first.get('base.path') or first.get('policy.path') or ''
    if path in ('', configs.PREVIOUS, TINY):
        raise UserError('--config.base.path=: needs the model that every round trains from')
    return load_policy(path, dtype, mesh)


def holds_model(path: str | pathlib.Path) -> bool:
    """Whether a training stage has written its model there."""
    return (pathlib.Path(path) / 'model.json').is_file()


def load_policy(path: str | pathlib.Path, dtype: str, mesh=None) -> models.Policy:
    """A policy from any of the places of the module's docstring."""
    if not str(path):
        raise UserError(
            '--config.policy.path=: needs a model: a Hugging Face directory, a hub name, a .gguf '
            'file or a policy folder of a workdir'
        )
    if holds_model(path):
        return checkpoints.load_policy(path, dtype or default_dtype(), mesh)
    return models.load(path, dtype or None, mesh=mesh)


def load_ppm(path: str | pathlib.Path, dtype: str, mesh=None) -> models.PPM:
    """A PPM from a training stage's folder or an exported one."""
    if holds_model(path):
        return checkpoints.load_ppm(path, dtype or default_dtype(), mesh)
    return models.load_ppm(path, dtype or None, mesh=mesh)


def _bootstrapped(config: ConfigDict) -> bool:
    return config.bootstrap.demonstrations > 0


def finished(folder: pathlib.Path, what: str, flag: str) -> None:
    """Raises UserError where a training stage has not completed its folder."""
    if not (folder / 'done.json').exists():
        raise UserError(
            f'{flag}: {folder} holds no finished {what}: run that round in this workdir, '
            'or name a model'
        )
