"""Running stages: a workdir for this run alone, checks before the first, and each one kept.

    opened     locks the workdir, or fetches it from its store and keeps the store the same
    run_all    what is to be done against what is there and what it needs, then stage by stage

A complete stage is skipped, one that was interrupted goes on, one whose inputs are new is done
again (`job.ledger`). Every process of a job calls these; what is said and kept, the first does.
"""

import contextlib
import dataclasses
import functools
import pathlib
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

from ml_collections import ConfigDict

from rstar_jax import execution, parallel
from rstar_jax.job import bucket, hosts, ledger
from rstar_jax.job.progress import Events, Line, clock
from rstar_jax.settings import default, flatten, for_round
from rstar_jax.settings.errors import UserError, of_setting
from rstar_jax.stages import searches
from rstar_jax.stages.round import Round
from rstar_jax.stages.stage import Ahead, Stage, Work

Row = tuple[Round, Stage]
AGAIN = 'start the same command on all of them'


@dataclasses.dataclass(frozen=True)
class Workdir:
    """A workdir that this run has for itself.

    Attributes:
      root: its folder on this machine.
      events: where scalars go.
      store: what keeps it in an object store, of the process that writes there; else None.
    """

    root: pathlib.Path
    events: Events
    store: bucket.Place | None

    def round(self, config: ConfigDict, number: int) -> Round:
        """A round of the run that `config` tells of."""
        own = for_round(config, number)
        return Round(own, self.root, number, self.events, self.store)

    def push(self) -> None:
        """Waits until the store, where there is one, has what the folder has."""
        if self.store:
            self.store.push(must=True)


@contextlib.contextmanager
def opened(workdir: str) -> Iterator[Workdir]:
    """Holds the workdir for this run; it is a folder, or an address in an object store.

    Raises UserError: another run has it, or it cannot be written.
    """
    place = bucket.Place(workdir) if bucket.is_url(workdir) else None
    root = place.folder if place else pathlib.Path(workdir)
    with contextlib.ExitStack() as stack:
        if hosts.is_first():
            stack.enter_context(ledger.lock(root))
        if place:
            place.begin()
        store = place if hosts.is_first() else None
        if store:
            stack.callback(store.end)
        events = Events(root / 'events' if hosts.is_first() else None)
        stack.callback(events.close)
        yield Workdir(root, events, store)
    hosts.barrier('all is done')  # who ends sooner has JAX end all five minutes later


def run_all(rows: Sequence[Row], after: Callable[[pathlib.Path], None] = lambda root: None) -> None:
    """Checks stages against what their workdirs hold, and all that they need; then runs them.

    after: called with the workdir after each stage that was not complete.
    """
    check_alike(rows)
    looked = [(s.kept(r), f'round{r.number}', s.name, r.settings) for r, s in rows]

    def look_further(grown: Collection[pathlib.Path]) -> None:
        kept = [one for one, *_ in looked]
        todo = [row for row, k in zip(rows, kept) if k.done is None or k.folder in grown]
        for text in check(todo):
            if hosts.is_first():
                print(text, flush=True)

    ledger.check(looked, flatten(default()), look_further)
    hosts.barrier('all is looked at')
    for round_, stage in rows:
        run_stage(round_, stage, after)


def check(rows: Sequence[Row]) -> list[str]:
    """Checks what stages need in the order in which they will run; complete ones are left out.

    Returns lines to be told.

    Raises UserError: what is missing or cannot be meant.
    """
    ahead, told = Ahead(), []
    isolations: set[str] = set()
    for round_, stage in rows:
        told += stage.check(round_, ahead)
        for folder in stage.needed(round_):
            ahead.need(round_.folder / folder, stage.label(round_.number))
        if stage.runs_programs and not searches.by_ray(round_):
            isolations.add(searches.isolation(round_.config))
        ahead.made.add(stage.place(round_))
    for isolation in isolations & {'auto', 'strict'}:
        with of_setting('execution'):
            execution.check(isolation)
    return list(dict.fromkeys(told))


def check_alike(rows: Sequence[Row]) -> None:
    """Raises UserError where the processes of a job were not all told to make the same."""
    if not hosts.alike([(round_.number, stage.name) for round_, stage in rows]):
        raise UserError(
            'the processes of this job', expected='have other rounds or stages to run', remedy=AGAIN
        )
    bound = [_bound(round_, stage) for round_, stage in rows]
    keys = sorted({key for settings in bound for key in settings})
    if not hosts.alike(keys):
        raise UserError(
            'the processes of this job', expected='have other versions of rstar_jax', remedy=AGAIN
        )
    if hosts.alike(bound):
        return
    for key in keys:
        own = [settings.get(key) for settings in bound]
        if not hosts.alike(own):
            shown = ', '.join(dict.fromkeys(map(str, own)))
            raise UserError(key, shown, 'differs among the processes', AGAIN)


def _bound(round_: Round, stage: Stage) -> dict[str, Any]:
    return {**stage.bound(round_), 'job.leases': round_.config.job.leases}


def run_stage(
    round_: Round, stage: Stage, after: Callable[[pathlib.Path], None] = lambda root: None
) -> None:
    """Runs one stage unless it is complete, and keeps its time and figures."""
    kept, label = stage.kept(round_), stage.label(round_.number)
    if hosts.is_first():
        changed = kept.drop_if_stale()
        if changed:
            print(f'{label}: done again, {changed} is new', flush=True)
        if kept.done is None:
            kept.sweep()
    # As the first sees it: a shared disk may tell others late of what it has made or deleted.
    if hosts.gathered(int(hosts.is_first() and kept.done is not None))[0]:
        print(f'{label}: complete', flush=True)
        return
    kept.begin()
    with Line(label) as line:
        figures = stage.run(round_, Work(kept, line, functools.partial(_beat, round_, kept)))
        hosts.barrier(f'{label} ends')
        if hosts.is_first():
            kept.finish(figures)
        hosts.barrier(f'{label} is kept')
        if not hosts.alike_soon(lambda: kept.done):
            raise UserError(
                str(kept.folder),
                expected='the processes still see different files',
                remedy='put --workdir on a disk that all of them share, and start the same '
                'command again',
            )
        parallel.give_memory_back()
        line.say(f'done in {clock(kept.seconds)}')
    if hosts.is_first():
        after(round_.root)


def _beat(round_: Round, kept: ledger.Stage) -> None:
    kept.beat()
    if round_.place is not None:
        round_.place.push_if_due()
