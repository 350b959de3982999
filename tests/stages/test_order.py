"""The order of rounds and stages, and what each of them is given; no model runs."""

import collections
import concurrent.futures
import pathlib
import threading
import types

import pytest
from ml_collections import ConfigDict

from rstar_jax import data, main, models, report, rounds, search
from rstar_jax import settings as configs
from rstar_jax.data.problem import Problem
from rstar_jax.data.shards import Facts
from rstar_jax.job import hosts, ledger
from rstar_jax.job.progress import Events
from rstar_jax.models import trained
from rstar_jax.report import terminal
from rstar_jax.settings import table
from rstar_jax.settings.errors import UserError
from rstar_jax.settings.table import PREVIOUS
from rstar_jax.stages import BY_NAME, Round, checkpoints, running, searches
from rstar_jax.stages import problems as own_problems
from rstar_jax.stages import search as search_stage
from tests.evals.trees import tree as tree_of
from tests.stages import doing
from tests.training import words

REPOSITORY = pathlib.Path(__file__).parents[2]


def test_the_order_of_four_rounds():
    config = configs.load(str(REPOSITORY / 'experiments' / 'self_evolve.py'))
    config.policy.path = 'instruct'
    config.base.path = 'instruct'
    rows = doing.rows(config, configs.STAGES)
    each = ['search', 'curate', 'sft', 'ppm', 'eval', 'export']
    expected = [(0, 'eval'), *((number, name) for number in range(1, 5) for name in each)]
    assert rows == expected
    config.base.path = 'another'
    assert doing.rows(config, configs.STAGES) == [(0, 'base'), *expected]


def test_a_round_may_leave_stages_out():
    config = configs.schedule(configs.default(), {2: {'stages': 'search,curate,ppm'}})
    config.policy.path, config.last_round = 'instruct', 3
    configs.validate(config)
    of = {1: [], 2: [], 3: []}
    for number, name in doing.rows(config, ('search', 'curate', 'sft', 'eval')):
        of[number].append(name)
    assert of == {1: ['search', 'curate', 'sft'], 2: ['search', 'curate'], 3: of[1]}
    config.eval.benchmarks = 'gsm8k'  # what the run started from is measured when a round is
    config = configs.schedule(config, {1: {'stages': 'sft'}})
    found = doing.rows(config, ('sft', 'eval'))
    assert found == [(0, 'eval'), (1, 'sft'), (3, 'sft'), (3, 'eval')]
    config.schedule.round2.stages = 'serch'
    with pytest.raises(UserError, match='did you mean search'):
        configs.validate(config)


def test_a_round_may_have_benchmarks_of_its_own():
    config = configs.schedule(configs.default(), {2: {'eval.benchmarks': 'gsm8k'}})
    config.policy.path, config.last_round = 'instruct', 3
    assert doing.rows(config, ('sft', 'eval')) == [(1, 'sft'), (2, 'sft'), (2, 'eval'), (3, 'sft')]
    config = configs.schedule(config, {2: {'eval.benchmarks': ''}})
    config.eval.benchmarks = 'gsm8k'
    assert (2, 'eval') not in doing.rows(config, ('sft', 'eval'))


def test_what_a_run_starts_from_is_evaluated_unless_its_round_did(tmp_path):
    config = configs.default()
    config.eval.benchmarks, config.first_round, config.last_round = 'gsm8k', 3, 3
    for policy, starts in (('instruct', [(0, 'eval')]), (PREVIOUS, [])):
        config.policy.path = policy
        assert doing.rows(config, ('eval',)) == [*starts, (3, 'eval')]
    # A bootstrap makes another policy of the model that every training starts from.
    config.policy.path = config.base.path = 'instruct'
    assert doing.rows(config, ('eval',)) == [(0, 'eval'), (3, 'eval')]
    config.bootstrap.demonstrations = 8
    assert doing.rows(config, ('eval',)) == [(0, 'base'), (0, 'eval'), (3, 'eval')]


def test_examples_may_come_from_the_trees_of_all_rounds_so_far(tmp_path):
    config = configs.default()
    config.last_round = 3
    for number in (1, 3):
        (tmp_path / f'round{number}' / 'search').mkdir(parents=True)

    def inputs(number):
        round_ = Round(configs.for_round(config, number), tmp_path, number, None)
        return [path.relative_to(tmp_path) for path in doing.kept(round_, 'curate').inputs]

    assert inputs(3) == [pathlib.Path('round3/search')]
    config.curate.rounds = 'all'
    assert inputs(3) == [pathlib.Path('round1/search'), pathlib.Path('round3/search')]
    assert inputs(1) == [pathlib.Path('round1/search')]


def test_a_search_is_made_from_the_models_that_it_searches_with(tmp_path):
    config = configs.default()
    config.ppm.path = 'judge'

    def stage(number, name, policy):
        config.policy.path = policy
        return doing.kept(Round(config, tmp_path, number), name)

    judge = pathlib.Path('judge')
    before = tmp_path / 'round1' / 'policy'
    assert stage(2, 'search', PREVIOUS).inputs[-2:] == (before, judge)
    start, later = (stage(number, 'eval', 'instruct') for number in (0, 1))
    assert start.inputs[-2:] == (pathlib.Path('instruct'), judge)
    assert start.settings['policy.path'] == 'instruct' and 'policy.path' not in later.settings


def test_the_first_policy_binds_where_sft_starts_from_it(tmp_path):
    def stage(policy, base=''):
        config = configs.default()
        config.policy.path, config.base.path = policy, base
        round_ = Round(configs.for_round(config, 1), tmp_path, 1, None)
        return doing.kept(round_, 'sft')

    made = stage('instruct')
    made.begin()
    (made.folder / 'model.json').write_text('')
    made.finish({})
    assert not stage('instruct').grows('round1, sft')
    assert not stage('other', 'instruct').grows('round1, sft')  # which is now said
    for again in (stage('other'), stage('instruct', 'other')):
        with pytest.raises(UserError) as wrong:
            again.grows('round1, sft')
        assert (wrong.value.argument, wrong.value.value) == ('base.path', 'other')
    # A policy of the workdir may have moved with it.
    ledger.write_json(tmp_path / 'round0' / 'policy' / 'model.json', {})
    ledger.write_json(tmp_path / 'config.json', {'round1': {'policy.path': 'instruct'}})
    for policy in ('instruct', 'previous', 'http://127.0.0.1:1/v1'):
        assert stage(policy).settings['base.path'] == ''


def test_a_bootstrap_comes_first_and_an_evaluation_can_come_alone():
    quickstart = configs.load(str(REPOSITORY / 'experiments' / 'quickstart.py'))
    assert doing.rows(quickstart, configs.STAGES)[0] == (0, 'bootstrap')
    evaluate = configs.load(str(REPOSITORY / 'experiments' / 'evaluate.py'))
    assert doing.rows(evaluate, ('eval',)) == [(0, 'eval')]


def told(monkeypatch, *configs_: ConfigDict, names: tuple = (('search',),) * 2):
    """What processes with these configs and stages say of each other; '' where they go on."""
    meeting, found = threading.Barrier(len(configs_)), {}

    def gathered(number: int) -> list[int]:
        found[threading.get_ident()] = number
        meeting.wait(20)
        everyone = list(found.values())
        meeting.wait(20)
        return everyone

    def check(config, stages) -> str:
        try:
            running.check_alike(
                [(Round(config, pathlib.Path(), 1), BY_NAME[name]) for name in stages]
            )
        except UserError as error:
            return error.told()
        return ''

    monkeypatch.setattr(hosts, 'gathered', gathered)
    with concurrent.futures.ThreadPoolExecutor(len(configs_)) as pool:
        return list(pool.map(check, configs_, names))


def test_processes_that_were_told_different_things_do_not_begin(monkeypatch):
    one, other = configs.default(), configs.default()
    assert told(monkeypatch, one, other) == ['', '']
    other.execution.workers, other.data.folder, other.search.slots = 3, '/mnt', 8
    assert told(monkeypatch, one, other) == ['', '']  # each machine may have its own
    other.search.rollouts, again = 77, ': differs among the processes: start the same command on'
    rows = zip((one, other), told(monkeypatch, one, other))
    assert all(f'search.rollouts={c.search.rollouts}{again}' in text for c, text in rows)
    texts = told(monkeypatch, one, one, names=(('search',), ('search', 'curate')))
    assert all('have other rounds or stages to run' in text for text in texts)
    other = configs.default()
    other.job.leases = 'static'
    assert all('job.leases=' in text for text in told(monkeypatch, one, other))


def test_a_budget_of_tokens_is_spent_on_all_problems_alike(monkeypatch, tmp_path):
    def tree(index, tree, tokens, solved=False):
        return (index, tree), Facts(solved, 1, tokens, 0)

    config = configs.default()
    config.search.mean_tokens, config.search.more_rollouts, config.search.rollouts = 250, (64,), 8
    problems = [Problem(i, '') for i in range(3)]
    # 100 tokens a tree on average; another's trees, and later ones, do not count.
    stored = [tree(0, 0, 50.0), tree(1, 0, 150.0, True), tree(2, 0, 100.0)]
    stored += [tree(9, 0, 5.0), tree(0, 1, 5.0)]
    store = types.SimpleNamespace(facts=lambda: stored, directory=tmp_path / 'one')
    store.meet = lambda: None
    made = search_stage.passes(config, problems, store)
    assert [(rollouts, list(trees), len(todo)) for rollouts, trees, todo in made] == [
        (8, [0], 3), (8, [1], 3), (64, [2], 2),
    ]  # fmt: skip
    # Further problems, of which a tree takes less, get as many: tree 2 is of the pass behind.
    stored += [tree(i, 0, 10.0) for i in range(3, 9)] + [tree(2, 2, 90.0, True)]
    made = search_stage.passes(config, [Problem(i, '') for i in range(9)], store)
    assert [(list(trees), len(todo)) for _, trees, todo in made] == [([0], 9), ([1], 9), ([2], 8)]
    store.directory = tmp_path / 'other'
    config.search.mean_tokens = 40  # at least one tree
    made = [list(trees) for _, trees, _ in search_stage.passes(config, problems, store)]
    assert made == [[0], [], [1]]


def test_later_trees_are_for_problems_still_unsolved(tmp_path, monkeypatch):
    """Round 4's further trees: one more for each number, with that many rollouts."""
    config = configs.paper_round(4)
    asked = []

    class Tree:
        def __init__(self, problem, tree):
            self.problem, self.tree, self.key = problem, tree, (problem.index, tree)
            self.solved = (problem.index, tree) in {(0, 0), (2, 1)}
            self.texts, self.counters = ['', 'x'], {'sampled_tokens': 10.0}

    class Store:
        trees: dict = {}  # noqa: RUF012

        def __init__(self, directory, writer=0):
            self.directory = directory

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def __iter__(self):
            return iter(list(self.trees.values()))

        def __len__(self):
            return len(self.trees)

        def __contains__(self, key):
            return key in self.trees

        def __getitem__(self, key):
            return self.trees[key]

        def keys(self):
            return set(self.trees)

        unordered = __iter__

        def facts(self):
            return [(key, Facts.of(tree)) for key, tree in self.trees.items()]

        def meet(self):
            pass

        def append(self, tree):
            assert tree.key not in self.trees
            self.trees[tree.key] = tree

    def grow(problems, policy, ppm, *, config, trees, share, **_):
        for problem in problems:
            for tree in range(trees):
                if (problem.index, tree) not in share.skip:
                    asked.append((problem.index, tree, config.rollouts))
                    yield Tree(problem, tree)

    problems = [Problem(i, 'q', '1') for i in range(4)]
    read = problems, {}, collections.Counter(rows=4)
    monkeypatch.setattr(own_problems, 'split', lambda round_: read)
    monkeypatch.setattr(checkpoints, 'searching_model', lambda round_, kind: None)
    monkeypatch.setattr(data, 'TreeStore', Store)
    monkeypatch.setattr(search, 'run', grow)
    round_ = Round(configs.for_round(config, 4), tmp_path, 4, Events(None))
    stage = doing.kept(round_, 'search')
    stage.begin()
    figures = doing.work(round_, 'search', stage)
    assert asked == [
        (0, 0, 16), (1, 0, 16), (2, 0, 16), (3, 0, 16),
        (1, 1, 64), (2, 1, 64), (3, 1, 64),
        (1, 2, 128), (3, 2, 128),
    ]  # fmt: skip
    assert (figures['trees'], figures['problems'], figures['solved']) == (9, 4, 2)
    asked.clear()
    doing.work(round_, 'search', stage)
    assert asked == []


def test_every_round_searches_and_writes_by_seeds_of_its_own():
    config = configs.paper_schedule(configs.default())
    config.seed = 7
    seeds = [
        seed(Round(configs.for_round(config, n), pathlib.Path(), n, Events(None)))
        for seed in (searches.search_seed, searches.synthesis_seed)
        for n in range(1, 5)
    ]
    assert seeds[0] == 7 and len(set(seeds)) == 8


def test_a_training_has_a_row_for_each_example_where_its_heads_let_it(tmp_path):
    """On the eight devices of the tests."""
    policy = words.policy()  # of 4 heads, 2 of keys
    models.save(policy, tmp_path / 'hf')
    trained.save_model(policy, tmp_path / 'own')
    round_ = Round(configs.default(), tmp_path, 1, Events(None))
    for batch_size, path, sizes in (
        (4, tmp_path / 'hf', (1, 4, 2)),
        (1, str(tmp_path / 'own'), (1, 4, 2)),
        (8, tmp_path / 'own', (1, 8, 1)),
        (4, table.TINY, (1, 8, 1)),
    ):
        round_.config.training.sft.batch_size = batch_size
        assert BY_NAME['sft'].mesh(round_, path).devices.shape == sizes


def test_a_raised_limit_extends_the_search(world, tmp_path, monkeypatch):
    """What was searched stays, what was made from it is made again."""
    asked, curated = [], []

    def grow(problems, policy, ppm, *, share, **_):
        for problem in problems:
            if (problem.index, 0) not in share.skip:
                asked.append(problem.index)
                yield tree_of(problem, 0, [(problem.answer, 0.0, True)])

    def curate(trees, folder, **rules):
        curated.append(sorted(record.problem.index for record in trees))
        (folder / 'made').write_text('')
        return {}

    monkeypatch.setattr(search, 'run', grow)
    monkeypatch.setattr(data, 'curate_to', curate)
    monkeypatch.setattr(checkpoints, 'searching_model', lambda round_, kind: None)
    monkeypatch.setattr(terminal, 'show', lambda *_: None)
    monkeypatch.setattr(report, 'write', lambda *_, **__: None)

    def run(limit):
        flags = [f'policy.path={world / "policy"}', f'data.problems={world / "problems.json"}']
        flags.append(f'data.limit={limit}')
        config, _ = main.parse(str(world / 'config.py'), [f'--config.{flag}' for flag in flags])
        rounds.run(config, str(tmp_path), ('search', 'curate'))

    for limit in (2, 2, 3, 0):
        run(limit)
    assert asked == [0, 1, 2, 3]
    assert curated == [[0, 1], [0, 1, 2], [0, 1, 2, 3]]
    figures = ledger.read_json(tmp_path / 'round1' / 'search' / 'done.json')['figures']
    assert figures['trees'] == 4
    with pytest.raises(UserError) as wrong:
        run(2)
    assert (wrong.value.argument, wrong.value.value) == ('data.limit', 2)
