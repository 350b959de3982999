"""The stage curate: several processes make of a round's trees what one makes."""

import json
import types

import jax
import pytest

from rstar_jax import data, steps
from rstar_jax import settings as configs
from rstar_jax.data import examples
from rstar_jax.job import hosts, ledger
from rstar_jax.job.progress import Events
from rstar_jax.settings.errors import UserError
from rstar_jax.stages import Round
from rstar_jax.stages import problems as own_problems
from tests.data import samples
from tests.stages import doing

PROBLEMS = 20


@pytest.fixture
def make(tmp_path, monkeypatch):
    """Makes the stage in a new folder by so many processes, one after the other, the first last."""
    names = [samples.grown(0, index=i).problem.question for i in (0, 7, 18)]

    def find(question):
        asked.append(question)
        return question in names

    asked = []
    monkeypatch.setattr(own_problems, 'overlap', lambda round_: types.SimpleNamespace(find=find))

    def make(count, alike=True, before=(), **rules):
        config = configs.default()
        config.curate.rounds = 'all'
        config.curate.update(rules)
        round_ = Round(config, tmp_path / f'{count}{alike}', 2, Events(None))
        for number, trees in ((1, 3), (2, 2)):
            with data.TreeStore(round_.root / f'round{number}' / 'search', shard_trees=8) as store:
                for i in range(PROBLEMS * trees):
                    index = i % (PROBLEMS - number)
                    store.append(samples.grown(number * 100 + i, index, i // (PROBLEMS - number)))
        stage = ledger.Stage(round_.folder / 'curate')
        for name in before:
            (stage.folder / name).mkdir(parents=True)
        told = [], []
        for number in reversed(range(count)):
            columns = iter(told)

            def gathered(value, columns=columns):
                column = next(columns)
                column.append(value)
                return column if alike or column is told[1] else [value, value + 1]

            with monkeypatch.context() as process:
                process.setattr(jax, 'process_index', lambda number=number: number)
                process.setattr(jax, 'process_count', lambda: count)
                for module in (hosts,):
                    process.setattr(module, 'gathered', gathered)
                figures = doing.work(round_, 'curate', stage)
        return stage.folder, figures

    make.asked = asked
    return make


def contents(folder):
    found = {kind: list(data.load_examples(folder, kind)) for kind in examples.KINDS}
    return found, (folder / 'counts.json').read_bytes()


@pytest.mark.parametrize('count', [2, 3, 50])
def test_several_processes_make_what_one_makes(make, count):
    """Also where there are more of them than problems, and where some have fallen before."""
    alone, expected = make(1)
    together, figures = make(count, before=['part00000', 'part00099'])
    assert figures == expected and figures['overlapping'] == 3 and figures['pairs'] > 20
    assert contents(together) == contents(alone)
    assert not list(together.glob('part*'))
    assert len(list(together.glob('pairs-*'))) == count


def test_the_first_process_curates_alone_where_others_see_other_trees(make):
    alone, expected = make(1)
    together, figures = make(2, alike=False)
    assert figures == expected and contents(together) == contents(alone)
    assert len(list(together.glob('pairs-*'))) == 1


def test_the_rules_are_those_of_the_config(make):
    _, every = make(1)
    _, one = make(1, margin=1.5, trajectories=1)
    assert every['trees'] == one['trees'] == 85  # of 100, without those of three problems
    assert every['pairs'] > one['pairs'] > 0 and every['sft'] > one['sft'] > 0
    _, own = make(1, rounds='own')
    assert own['trees'] == 35


def test_a_problem_is_looked_for_in_the_benchmarks_once_whatever_its_trees(make):
    _, figures = make(1)
    assert figures['trees'] == 85 and len(make.asked) == len(set(make.asked)) == 19


def test_given_examples_of_a_benchmarks_problems_are_left_out(tmp_path):
    asked = [f'{word} has {i} eggs and sells two of them. How many are left?' for i, word in
             enumerate(('Ann', 'Ben', 'Cleo'))]  # fmt: skip
    problem = {'index': 0, 'question': asked[1], 'answer': '7'}
    (tmp_path / 'test.json').write_text(json.dumps([problem]))
    sft = [{'query': question, 'response': 'r'} for question in asked]
    pairs = [
        {'prompt': steps.prompt(question) + prefix, 'chosen': 'a', 'rejected': 'b'}
        for question in (*asked, 'Once there were farmers. ' + asked[1])
        for prefix in ('', '<code>\n')
    ]
    config = configs.default()
    config.eval.benchmarks = str(tmp_path / 'test.json')
    for kind, items in (('sft', sft), ('pairs', pairs)):
        config.curate[kind] = str(tmp_path / f'{kind}.json')
        ledger.write_json(tmp_path / f'{kind}.json', items)
    round_ = Round(config, tmp_path, 1, Events(None))
    stage = ledger.Stage(round_.folder / 'curate')
    assert doing.work(round_, 'curate', stage) == {'sft': 2, 'pairs': 4, 'overlapping': 2}
    assert [e['query'] for e in data.load_examples(stage.folder, 'sft')] == [asked[0], asked[2]]
    kept = [e['prompt'] for e in data.load_examples(stage.folder, 'pairs')]
    assert kept == [pairs[i]['prompt'] for i in (0, 1, 4, 5)]
    config.data.overlap = 0
    assert doing.work(round_, 'curate', stage) == {'sft': 3, 'pairs': 8, 'overlapping': 0}
    config.data.overlap = 13
    ledger.write_json(tmp_path / 'sft.json', sft[1:2])
    with pytest.raises(UserError, match='curate.sft=.*sft.json: every example is of a problem in'):
        doing.work(round_, 'curate', stage)


def test_counts_are_numbers_by_name(make):
    folder, figures = make(3)
    assert json.loads((folder / 'counts.json').read_text()) | {'overlapping': 3} == figures
