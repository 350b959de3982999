"""A search by workers that come and go: each tree once, whoever grows it, whoever is lost.

    driver   run: leases out of a parallel.Table -> ask(worker, lease)
                  <- answers(): finished trees, trees in flight, whether there is room for more
    worker   Member: a search in a thread, its leases from an inbox, what it finds in an outbox

What carries the messages is a `Team`; `ray_team` is one. A worker that answers no more is lost: its
trees are dealt again, and go on from where they were when it last told of them.
"""

import collections
import dataclasses
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

from rstar_jax import models, parallel, search
from rstar_jax.data.problem import Problem
from rstar_jax.data.record import Record
from rstar_jax.job import leases
from rstar_jax.job.leases import Table
from rstar_jax.search import snapshots as snapshots_lib
from rstar_jax.search.totals import Totals
from rstar_jax.settings.errors import UserError

POLL = 1.0  # seconds after which a worker answers at the latest
SILENT = 60.0  # seconds without an answer after which it is lost
FAILURES = 3  # of workers in a row, without a tree between them, end the run
STILLBORN = 10  # so many that are gone before their first answer do, too

Item = tuple[Problem, int, bytes | None]  # problem, tree, what there is of it


@dataclasses.dataclass
class Answer:
    """What a worker has to say: trees that it has finished, those that are in flight where it is
    time to keep them, how many more it could begin, totals of its search, what ended it."""

    finished: list[bytes]
    kept: dict[snapshots_lib.Key, bytes]
    room: int
    totals: dict[str, float]
    error: str = ''
    users: bool = False  # the error is a mistake of the user


class Team(Protocol):
    """The workers, by name."""

    def joined(self) -> list[str]:
        """Workers that have come since the last call."""

    def ask(self, worker: str, items: list[Item]) -> None:
        """Gives a worker more to do; its answer comes within about POLL seconds."""

    def answers(self) -> list[tuple[str, Answer | None]]:
        """What has been answered, after a second at most; None for a worker that is gone."""

    def drop(self, worker: str) -> None:
        """Ends a worker; another may come in its place."""


@dataclasses.dataclass(frozen=True)
class Job:
    """A search as a worker begins it, with models by their places.

    Attributes:
      policy, ppm: paths that the worker can read; the policy may be served elsewhere.
      weights: as of `models.load_as`.
      total: trees to search in all.
      keep_seconds: between two looks at the trees in flight.
      compiled: as of `parallel.keep_compiled`.
    """

    policy: str | search.Endpoint
    ppm: str | None
    dtype: str
    weights: str
    config: search.Config
    seed: int
    trees: int
    total: int
    keep_seconds: float
    compiled: str

    def begin(self) -> tuple[Callable[..., Iterator[Record]], float]:
        """The arguments of a `Member`."""
        return self.search, self.keep_seconds

    def search(self, share: search.Share) -> Iterator[Record]:
        parallel.keep_compiled(self.compiled)
        mesh = parallel.local_mesh(tensor=self.config.tensor)
        policy, how = self.policy, {'mesh': mesh, 'weights': self.weights}
        if isinstance(policy, str):
            policy = models.load_as('policy', policy, self.dtype, **how)
        ppm = models.load_as('ppm', self.ppm, self.dtype, **how) if self.ppm else None
        return search.run(
            (),
            policy,
            ppm,
            config=self.config,
            seed=self.seed,
            trees=self.trees,
            share=dataclasses.replace(share, total=self.total, mesh=mesh),
        )


class Member:
    """A worker: the search runs in a thread, so that it answers while models are compiled.

    Args:
      start: search(share) -> Records, called in that thread.
      keep_seconds: between two looks at the trees in flight; 0: they are not kept.
    """

    def __init__(self, start: Callable[..., Iterator[Record]], keep_seconds: float):
        self._start, self._keep_seconds = start, keep_seconds
        self._changed = threading.Condition()
        self._inbox: list[Item] = []
        self._given: dict[snapshots_lib.Key, bytes] = {}
        self._kept: dict[snapshots_lib.Key, bytes] = {}
        self._kept_at = time.monotonic()
        self._finished: list[bytes] = []
        self._hands = 0  # trees that have been given and are not finished
        self._hungry, self._asked, self._totals = True, False, {}
        self._ended: BaseException | None = None
        threading.Thread(target=self._run, daemon=True).start()

    def poll(self, items: list[Item]) -> Answer:
        """Takes more to do and answers as soon as there is something to say."""
        with self._changed:
            self._inbox += items
            self._hands += len(items)
            if items:
                self._hungry = self._asked = False
            self._changed.notify_all()
            self._changed.wait_for(self._telling, timeout=POLL)
            finished, self._finished = self._finished, []
            kept, self._kept = self._kept, {}
            error, self._asked = self._ended, self._hungry
            return Answer(
                finished,
                kept,
                leases.MOST if self._hungry else 0,
                dict(self._totals),
                '' if error is None else ' '.join(f'{type(error).__name__}: {error}'.split()),
                isinstance(error, UserError),
            )

    def _telling(self) -> bool:
        asks = self._hungry and not self._asked  # once: there may be nothing to give
        return bool(self._finished or asks or self._ended is not None)

    def _run(self) -> None:
        try:
            share = search.Share(leases=self._leases(), snapshots=self, progress=self._progress)
            for record in self._start(share):
                with self._changed:
                    self._finished.append(record.to_bytes())
                    self._hands -= 1
                    self._changed.notify_all()
        except BaseException as error:
            with self._changed:
                self._ended = error
                self._changed.notify_all()

    def _leases(self) -> Iterator[list[tuple[Problem, int]]]:
        """What has been given since; waits while there is nothing else to do."""
        while True:
            with self._changed:
                if not self._inbox:
                    self._hungry = True
                    self._changed.notify_all()
                    self._changed.wait_for(lambda: self._inbox or self._hands, timeout=POLL)
                items, self._inbox = self._inbox, []
                for problem, tree, data in items:
                    if data is not None:
                        self._given[problem.index, tree] = data
            yield [(problem, tree) for problem, tree, _ in items]

    def _progress(self, totals: dict[str, float]) -> None:
        self._totals = totals

    # --- search.snapshots.Snapshots ---

    def due(self) -> bool:
        return 0 < self._keep_seconds <= time.monotonic() - self._kept_at

    def keep(self, trees: dict[snapshots_lib.Key, bytes]) -> None:
        self._kept_at = time.monotonic()
        with self._changed:
            self._kept = trees

    def find(self, key: snapshots_lib.Key) -> bytes | None:
        return self._given.pop(key, None)


def run(
    items: Iterable[tuple[Problem, int]],
    team: Team,
    *,
    snapshots: snapshots_lib.Snapshots | None = None,
    progress: Callable[[dict[str, float]], None] | None = None,
    say: Callable[[str], None] = print,
    silent: float = SILENT,
) -> Iterator[Record]:
    """Has the trees grown by the team, and yields each once, as it is finished.

    Args:
      items: (problem, number of the tree).
      snapshots: where trees in flight are kept, and found again.
      progress: as of `search.run`.
      say: gets a line when workers come and are lost.

    Raises:
      UserError: a worker's, or too many workers in a row have failed.
    """
    of_key = {(problem.index, tree): (problem, tree) for problem, tree in items}
    table = Table(of_key, silent)
    totals = _Totals(len(of_key), progress)
    latest: dict[snapshots_lib.Key, bytes] = {}
    failed = stillborn = 0

    def begun(key: snapshots_lib.Key) -> Item:
        data = latest.get(key) or (snapshots.find(key) if snapshots is not None else None)
        if data is not None:
            latest[key] = data
        return (*of_key[key], data)

    def lose(worker: str, why: str) -> None:
        again = table.lose(worker)
        totals.of.pop(worker, None)
        say(f'{worker}: {why}; {len(again)} trees are dealt again')

    try:
        while table.left:
            away = 0.0  # seconds for which the caller had a tree, and nobody listened
            for worker in team.joined():
                team.ask(worker, [])  # until it answers it holds nothing: it may take its time
            for worker, answer in team.answers():
                if answer is None:
                    stillborn += worker not in totals.of
                    lose(worker, 'is gone')
                    if stillborn >= STILLBORN:
                        raise UserError(
                            worker,
                            expected=f'{stillborn} workers ended as they began',
                            remedy='see their logs',
                        )
                    continue
                table.heard(worker)
                if worker not in totals.of:
                    say(f'{worker}: has come, {table.workers} workers')
                totals.of[worker] = answer.totals
                for data in answer.finished:
                    record = Record.from_bytes(data)
                    latest.pop(record.key, None)
                    if table.bring(worker, record.key):
                        failed = stillborn = 0
                        totals.finished(record)
                        began = time.monotonic()
                        yield record
                        away += time.monotonic() - began
                latest |= {key: x for key, x in answer.kept.items() if key in table}
                if answer.error:
                    failed += 1
                    if answer.users or failed >= FAILURES:
                        raise UserError(worker, expected=answer.error)
                    lose(worker, answer.error)
                    team.drop(worker)
                    continue
                room = min(answer.room, leases.size_of(table.left, max(1, table.workers)))
                team.ask(worker, [begun(key) for key in table.take(worker, room)])
            for worker in table.silent() if away < silent / 2 else ():
                lose(worker, f'has not answered for {silent:.0f} s')
                team.drop(worker)
            if snapshots is not None and snapshots.due():
                snapshots.keep(latest)
            totals.tell()
    finally:  # the search may be stopped before its end
        if snapshots is not None and latest:
            snapshots.keep(latest)
    totals.tell(final=True)


class _Totals(Totals):
    """What the workers have done together; `of` each of them, what it told last."""

    def __init__(self, total: int, progress: Callable[[dict[str, float]], None] | None):
        super().__init__(total, collections.Counter(), progress)
        self.of: dict[str, dict[str, float]] = {}

    def finished(self, record: Record) -> None:
        super().finished(record)
        self.counters['sampled'] += record.counters.get('sampled_tokens', 0.0)

    def tell(self, final: bool = False) -> None:
        self.counters['workers'] = len(self.of)
        for name in ('slot_steps', 'live_slot_steps'):
            self.counters[name] = sum(told.get(name, 0) for told in self.of.values())
        self.tick(0.0, final)
