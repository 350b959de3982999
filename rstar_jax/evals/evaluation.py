"""Accuracy of a policy on its own, and of the policy with the search, never mixed.

    problems --search.run(greedy)--> one trajectory each --------------------> greedy
             --search.run(t trees, PPM, no ground truth)--> t answers, scores --selection--> search

Finished trees go into a TreeStore each, so an evaluation that was killed goes on where it stopped.
"""

import contextlib
import dataclasses
import os
import pathlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax

from rstar_jax import grading, parallel, search
from rstar_jax.data import files
from rstar_jax.data.trees import TreeStore
from rstar_jax.errors import UserError
from rstar_jax.evals import metrics, selection
from rstar_jax.search.record import Record

Problem = dict[str, Any]
Progress = Callable[[dict[str, Any]], None]
SearchConfig = search.Config
GREEDY, SEARCH = 'greedy', 'search'


@dataclasses.dataclass(frozen=True)
class Config:
    """How an evaluation searches.

    Attributes:
      search: settings of each tree. `use_ground_truth` is switched off: at test time the PPM alone
        judges. The greedy run takes what else it says (limits, prompt, sizes).
      trajectories: trees for each problem, with different seeds; 0, the policy alone.
      top: how many trajectories vote in the majority, those with the highest scores; 0 chooses by
        their number (`selection.top_of`).
    """

    search: SearchConfig = dataclasses.field(
        default_factory=lambda: SearchConfig(rollouts=4, candidates=32)  # paper, appendix A.2
    )
    trajectories: int = 8
    top: int = 0

    def __post_init__(self) -> None:
        for name in ('trajectories', 'top'):
            if getattr(self, name) < 0:
                raise UserError(f'--config.eval.{name}={getattr(self, name)}: needs at least 0')


def run(
    policy: Any,
    ppm: Any,
    problems_by_benchmark: Mapping[str, Sequence[Problem]],
    config: Config,
    seed: int = 0,
    *,
    round_number: int = 0,
    directory: str | os.PathLike | None = None,
    progress: Progress | None = None,
    run_search: Callable[..., Iterable[Record]] | None = None,
) -> dict[str, Any]:
    """Evaluates on every benchmark.

    Args:
      policy: a models.Policy.
      ppm: a models.PPM, or None: then the policy is evaluated on its own, `search` is None.
      problems_by_benchmark: {name: problems}, as from `benchmarks.load`.
      config: see Config.
      seed: of the trees.
      round_number: goes into the result; 0 is the policy that a run started from.
      directory: finished trees are kept here, in NAME/greedy and NAME/search, and so is
        results.json when all is done; what is there already is not searched again. Several
        processes share the problems out, and read what the others found there. None keeps all in
        memory, of each process alone.
      progress: gets what `search.run` reports, with `benchmark` and `kind` (greedy or search).
      run_search: stands in for `search.run`.

    Returns:
      The content of results.json: {'round', 'benchmarks': {name: {'problems', 'greedy', 'search':
      {'trajectories', 'best', 'majority', 'weighted', 'any'} or None, 'interval95',
      'answered', 'greedy_solved', 'tokens_per_problem', 'seconds_per_problem'}}}. Accuracies are in
      [0, 1]; intervals are Wilson's. answered: share of the greedy solutions that reach an answer,
      greedy_solved: indices of the problems that they solve. Tokens (sampled) and wall-clock
      seconds are those of the search, over all its trees of a problem; of the greedy run where
      there is no search.

    Raises:
      UserError: a benchmark without problems, or as `search.run`.
    """
    folder = None if directory is None else pathlib.Path(directory)
    benchmarks = {}
    for name, problems in problems_by_benchmark.items():
        if not problems:
            raise UserError(f'benchmark {name}: has no problems')
        task = _Task(name, list(problems), seed, folder, progress, run_search or search.run)
        benchmarks[name] = _evaluate(task, policy, ppm, config)
    results = {'round': round_number, 'benchmarks': benchmarks}
    if folder is not None and parallel.is_first():
        files.write_json(folder / 'results.json', results)
    return results


@dataclasses.dataclass(frozen=True)
class _Outcome:
    """What the figures need of a tree: whole ones, t for each of many problems, would not fit."""

    candidate: selection.Candidate
    tokens: float

    @classmethod
    def of(cls, record: Record) -> '_Outcome':
        # Sampled tokens, those of merged and dropped candidates included, where the search tells.
        kept = sum(map(len, record.tokens))
        return cls(record.best_answer(), record.counters.get('sampled_tokens', kept))


_Outcomes = dict[tuple[int, int], _Outcome]


@dataclasses.dataclass(frozen=True)
class _Task:
    """One benchmark's problems and where its trees go."""

    name: str
    problems: list[Problem]
    seed: int
    folder: pathlib.Path | None
    progress: Progress | None
    run_search: Callable[..., Iterable[Record]]

    def trees(
        self, kind: str, policy: Any, ppm: Any, config: search.Config, trees: int
    ) -> tuple[_Outcomes, float]:
        """Searches what is not stored yet; returns what all gave, and the seconds they took.

        Of several processes each searches its share of the problems.
        """
        wanted = {(p['index'], tree) for p in self.problems for tree in range(trees)}
        found: _Outcomes = {}
        with contextlib.ExitStack() as stack:
            problems, store, clock = self.problems, None, _Clock(None)
            if self.folder is not None:
                problems, store = parallel.share(problems), stack.enter_context(self._store(kind))
                clock = _Clock(store.directory / 'seconds.json' if parallel.is_first() else None)
                for key in sorted(store.keys() & wanted):
                    found[key] = _Outcome.of(store[key])
            if found.keys() != wanted:
                run = self.run_search(
                    problems,
                    policy,
                    ppm,
                    config=config,
                    seed=self.seed,
                    trees=trees,
                    skip=frozenset(found),
                    progress=self._report(kind),
                )
                for record in run:
                    if store is not None:
                        store.append(record)
                    found[record.key] = _Outcome.of(record)
                    clock.tick()
        parallel.barrier(f'{self.name}, {kind}: searched')
        if others := sorted(wanted - found.keys()):
            with self._store(kind) as store:
                found |= {key: _Outcome.of(store[key]) for key in others}
        return found, clock.seconds

    def _store(self, kind: str) -> TreeStore:
        return TreeStore(self.folder / self.name / kind, writer=jax.process_index())

    def _report(self, kind: str) -> Progress | None:
        if self.progress is None:
            return None
        return lambda figures: self.progress({'benchmark': self.name, 'kind': kind, **figures})


class _Clock:
    """Seconds spent, those of runs that were killed included, as of their last finished tree."""

    def __init__(self, path: pathlib.Path | None):
        self._path, self._begin = path, time.monotonic()
        self._before = 0.0
        if path is not None and path.exists():
            self._before = float(next(iter(files.read_json_items(path)))[1]['seconds'])
        self._end = self._begin

    def tick(self) -> None:
        self._end = time.monotonic()
        if self._path is not None:
            files.write_json(self._path, {'seconds': self.seconds})

    @property
    def seconds(self) -> float:
        return self._before + self._end - self._begin


def _evaluate(task: _Task, policy: Any, ppm: Any, config: Config) -> dict[str, Any]:
    alone = search.greedy(config.search)
    trees, seconds = task.trees(GREEDY, policy, None, alone, 1)
    lists = {GREEDY: [[trees[p['index'], 0].candidate[0]] for p in task.problems]}
    if ppm is not None and config.trajectories:
        judged = dataclasses.replace(config.search, use_ground_truth=False)
        trees, seconds = task.trees(SEARCH, policy, ppm, judged, config.trajectories)
        lists |= _select(task.problems, trees, config)
    flags = _right(task.problems, lists)
    shares = {mode: metrics.accuracy(flag) for mode, flag in flags.items()}
    count = len(task.problems)
    modes = {mode: shares[mode] for mode in selection.MODES if mode in shares}
    solved = [p['index'] for p, right in zip(task.problems, flags[GREEDY]) if right]
    return {
        'problems': count,
        'greedy': shares[GREEDY],
        'answered': metrics.accuracy([bool(answer) for (answer,) in lists[GREEDY]]),
        'greedy_solved': solved,
        'search': {'trajectories': config.trajectories, **modes} if modes else None,
        'interval95': {mode: metrics.interval95(flag) for mode, flag in flags.items()},
        'tokens_per_problem': sum(tree.tokens for tree in trees.values()) / count,
        'seconds_per_problem': seconds / count,
    }


def _select(
    problems: Sequence[Problem], trees: _Outcomes, config: Config
) -> dict[str, list[list[str]]]:
    """Returns, for each mode, the answers that each problem is judged by."""
    top = config.top or selection.top_of(config.trajectories)
    lists: dict[str, list[list[str]]] = {mode: [] for mode in selection.MODES}
    for problem in problems:
        candidates = [
            trees[problem['index'], tree].candidate for tree in range(config.trajectories)
        ]
        lists['best'].append([selection.best(candidates)])
        lists['majority'].append([selection.majority(candidates, top)])
        lists['weighted'].append([selection.weighted(candidates)])
        lists['any'].append(selection.answers(candidates))
    return lists


def _right(
    problems: Sequence[Problem], lists: Mapping[str, list[list[str]]]
) -> dict[str, list[bool]]:
    """Returns, for each mode, whether one of each problem's answers is right; grades each once."""
    asked: dict[tuple[int, str], int] = {}
    pairs = []
    for answers_of in lists.values():
        for i, (problem, answers) in enumerate(zip(problems, answers_of)):
            for answer in answers:
                if answer and (i, answer) not in asked:
                    asked[i, answer] = len(pairs)
                    pairs.append((answer, problem['answer']))
    verdicts = grading.equivalent_many(pairs) if pairs else []
    return {
        mode: [
            any(answer and verdicts[asked[i, answer]] for answer in answers)
            for i, answers in enumerate(answers_of)
        ]
        for mode, answers_of in lists.items()
    }
