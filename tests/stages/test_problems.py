"""Which problems a round searches: what earlier rounds have solved makes room for others."""

import collections
import dataclasses
import itertools
import json

import pytest

from rstar_jax import data
from rstar_jax import settings as configs
from rstar_jax.data import arithmetic
from rstar_jax.data.problem import Problem
from rstar_jax.job.progress import Events
from rstar_jax.settings.errors import UserError
from rstar_jax.settings.table import ARITHMETIC
from rstar_jax.stages import Round, checkpoints
from rstar_jax.stages import problems as own_problems
from tests.data import samples
from tests.stages import doing

TREES = 3


@pytest.fixture
def problems(tmp_path):
    """20 problems in a file."""
    found = [samples.grown(0, index).problem for index in range(20)]
    (tmp_path / 'problems.json').write_text(json.dumps([problem.to_dict() for problem in found]))
    return found


@pytest.fixture
def make(tmp_path, problems):
    """Makes a round whose earlier ones searched trees of the first ten problems."""

    def make(number, solved=1, limit=8, path=str(tmp_path / 'problems.json')):
        config = configs.default()
        config.data.problems, config.data.limit, config.data.solved = path, limit, solved
        config.curate.rounds = 'all'
        return Round(config, tmp_path, number, Events(None))

    return make


def searched(tmp_path, number, found) -> collections.Counter:
    """{question: its trees with a right answer} of a made search of three small trees each."""
    right: collections.Counter = collections.Counter()
    with data.TreeStore(tmp_path / f'round{number}' / 'search') as store:
        for problem, tree in itertools.product(found, range(TREES)):
            record = samples.grown(tree, problem.index, tree)
            right_one = (problem.index + number) % (TREES + 1) > tree
            record = dataclasses.replace(record, correct=[right_one] * len(record.texts))
            store.append(record)
            right[problem.question] += record.solved
    return right


def test_what_earlier_rounds_solved_makes_room_for_others(tmp_path, problems, make):
    first = searched(tmp_path, 1, problems[:10])
    second = searched(tmp_path, 2, problems[5:12])
    for least in (1, 2, 3):
        for number, found in ((1, {}), (2, first), (3, first + second)):
            dropped = [p.index for p in problems if found.get(p.question, 0) >= least]
            left = [p for p in problems if p.index not in dropped]
            assert number == 1 or 0 < len(dropped) < (10 if number == 2 else 12)
            kept, _, counts = own_problems.split(make(number, least))
            assert kept == left[:8]
            last = kept[-1].index
            assert counts['solved before'] == sum(index < last for index in dropped)
            assert counts['rows'] == last + 1 and counts['used'] == 8
    assert own_problems.problems(make(3, solved=0)) == problems[:8]
    # A search and what is written for it are checked before earlier rounds have run.
    assert own_problems.problems(make(3), known=True) == problems[:8]


def test_built_in_and_written_problems_are_left_out_too(tmp_path, make):
    world = arithmetic.world(0, own_problems.ARITHMETIC_TRAIN, own_problems.ARITHMETIC_TESTS).train
    written = [Problem(10**9 + i, f'Why {i}?', '42') for i in range(2)]
    folder = tmp_path / 'round1' / 'synthesize'
    folder.mkdir(parents=True)
    data.write_json_items(map(Problem.to_dict, written), folder / own_problems.WRITTEN)
    with data.TreeStore(tmp_path / 'round1' / 'search') as store:
        for problem in (world[1], written[0]):
            record = dataclasses.replace(samples.grown(1), problem=problem)
            assert record.solved
            store.append(record)
    kept, _, counts = own_problems.split(make(2, path=ARITHMETIC, limit=3))
    assert kept == [world[0], *world[2:4], written[1]]
    assert data.told(counts) == '4 of 6 problems used; dropped: 2 solved before'


def test_all_solved_is_one_line(tmp_path, problems, make):
    with data.TreeStore(tmp_path / 'round1' / 'search') as store:
        for problem in problems:
            store.append(dataclasses.replace(samples.grown(1), problem=problem))
    with pytest.raises(UserError) as error:
        own_problems.problems(make(2))
    assert '20 solved before' in error.value.remedy
    assert len(own_problems.problems(make(2, solved=2))) == 8
    world = arithmetic.world(0, own_problems.ARITHMETIC_TRAIN, own_problems.ARITHMETIC_TESTS).train
    with data.TreeStore(tmp_path / 'round2' / 'search') as store:
        for problem in world:
            store.append(dataclasses.replace(samples.grown(1), problem=problem))
    with pytest.raises(UserError, match='every problem: raise --config.data.solved=1, or 0'):
        own_problems.problems(make(3, path=ARITHMETIC))


def test_a_search_belongs_to_those_whose_problems_it_leaves_out(tmp_path, make, monkeypatch):
    monkeypatch.setattr(checkpoints, 'searching_path', lambda round_, kind: None)
    (tmp_path / 'round1' / 'search').mkdir(parents=True)
    assert tmp_path / 'round1' / 'search' in doing.kept(make(2), 'search').inputs
    assert tmp_path / 'round1' / 'search' not in doing.kept(make(2, 0), 'search').inputs


def test_what_is_left_out_needs_to_be_trained_on(make):
    config = make(1).config
    config.policy.path = 'instruct'
    configs.validate(config)
    config.curate.rounds = 'own'
    with pytest.raises(UserError, match='data.solved=1: .*set --config.curate.rounds=all'):
        configs.validate(config)
