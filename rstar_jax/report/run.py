"""What a workdir tells of its run, finished or not, without loading a model or a tree."""

import dataclasses
import json
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from rstar_jax.job import ledger
from rstar_jax.settings.errors import UserError

Results = dict[str, Any]
Figures = dict[str, Any]
BASE = 'base'  # the model that rounds train from: an evaluation of no round, in base/eval
START = ('bootstrap', 'eval')  # what round 0 is made of


EXPECTED = 'expected the --workdir of python -m rstar_jax.main, with a config.json'


class Kind(Protocol):
    """What a report has to know of a stage; those of a run are `stages.STAGES`.

    Attributes:
      name: as settings have it.
      folder: of its round.
      asked_by: the setting without which it has nothing to do; '' for none.
    """

    name: str
    folder: str
    asked_by: str

    def describe(self, figures: Figures) -> str:
        """What it made, in words."""

    def results(self, figures: Figures) -> Mapping[str, str]:
        """{what: path in its folder} of what a user may look for."""


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage that has begun.

    Attributes:
      kind: what it does.
      round: its number.
      folder: where its results lie.
      seconds: spent on it so far.
      figures: what it made; None while it is not complete.
    """

    kind: Kind
    round: int
    folder: pathlib.Path
    seconds: float
    figures: Figures | None

    @property
    def name(self) -> str:
        """Of its kind."""
        return self.kind.name


@dataclasses.dataclass(frozen=True)
class Run:
    """A workdir, read.

    Attributes:
      root: the workdir.
      kinds: the stages that a run may have, in their order.
      settings: {'round1': {'search.rollouts': 8, ...}, ...}.
      stages: all that have begun, in the order in which they are run.
      results: content of every results.json by round, that of the base model first.
      counts: {round: what its curation saw, kept and dropped}.
      trainings: {(round, stage): the lines of its metrics.jsonl}.
      ablations: content of ablations.json, where the workdir is of these.
      called: what it is called in place of the workdir's own name.
    """

    root: pathlib.Path
    kinds: Sequence[Kind]
    settings: Mapping[str, Mapping[str, Any]]
    stages: tuple[Stage, ...]
    results: tuple[Results, ...]
    counts: Mapping[int, Mapping[str, int]]
    trainings: Mapping[tuple[int, str], list[dict[str, Any]]]
    ablations: Mapping[str, Any] | None = None
    called: str = ''

    @property
    def name(self) -> str:
        """What the run is called: as a rule by the workdir's own name."""
        return self.called or self.root.resolve().name

    @property
    def newest(self) -> Mapping[str, Any]:
        """The settings of the last round; empty where there are none."""
        return self.settings[max(self.settings, key=ledger.round_number)] if self.settings else {}

    @property
    def complete(self) -> bool:
        """Whether everything is done that the settings ask for."""
        if self.current is not None or not self.stages:
            return False
        number = max(map(ledger.round_number, self.settings), default=0)
        names = {name.strip() for name in self.newest.get('stages', '').split(',')}
        asked = [
            kind.name
            for kind in self.kinds
            if kind.name in names
            and (kind.name in START if number == 0 else kind.name != 'bootstrap')
            and self.newest.get(kind.asked_by, True)
        ]
        last = self.stages[-1]
        return not asked or (last.round, last.name) == (number, asked[-1])

    @property
    def current(self) -> Stage | None:
        """The stage in progress, or the one at which the run was stopped; None when complete."""
        return next((stage for stage in self.stages if stage.figures is None), None)

    def figures(self, number: int, name: str) -> Figures:
        """What a stage made; empty where it is not complete."""
        found = (s.figures for s in self.stages if (s.round, s.name) == (number, name))
        return next(found, None) or {}


def read(workdir: str | os.PathLike, kinds: Sequence[Kind]) -> Run:
    """Reads a workdir.

    kinds: the stages that a run may have, in their order.

    Raises:
      UserError: it holds no run, or a file in it cannot be read.
    """
    root = pathlib.Path(workdir)
    settings = ledger.read_json(root / 'config.json') or {}
    if not _of_rounds(settings):  # a model's, say
        raise UserError(
            str(root / 'config.json'), expected='not the settings of a run', remedy=EXPECTED
        )
    rounds = ledger.rounds(root)
    ablations = ledger.read_json(root / 'ablations.json')
    if not (rounds or settings or ablations or (root / 'solve').is_dir()):
        raise UserError(str(root), expected='holds no run', remedy=EXPECTED)
    stages = [
        stage
        for number, path in [(0, root / BASE), *rounds]
        for stage in _stages(number, path, kinds)
    ]
    stages.sort(key=lambda stage: (stage.round, kinds.index(stage.kind)))
    trainings = {
        (stage.round, stage.name): _lines(stage.folder / 'metrics.jsonl') for stage in stages
    }
    return Run(
        root,
        kinds,
        settings,
        tuple(stages),
        tuple(read_results(root)),
        {
            stage.round: stage.figures
            for stage in stages
            if stage.name == 'curate' and stage.figures
        },
        {key: lines for key, lines in trainings.items() if lines},
        ablations,
    )


def told_apart(one: Run, other: Run) -> list[Run]:
    """The two by names that differ: with as much of their paths as it takes."""
    runs, length = [one, other], 1
    while runs[0].name == runs[1].name:
        length += 1
        paths = ['/'.join(run.root.resolve().parts[-length:]) for run in runs]
        runs = [dataclasses.replace(run, called=path) for run, path in zip(runs, paths)]
    return runs


def _of_rounds(settings: dict[str, Any]) -> bool:
    return all(
        ledger.round_number(name) is not None and isinstance(keys, dict)
        for name, keys in settings.items()
    )


def read_results(root: pathlib.Path) -> list[Results]:
    """The content of every results.json of a run, that of the base model first, then by round.

    Raises:
      UserError: one of them is not the results of an evaluation.
    """
    found = []
    for number, folder in [(None, root / BASE), *ledger.rounds(root)]:
        path = folder / 'eval' / 'results.json'
        if not path.exists():
            continue
        try:
            results = json.loads(path.read_text(encoding='utf-8'))
            results['round'] = None if number is None else int(results['round'])
            results['benchmarks'].items()
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                str(path),
                expected=f'not the results of an evaluation ({error})',
                remedy=f'delete {path.with_name("done.json")}, and the run makes it again of the '
                'trees there are',
            ) from None
        found.append(results)
    return found


def _stages(number: int, path: pathlib.Path, kinds: Sequence[Kind]) -> Iterator[Stage]:
    """Those of a round's folder, or of the base model's, that have begun."""
    for kind in kinds:
        folder = path / kind.folder
        # Two have one folder: the policy of round 0 is from the bootstrap.
        elsewhere = (kind.name == BASE) != (path.name == BASE)
        if elsewhere or (kind.folder == 'policy' and (kind.name == 'bootstrap') != (number == 0)):
            continue
        done = ledger.read_json(folder / 'done.json')
        if begun := done or ledger.read_json(folder / 'begun.json'):
            yield Stage(kind, number, folder, begun['seconds'], done and done['figures'])


def _lines(path: pathlib.Path) -> list[dict[str, Any]]:
    """The objects of a JSONL file that may be being written: a last line without end is left."""
    try:
        lines = path.read_text(encoding='utf-8').split('\n')[:-1]
        return [dict(json.loads(line)) for line in lines]
    except FileNotFoundError:
        return []
    except (ValueError, TypeError) as error:
        raise UserError(
            str(path),
            expected=f'not the log of a training ({error})',
            remedy='delete it, only the curves need it',
        ) from None
