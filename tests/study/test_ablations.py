"""What the ablations run, share and write; without models, by stages that tell what they got."""

import pathlib
import re

import pytest

from rstar_jax import report, rounds
from rstar_jax.job import ledger
from rstar_jax.report import run as runs
from rstar_jax.report import tables
from rstar_jax.settings import configs
from rstar_jax.settings.errors import UserError
from rstar_jax.stages import STAGES, sources
from rstar_jax.study import ablations

REPOSITORY = pathlib.Path(__file__).parents[2]
PROBLEMS = [{'index': i, 'question': f'What is {i}?', 'answer': str(i)} for i in range(10)]


def small(seeds: int = 2, groups: str = ''):
    config = configs.load(str(REPOSITORY / 'experiments' / 'ablations.py'))
    config.ablations.seeds, config.ablations.groups = seeds, groups
    config.ablations.rollouts = (1, 8)
    config.last_round = 2
    return config


class World:
    """Stages that write what the real ones do, and keep what they were given."""

    def __init__(self, monkeypatch):
        self.ran, self.dies_at = [], None
        stages = {name: self.stage(name) for name in (*configs.STAGES, 'base')}
        monkeypatch.setattr(rounds, 'STAGES', stages)
        monkeypatch.setattr(rounds.preflight, 'check', lambda rows: [])
        monkeypatch.setattr(rounds.parallel, 'give_memory_back', lambda: None)
        monkeypatch.setattr(sources, 'benchmarks', lambda round_: {'arithmetic': PROBLEMS})
        monkeypatch.setattr(ablations.evals, 'read', self.read)

    def stage(self, name):
        def made(round_, stage, line):
            del line
            if len(self.ran) == self.dies_at:
                raise KeyboardInterrupt
            self.ran.append((round_.root.parent.name, round_.root.name, round_.number, name))
            (stage.folder / 'model.json').write_text('')
            (stage.folder / 'made').write_text(f'{round_.root.name} {name}')
            if name == 'search':
                return {'tokens': 4000, 'problems': 10, 'trees': 20}
            if name == 'eval':
                (stage.folder / 'arithmetic' / 'greedy').mkdir(parents=True, exist_ok=True)
                rows = self.evaluated(round_)
                ledger.write_json(stage.folder / 'results.json', {'round': 1, 'benchmarks': rows})
            return {}

        return made

    def evaluated(self, round_):
        config = round_.config
        self.config = config
        names = ('greedy', *configs.strategies_of(config.eval.strategies))
        count = 8 if round_.root.name in ('plain', 'searches') else 5
        rows = {name: self.figures(4, count) for name in names}
        return {'arithmetic': {'problems': 10, 'strategies': rows}}

    def figures(self, trees, solved):
        modes = ('greedy', 'best', 'majority')
        return {
            'trajectories': trees,
            'solved': {mode: list(range(solved)) for mode in modes},
            'any': 0.9,
            'tokens_per_problem': 100.0 * trees,
            'seconds_per_problem': 0.5 * trees,
            'judge': {'pairs': 7, 'auc': 0.75},
        }

    def read(self, folder, name, problems, strategy, trees, *, scored, top):
        assert pathlib.Path(folder).is_dir() and name == 'arithmetic' and problems == PROBLEMS
        plain = strategy == 'unguided' or {'plain', 'many-samples'} & {*pathlib.Path(folder).parts}
        assert scored == (not plain) and top == 0
        return self.figures(trees, 1)


@pytest.fixture
def world(monkeypatch):
    return World(monkeypatch)


def test_everything_is_run_once_and_shared(world, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(ablations.report, 'write', lambda root: None)
    ablations.run(small(), str(tmp_path))
    ran = [row[1:] for row in world.ran if row[0] == 'seed0']
    assert [row[1:] for row in world.ran if row[0] == 'seed1'] == ran
    of = {name: [row[1:] for row in ran if row[0] == name] for name in dict(x[:2] for x in ran)}
    assert of['run'] == [
        (0, 'bootstrap'), (0, 'eval'),
        *((k, name) for k in (1, 2) for name in ('search', 'curate', 'sft', 'ppm', 'eval')),
    ]  # fmt: skip
    assert of.pop('run') and of == {
        'self-samples': [(1, name) for name in ('search', 'curate', 'sft', 'eval')],
        'rejection': [(1, name) for name in ('curate', 'sft', 'eval')],
        'unranked': [(1, name) for name in ('curate', 'sft', 'eval')],
        'plain': [(2, 'eval')],
        'searches': [(2, 'eval')],
        'orm': [(2, 'ppm'), (2, 'eval')],
        'pqm': [(2, 'ppm'), (2, 'eval')],
        'prm': [(2, 'ppm'), (2, 'eval')],
        'ppm1': [(1, 'eval')],
        'ppm2': [(1, 'eval')],
        'many-samples': [(2, 'eval')],
        'rollouts1': [(2, 'eval')],
        'rollouts8': [(2, 'eval')],
    }
    for place, text in {
        'self-samples/round0/policy': 'run bootstrap',
        'rejection/round1/search': 'self-samples search',
        'unranked/round1/search': 'run search',
        'orm/round2/curate': 'run curate',
        'orm/round2/ppm': 'orm ppm',
        'searches/round2/ppm': 'run ppm',
        'ppm2/round1/policy': 'run sft',
        'rollouts8/round2/policy': 'run sft',
    }.items():
        folder = tmp_path / 'seed1' / place
        assert (folder / 'made').read_text() == text, place
        assert folder.is_symlink() != text.startswith(place.partition('/')[0]), place
    ppm2 = tmp_path / 'seed1' / 'ppm2' / 'round1' / 'ppm'
    assert ppm2.resolve() == (tmp_path / 'seed1' / 'run' / 'round2' / 'ppm').resolve()
    printed = capsys.readouterr().out
    parts = re.findall(r'ablations: part (\d+) of (\d+), seed (\d), ([\w-]+): .* left', printed)
    assert len(parts) == 28 and parts[-1] == ('28', '28', '1', 'rollouts8')
    count = len(world.ran)
    (tmp_path / 'ablations.json').unlink()
    (tmp_path).rename(tmp_path.parent / 'moved')
    ablations.run(small(), str(tmp_path.parent / 'moved'))
    assert len(world.ran) == count
    assert (tmp_path.parent / 'moved' / 'ablations.json').exists()


def test_each_variant_has_what_its_name_says(world, tmp_path, monkeypatch):
    monkeypatch.setattr(ablations.report, 'write', lambda root: None)
    ablations.run(small(1), str(tmp_path))

    def settings(name, number):
        return ledger.read_json(tmp_path / 'seed0' / name / 'config.json')[f'round{number}']

    run, samples = settings('run', 1), settings('self-samples', 1)
    different = {key for key in run if run[key] != samples[key]}
    assert different == {
        *(
            'search.candidates',
            'search.rollouts',
            'search.mean_tokens',
            'curate.choice',
            'eval.mean_tokens',
        ),
    }
    assert samples['search.mean_tokens'] == 400  # as the trees took for a problem
    assert (samples['curate.choice'], settings('rejection', 1)['curate.choice']) == ('any', 'right')
    assert settings('pqm', 2)['training.ppm.loss'] == 'pqm'
    assert settings('rollouts8', 2)['eval.rollouts'] == 8
    assert settings('rollouts8', 2)['eval.limit'] == settings('many-samples', 2)['eval.limit'] == 48
    assert settings('many-samples', 2)['eval.samples'] == 8
    assert settings('searches', 2)['eval.limit'] == run['eval.limit'] != 48
    assert settings('searches', 2)['eval.mean_tokens'] == run['eval.mean_tokens'] > 0


@pytest.mark.parametrize('step', [0, 7, 13, 32])
def test_stopped_anywhere_it_goes_on(world, tmp_path, monkeypatch, step):
    monkeypatch.setattr(ablations.report, 'write', lambda root: None)
    world.dies_at = step
    with pytest.raises(KeyboardInterrupt):
        ablations.run(small(1), str(tmp_path))
    world.dies_at = None
    ablations.run(small(1), str(tmp_path))
    assert len(world.ran) == len(set(world.ran)) == 35


def test_the_table_has_every_row_and_what_beats_us(world, tmp_path, capsys):
    ablations.run(small(), str(tmp_path))
    made = ledger.read_json(tmp_path / 'ablations.json')
    assert list(made['titles']) == ['data', 'judge', 'strength', 'form', 'rollouts']
    lines = {(line['group'], line['row']): line for line in made['table']}
    assert len(lines) == 4 + 9 + 3 + 7 + 2
    assert all(line['seeds'] == 2 and line['problems'] == 20 for line in lines.values())
    data = lines['data', 'trees, best by Q value']
    assert (data['tokens'], data['trees']) == (400, 2)
    mcts = lines['form', 'MCTS']
    assert (mcts['right'], mcts['trees'], mcts['in_time']['trees']) == (0.8, 4, 4)
    assert 'in_time' not in lines['form', 'greedy']
    rollouts = lines['rollouts', '8']
    assert (rollouts['right'], rollouts['samples']['right']) == (0.5, 0.1)
    assert lines['judge', 'PPM, MCTS']['right'] > lines['judge', 'ORM, MCTS']['right']
    assert made['notes']['form'] == ['Nothing is above MCTS.']
    printed = capsys.readouterr().out
    for text in (made['titles']['judge'], 'PQM, best of n', 'Nothing is above MCTS.'):
        assert text in printed
    read = runs.read(tmp_path, STAGES)
    assert len(tables.ablations(read.ablations, 'judge')) == 1 + 9
    page = report.write(tmp_path, STAGES).read_text()
    assert 'What is each part worth?' in page and 'Nothing was evaluated yet' not in page
    for group in made['titles']:
        assert (tmp_path / 'report' / f'ablations-{group}.png').exists()
        assert made['titles'][group] in page


def test_rollouts_are_not_set_beside_fewer_samples_than_they_cost(world, tmp_path, monkeypatch):
    monkeypatch.setattr(ablations.report, 'write', lambda root: None)
    evaluated = world.evaluated

    def dear(round_):
        results = evaluated(round_)
        if round_.root.name == 'rollouts8':
            for figures in results['arithmetic']['strategies'].values():
                figures['tokens_per_problem'] *= 3
        return results

    world.evaluated = dear
    ablations.run(small(1, 'rollouts'), str(tmp_path))
    lines = {line['row']: line for line in ledger.read_json(tmp_path / 'ablations.json')['table']}
    first, last = lines.values()
    assert {'samples', 'samples_in_time'} <= first.keys()
    assert last['row'] == '8' and 'samples' not in last and 'samples_in_time' in last


def test_what_is_too_slow_for_one_tree_has_no_figure_in_the_same_time(world, tmp_path, monkeypatch):
    """All samples are done before its first tree is."""
    monkeypatch.setattr(ablations.report, 'write', lambda root: None)
    evaluated = world.evaluated

    def slow(round_):
        results = evaluated(round_)
        if round_.root.name == 'searches':
            for name, figures in results['arithmetic']['strategies'].items():
                figures['seconds_per_problem'] *= {'puct': 4.1, 'beam': 3.9}.get(name, 1)
        return results

    world.evaluated = slow
    ablations.run(small(1, 'form'), str(tmp_path))
    lines = {line['row']: line for line in ledger.read_json(tmp_path / 'ablations.json')['table']}
    assert 'in_time' not in lines['PUCT']
    assert (lines['beam']['in_time']['trees'], lines['MCTS']['in_time']['trees']) == (1, 4)


def test_a_budget_buys_each_benchmark_a_number_of_trees_of_its_own(world, tmp_path, monkeypatch):
    """Of `long` two where `arithmetic` has four; half of the time is enough for half of each."""
    monkeypatch.setattr(ablations.report, 'write', lambda root: None)
    both = {'arithmetic': PROBLEMS, 'long': PROBLEMS}
    monkeypatch.setattr(sources, 'benchmarks', lambda round_: both)
    evaluated, asked = world.evaluated, []

    def two(round_):
        row = evaluated(round_)['arithmetic']
        rows = {'arithmetic': row, 'long': row | {'strategies': {}}}
        for name, figures in row['strategies'].items():
            seconds = (2 if name == 'mcts' else 1) * figures['seconds_per_problem']
            row['strategies'][name] = figures | {'seconds_per_problem': seconds}
            rows['long']['strategies'][name] = row['strategies'][name] | {'trajectories': 2}
        return rows

    def read(folder, name, problems, strategy, trees, **_):
        if trees > (most := {'arithmetic': 4, 'long': 2}[name]):
            raise KeyError(trees)
        asked.append((strategy, name, trees, most))
        return world.figures(trees, 1)

    world.evaluated = two
    monkeypatch.setattr(ablations.evals, 'read', read)
    ablations.run(small(1, 'form'), str(tmp_path))
    assert {(name, trees) for strategy, name, trees, _ in asked if strategy == 'mcts'} == {
        ('arithmetic', 2), ('long', 1),
    }  # fmt: skip
    assert {(trees, most) for strategy, _, trees, most in asked if strategy == 'beam'} == {
        (4, 4), (2, 2),
    }  # fmt: skip


def test_seeds_that_are_asked_the_same_have_the_same_problems(world, tmp_path, monkeypatch):
    monkeypatch.setattr(ablations.report, 'write', lambda root: None)
    evaluated = world.evaluated

    def told(round_):
        asked = {str(p['index']): round_.config.seed * differ for p in PROBLEMS}
        return {name: row | {'asked': asked} for name, row in evaluated(round_).items()}

    world.evaluated = told
    for differ, count in ((0, 10), (1, 20)):
        ablations.run(small(2, 'form'), str(tmp_path / str(differ)))
        made = ledger.read_json(tmp_path / str(differ) / 'ablations.json')
        assert {line['problems'] for line in made['table']} == {count}
        assert {line['in_time']['problems'] for line in made['table'] if 'in_time' in line} == {
            count
        }


def test_the_policys_own_samples_are_of_the_problems_that_the_run_has_written(
    world, tmp_path, monkeypatch
):
    monkeypatch.setattr(ablations.report, 'write', lambda root: None)
    config = small(1, 'data')
    config.stages = f'bootstrap,synthesize,{config.stages.partition(",")[2]}'
    config.synthesize.problems = 4
    ablations.run(config, str(tmp_path))
    written = tmp_path / 'seed0' / 'self-samples' / 'round1' / 'synthesize'
    assert written.is_symlink() and (written / 'made').read_text() == 'run synthesize'


def test_groups_run_alone(world, tmp_path, monkeypatch):
    monkeypatch.setattr(ablations.report, 'write', lambda root: None)
    ablations.run(small(1, 'strength'), str(tmp_path))
    assert {row[1] for row in world.ran} == {'run', 'ppm1', 'ppm2'}
    ablations.run(small(1, 'strength,form'), str(tmp_path))
    assert {row[1] for row in world.ran} == {'run', 'ppm1', 'ppm2', 'plain', 'searches'}
    assert list(ledger.read_json(tmp_path / 'ablations.json')['titles']) == ['strength', 'form']


def test_what_a_round_without_an_evaluation_lacks_is_not_shared(world, tmp_path, monkeypatch):
    monkeypatch.setattr(ablations.report, 'write', lambda root: None)
    greedy = tmp_path / 'seed0' / 'ppm1' / 'round1' / 'eval' / 'arithmetic' / 'greedy'
    greedy.parent.mkdir(parents=True)
    greedy.symlink_to('nowhere')  # as an earlier version left it
    stages = 'search,curate,sft,ppm'
    config = configs.schedule(small(1, 'strength,form'), {1: {'stages': stages}})
    ablations.run(config, str(tmp_path))
    assert greedy.is_dir() and not greedy.is_symlink()
    assert greedy.parents[4].joinpath('plain/round2/eval/arithmetic/greedy').is_symlink()


def test_without_a_judge_there_is_nothing_to_compare(tmp_path):
    config = small()
    config.stages = 'bootstrap,search,curate,sft,eval'
    with pytest.raises(UserError, match='^--config.stages=.*: ablations need a PPM of the last'):
        ablations.run(config, str(tmp_path))
    config = configs.schedule(small(), {1: {'stages': 'search,curate,sft,eval'}})
    rows = [(row.name, row.variant) for row in ablations.rows_of(config) if row.group == 'strength']
    assert rows == [('no PPM', 'ppm2'), ('PPM of round 2', 'ppm2')]
    (only,) = ablations.variants(config)['strength']
    assert only.settings['eval.strategies'] == 'unguided,mcts'
