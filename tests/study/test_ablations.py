"""What the ablations run, share and write; without models, by stages that tell what they got."""

import json
import pathlib
import re

import pytest

from rstar_jax import data, report
from rstar_jax import settings as configs
from rstar_jax.job import ledger
from rstar_jax.report import run as runs
from rstar_jax.report import tables
from rstar_jax.settings.errors import UserError
from rstar_jax.stages import STAGES
from rstar_jax.study import ablations, checks, variants
from tests.evals.trees import tree

REPOSITORY = pathlib.Path(__file__).parents[2]
PROBLEMS = [{'index': i, 'question': f'What is {i}?', 'answer': str(i)} for i in range(2)]
ASKED = 10  # problems that the results tell of


@pytest.fixture
def small(tmp_path_factory):
    """Makes configs of two rounds; the benchmarks are files of a few problems."""
    folder = tmp_path_factory.mktemp('problems')
    for name in ('arithmetic', 'long'):
        (folder / f'{name}.json').write_text(json.dumps(PROBLEMS))

    def made(seeds: int = 2, groups: str = '', benchmarks=('arithmetic',)):
        config = configs.load(str(REPOSITORY / 'experiments' / 'ablations.py'))
        config.ablations.seeds, config.ablations.groups = seeds, groups
        config.ablations.rollouts = (1, 8)
        config.last_round = 2
        config.eval.benchmarks = ','.join(str(folder / f'{name}.json') for name in benchmarks)
        return config

    return made


class World:
    """Does stages: writes what the real ones do, and keeps what it was given."""

    def __init__(self):
        self.ran, self.settings, self.dies_at = [], {}, None

    def run(self, config, workdir) -> None:
        ablations.run(config, str(workdir), self.run_stages)

    def run_stages(self, rows) -> None:
        for round_, stage in rows:
            folder = stage.place(round_)
            if not (folder / 'done.json').exists():
                if len(self.ran) == self.dies_at:
                    raise KeyboardInterrupt
                self.do(round_, stage.name, folder)

    def do(self, round_, name: str, folder: pathlib.Path) -> None:
        self.ran.append((round_.root.parent.name, round_.root.name, round_.number, name))
        self.settings[round_.root.name, round_.number] = round_.settings
        folder.mkdir(parents=True, exist_ok=True)
        (folder / 'model.json').write_text('')
        (folder / 'made').write_text(f'{round_.root.name} {name}')
        figures = {}
        if name == 'search':
            figures = {
                **{'tokens': 4000, 'problems': 10, 'trees': 20, 'solved': 1, 'nodes': 1},
                **{'tokens_per_second': 1.0, 'so_far': {'problems': 10, 'solved': 1}},
            }
        if name == 'eval':
            results = self.evaluated(round_)
            for benchmark, row in results.items():
                self.write_trees(folder / benchmark, row['strategies'])
            ledger.write_json(folder / 'results.json', {'round': 1, 'benchmarks': results})
        ledger.write_json(folder / 'done.json', {'seconds': 1.0, 'figures': figures})

    def write_trees(self, folder: pathlib.Path, strategies: dict) -> None:
        """Whose answers are right for the first problem alone."""
        for name, figures in strategies.items():
            if (folder / name).exists():
                continue
            with data.TreeStore(folder / name) as store:
                for problem in PROBLEMS:
                    for number in range(int(figures['trajectories'])):
                        answers = [('0', 0.5, False)]
                        store.append(tree(problem, number, answers, tokens=100.0))

    def evaluated(self, round_):
        names = ('greedy', *configs.strategies_of(round_.config.eval.strategies))
        count = 8 if round_.root.name in ('plain', 'searches') else 5
        rows = {name: self.figures(4, count) for name in names}
        return {'arithmetic': {'problems': ASKED, 'strategies': rows}}

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


@pytest.fixture
def world():
    return World()


def test_everything_is_run_once_and_shared(world, small, tmp_path, capsys):
    world.run(small(), tmp_path)
    ran = [row[1:] for row in world.ran if row[0] == 'seed0']
    assert [row[1:] for row in world.ran if row[0] == 'seed1'] == ran
    of = {name: [row[1:] for row in ran if row[0] == name] for name in dict(x[:2] for x in ran)}
    learn = ('search', 'curate', 'sft', 'ppm', 'eval')
    whole = [
        (0, 'bootstrap'),
        (0, 'eval'),
        *((number, name) for number in (1, 2) for name in learn),
    ]
    assert of['run'] == whole
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
    world.run(small(), tmp_path.parent / 'moved')
    assert len(world.ran) == count
    assert (tmp_path.parent / 'moved' / 'ablations.json').exists()


def test_each_variant_has_what_its_name_says(world, small, tmp_path):
    world.run(small(1), tmp_path)

    def settings(name, number):
        return world.settings[name, number]

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
def test_stopped_anywhere_it_goes_on(world, small, tmp_path, step):
    world.dies_at = step
    with pytest.raises(KeyboardInterrupt):
        world.run(small(1), tmp_path)
    world.dies_at = None
    world.run(small(1), tmp_path)
    assert len(world.ran) == len(set(world.ran)) == 35


def test_the_table_has_every_row_and_what_beats_us(world, small, tmp_path, capsys):
    world.run(small(), tmp_path)
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
    assert (rollouts['right'], rollouts['samples']['right']) == (0.5, 0.5)
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


def test_rollouts_are_not_set_beside_fewer_samples_than_they_cost(world, small, tmp_path):
    evaluated = world.evaluated

    def dear(round_):
        results = evaluated(round_)
        if round_.root.name == 'rollouts8':
            for figures in results['arithmetic']['strategies'].values():
                figures['tokens_per_problem'] *= 3
        return results

    world.evaluated = dear
    world.run(small(1, 'rollouts'), tmp_path)
    lines = {line['row']: line for line in ledger.read_json(tmp_path / 'ablations.json')['table']}
    first, last = lines.values()
    assert {'samples', 'samples_in_time'} <= first.keys()
    assert last['row'] == '8' and 'samples' not in last and 'samples_in_time' in last


def test_what_is_too_slow_for_one_tree_has_no_figure_in_the_same_time(world, small, tmp_path):
    """All samples are done before its first tree is."""
    evaluated = world.evaluated

    def slow(round_):
        results = evaluated(round_)
        if round_.root.name == 'searches':
            for name, figures in results['arithmetic']['strategies'].items():
                figures['seconds_per_problem'] *= {'puct': 4.1, 'beam': 3.9}.get(name, 1)
        return results

    world.evaluated = slow
    world.run(small(1, 'form'), tmp_path)
    lines = {line['row']: line for line in ledger.read_json(tmp_path / 'ablations.json')['table']}
    assert 'in_time' not in lines['PUCT']
    assert (lines['beam']['in_time']['trees'], lines['MCTS']['in_time']['trees']) == (1, 4)


def test_a_budget_buys_each_benchmark_a_number_of_trees_of_its_own(world, small, tmp_path):
    """Of `long` two where `arithmetic` has four; half of the time is enough for half of each."""
    evaluated = world.evaluated

    def two(round_):
        row = evaluated(round_)['arithmetic']
        rows = {'arithmetic': row, 'long': row | {'strategies': {}}}
        for name, figures in row['strategies'].items():
            seconds = (2 if name == 'mcts' else 1) * figures['seconds_per_problem']
            row['strategies'][name] = figures | {'seconds_per_problem': seconds}
            rows['long']['strategies'][name] = row['strategies'][name] | {'trajectories': 2}
        return rows

    world.evaluated = two
    world.run(small(1, 'form', ('arithmetic', 'long')), tmp_path)
    lines = {line['row']: line for line in ledger.read_json(tmp_path / 'ablations.json')['table']}
    assert lines['beam']['in_time']['trees'] == (4 + 2) / 2
    assert lines['MCTS']['in_time']['trees'] == (2 + 1) / 2


def test_seeds_that_are_asked_the_same_have_the_same_problems(world, small, tmp_path):
    evaluated = world.evaluated

    def told(round_):
        asked = {str(p['index']): round_.config.seed * differ for p in PROBLEMS}
        return {name: row | {'asked': asked} for name, row in evaluated(round_).items()}

    world.evaluated = told
    for differ, count in ((0, 10), (1, 20)):
        world.run(small(2, 'form'), tmp_path / str(differ))
        made = ledger.read_json(tmp_path / str(differ) / 'ablations.json')
        assert {line['problems'] for line in made['table']} == {count}
        assert {line['in_time']['problems'] for line in made['table'] if 'in_time' in line} == {
            count
        }


def test_the_policys_own_samples_are_of_the_problems_that_the_run_has_written(
    world, small, tmp_path
):
    config = small(1, 'data')
    config.stages = f'bootstrap,synthesize,{config.stages.partition(",")[2]}'
    config.synthesize.problems = 4
    world.run(config, tmp_path)
    written = tmp_path / 'seed0' / 'self-samples' / 'round1' / 'synthesize'
    assert written.is_symlink() and (written / 'made').read_text() == 'run synthesize'


def test_groups_run_alone(world, small, tmp_path):
    world.run(small(1, 'strength'), tmp_path)
    assert {row[1] for row in world.ran} == {'run', 'ppm1', 'ppm2'}
    world.run(small(1, 'strength,form'), tmp_path)
    assert {row[1] for row in world.ran} == {'run', 'ppm1', 'ppm2', 'plain', 'searches'}
    assert list(ledger.read_json(tmp_path / 'ablations.json')['titles']) == ['strength', 'form']


def test_what_a_round_without_an_evaluation_lacks_is_not_shared(world, small, tmp_path):
    greedy = tmp_path / 'seed0' / 'ppm1' / 'round1' / 'eval' / 'arithmetic' / 'greedy'
    greedy.parent.mkdir(parents=True)
    greedy.symlink_to('nowhere')  # as an earlier version left it
    stages = 'search,curate,sft,ppm'
    config = configs.schedule(small(1, 'strength,form'), {1: {'stages': stages}})
    world.run(config, tmp_path)
    assert greedy.is_dir() and not greedy.is_symlink()
    assert greedy.parents[4].joinpath('plain/round2/eval/arithmetic/greedy').is_symlink()


def test_without_a_judge_in_the_first_round_its_ppm_is_not_compared(small):
    config = configs.schedule(small(), {1: {'stages': 'search,curate,sft,eval'}})
    rows = [(row.name, row.variant) for row in variants.rows_of(config) if row.group == 'strength']
    assert rows == [('no PPM', 'ppm2'), ('PPM of round 2', 'ppm2')]
    (only,) = variants.variants(config)['strength']
    assert only.settings['eval.strategies'] == 'unguided,mcts'


@pytest.mark.parametrize(
    ('changes', 'argument'),
    [
        ({'stages': 'bootstrap,search,curate,sft,eval'}, 'stages'),
        ({'stages': 'bootstrap,search,sft,ppm,eval'}, 'ablations.groups'),
        ({'eval.benchmarks': ''}, 'eval.benchmarks'),
        ({'search.agree': 3}, 'search.agree'),
        ({'eval.trajectories': 0}, 'eval.trajectories'),
        ({'search.candidates': 1}, 'search.candidates'),
        ({'curate.sft': 'file'}, 'ablations.groups'),
    ],
)
def test_what_cannot_be_compared_is_named(small, changes, argument):
    config = small()
    checks.check(config, '')
    configs.command_line_wins(config, changes)
    config.update_from_flattened_dict(changes)
    with pytest.raises(UserError) as error:
        checks.check(config, '')
    assert error.value.argument == argument


def test_no_stages_are_left_out(small):
    with pytest.raises(UserError) as error:
        checks.check(small(), 'eval')
    assert error.value.argument == '--stages'
