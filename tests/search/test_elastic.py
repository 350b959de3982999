"""Workers that come, are lost and come back: each tree once, and the same as without all that."""

import dataclasses
import math
import time

import jax
import pytest

from rstar_jax import data, evals, models, search
from rstar_jax import settings as configs
from rstar_jax.data import arithmetic
from rstar_jax.data.problem import Problem
from rstar_jax.job import ledger
from rstar_jax.job.progress import Events
from rstar_jax.models import tiny, trained
from rstar_jax.search import begin, elastic
from rstar_jax.search.snapshots import SnapshotFolder
from rstar_jax.settings.errors import UserError
from rstar_jax.stages import BY_NAME, Round, checkpoints, searches
from tests.search.test_scripted import random_score, random_texts
from tests.search.test_snapshots import assert_same

CONFIG = search.Config(rollouts=8, candidates=4, max_depth=4, error_threshold=2)
ITEMS = [(Problem(i, f'q{i}', str(i % 3)), tree) for i in range(12) for tree in range(2)]


@pytest.fixture(scope='module')
def workers():
    with search.Workers.start(CONFIG) as started:
        yield started


def start_with(workers, texts=random_texts):
    def start(share):
        expander = search.scripted(texts, random_score, trees=3)
        problems = [problem for problem, tree in ITEMS if tree == 0]
        share = dataclasses.replace(share, workers=workers)
        return search.run(problems, expander=expander, config=CONFIG, trees=2, share=share)

    return start


@pytest.fixture(scope='module')
def whole(workers):
    return {record.key: record for record in start_with(workers)(search.Share())}


class Threads:
    """A team of Members in this process, to which `fate(team, answers so far)` may do things."""

    def __init__(self, start, count, fate=None, keep_seconds=0.0):
        self.start, self.fate, self.keep_seconds = start, fate, keep_seconds
        self.members, self.asked, self.cut_off, self.gone = {}, {}, set(), []
        self.fresh, self.told, self.given, self.dropped = [], 0, {}, []
        for _ in range(count):
            self.add()

    def add(self):
        name = f'worker {len(self.members)}'
        self.members[name] = elastic.Member(self.start, self.keep_seconds)
        self.fresh.append(name)

    def joined(self):
        fresh, self.fresh = self.fresh, []
        return fresh

    def ask(self, worker, items):
        assert worker not in self.asked
        self.asked[worker] = items
        self.given.setdefault(worker, []).extend(items)

    def drop(self, worker):
        self.dropped.append(worker)
        self.asked.pop(worker, None)

    def answers(self):
        found = [(name, None) for name in self.gone]
        for name in self.gone:
            self.asked.pop(name, None)
        self.gone = []
        for name in [name for name in self.asked if name not in self.cut_off]:
            found.append((name, self.members[name].poll(self.asked.pop(name))))
            self.told += bool(found[-1][1].finished)
        if self.fate:
            self.fate(self)
        return found

    def close(self):
        self.members.clear()


def test_each_tree_comes_once_whatever_becomes_of_the_workers(workers, whole, tmp_path):
    def fate(team):
        if team.told >= 2 and 'worker 0' not in team.cut_off:
            team.cut_off.add('worker 0')  # hangs on to what it has, and is silent
        if team.told >= 3 and len(team.members) == 3:
            team.add()
            team.gone.append('worker 1')  # killed

    def slow(*arguments):
        time.sleep(0.01)
        return random_texts(*arguments)

    team, lines = Threads(start_with(workers, slow), 3, fate), []
    found = {}
    for record in elastic.run(ITEMS, team, say=lines.append, silent=2.0):
        assert record.key not in found
        found[record.key] = record
    assert found.keys() == whole.keys()
    for key, record in found.items():
        assert_same(record, whole[key])
    assert team.dropped == ['worker 0']
    assert [line for line in lines if 'has not answered for 2 s' in line]
    assert [line for line in lines if line.startswith('worker 1: is gone')]
    assert 'worker 3: has come, ' in ' '.join(lines)
    assert team.given['worker 3']


def test_nobody_is_lost_while_a_tree_is_stored_for_long(workers, whole):
    team, found = Threads(start_with(workers), 2), {}
    for record in elastic.run(ITEMS, team, say=lambda line: None, silent=0.15):
        time.sleep(0 if found else 0.2)
        found[record.key] = record
    assert found.keys() == whole.keys() and not team.dropped


def test_a_lost_workers_trees_go_on_from_where_they_were(workers, whole, tmp_path):
    """The driver keeps what workers tell of trees in flight, on disk too."""
    seen = []

    class Once(Threads):
        def answers(self):
            found = super().answers()
            for name, answer in found:
                if answer is not None and answer.kept and not seen:
                    seen.extend(answer.kept)
                    self.cut_off.add(name)
                    self.gone.append(name)
            return found

    def slow(*arguments):
        time.sleep(0.02)
        return random_texts(*arguments)

    team = Once(start_with(workers, slow), 2, keep_seconds=0.1)
    with data.TreeStore(tmp_path) as store:
        flights = SnapshotFolder(tmp_path / 'flights', 0, 0.1, store)
        for record in elastic.run(ITEMS, team, snapshots=flights, say=lambda line: None):
            store.append(record)
            assert_same(record, whole[record.key])
        assert store.keys() == whole.keys()
    assert (tmp_path / 'flights' / '0.array_record').exists()
    again = [(p.index, tree) for p, tree, kept in team.given['worker 1'] if kept is not None]
    again += [(p.index, tree) for p, tree, kept in team.given['worker 0'] if kept is not None]
    assert set(seen) & set(again)


def test_a_mistake_of_the_user_ends_the_run_and_other_errors_after_some(workers):
    def broken(error):
        def start(share):
            raise error
            yield

        return start

    team = Threads(broken(UserError('no such model')), 1)
    with pytest.raises(UserError) as wrong:
        list(elastic.run(ITEMS, team, say=lambda line: None))
    assert wrong.value.argument == 'worker 0'
    team, lines = Threads(broken(ValueError('out of luck')), 3), []
    with pytest.raises(UserError) as wrong:
        list(elastic.run(ITEMS, team, say=lines.append))
    assert 'out of luck' in wrong.value.expected
    assert len([line for line in lines if 'out of luck; 0 trees' in line]) == 2


def test_workers_that_never_begin_end_the_run(workers):
    class Stillborn(Threads):
        def answers(self):
            gone, self.asked = list(self.asked), {}
            self.add()
            return [(name, None) for name in gone]

    with pytest.raises(UserError) as wrong:
        list(elastic.run(ITEMS, Stillborn(start_with(workers), 1), say=lambda line: None))
    assert wrong.value.argument.startswith('worker ')


def test_totals_add_up(workers, whole):
    told = []
    list(elastic.run(ITEMS, Threads(start_with(workers), 2), progress=told.append))
    assert (told[-1]['trees_done'], told[-1]['trees_total']) == (24, 24)
    assert told[-1]['solved'] == sum(record.solved for record in whole.values())
    assert told[-1]['nodes'] == sum(len(record.texts) for record in whole.values())


def test_the_time_until_workers_have_come_does_not_come_again(whole, monkeypatch):
    clock, told = [0.0], []
    monkeypatch.setattr(elastic.time, 'monotonic', lambda: clock[0])
    totals = elastic._Totals(len(whole), told.append)
    for now, record in zip((600.0, 602.0, 604.0), whole.values()):
        clock[0] = now
        totals.finished(record)
        totals.tell()
    assert math.isnan(told[0]['seconds_left'])
    assert told[-1]['seconds_left'] == 2.0 * (len(whole) - 3)
    assert math.isnan(told[-1]['slot_use'])
    totals.of = {'a': {'slot_steps': 30, 'live_slot_steps': 30}, 'b': {'slot_steps': 10}}
    totals.tell(final=True)
    assert (told[-1]['workers'], told[-1]['slot_use']) == (2, 0.75)


def test_a_stopped_driver_keeps_what_workers_have_told(workers, whole, tmp_path, monkeypatch):
    def slow(*arguments):
        time.sleep(0.02)
        return random_texts(*arguments)

    def stop(team):
        if team.kept:
            raise KeyboardInterrupt

    class Telling(Threads):
        kept, finished = (), set()

        def answers(self):
            found = super().answers()
            told = [answer for _, answer in found]
            self.finished |= {
                search.Record.from_bytes(x).key for answer in told for x in answer.finished
            }
            self.kept = {key for answer in told for key in answer.kept} - self.finished
            return found

    team = Telling(start_with(workers, slow), 2, stop, keep_seconds=0.1)
    flights = SnapshotFolder(tmp_path, 0, 1000.0, ())
    with pytest.raises(KeyboardInterrupt):
        list(elastic.run(ITEMS, team, snapshots=flights, say=lambda line: None))
    again = SnapshotFolder(tmp_path, 0, 1000.0, ())
    assert team.kept and all(again.find(key) for key in team.kept)
    # Those of the next run go on with it.
    went_on, find = set(), elastic.Member.find

    def noted(member, key):
        tree = find(member, key)
        went_on.update([key] if tree is not None else ())
        return tree

    monkeypatch.setattr(elastic.Member, 'find', noted)
    next_team, again = Threads(start_with(workers), 2), SnapshotFolder(tmp_path, 0, 1000.0, ())
    for record in elastic.run(ITEMS, next_team, snapshots=again, say=lambda line: None):
        assert_same(record, whole[record.key])
    assert team.kept <= went_on


def test_each_worker_asks_the_server_that_has_the_policy(monkeypatch, tmp_path):
    config = configs.default()
    config.policy.path, config.policy.model = 'http://127.0.0.1:9/v1', 'large'
    config.policy.requests = 3
    given = []

    def team(begin, devices):
        start, _ = begin()
        start(search.Share(leases=iter(())))
        raise UserError('enough')

    def searched(problems, policy, ppm, **_):
        given.append(policy)

    monkeypatch.setattr(searches.ray_team, 'RayTeam', team)
    monkeypatch.setattr(elastic.parallel, 'keep_compiled', lambda where: None)
    monkeypatch.setattr(elastic.search, 'run', searched)
    run = searches.on_ray(config, print)
    problems = [problem for problem, _ in ITEMS]
    with pytest.raises(UserError, match='enough'):
        list(
            run(
                problems,
                config.policy.path,
                None,
                config=CONFIG,
                seed=0,
                trees=1,
                share=search.Share(),
            )
        )
    assert given == [search.Endpoint(config.policy.path, 'large', requests=3)]


def on_workers(monkeypatch, tmp_path):
    """An evaluation's search by workers that are threads of this process."""
    config = configs.default()
    config.policy.path = str(tmp_path / 'policy')
    config.job.leases = 'ray'
    teams = []

    def team(begin, devices):
        start, _ = begin()
        teams.append(Threads(start, 2))
        return teams[-1]

    monkeypatch.setattr(searches.ray_team, 'RayTeam', team)
    monkeypatch.setattr(elastic.parallel, 'keep_compiled', lambda where: None)
    round_ = Round(config, tmp_path, 0, Events(None))
    return BY_NAME['eval']._on_ray(round_, print), teams


def test_an_evaluation_by_workers_is_that_of_one_process(monkeypatch, tmp_path):
    policy = tiny.policy(arithmetic.vocabulary())
    models.save(policy, tmp_path / 'policy')
    problems = arithmetic.problems(4, seed=3)
    totals, make = [], begin.make_expander

    def made(policy, ppm, config, mesh, total):
        totals.append(total)
        return make(policy, ppm, config, mesh, total)

    monkeypatch.setattr(begin, 'make_expander', made)
    settings = search.Config(step_tokens=8, max_depth=2, path_tokens=160, rollouts=2, candidates=2)
    settings = evals.Config(settings, strategies=('greedy',))
    run_search, teams = on_workers(monkeypatch, tmp_path)
    found = [
        evals.run(policy, None, {'sums': problems}, settings, run_search=run)
        for run in (None, run_search)
    ]
    one, many = (result['benchmarks']['sums']['strategies'] for result in found)
    assert len(teams) == 1 and len(teams[0].given) == 2 and not teams[0].members  # closed
    assert totals == [4, 4, 4]  # room for all, though no worker has more than its leases
    for name, figures in one.items():
        del figures['seconds_per_problem'], many[name]['seconds_per_problem']
        assert many[name] == figures
        assert figures['tokens_per_problem'] > 4


def test_who_deals_to_workers_reads_no_weights(monkeypatch, tmp_path):
    policy = tiny.policy(arithmetic.vocabulary())
    models.save(policy, tmp_path / 'policy')
    made = tmp_path / 'round1'
    trained.save_model(policy, made / 'policy')
    trained.save_model(models.init_ppm(policy), made / 'ppm')
    ledger.write_json(made / 'policy' / 'done.json', {'id': 'made'})
    monkeypatch.setattr(checkpoints, 'load_model', None)
    config = configs.default()
    config.policy.path = config.base.path = str(tmp_path / 'policy')
    config.job.leases = 'ray'
    for number, base in ((0, False), (0, True), (1, False)):
        round_ = Round(config, tmp_path, number, None)
        shape, judge = BY_NAME['base' if base else 'eval'].models(round_)
        assert shape.config == policy.config and (judge is None) == (number == 0)
        assert evals.figures.flops_of([], shape, judge) == 0
    config.policy.path = 'http://127.0.0.1:1/v1'
    shape, _ = BY_NAME['eval'].models(Round(config, tmp_path, 0, None))
    assert isinstance(shape, search.Endpoint)


def test_what_ray_cannot_do_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr(jax, 'process_count', lambda: 3)
    with pytest.raises(UserError) as error:
        on_workers(monkeypatch, tmp_path)
    assert (error.value.argument, error.value.value) == ('job.leases', 'ray')
    config = configs.default()
    config.job.leases, config.search.agree = 'ray', 2
    with pytest.raises(UserError) as error:
        configs.validate(config)
    assert (error.value.argument, error.value.value) == ('search.agree', 2)
