"""Accuracy of a policy on its own, and of the policy with each kind of search, never mixed.

    problems of all benchmarks
        --search.run, settings of a strategy--> t trees each --> answers, scores --> figures

    greedy     the likeliest step each time: the policy alone; always run
    sampled    plain samples: majority voting, pass@n; best-of-n where there is a PPM
    unguided   MCTS without the PPM
    mcts, puct, beam, dvts      guided by the PPM; left out where there is none

A strategy's trees of all benchmarks are one search, so that its last trees, behind which devices
have ever less to do, come once. Finished trees go into a TreeStore each, so an evaluation that was
killed goes on where it stopped. Samples from before there was a PPM are drawn again, for it to
score.

results.json, accuracies in [0, 1], intervals Wilson's:

    {"round": k or null, "benchmarks": {NAME: {
        "problems": n, "asked": {index: hash of its question},
        "greedy": a, "answered": a, "greedy_solved": [index, ...],
        "search": {"trajectories": t, "best": a, "majority": a, "weighted": a,
                   "pooled": a, "any": a} or null,
        "interval95": {"greedy": [low, high], "best": ..., ...},
        "tokens_per_problem": x, "seconds_per_problem": x, "flops_per_problem": x or null,
        "judge": {...} or null,
        "strategies": {STRATEGY: {
            "trajectories": t, MODE: a, ..., "answered": a,
            "interval95": {MODE: [low, high]}, "solved": {MODE: [index, ...]},
            "tokens_per_problem": x, "seconds_per_problem": x, "flops_per_problem": x or null,
            "judge": {"answers": n, "pairs": n, "problems": n,
                      "auc": x or null, "auc_mean": x or null,
                      "auc_likelihood": x or null, "auc_likelihood_mean": x or null,
                      "interval95": {"auc": [low, high], "auc_likelihood": [low, high]}} or null
        }}}}}

round: a number; null for base/eval, the model that rounds train from where round 0 is another.
MODE: of greedy, "greedy" alone; without a PPM "majority" (of all answers) and "any" (pass@n); with
one also "best", "weighted" and "pooled" (see `selection`), and in a search the majority is of the
`top` trees by score.
answered: the share of problems for which there is an answer at all. solved: which are right.
tokens, seconds, flops: sampled tokens, wall-clock seconds (compilation left out) and FLOPs for one
problem, all trees together. The seconds of a search are shared out among its benchmarks by the
tokens that they sampled. FLOPs are those of the products with weights, 2 a weight and token, of
policy and PPM, of what was sampled, read in and computed again; attention's own products are not
counted.
judge: of all answers that the trees hold, how often a right one has a higher score than a wrong one
of the same problem (`metrics.ranked_rightly`; auc_mean weighs each problem alike): by the PPM,
and by the policy's own log-likelihood of the trajectory, the sum over the tokens that it sampled,
under the temperature of the sampling.
search, its figures and judge are those of the first search guided by the PPM; where none was run,
tokens, seconds and flops are greedy's, and judge that of the samples, if a PPM scored them.
"""

import contextlib
import dataclasses
import functools
import math
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from rstar_jax import search
from rstar_jax.data.problem import Problem
from rstar_jax.data.record import Record
from rstar_jax.data.shards import question_id
from rstar_jax.data.trees import TreeStore
from rstar_jax.evals import selection
from rstar_jax.evals.figures import GREEDY, Outcome, Run, flops_of, grade
from rstar_jax.evals.searches import Benchmark, Outcomes, Part, Progress, Searches
from rstar_jax.job import atomic, hosts
from rstar_jax.job.leases import COUNTER
from rstar_jax.settings import table
from rstar_jax.settings.errors import UserError
from rstar_jax.settings.table import STRATEGIES

SearchConfig = search.Config  # within Config `search` is a field
SAMPLED, UNGUIDED = 'sampled', 'unguided'
GUIDED = table.SETTINGS['search.strategy'].choices
COSTS = ('tokens', 'seconds', 'flops')


@dataclasses.dataclass(frozen=True)
class Config:
    """How an evaluation searches.

    Attributes:
      search: settings of each tree. Neither its strategy counts nor `use_ground_truth`: at test
        time the PPM alone judges.
      strategies: which of STRATEGIES are run, in this order, greedy first in any case.
      trajectories: trees of a search for each problem, with different seeds; 0, no search.
      samples: plain samples for each problem.
      top: how many trees vote in the majority of a guided search, those with the highest scores; 0
        chooses by their number (`selection.top_of`).
      mean_tokens: of each strategy but greedy so many trees that the tokens sampled for a problem
        come nearest to this; 0, as many as `trajectories` and `samples` say.
    """

    search: SearchConfig = dataclasses.field(
        default_factory=lambda: SearchConfig(rollouts=4, candidates=32)  # paper, appendix A.2
    )
    strategies: tuple[str, ...] = (GREEDY, 'mcts')
    trajectories: int = 8
    samples: int = 8
    top: int = 0
    mean_tokens: int = 0

    def __post_init__(self) -> None:
        for name in ('trajectories', 'samples', 'mean_tokens'):
            table.check(f'eval.{name}', getattr(self, name))
        for name in self.strategies:
            if name not in STRATEGIES:
                raise UserError('strategies', name, f'needs some of {", ".join(STRATEGIES)}')


def run(
    policy: Any,
    ppm: Any,
    problems_by_benchmark: Mapping[str, Sequence[Problem | Mapping[str, Any]]],
    config: Config,
    seed: int = 0,
    *,
    round_number: int | None = 0,
    directory: str | os.PathLike | None = None,
    progress: Progress | None = None,
    run_search: Callable[..., Iterable[Record]] | None = None,
    leases: str = COUNTER,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Evaluates on every benchmark.

    Args:
      policy: a models.Policy.
      ppm: a models.PPM, or None: then nothing is guided, and `search` is None.
      problems_by_benchmark: {name: problems}, as from `benchmarks.load`.
      config: see Config.
      seed: of the trees.
      round_number: goes into the result; 0 is the policy that a run started from, None the model
        that its rounds train from.
      directory: finished trees are kept here, in NAME/STRATEGY, and so is results.json when all is
        done; what is there already is not searched again. Several processes share the problems
        out; the first one reads what the others found there. None keeps all in memory, of each
        process alone.
      progress: gets what `search.run` reports, with `benchmark` (its name, or how many there are)
        and `kind` (the strategy).
      run_search: stands in for `search.run`.
      leases: how several processes share the trees out, see `leases.dealt`.
      say: gets a line that stays.

    Returns:
      The content of results.json, see the module's text; of the processes that share a directory,
      all but the first return no benchmarks.

    Raises:
      UserError: a benchmark without problems, or as `search.run`.
    """
    for name, problems in problems_by_benchmark.items():
        if not problems:
            raise UserError(f'benchmark {name}: has no problems')
    folder = None if directory is None else pathlib.Path(directory)
    with contextlib.ExitStack() as stack:
        run_search = run_search or _sharing_workers(stack, config.search)
        of_each = [
            Benchmark(name, list(map(Problem.of, problems)), folder and folder / name)
            for name, problems in problems_by_benchmark.items()
        ]
        searches = Searches(of_each, seed, folder, progress, run_search, leases)
        benchmarks = _evaluate(searches, policy, ppm, config, say)
    results = {'round': round_number, 'benchmarks': benchmarks}
    if folder is not None and hosts.is_first():
        atomic.write_json(folder / 'results.json', results, ensure_ascii=False)
    return results


def read(
    directory: str | os.PathLike,
    benchmark: str,
    problems: Sequence[Problem],
    strategy: str,
    trees: int,
    *,
    scored: bool,
    top: int = 0,
) -> dict[str, Any]:
    """The figures of a strategy's first `trees` trees of each problem, as an evaluation left them.

    Neither searches nor needs a model: for what fewer trees would have come to. Seconds are nan,
    FLOPs None. Where answers agreed, or a budget was spent, a problem may have fewer.

    scored: whether a PPM scored them.

    Raises:
      KeyError: no problem has so many trees there.
    """
    with TreeStore(pathlib.Path(directory) / benchmark / strategy) as store:
        keys = [[key for t in range(trees) if (key := (p.index, t)) in store] for p in problems]
        if max(map(len, keys)) < trees:
            raise KeyError(trees)
        found = [[Outcome.of(store[key]) for key in own] for own in keys]
    voters = top or selection.top_of(trees) if strategy in GUIDED else trees
    run = Run(strategy, found, scored, voters, math.nan, None)
    return run.figures(problems, grade(problems, [run]))


def _sharing_workers(
    stack: contextlib.ExitStack, config: SearchConfig
) -> Callable[..., Iterable[Record]]:
    """search.run, whose worker processes all searches share; started when one is needed."""

    @functools.cache
    def workers() -> search.Workers:
        return stack.enter_context(search.Workers.start(config))

    def run(*given, share: search.Share, **named) -> Iterable[Record]:
        return search.run(*given, share=dataclasses.replace(share, workers=workers()), **named)

    return run


def _evaluate(
    searches: Searches, policy: Any, ppm: Any, config: Config, say: Callable[[str], None]
) -> dict[str, dict[str, Any]]:
    """The figures of each benchmark, on the processes that get to know all trees."""
    runs: list[list[Run]] = [[] for _ in searches.benchmarks]
    for name in dict.fromkeys((GREEDY, *config.strategies)):
        settings, judge, most = _settings(name, config, ppm)
        if not most:
            continue
        if name == SAMPLED and judge is not None:  # what it guides is never searched without one
            searches.drop_unscored(name, say)
        parts = [Part(benchmark) for benchmark in searches.benchmarks]
        grow = functools.partial(searches.grow, parts, name, policy, judge, settings)
        budget = config.mean_tokens if name != GREEDY else 0
        trees = [1 if budget else most] * len(parts)
        grow(trees)
        if budget:
            trees = [_budgeted(searches, part, budget) for part in parts]
            grow(trees)
        if not searches.whole:
            continue
        for part, its_runs, count in zip(parts, runs, trees):
            its_runs.append(
                Run(
                    name,
                    [_of_problem(part.found, x, count) for x in part.benchmark.problems],
                    judge is not None,
                    config.top or selection.top_of(count) if name in GUIDED else count,
                    part.seconds,
                    flops_of(part.found.values(), policy, judge),
                )
            )
    if not searches.whole:
        return {}
    return {
        benchmark.name: _figures(benchmark, its_runs, ppm)
        for benchmark, its_runs in zip(searches.benchmarks, runs)
    }


def _budgeted(searches: Searches, part: Part, budget: int) -> int:
    """How many trees a budget of tokens buys, by the first of each problem."""
    first = [outcome.tokens for (_, tree), outcome in part.found.items() if tree == 0]
    return hosts.greatest(search.trees_for(budget, first) if searches.whole else 0)


def _figures(benchmark: Benchmark, runs: Sequence[Run], ppm: Any) -> dict[str, Any]:
    verdicts = grade(benchmark.problems, runs)
    strategies = {run.name: run.figures(benchmark.problems, verdicts) for run in runs}
    alone = strategies[GREEDY]
    guided = next((strategies[run.name] for run in runs if run.name in GUIDED), None)
    shown = guided or alone
    judging = guided or (strategies.get(SAMPLED) if ppm is not None else None)
    modes = {mode: guided[mode] for mode in selection.MODES} if guided else {}
    return {
        'problems': len(benchmark.problems),
        'asked': {str(p.index): question_id(p.question) for p in benchmark.problems},
        'greedy': alone[GREEDY],
        'answered': alone['answered'],
        'greedy_solved': alone['solved'][GREEDY],
        'search': {'trajectories': guided['trajectories'], **modes} if guided else None,
        'interval95': {**alone['interval95'], **(guided['interval95'] if guided else {})},
        **{f'{what}_per_problem': shown[f'{what}_per_problem'] for what in COSTS},
        'judge': judging and judging['judge'],
        'strategies': strategies,
    }


def _of_problem(found: Outcomes, problem: Problem, trees: int) -> list[Outcome]:
    """Its trees, as they are numbered; with a budget, or answers that agree, some are not grown."""
    keys = ((problem.index, tree) for tree in range(trees))
    return [found[key] for key in keys if key in found]


def _settings(name: str, config: Config, ppm: Any) -> tuple[SearchConfig, Any, int]:
    """A strategy's settings of a tree, the PPM that it goes by, and trees for each problem."""
    plain = dataclasses.replace(config.search, use_ground_truth=False)
    if name == GREEDY:
        return search.greedy(plain), None, 1
    if name == SAMPLED:
        return search.sampled(plain), ppm, config.samples
    if name == UNGUIDED:
        return dataclasses.replace(plain, strategy='mcts'), None, config.trajectories
    trees = 0 if ppm is None else config.trajectories
    return dataclasses.replace(plain, strategy=name), ppm, trees
