"""What a stage is; each has a file of its own, and all are listed in `stages.STAGES`."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from rstar_jax import models
from rstar_jax.job import ledger
from rstar_jax.job.progress import Line
from rstar_jax.settings import bound, growing
from rstar_jax.stages import checkpoints
from rstar_jax.stages.round import Round

Figures = dict[str, Any]


class Stage:
    """A stage of a round.

    Which settings bind it once it has begun, and which of these may grow, the table of settings
    says.

    Attributes:
      name: of its own.
      folder: of its round, where its results lie.
      needs: folders of its round that it is made from and cannot do without.
      uses: those that it is made from as well, where they are there.
      called: in --stages; by default its name.
      asked_by: the setting without which it has nothing to do; '' for none.
      precious: whether results made from something older are an error, not made anew.
      runs_programs: that models have written.
    """

    name: ClassVar[str]
    folder: ClassVar[str]
    needs: ClassVar[tuple[str, ...]] = ()
    uses: ClassVar[tuple[str, ...]] = ()
    asked_by: ClassVar[str] = ''
    precious: ClassVar[bool] = False
    runs_programs: ClassVar[bool] = False

    @property
    def called(self) -> str:
        return self.name

    def place(self, round_: Round) -> pathlib.Path:
        """The folder of its results."""
        return round_.folder / self.folder

    def label(self, number: int) -> str:
        """What it is called in lines of the terminal."""
        return f'round {number} {self.name}'

    def needed(self, round_: Round) -> tuple[str, ...]:
        """Of `needs`, what the round cannot do without as it is configured."""
        return self.needs if round_.number else ()

    def inputs(self, round_: Round) -> list[pathlib.Path]:
        """The folders, and models, that it is made from."""
        return [round_.folder / folder for folder in (*self.needs, *self.uses)]

    def bound(self, round_: Round) -> dict[str, Any]:
        """The settings, by dotted key, that bind it once it has begun."""
        return bound(self.name, round_.settings)

    def kept(self, round_: Round) -> ledger.Stage:
        """Its bookkeeping on disk."""
        return ledger.Stage(
            self.place(round_),
            self.bound(round_),
            tuple(self.inputs(round_)),
            precious=self.precious,
            growing=growing(self.name),
        )

    def check(self, round_: Round, ahead: Ahead) -> list[str]:
        """What must hold before the run begins; returns lines to be told.

        Raises UserError: what is missing or cannot be meant.
        """
        return []

    def run(self, round_: Round, work: Work) -> Figures:
        """Does it, on all processes of the job; the first one's figures go into done.json."""
        raise NotImplementedError

    def describe(self, figures: Figures) -> str:
        """Its figures in words, for the tables of the terminal and the page."""
        return ''

    def results(self, figures: Figures) -> Mapping[str, str]:
        """{what: path in its folder} of what a user may look for."""
        return {}


@dataclasses.dataclass(frozen=True)
class Work:
    """A stage that is being done.

    Attributes:
      kept: its bookkeeping.
      line: of the terminal, that tells how far it is.
      beat: keeps on disk, and in the store, how far it has come; cheap.
    """

    kept: ledger.Stage
    line: Line
    beat: Callable[[], None]

    @property
    def folder(self) -> pathlib.Path:
        """Where its results go."""
        return self.kept.folder


@dataclasses.dataclass(frozen=True)
class Ahead:
    """What is known before a run begins, of all its stages.

    Attributes:
      made: the folders that its stages will have made by then.
      splits: of its problems, by their settings: how many are used, {index: benchmark} of others.
      shapes: of its models, by their paths.
    """

    made: set[pathlib.Path] = dataclasses.field(default_factory=set)
    splits: dict[str, tuple[int, dict[int, str]]] = dataclasses.field(default_factory=dict)
    shapes: dict[str, models.Config] = dataclasses.field(default_factory=dict)

    def need(self, folder: pathlib.Path, flag: str) -> None:
        """Raises UserError where a stage's results neither are there nor will be."""
        if folder not in self.made:
            checkpoints.finished(folder, folder.name, flag)

    def tokenizer(self, path: str | pathlib.Path | None, kind: str, setting: str) -> Any:
        """That of the model at a path, where it is not one that a round trains, or has trained.

        Raises UserError where no policy or PPM (`kind`) can be read there.
        """
        if isinstance(path, pathlib.Path):  # in the workdir
            self.need(path, setting)
        elif path is not None:
            return checkpoints.check_model(path, kind, setting)
        return None
