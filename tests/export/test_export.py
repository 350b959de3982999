"""Export on its own: models, data and cards out of a run, and what a push would do."""

import json
import pathlib
import shutil
import subprocess
import sys

import huggingface_hub
import jax
import numpy as np
import pytest
import torch
import transformers
import yaml

from rstar_jax import data, models
from rstar_jax import settings as configs
from rstar_jax.data import arithmetic
from rstar_jax.export import __main__ as command
from rstar_jax.export import hub, huggingface, model_card
from rstar_jax.job import ledger
from rstar_jax.models import tiny, trained
from rstar_jax.settings.errors import UserError
from tests.data import samples

REPOSITORY = pathlib.Path(__file__).parents[2]

INTERVALS = {'greedy': [0.38, 0.72], 'best': [0.5, 0.8], 'majority': [0.6, 0.88]}
SEARCH = {'trajectories': 8, 'best': 0.66, 'majority': 0.76}


def results(number: int, greedy: float, search: dict | None) -> dict:
    row = {
        'problems': 30,
        'greedy': greedy,
        'search': search,
        'interval95': INTERVALS,
        'tokens_per_problem': 1.0,
        'seconds_per_problem': 1.0,
    }
    return {'round': number, 'benchmarks': {'aime2024': row}}


@pytest.fixture(scope='module')
def run(tmp_path_factory) -> pathlib.Path:
    """The workdir of a finished round, of tiny models and of trees grown at random."""
    workdir = tmp_path_factory.mktemp('run')
    made = workdir / 'round1'
    policy = tiny.policy(arithmetic.vocabulary())
    trained.save_model(policy, made / 'policy')
    ppm = models.init_ppm(policy, squash='tanh5')
    weight = np.random.default_rng(0).standard_normal((1, 128), np.float32)
    ppm.params['value_head']['weight'] = weight
    trained.save_model(ppm, made / 'ppm')
    with data.TreeStore(made / 'search') as store:
        for index in range(4):
            store.append(samples.grown(index, index=index))
        counts = data.curate_to(store, made / 'curate', edit_distance=1)
    assert counts['sft'] and counts['pairs']
    config = configs.default()
    config.policy.path = '/home/somebody/instruct'
    config.base.path = 'Qwen/Qwen2.5-Math-1.5B'
    config.data.problems = 'hf:AI-MO/NuminaMath-CoT@train'
    ledger.write_json(workdir / 'config.json', {'round1': configs.flatten(config)})
    figures = {'trees': 4, 'problems': 4, 'solved': 3}
    for name, row in [('search', figures), ('curate', counts), ('policy', {}), ('ppm', {})]:
        done = {'id': name, 'seconds': 1.0, 'figures': dict(row)}
        ledger.write_json(made / name / 'done.json', done)
    ledger.write_json(workdir / 'round0' / 'eval' / 'results.json', results(0, 0.2, None))
    ledger.write_json(made / 'eval' / 'results.json', results(1, 0.55, SEARCH))
    return workdir


@pytest.fixture(scope='module')
def exported(run, tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp('exported')
    huggingface.export(str(run), str(folder), name='me/small')
    return folder


def test_the_policy_is_what_transformers_reads(run, exported):
    made = huggingface.Exported('policy', exported / 'policy')
    assert hub.largest_difference(made) < 1e-5
    ours = models.load(run / 'round1' / 'policy', 'float32')
    tokens, lengths = np.array([[5, 6, 7]], np.int32), np.array([3], np.int32)
    again = models.load(exported / 'policy', 'float32')
    assert np.array_equal(ours.logits(tokens, lengths), again.logits(tokens, lengths))


def test_the_ppm_has_the_released_form(run, exported):
    assert hub.largest_difference(huggingface.Exported('ppm', exported / 'ppm')) < 1e-4
    head = torch.load(exported / 'ppm' / 'value_head.bin', weights_only=True)
    assert {*head} == {'v_head.summary.weight', 'v_head.summary.bias'}
    tokens, lengths = np.array([[5, 6, 7]], np.int32), np.array([3], np.int32)
    ppm = models.load_ppm(run / 'round1' / 'ppm', 'float32')
    assert ppm.squash == 'tanh5'
    ours = ppm.scores(tokens, lengths)
    theirs = models.load_ppm(exported / 'ppm', 'float32').scores(tokens, lengths)
    assert np.array_equal(ours, theirs) and 0.01 < abs(float(ours[0])) < 1


def test_other_outputs_of_transformers_are_found(exported, tmp_path):
    """A weight that transformers reads and we read differently, as a wrong name would be."""
    made = huggingface.Exported('policy', tmp_path)
    models.save(models.load(exported / 'policy', 'float32'), tmp_path)
    model_card.write_model_card(tmp_path, 'policy', model_card.Origin())
    config = json.loads((tmp_path / 'config.json').read_text())
    config['rope_theta'] = 7.0
    config.pop('rope_parameters', None)
    read = models.checkpoint.families.read_config

    def other(fields, place):
        return read({**fields, 'rope_theta': 10000.0}, place)

    (tmp_path / 'config.json').write_text(json.dumps(config))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('rstar_jax.models.checkpoint.families.read_config', other)
        with pytest.raises(UserError) as error:
            list(hub.check([made]))
    assert error.value.argument == str(tmp_path)


@pytest.mark.parametrize('kind', ['policy', 'ppm'])
def test_no_device_holds_a_large_array_alone(run, kind):
    """While a model is written, and while it is compared with transformers."""
    path = run / 'round1' / kind
    model = models.load_as(kind, path, 'float32', mesh=huggingface.mesh_for(path))
    large = [x for x in jax.tree.leaves(model.params) if x.ndim > 1 and min(x.shape) > 1]
    assert len(large) > 7
    for leaf in large:
        assert all(8 * shard.data.nbytes == leaf.nbytes for shard in leaf.addressable_shards)


def test_weights_in_bfloat16(run, tmp_path):
    made = huggingface.export_model(run / 'round1' / 'policy', tmp_path, 'bfloat16')
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype='auto')
    assert model.dtype == torch.bfloat16
    assert hub.largest_difference(made) < 1e-5


def test_the_model_card(exported):
    card = huggingface_hub.ModelCard.load(exported / 'policy' / 'README.md')
    about = card.data
    assert about.base_model == 'Qwen/Qwen2.5-Math-1.5B'
    assert about.datasets == ['AI-MO/NuminaMath-CoT']
    assert about.model_name == 'me/small'
    found = {result.metric_name: result for result in about.eval_results}
    assert len(found) == 3
    alone, vote = found[model_card.MODES['greedy']], found[model_card.MODES['majority']]
    assert alone.dataset_type == 'HuggingFaceH4/aime_2024' and alone.metric_value == 55.0
    assert alone.metric_args == {'problems': 30, 'interval95': [38.0, 72.0]}
    assert vote.metric_args == {'problems': 30, 'interval95': [60.0, 88.0], 'trajectories': 8}
    assert '| aime2024 | 30 | policy alone, greedy | 55.0 % | 38.0 to 72.0 | 20.0 % |' in card.text
    assert '8 trees a problem (mcts, 4 rollouts, 32 candidates a step' in card.text
    assert '3 of 4 problems solved' in card.text
    assert 'somebody' not in card.content
    index = yaml.safe_load(card.content.split('---')[1])['model-index']
    assert index[0]['results'][0]['dataset']['name'] == 'aime2024'


def test_the_card_of_a_ppm_tells_of_searches_only(exported):
    about = huggingface_hub.ModelCard.load(exported / 'ppm' / 'README.md').data
    assert {result.metric_value for result in about.eval_results} == {66.0, 76.0}
    assert about.model_name == 'me/small-ppm'


def test_of_one_tree_a_problem_a_card_has_one_figure(tmp_path):
    row = results(1, 0.55, {**SEARCH, 'trajectories': 1})['benchmarks']
    config = configs.flatten(configs.default())
    origin = model_card.Origin(1, {'round1': config}, results={'round': row})
    model_card.write_model_card(tmp_path, 'policy', origin)
    card = huggingface_hub.ModelCard.load(tmp_path / 'README.md')
    assert [r.metric_name for r in card.data.eval_results] == [
        model_card.MODES['greedy'],
        model_card.MODES['best'],
    ]
    assert 'Search: 1 tree a problem (' in card.text


def test_a_card_names_the_search_whose_figures_it_has(tmp_path):
    row = results(1, 0.55, SEARCH)['benchmarks']
    settings = {**configs.flatten(configs.default()), 'eval.strategies': 'sampled, puct, mcts'}
    origin = model_card.Origin(1, {'round1': settings}, results={'round': row})
    model_card.write_model_card(tmp_path, 'policy', origin)
    assert ' a problem (puct, ' in huggingface_hub.ModelCard.load(tmp_path / 'README.md').text


def test_a_card_tells_a_mean_of_trees_in_few_digits(tmp_path):
    row = results(1, 0.55, {**SEARCH, 'trajectories': 10 / 3})['benchmarks']
    settings = {'round1': configs.flatten(configs.default())}
    origin = model_card.Origin(1, settings, results={'round': row})
    model_card.write_model_card(tmp_path, 'policy', origin)
    assert (
        'Search: 3.33 trees a problem ('
        in huggingface_hub.ModelCard.load(tmp_path / 'README.md').text
    )


def test_the_card_of_a_model_of_unknown_origin(exported, tmp_path):
    huggingface.export_model(exported / 'policy', tmp_path, license_='mit')
    card = huggingface_hub.ModelCard.load(tmp_path / 'README.md')
    assert card.data.license == 'mit' and not card.data.eval_results
    assert 'Nothing is known here' in card.text


def test_data_in_every_form_and_their_card(run, exported):
    folder = exported / 'data'
    sft = list(data.load_examples(run / 'round1' / 'curate', 'sft'))
    pairs = list(data.load_examples(run / 'round1' / 'curate', 'pairs'))
    assert json.loads((folder / 'sft.json').read_text()) == sft
    assert list(data.import_preference(folder / 'pairs.json')) == pairs
    trl = [json.loads(line) for line in (folder / 'trl_preference.jsonl').read_text().splitlines()]
    assert [(p['chosen'], p['rejected']) for p in trl] == [(p['pos'], p['neg']) for p in pairs]
    assert sum(1 for _ in data.import_trees(folder / 'trees.jsonl')) == 4
    assert list(data.load_examples(folder / 'array_record' / 'curate', 'sft')) == sft
    # A second export puts its files in the place of the first one's.
    files = {path.name: path.read_bytes() for path in folder.rglob('*.array_record')}
    (folder / 'array_record' / 'search' / 'old-00000.array_record').write_bytes(b'old')
    huggingface.export_data(run / 'round1', folder, name='me/small-data')
    again = {path.name: path.read_bytes() for path in folder.rglob('*.array_record')}
    assert files and again == files
    card = huggingface_hub.DatasetCard.load(folder / 'README.md')
    files = {row['config_name']: row['data_files'] for row in card.data.configs}
    assert files['sft'] == 'sft.json' and files['preference'] == 'trl_preference.jsonl'
    assert f'| `sft.json` | {len(sft)} |' in card.text


def test_no_folder_has_more_files_than_the_hub_takes(run, tmp_path):
    curated = run / 'round1' / 'curate'
    huggingface.copy_files(curated, tmp_path, most=1)
    assert max(len(list(inner.glob('*.array_record'))) for inner in tmp_path.rglob('.')) == 1
    for path in tmp_path.glob('more*/*'):
        path.rename(tmp_path / path.name)
    for kind in ('sft', 'pairs'):
        stored = data.load_examples(curated, kind)
        assert list(data.load_examples(tmp_path, kind)) == list(stored)


def test_data_of_an_earlier_export_do_not_stay(run, tmp_path):
    huggingface.export_data(run / 'round1', tmp_path / 'data')
    shutil.copytree(run / 'round1' / 'curate', tmp_path / 'round1' / 'curate')
    huggingface.export_data(tmp_path / 'round1', tmp_path / 'data')
    assert sorted(path.name for path in (tmp_path / 'data').iterdir()) == [
        *('README.md', 'array_record', 'pairs.json', 'sft.json', 'trl_preference.jsonl')
    ]


def test_data_of_a_stage_that_goes_on_are_left(run, tmp_path):
    shutil.copytree(run / 'round1', tmp_path / 'round1')
    (tmp_path / 'round1' / 'search' / 'done.json').unlink()
    huggingface.export_data(tmp_path / 'round1', tmp_path / 'data')
    array_record = tmp_path / 'data' / 'array_record'
    assert [path.name for path in array_record.iterdir()] == ['curate']


@pytest.mark.parametrize(
    ('number', 'path', 'told'),
    [
        (1, 'tiny', 'a tiny model made on the spot'),
        (2, 'previous', 'not known'),
        (1, '/home/somebody/mine', 'mine'),
    ],
)
def test_a_card_tells_what_is_known_of_the_base_model(number, path, told, tmp_path):
    config = configs.default()
    config.policy.path = path
    origin = model_card.Origin(number, {f'round{number}': configs.flatten(config)})
    model_card.write_model_card(tmp_path, 'policy', origin)
    card = huggingface_hub.ModelCard.load(tmp_path / 'README.md')
    assert f'| base model | {told} |' in card.text and card.data.base_model is None


def test_a_table_without_rows_is_not_in_the_card(tmp_path):
    model_card.write_data_card(tmp_path, model_card.Origin(), {'sft.json': 2, 'pairs.json': 0})
    configs = huggingface_hub.DatasetCard.load(tmp_path / 'README.md').data.configs
    assert [row['config_name'] for row in configs] == ['sft']


def test_the_hub_library_reads_the_data_by_the_card(exported, tmp_path):
    datasets = pytest.importorskip('datasets')
    folder = exported / 'data'
    for name, columns in [('sft', ['query', 'response']), ('stepwise', ['prompt', 'completions'])]:
        found = datasets.load_dataset(str(folder), name, split='train', cache_dir=tmp_path)
        assert found.column_names[:2] == columns


@pytest.mark.parametrize(
    ('text', 'kind'), [('---\nmodel-index: 3\n---\n', 'model'), ('# no metadata\n', 'dataset')]
)
def test_cards_that_are_not_valid(tmp_path, text, kind):
    path = tmp_path / 'README.md'
    path.write_text(text)
    with pytest.raises(UserError) as error:
        model_card.check(path, kind)
    assert error.value.argument == str(path)


def test_a_dry_run_needs_no_network(run, tmp_path):
    command = [sys.executable, '-m', 'rstar_jax.export', str(run / 'round1'), str(tmp_path)]
    command += ['--dtype=bfloat16', '--push_to_hub=me/small', '--dry_run']
    made = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300)
    assert made.returncode == 0, made.stderr
    lines = made.stdout.splitlines()
    assert lines[-1] == 'dry run: nothing was pushed'
    assert sum('card valid' in line for line in lines) == 3
    assert sum('transformers gives the same' in line for line in lines) == 2
    for name in ('model me/small:', 'model me/small-ppm:', 'dataset me/small-data:'):
        assert any(line.startswith(name) for line in lines), name
    for name in ('model.safetensors', 'value_head.bin', 'README.md', 'trl_preference.jsonl'):
        assert any(line.startswith(f'  {name}  ') for line in lines), name


def test_a_push(run, tmp_path, monkeypatch):
    calls = []

    class Hub:
        def create_repo(self, name, **options):
            calls.append(('create', name, options['repo_type'], options['private']))

        def upload_folder(self, repo_id, folder_path, **options):
            assert (folder_path / 'README.md').exists()
            old = ['model-00001-of-00002.safetensors', 'array_record/search/0.array_record']
            deleted = huggingface_hub.utils.filter_repo_objects(
                old, allow_patterns=options['delete_patterns']
            )
            assert list(deleted) == old  # of an earlier push
            half = ['.writing-1a-trees.jsonl.part', 'array_record/.writing-2b-x.part', 'README.md']
            kept = huggingface_hub.utils.filter_repo_objects(
                half, ignore_patterns=options['ignore_patterns']
            )
            assert list(kept) == ['README.md']
            calls.append(('upload', repo_id, options['repo_type']))
            return f'https://huggingface.co/{repo_id}'

    monkeypatch.setattr(huggingface_hub, 'HfApi', Hub)
    monkeypatch.setattr(
        huggingface_hub.RepoCard, 'validate', lambda self: calls.append(('validate',))
    )
    code = command.main([str(run), str(tmp_path), '--push_to_hub=me/small', '--private'])
    assert code == 0
    expected = []
    for name, kind in [('', 'model'), ('-ppm', 'model'), ('-data', 'dataset')]:
        name = f'me/small{name}'
        expected += [('validate',), ('create', name, kind, True), ('upload', name, kind)]
    assert calls == expected


def test_names_of_repositories():
    made = {kind: huggingface.Exported(kind, pathlib.Path()) for kind in huggingface.SUFFIXES}
    for kinds, names in (
        (['policy', 'ppm', 'data'], ['me/small', 'me/small-ppm', 'me/small-data']),
        (['data'], ['me/small-data']),  # as its card says
        (['policy'], ['me/small']),
        (['ppm'], ['me/small']),
    ):
        assert hub.repositories([made[kind] for kind in kinds], 'me/small') == names


def test_nothing_is_pushed_unseen(exported, tmp_path, monkeypatch, capsys):
    """Without torch there is no transformers to compare with; that is told before the work."""
    monkeypatch.setitem(sys.modules, 'torch', None)
    arguments = [str(exported / 'policy'), str(tmp_path / 'out'), '--push_to_hub=me/small']
    assert command.main(arguments) == 2
    assert '--push_to_hub' in capsys.readouterr().err and not (tmp_path / 'out').exists()
    made = huggingface.Exported('policy', exported / 'policy')
    assert len(list(hub.check([made], whole=False))) == 2
    with pytest.raises(UserError) as error:
        list(hub.check([made]))
    assert error.value.argument == str(exported / 'policy')


def test_a_push_that_the_hub_refuses(exported, monkeypatch, tmp_path, capsys):
    def refuse(self):
        raise ConnectionError('no route\nto host')

    monkeypatch.setattr(huggingface_hub.RepoCard, 'validate', refuse)
    code = command.main([str(exported / 'policy'), str(tmp_path), '--push_to_hub=me/small'])
    err = capsys.readouterr().err
    assert code == 2 and err.count('\n') == 1
    assert '--push_to_hub=me/small' in err and 'no route to host' in err


@pytest.mark.parametrize(
    'arguments',
    [
        ['only'],
        ['missing', 'out'],
        ['missing', 'out', '--dtype=int8'],
        ['missing', 'out', '--push_to_hub=a b'],
    ],
)
def test_mistakes_are_one_line(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert command.main(arguments) == 2
    assert capsys.readouterr().err.count('\n') == 1
    assert not (tmp_path / 'out').exists()


def test_nothing_else_is_written_over(run, exported, tmp_path):
    policy = exported / 'policy'
    mine = tmp_path / 'mine'
    mine.mkdir()
    (mine / 'README.md').write_text('# Mine')
    for source, directory in (
        (policy, ''),
        (policy, ' '),
        (policy, policy),
        (policy, f'{policy}/../policy'),
        (policy, mine),
        (run, run / 'round1'),
        (policy, mine / 'README.md' / 'out'),
    ):
        with pytest.raises(UserError) as error:
            huggingface.check_target(str(source), str(directory))
        assert error.value.argument.startswith('directory')
    assert [path.name for path in mine.iterdir()] == ['README.md']
    huggingface.check_target(str(run), str(exported))  # again, over what it wrote
    huggingface.check_target(str(policy), str(tmp_path / 'new' / 'folder'))
    assert not (tmp_path / 'new').exists()


def test_an_export_that_ended_early_is_done_again(run, tmp_path):
    shutil.copytree(run / 'round1', tmp_path / 'round1')
    for path in (tmp_path / 'round1' / 'curate').glob('pairs*.array_record'):
        path.write_bytes(b'half')
    with pytest.raises(Exception):  # noqa: B017 array_record raises what it likes
        huggingface.export(str(tmp_path / 'round1'), str(tmp_path / 'out'))
    assert (tmp_path / 'out' / 'data' / 'sft.json').exists()
    huggingface.check_target(str(tmp_path / 'round1'), str(tmp_path / 'out'))


def test_a_run_without_anything_to_export(tmp_path):
    (tmp_path / 'round1.log').touch()
    ledger.write_json(tmp_path / 'round1_old' / 'policy' / 'done.json', {})
    assert huggingface.kind_of(tmp_path) == 'policy'
    (tmp_path / 'round1').mkdir()
    assert huggingface.kind_of(tmp_path) == 'run'
    for folder in (tmp_path, tmp_path / 'round1'):
        with pytest.raises(UserError) as error:
            huggingface.export(str(folder), str(tmp_path / 'out'))
        assert error.value.argument == str(folder)


def test_a_workdir_that_is_called_as_a_round_is_a_run(tmp_path):
    (tmp_path / 'round3' / 'round1').mkdir(parents=True)
    assert huggingface.kind_of(tmp_path / 'round3') == 'run'
    assert huggingface.kind_of(tmp_path / 'round3' / 'round1') == 'round'
