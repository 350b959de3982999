"""The searches of an evaluation: one for each strategy, over all benchmarks.

problems, which have other indices here --search.run--> trees --> the benchmarks' stores
    -> Outcomes of each benchmark, and the seconds that they took
"""

import contextlib
import dataclasses
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from typing import Any

import jax
import numpy as np

from rstar_jax import search
from rstar_jax.data.problem import Problem
from rstar_jax.data.record import Record
from rstar_jax.data.trees import TreeStore
from rstar_jax.evals.clock import Clock, keep_share
from rstar_jax.evals.figures import Outcome
from rstar_jax.job import hosts
from rstar_jax.job.leases import dealt
from rstar_jax.settings.errors import UserError

SECONDS = 'seconds.json'
Progress = Callable[[dict[str, Any]], None]
Key = tuple[int, int]  # a problem's index and the number of its tree
Outcomes = dict[Key, Outcome]


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """Its problems and where its trees go."""

    name: str
    problems: list[Problem]
    folder: pathlib.Path | None

    def store(self, kind: str) -> TreeStore:
        return TreeStore(self.folder / kind, writer=jax.process_index())

    def stored(self, store: TreeStore, wanted: Set[Key]) -> Outcomes:
        """What is stored of the wanted trees.

        Raises:
          UserError: a tree is of another problem than the one that has its index now.
        """
        questions = {problem.index: problem.question for problem in self.problems}
        found = {}
        for key in sorted(store.keys() & wanted):
            record = store[key]
            if record.problem.question != questions[key[0]]:
                raise UserError(
                    f'benchmark {self.name}: its problem {key[0]} is another than the one that '
                    f'{store.directory} has trees of: put the old file back, use another '
                    f'--workdir, or delete {store.directory.parent}'
                )
            found[key] = Outcome.of(record)
        return found

    def drop_unscored(self, kind: str) -> int:
        """Removes the trees without a score of an answer, where some of them have answers.

        Their share of the seconds goes with them. Returns how many.
        """
        scored, unscored, blind = 0.0, {}, False
        with self.store(kind) as store:
            for record in store.unordered():
                tokens, nodes = record.counters['sampled_tokens'], record.answer_nodes
                if np.isnan(record.score[nodes]).all():
                    unscored[record.key] = tokens
                    blind = blind or bool(nodes)
                else:
                    scored += tokens
            if not blind:
                return 0
            store.discard(unscored.keys())
        share = scored / max(1.0, scored + sum(unscored.values()))
        keep_share(store.directory / SECONDS, share)
        return len(unscored)


@dataclasses.dataclass
class Part:
    """What a strategy has found on one benchmark.

    found: for those processes that get to know all trees. seconds: that these took.
    """

    benchmark: Benchmark
    found: Outcomes = dataclasses.field(default_factory=dict)
    seconds: float = 0.0


class Searches:
    """All benchmarks, and how they are searched."""

    def __init__(
        self,
        benchmarks: list[Benchmark],
        seed: int,
        folder: pathlib.Path | None,
        progress: Progress | None,
        run_search: Callable[..., Iterable[Record]],
        leases: str,
    ):
        self.benchmarks, self.folder = benchmarks, folder
        self._seed, self._progress = seed, progress
        self._run_search, self._leases = run_search, leases
        # Where each problem comes from; its place here is its index in the searches.
        self._origin = [(n, p) for n, part in enumerate(benchmarks) for p in part.problems]
        self._asked = [
            dataclasses.replace(problem, index=place, sampled_as=problem.index)
            for place, (_, problem) in enumerate(self._origin)
        ]

    @property
    def whole(self) -> bool:
        """Whether this process gets to know all trees, and so has the figures."""
        return self.folder is None or hosts.is_first()

    def drop_unscored(self, kind: str, say: Callable[[str], None]) -> None:
        """Removes what was sampled before there was a PPM, so that it is sampled and scored anew.

        say: gets a line where there is such.
        """
        if self.folder is not None and hosts.is_first():
            if count := sum(benchmark.drop_unscored(kind) for benchmark in self.benchmarks):
                say(f'{kind}: {count} trees done again, as the PPM has not scored them')
        hosts.barrier(f'{kind}: looked through')

    def grow(
        self,
        parts: Sequence[Part],
        kind: str,
        policy: Any,
        ppm: Any,
        config: search.Config,
        trees: Sequence[int],
    ) -> None:
        """Adds to the parts what is stored of so many trees of each problem, and searches the rest.

        Of several processes each searches its share.

        trees: for each benchmark.
        """
        wanted = [
            {(problem.index, tree) for problem in part.benchmark.problems for tree in range(n)}
            for part, n in zip(parts, trees)
        ]
        done = [set(part.found) for part in parts]
        stores: list[TreeStore] = []
        with contextlib.ExitStack() as stack:
            if self.folder is not None:
                stores = [stack.enter_context(part.benchmark.store(kind)) for part in parts]
                for part, store, own, known in zip(parts, stores, wanted, done):
                    known |= store.keys() & own
                    if self.whole:
                        part.found |= part.benchmark.stored(store, known - part.found.keys())
            first = bool(stores) and hosts.is_first()
            paths = [store.directory / SECONDS if first else None for store in stores]
            clock = Clock(paths or [None] * len(parts), [part.seconds for part in parts])
            stack.callback(clock.keep)
            if any(own - known for own, known in zip(wanted, done)):
                run = self._run_search(
                    self._asked,
                    policy,
                    ppm,
                    config=config,
                    seed=self._seed,
                    trees=max(trees),
                    share=search.Share(
                        skip=self._skip(done, trees),
                        earlier=self._earlier(stores, done),
                        progress=self._report(kind),
                        leases=self._dealt(kind, config, trees) if stores else None,
                    ),
                )
                clock.begin()
                for record in run:
                    which, problem = self._origin[record.problem.index]
                    record = dataclasses.replace(record, problem=problem)
                    if stores:
                        stores[which].append(record)
                    if self.whole:
                        outcome = parts[which].found[record.key] = Outcome.of(record)
                        clock.tick(which, outcome.tokens)
            self._gather(parts, stores, wanted, clock)
        for part, seconds in zip(parts, clock.seconds):
            part.seconds = seconds

    def _gather(
        self,
        parts: Sequence[Part],
        stores: Sequence[TreeStore],
        wanted: Sequence[Set[Key]],
        clock: Clock,
    ) -> None:
        """Waits for the other processes, and adds what they have found."""
        for which, (part, own, store) in enumerate(zip(parts, wanted, stores)):
            store.meet()
            if self.whole:
                theirs = part.benchmark.stored(store, own - part.found.keys())
                part.found |= theirs
                # They were under way for as long as this process has waited.
                for outcome in theirs.values():
                    clock.tick(which, outcome.tokens)

    def _skip(self, done: Sequence[Set[Key]], trees: Sequence[int]) -> frozenset:
        """Trees that are not to be searched, as a search names them."""
        most = range(max(trees))
        return frozenset(
            (place, tree)
            for place, (which, problem) in enumerate(self._origin)
            for tree in most
            if tree >= trees[which] or (problem.index, tree) in done[which]
        )

    def _earlier(self, stores: Sequence[TreeStore], done: Sequence[Set[Key]]) -> Iterator[Record]:
        """The trees that are stored, as they are named in a search."""
        asked = {(n, p.index): now for (n, p), now in zip(self._origin, self._asked)}
        for which, store in enumerate(stores):
            for key in sorted(done[which]):
                yield dataclasses.replace(store[key], problem=asked[which, key[0]])

    def _dealt(
        self, kind: str, config: search.Config, trees: Sequence[int]
    ) -> Iterator[list[tuple[Problem, int]]]:
        """This process's share."""
        count = [1] * len(trees) if config.in_order else trees  # one stands for all of a problem
        items = search.items(self._asked, range(max(count)))
        items = [(p, tree) for p, tree in items if tree < count[self._origin[p.index][0]]]
        place = '/'.join(self.folder.parts[-2:])  # hosts may mount it elsewhere
        return dealt(items, f'{place} {kind} {list(trees)}', self._leases)

    def _report(self, kind: str) -> Progress | None:
        if self._progress is None:
            return None
        count = len(self.benchmarks)
        label = self.benchmarks[0].name if count == 1 else f'{count} benchmarks'
        return lambda figures: self._progress({'benchmark': label, 'kind': kind, **figures})
