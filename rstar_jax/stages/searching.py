"""Searches of a round and of its evaluation: by this job's processes, or by workers on Ray."""

import contextlib
import itertools
import math
import pathlib
import types
from collections.abc import Callable, Iterator
from typing import Any

import jax
from ml_collections import ConfigDict

from rstar_jax import data, evals, models, search
from rstar_jax.job import hosts, ledger
from rstar_jax.job.leases import dealt
from rstar_jax.job.progress import Line, of_search
from rstar_jax.search import Record, elastic, ray_team
from rstar_jax.search.flights import Flights
from rstar_jax.settings import configs
from rstar_jax.settings.errors import UserError
from rstar_jax.settings.table import EVAL_SEARCH
from rstar_jax.stages import sources
from rstar_jax.stages.sources import Round

RAY = 'ray'  # --config.job.leases


def search_trees(round_: Round, stage: ledger.Stage, line: Line) -> dict[str, Any]:
    """Searches every problem's trees that are not yet on disk; the first process has figures."""
    config = round_.config
    problems, _, read = sources.split_problems(round_)
    line.say(data.told(read))
    latest: dict[str, float] = {}
    use: list[float] = []  # of the slots, in each pass

    def tell(now: dict[str, float]) -> None:
        latest.update(now)
        round_.beat(stage)
        line.show(*of_search(now, solved=True))
        round_.events.add(f'round{round_.number}/search', now, len(store))

    number = jax.process_index()
    with data.TreeStore(stage.folder, writer=number) as store:
        _check_problems(problems, store, config.data.problems)
        flights = Flights(stage.folder / 'flights', number, config.job.keep_seconds, store)
        run, *models = _searcher(round_, flights, line.say)
        for rollouts, trees, todo in passes(config, problems, store):
            settings = sources.search_config(config, rollouts=rollouts)
            before = {(p.index, tree) for p in todo for tree in range(trees.start)}
            records = run(
                todo,
                *models,
                config=settings,
                seed=sources.search_seed(round_),
                trees=trees.stop,
                skip=frozenset(store.keys() | before),
                earlier=store.unordered(),
                progress=tell,
                leases=_leases(round_, settings, todo, trees),
                flights=flights,
            )
            with contextlib.closing(records):
                for record in records:
                    store.append(record)
            use.append(latest.get('slot_use', math.nan))
        if not hosts.is_first():
            return {}
        flights.forget()
        figures = {**_tree_figures(store, stage.seconds), 'so_far': _so_far(round_, store)}
        figures['read'] = dict(read)
        return figures if math.isnan(use[0]) else {**figures, 'slot_use': use[0]}


def _check_problems(problems: list[data.Problem], store: data.TreeStore, path: str) -> None:
    """Raises UserError where a stored tree is of another problem than has its index now."""
    if not hosts.is_first():
        return
    now = {problem.index: data.question_id(problem.question) for problem in problems}
    for (index, _), facts in store.facts():
        if now.get(index, facts.question) != facts.question:
            raise UserError(
                f'--config.data.problems={path}: problem {index} is another than the one that '
                f'{store.directory} has trees of: put the old file back, use another --workdir, '
                'or delete the folder'
            )


def passes(
    config: ConfigDict, problems: list[data.Problem], store: data.TreeStore
) -> Iterator[tuple[int, range, list[data.Problem]]]:
    """(rollouts, numbers of the trees, problems): first all, then those not yet solved.

    How many trees a budget of tokens buys is kept in the store's folder: problems that are added
    later get as many, and no number stands for trees of two passes.
    """
    trees = 1 if config.search.mean_tokens else config.search.trees
    yield config.search.rollouts, range(trees), problems
    store.meet()
    if config.search.mean_tokens:
        own = {problem.index for problem in problems}
        first = [x.tokens for (index, tree), x in store.facts() if tree == 0 and index in own]
        kept = store.directory / 'trees.json'
        trees = (ledger.read_json(kept) or {}).get('trees')
        trees = trees or search.trees_for(config.search.mean_tokens, first)
        if hosts.is_first():
            ledger.write_json(kept, {'trees': trees})
        yield config.search.rollouts, range(1, trees), problems
        store.meet()
    for number, rollouts in enumerate(config.search.more_rollouts, start=trees):
        solved = {index for (index, tree), x in store.facts() if tree < number and x.solved}
        todo = [problem for problem in problems if problem.index not in solved]
        if todo:
            yield rollouts, range(number, number + 1), todo
        store.meet()


def _tree_figures(store: data.TreeStore, seconds: float) -> dict[str, Any]:
    problems, solved, nodes, tokens = set(), set(), 0, 0
    for (index, _), facts in store.facts():
        problems.add(index)
        if facts.solved:
            solved.add(index)
        nodes += facts.nodes
        tokens += facts.tokens
    return {
        'trees': len(store),
        'problems': len(problems),
        'solved': len(solved),
        'nodes': nodes,
        'tokens': int(tokens),
        'tokens_per_second': tokens / seconds,
    }


def _so_far(round_: Round, store: data.TreeStore) -> dict[str, int]:
    """Problems searched and solved, by earlier rounds too where this one leaves theirs out.

    Those that a policy has written do not count: their answers are its own.
    """
    solved: dict[int, bool] = {}
    earlier = sources.earlier_searches(round_) if round_.config.data.solved else []
    made = sources.synthetic(round_, round_.number + 1)
    written = {data.question_id(problem.question) for problem in made}
    with contextlib.ExitStack() as stack:
        stores = [stack.enter_context(data.TreeStore(path, writer=None)) for path in earlier]
        for _, facts in itertools.chain(*(one.facts() for one in (*stores, store))):
            if facts.question not in written:
                solved[facts.question] = solved.get(facts.question, False) or facts.solved
    return {'problems': len(solved), 'solved': sum(solved.values())}


def _searcher(round_: Round, flights: Flights, say: Callable[[str], None]) -> tuple:
    """What stands for `search.run` in the round's search, and the policy and the PPM for it.

    flights: keeps trees in flight. say: gets a line that stays.
    """
    if round_.config.job.leases == RAY:
        run = on_ray(round_.config, say, flights)
        return run, *(sources.searching_path(round_, kind) for kind in ('policy', 'ppm'))
    return search.run, *(sources.searching_model(round_, kind) for kind in ('policy', 'ppm'))


def _leases(round_: Round, config: search.Config, problems: list[data.Problem], trees: range):
    """Each process's share of the trees; None on Ray, where one deals them to its workers."""
    if round_.config.job.leases == RAY:
        return None
    begun = trees[:1] if config.in_order else trees  # in order, one stands for all of a problem
    name = f'{round_.folder.name} search {trees.start}'
    return dealt(search.items(problems, begun), name, round_.config.job.leases)


def evaluated_models(
    round_: Round, base: bool = False, say: Callable[[str], None] = print
) -> tuple[Any, Any]:
    """What an evaluation measures: the models that the round made, of round 0 what it is given.

    Where workers on Ray load them, they have nothing here but `config`.

    base: the model that the rounds train from instead. say: as of `sources.own_ppm`.
    """
    config = round_.config
    if config.job.leases == RAY:
        return tuple(_shape(config, path) for path in evaluated_paths(round_, base, say))
    if round_.number == 0 and not base:
        return tuple(sources.searching_model(round_, kind) for kind in ('policy', 'ppm'))
    policy, ppm = evaluated_paths(round_, base, say)
    how = config.policy.dtype, sources.searching_mesh(config), config.policy.weights
    made = sources.load_model(policy, 'policy', *how)
    return made, None if ppm is None else sources.load_model(ppm, 'ppm', *how)


def _shape(config: ConfigDict, path: str | pathlib.Path | None) -> Any:
    """What stands for the model at a path; None for no PPM."""
    if sources.is_endpoint(path):
        return sources.endpoint(config)
    return None if path is None else types.SimpleNamespace(config=models.read_config(path))


def evaluated_paths(
    round_: Round, base: bool = False, say: Callable[[str], None] = lambda text: None
) -> tuple[str | pathlib.Path | None, str | pathlib.Path | None]:
    """Where these models are: policy and PPM, None for no PPM."""
    if base:
        return sources.base_path(round_), None
    if round_.number == 0:
        return sources.searching_path(round_, 'policy'), sources.searching_path(round_, 'ppm')
    sources.finished(round_.folder / 'policy', 'policy', f'round {round_.number} eval')
    return round_.folder / 'policy', sources.own_ppm(round_, say)


def evaluation_config(round_: Round, base: bool = False) -> evals.Config:
    """How an evaluation searches: by its own settings, whatever the round's search has.

    What a round has trained knows the step form without examples.

    base: of the model that the rounds train from.
    """
    config, settings = round_.config, round_.config.eval
    prompt = settings.prompt or ('few_shot' if base else config.search.prompt)
    own = {key: settings[key] for key in ('rollouts', 'candidates', *EVAL_SEARCH)}
    return evals.Config(
        sources.search_config(
            config,
            strategy='mcts',
            prompt='sft' if round_.number else prompt,
            use_ground_truth=False,
            **own,
        ),
        strategies=configs.strategies_of(settings.strategies),
        trajectories=settings.trajectories,
        samples=settings.samples,
        mean_tokens=settings.mean_tokens,
        top=settings.top,
    )


def evaluating(round_: Round, base: bool, say: Callable[[str], None]) -> Callable | None:
    """What stands in for `search.run` in an evaluation of `evaluated_models`.

    None where this job's processes share it out.
    """
    if round_.config.job.leases != RAY:
        return None
    policy, ppm = evaluated_paths(round_, base)
    run = on_ray(round_.config, say)

    def stand_in(problems, _, judge, **given):
        """Whether the PPM guides a strategy, the evaluation knows."""
        return run(problems, policy, None if judge is None else ppm, **given)

    return stand_in


def on_ray(
    settings: ConfigDict,
    say: Callable[[str], None],
    flights: Flights | None = None,
) -> Callable[..., Iterator[Record]]:
    """`search.run` by workers on Ray, for models by the paths that these can read.

    settings: the round's. flights, say: as of `_searcher`.
    """
    if jax.process_count() > 1:
        raise UserError(
            f'--config.job.leases=ray: {jax.process_count()} processes were started; one deals '
            'the trees, and its workers are on the Ray cluster'
        )

    def run(problems, policy, ppm, *, config, seed, trees, skip, progress, **_):
        items = [x for x in search.items(problems, range(trees)) if (x[0].index, x[1]) not in skip]
        if not items:
            return
        job = elastic.Job(
            policy=sources.endpoint(settings) if sources.is_endpoint(policy) else _anywhere(policy),
            ppm=None if ppm is None else _anywhere(ppm),
            dtype=settings.policy.dtype,
            weights=settings.policy.weights,
            config=config,
            seed=seed,
            trees=trees,
            total=len(items),
            keep_seconds=settings.job.keep_seconds,
            compiled=settings.compiled,
        )
        team = ray_team.RayTeam(job.begin, settings.job.devices)
        with contextlib.closing(team):
            yield from elastic.run(items, team, flights=flights, progress=progress, say=say)

    return run


def _anywhere(path: str | pathlib.Path) -> str:
    """A model's path for a process that works in another folder; a hub name as it is."""
    path = pathlib.Path(path)
    return str(path.absolute() if path.exists() else path)
