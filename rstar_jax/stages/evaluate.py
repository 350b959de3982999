"""The policy measured on benchmarks, alone and with the search."""

import contextlib
import pathlib
import types
from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict

from rstar_jax import data, evals, models
from rstar_jax.job import ledger
from rstar_jax.job.progress import of_search
from rstar_jax.settings import bound, errors, strategies_of
from rstar_jax.settings.errors import UserError
from rstar_jax.settings.table import EVAL_SEARCH
from rstar_jax.stages import checkpoints, problems, searches
from rstar_jax.stages.round import Round
from rstar_jax.stages.search import Search, check_room, split
from rstar_jax.stages.stage import Ahead, Figures, Stage, Work

Say = Callable[[str], None]
Paths = tuple[checkpoints.Path, checkpoints.Path | None]  # of policy and PPM; None for no PPM


class Evaluate(Stage):
    """Measures the round's policy, of round 0 what it is given, and writes results.json."""

    name = 'eval'
    folder = 'eval'
    needs = ('policy',)
    uses = ('ppm',)
    asked_by = 'eval.benchmarks'
    runs_programs = True

    def inputs(self, round_: Round) -> list[pathlib.Path]:
        policy, ppm = super().inputs(round_)
        found = [policy, ppm] if checkpoints.own_ppm(round_) else [policy]
        return found if round_.number else found + checkpoints.searching_paths(round_)

    def bound(self, round_: Round) -> dict[str, Any]:
        start = {} if round_.number else bound('start', round_.settings)
        return super().bound(round_) | start

    def check(self, round_: Round, ahead: Ahead) -> list[str]:
        problems.benchmarks(round_)
        settings = self.config(round_)
        checkpoints.check_mesh(round_)
        if not round_.number:
            check_room(settings.search, checkpoints.check_searching(round_, ahead))
            return []
        return _learnt(round_, ahead)

    def paths(self, round_: Round, say: Say = lambda text: None) -> Paths:
        """Where the models are that it measures. say: as of `checkpoints.own_ppm`."""
        if round_.number == 0:
            policy, ppm = (checkpoints.searching_path(round_, kind) for kind in ('policy', 'ppm'))
            return policy, ppm
        checkpoints.finished(round_.folder / 'policy', 'policy', self.label(round_.number))
        return round_.folder / 'policy', checkpoints.own_ppm(round_, say)

    def models(self, round_: Round, say: Say = print) -> tuple[Any, Any]:
        """These models.

        Where workers on Ray load them, they have nothing here but `config`.
        """
        config = round_.config
        if searches.by_ray(round_):
            return tuple(_shape(config, path) for path in self.paths(round_, say))
        if round_.number == 0:
            return tuple(checkpoints.searching_model(round_, kind) for kind in ('policy', 'ppm'))
        policy, ppm = self.paths(round_, say)
        made = checkpoints.load_to_search(config, policy, 'policy')
        return made, None if ppm is None else checkpoints.load_to_search(config, ppm, 'ppm')

    def prompt(self, round_: Round) -> str:
        """The form of the prompts; what a round has trained knows the step form by itself."""
        if round_.number:
            return 'sft'
        return round_.config.eval.prompt or round_.config.search.prompt

    def config(self, round_: Round) -> evals.Config:
        """How it searches: by its own settings, whatever the round's search has."""
        config, settings = round_.config, round_.config.eval
        own = {key: settings[key] for key in EVAL_SEARCH}
        own |= {'strategy': 'mcts', 'prompt': self.prompt(round_), 'use_ground_truth': False}
        own['tokens'] = 0
        with errors.of_setting('eval'):
            return evals.Config(
                searches.search_config(config, 'eval', **own),
                strategies=strategies_of(settings.strategies),
                trajectories=settings.trajectories,
                samples=settings.samples,
                mean_tokens=settings.mean_tokens,
            )

    def run(self, round_: Round, work: Work) -> Figures:
        say = work.line.say

        def tell(now: dict[str, Any]) -> None:
            work.beat()
            work.line.show(*of_search(now, f'{now["benchmark"]}, {now["kind"]}: '))

        policy, judge = self.models(round_, say)
        config = self.config(round_)
        guided = [name for name in config.strategies if name in evals.GUIDED]
        if judge is None and guided:
            say(f'{", ".join(guided)}: left out, as there is no PPM (unguided needs none)')
        with searches.of_settings('eval'):
            results = evals.run(
                policy,
                judge,
                problems.benchmarks(round_),
                config,
                round_.config.seed,
                round_number=self.number(round_),
                directory=work.folder,
                progress=tell,
                run_search=self._on_ray(round_, say) if searches.by_ray(round_) else None,
                leases=round_.config.job.leases,
                say=say,
            )
        benchmarks = results['benchmarks']
        if self.number(round_) is not None:
            for name, row in benchmarks.items():
                for strategy, figures in row['strategies'].items():
                    round_.events.add(f'eval/{name}/{strategy}', figures, round_.number)
        return benchmarks

    def number(self, round_: Round) -> int | None:
        """Of the round, as results.json has it."""
        return round_.number

    def _on_ray(self, round_: Round, say: Say) -> Callable:
        """What stands in for `search.run` of these models."""
        policy, ppm = self.paths(round_)
        run = searches.on_ray(round_.config, say)

        def stand_in(problems, _, judge, **given):
            """Whether the PPM guides a strategy, the evaluation knows."""
            return run(problems, policy, None if judge is None else ppm, **given)

        return stand_in

    def describe(self, figures: Figures) -> str:
        return ', '.join(f'{name}: {row["problems"]:,} problems' for name, row in figures.items())

    def results(self, figures: Figures) -> Mapping[str, str]:
        return {'results': 'results.json'}


class EvaluateBase(Evaluate):
    """Measures the model that every round trains from, where that is not what the run begins with.

    It belongs to no round: its results are in base/eval.
    """

    name = 'base'
    called = Evaluate.name

    def place(self, round_: Round) -> pathlib.Path:
        return round_.root / 'base' / self.folder

    def label(self, number: int) -> str:
        return 'base eval'

    def inputs(self, round_: Round) -> list[pathlib.Path]:
        return [pathlib.Path(round_.config.base.path)]

    def bound(self, round_: Round) -> dict[str, Any]:
        return Stage.bound(self, round_)

    def check(self, round_: Round, ahead: Ahead) -> list[str]:
        settings = self.config(round_)
        path = checkpoints.base_path(round_)
        check_room(settings.search, ahead.tokenizer(path, 'policy', '--config.base.path'))
        return []

    def paths(self, round_: Round, say: Say = lambda text: None) -> Paths:
        return checkpoints.base_path(round_), None

    def models(self, round_: Round, say: Say = print) -> tuple[Any, Any]:
        path, _ = self.paths(round_)
        if searches.by_ray(round_):
            return _shape(round_.config, path), None
        return checkpoints.load_to_search(round_.config, path, 'policy'), None

    def prompt(self, round_: Round) -> str:
        return round_.config.eval.prompt or 'few_shot'

    def number(self, round_: Round) -> int | None:
        return None


def _shape(config: ConfigDict, path: checkpoints.Path | None) -> Any:
    """What stands for the model at a path; None for no PPM."""
    if checkpoints.is_endpoint(path):
        return checkpoints.endpoint(config)
    return None if path is None else types.SimpleNamespace(config=models.read_config(path))


def _learnt(round_: Round, ahead: Ahead) -> list[str]:
    """What is told of a complete search of problems that are in a benchmark named since."""
    folder, found = Search().place(round_), {}
    if folder not in ahead.made and ledger.Stage(folder).done is not None:
        with contextlib.suppress(UserError):  # the problems may be gone since
            _, left_out = split(round_, ahead)
            trees = data.TreeStore(folder, writer=None).keys() if left_out else ()
            found = {index: left_out[index] for index, _ in trees if index in left_out}
    if not found:
        return []
    return [
        f'round {round_.number} eval: of the problems that were searched, and may have been '
        f'trained on, {len(found):,} overlap with {problems.names(found.values())}'
    ]
