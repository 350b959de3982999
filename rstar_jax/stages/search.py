"""The search: every problem's trees, by the policy and the PPM of the round before."""

import contextlib
import itertools
import math
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from ml_collections import ConfigDict

from rstar_jax import data
from rstar_jax import search as engine
from rstar_jax.job import hosts, ledger
from rstar_jax.job.leases import dealt
from rstar_jax.job.progress import of_search
from rstar_jax.settings.errors import UserError
from rstar_jax.stages import checkpoints, problems, searches
from rstar_jax.stages.round import Round
from rstar_jax.stages.stage import Ahead, Figures, Stage, Work


class Search(Stage):
    """Searches every problem's trees that are not yet on disk."""

    name = 'search'
    folder = 'search'
    uses = ('synthesize',)
    precious = True
    runs_programs = True

    def inputs(self, round_: Round) -> list[pathlib.Path]:
        found = super().inputs(round_) + checkpoints.searching_paths(round_)
        return found + (round_.earlier('search') if round_.config.data.solved else [])

    def kept(self, round_: Round) -> ledger.Stage:
        kept = super().kept(round_)
        later = round_.later('search')
        kept.followers = tuple(path for path in later if ledger.Stage(path).binding)
        return kept

    def check(self, round_: Round, ahead: Ahead) -> list[str]:
        asked = round_.config.search
        for rollouts in (*asked.more_rollouts, asked.rollouts):
            settings = searches.search_config(round_.config, rollouts=rollouts)
        check_room(settings, checkpoints.check_searching(round_, ahead))
        # What earlier rounds will have solved is not known yet.
        kept, left_out = split(round_, ahead, known=True)
        told = _passed_over(round_)
        if left_out:
            told.append(
                f'data: {len(left_out):,} of {kept + len(left_out):,} problems are left out, as '
                f'they overlap with {problems.names(left_out.values())} (--config.data.overlap=0 '
                'keeps them)'
            )
        return told

    def run(self, round_: Round, work: Work) -> Figures:
        config = round_.config
        wanted, _, read = problems.split(round_)
        work.line.say(data.told(read))
        latest: dict[str, float] = {}
        use: list[float] = []  # of the slots, in each pass

        def tell(now: dict[str, float]) -> None:
            latest.update(now)
            work.beat()
            work.line.show(*of_search(now, solved=True))
            round_.events.add(f'round{round_.number}/search', now, len(store))

        number = jax.process_index()
        with data.TreeStore(work.folder, writer=number) as store:
            _check_problems(wanted, store, config.data.problems)
            where, every = work.folder / 'flights', config.job.keep_seconds
            snapshots = engine.SnapshotFolder(where, number, every, store)
            run, *models = searches.searcher(round_, work.line.say)
            for rollouts, trees, todo in passes(config, wanted, store):
                settings = searches.search_config(config, rollouts=rollouts)
                before = {(p.index, tree) for p in todo for tree in range(trees.start)}
                records = run(
                    todo,
                    *models,
                    config=settings,
                    seed=searches.search_seed(round_),
                    trees=trees.stop,
                    share=engine.Share(
                        skip=frozenset(store.keys() | before),
                        earlier=store.unordered(),
                        progress=tell,
                        leases=_leases(round_, settings, todo, trees),
                        snapshots=snapshots,
                    ),
                )
                with contextlib.closing(records), searches.of_settings():
                    for record in records:
                        store.append(record)
                use.append(latest.get('slot_use', math.nan))
            if not hosts.is_first():
                return {}
            snapshots.forget()
            figures = _figures(round_, store, work.kept.seconds) | {'read': dict(read)}
            return figures if math.isnan(use[0]) else {**figures, 'slot_use': use[0]}

    def describe(self, figures: Figures) -> str:
        return (
            f'{figures["trees"]:,} trees, {figures["nodes"]:,} nodes, {figures["tokens"]:,} tokens '
            f'generated ({figures["tokens_per_second"]:.0f}/s), '
            f'{figures["solved"]:,} of {figures["problems"]:,} problems solved'
        )

    def results(self, figures: Figures) -> Mapping[str, str]:
        return {'trees': ''}


def check_room(config: engine.Config, tokenizer: Any) -> None:
    """Raises UserError where no step fits behind a prompt; None for a tokenizer: not known."""
    if tokenizer is not None:
        engine.begin.template(config, tokenizer)


def split(round_: Round, ahead: Ahead, known: bool = False) -> tuple[int, dict[int, str]]:
    """See `Ahead.splits`: many problems take a minute to read, so not in every round again."""
    config = round_.config
    solved = round_.number if config.data.solved and not known else None
    key = repr((config.data, config.eval.benchmarks, solved))
    if key not in ahead.splits:
        kept, left_out, _ = problems.split(round_, known)
        ahead.splits[key] = len(kept), left_out
    return ahead.splits[key]


def _passed_over(round_: Round) -> list[str]:
    """What is told of a run that begins behind a round whose policy it does not take."""
    before = round_.before / 'policy'
    path = checkpoints.searching_path(round_, 'policy')
    taken = isinstance(path, pathlib.Path) or pathlib.Path(path).absolute() == before.absolute()
    if taken or not (before / 'done.json').exists():
        return []
    return [
        f'round {round_.number}: searches with {path}, as first_round={round_.number} begins with '
        f'policy.path; with what round {round_.number - 1} trained: --config.policy.path=previous'
    ]


def _check_problems(wanted: list[data.Problem], store: data.TreeStore, path: str) -> None:
    """Raises UserError where a stored tree is of another problem than has its index now."""
    if not hosts.is_first():
        return
    now = {problem.index: data.question_id(problem.question) for problem in wanted}
    for (index, _), facts in store.facts():
        if now.get(index, facts.question) != facts.question:
            raise UserError(
                'data.problems',
                path,
                f'problem {index} is another than the one that {store.directory} has trees of',
                'put the old file back, use another --workdir, or delete the folder',
            )


def passes(
    config: ConfigDict, wanted: list[data.Problem], store: data.TreeStore
) -> Iterator[tuple[int, range, list[data.Problem]]]:
    """(rollouts, numbers of the trees, problems): first all, then those not yet solved.

    How many trees a budget of tokens buys is kept in the store's folder: problems that are added
    later get as many, and no number stands for trees of two passes.
    """
    trees = 1 if config.search.mean_tokens else config.search.trees
    yield config.search.rollouts, range(trees), wanted
    store.meet()
    if config.search.mean_tokens:
        own = {problem.index for problem in wanted}
        first = [x.tokens for (index, tree), x in store.facts() if tree == 0 and index in own]
        kept = store.directory / 'trees.json'
        trees = (ledger.read_json(kept) or {}).get('trees')
        trees = trees or engine.trees_for(config.search.mean_tokens, first)
        if hosts.is_first():
            ledger.write_json(kept, {'trees': trees})
        yield config.search.rollouts, range(1, trees), wanted
        store.meet()
    for number, rollouts in enumerate(config.search.more_rollouts, start=trees):
        solved = {index for (index, tree), x in store.facts() if tree < number and x.solved}
        todo = [problem for problem in wanted if problem.index not in solved]
        if todo:
            yield rollouts, range(number, number + 1), todo
        store.meet()


def _figures(round_: Round, store: data.TreeStore, seconds: float) -> Figures:
    found, solved, nodes, tokens = set(), set(), 0, 0
    for (index, _), facts in store.facts():
        found.add(index)
        if facts.solved:
            solved.add(index)
        nodes += facts.nodes
        tokens += facts.tokens
    return {
        'trees': len(store),
        'problems': len(found),
        'solved': len(solved),
        'nodes': nodes,
        'tokens': int(tokens),
        'tokens_per_second': tokens / seconds,
        'so_far': _so_far(round_, store),
    }


def _so_far(round_: Round, store: data.TreeStore) -> dict[str, int]:
    """Problems searched and solved, by earlier rounds too where this one leaves theirs out.

    Those that a policy has written do not count: their answers are its own.
    """
    solved: dict[int, bool] = {}
    earlier = round_.earlier('search') if round_.config.data.solved else []
    made = problems.written(round_, round_.number + 1)
    by_model = {data.question_id(problem.question) for problem in made}
    with contextlib.ExitStack() as stack:
        stores = [stack.enter_context(data.TreeStore(path, writer=None)) for path in earlier]
        for _, facts in itertools.chain(*(one.facts() for one in (*stores, store))):
            if facts.question not in by_model:
                solved[facts.question] = solved.get(facts.question, False) or facts.solved
    return {'problems': len(solved), 'solved': sum(solved.values())}


def _leases(round_: Round, config: engine.Config, wanted: list[data.Problem], trees: range):
    """Each process's share of the trees; None on Ray, where one deals them to its workers."""
    if searches.by_ray(round_):
        return None
    shared = trees[:1] if config.in_order else trees  # in order, one stands for all of a problem
    name = f'{round_.folder.name} search {trees.start}'
    return dealt(engine.items(wanted, shared), name, round_.config.job.leases)
