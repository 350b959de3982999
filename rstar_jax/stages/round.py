"""One round of a run: its number, its settings, its folders."""

import dataclasses
import pathlib

from ml_collections import ConfigDict

from rstar_jax.job import ledger
from rstar_jax.job.bucket import Place
from rstar_jax.job.progress import Events
from rstar_jax.models import trained
from rstar_jax.settings import flatten, for_round


@dataclasses.dataclass(frozen=True)
class Round:
    """One round of a run.

    Attributes:
      config: the round's own (`for_round`).
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

    @property
    def settings(self) -> dict:
        """The config by dotted key, as a workdir keeps it: without the server's key."""
        return {key: value for key, value in flatten(self.config).items() if key != 'serve.key'}

    @property
    def folder(self) -> pathlib.Path:
        """Where what the round makes goes."""
        return self.root / f'round{self.number}'

    @property
    def before(self) -> pathlib.Path:
        """The folder of the round whose models this one searches with; its own for round 0."""
        return self.root / f'round{max(0, self.number - 1)}'

    def earlier(self, folder: str) -> list[pathlib.Path]:
        """A folder of the rounds before, where there is one, in their order."""
        folders = (self.root / f'round{n}' / folder for n in range(1, self.number))
        return [path for path in folders if path.is_dir()]

    def later(self, folder: str) -> list[pathlib.Path]:
        """The same of later rounds."""
        later = (path / folder for n, path in ledger.rounds(self.root) if n > self.number)
        return [path for path in later if path.exists()]


def asked(config: ConfigDict, workdir: str) -> Round:
    """What answers a question: there "previous" is the newest round that has a policy.

    With a first_round of 2 or more it is the one before that.
    """
    root, number = pathlib.Path(workdir), config.first_round
    if number <= 1:
        made = [n for n, folder in ledger.rounds(root) if trained.holds(folder / 'policy')]
        number = 1 + max(made, default=0)
    own = ConfigDict({**config.to_dict(), 'first_round': number})
    return Round(for_round(own, number), root, number)
