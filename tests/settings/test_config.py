"""Config files: every one of experiments/, overrides, unknown settings, what cannot be meant."""

import dataclasses
import pathlib

import pytest

from rstar_jax import evals, main, search, settings
from rstar_jax.job import ledger
from rstar_jax.settings import SETTINGS, UserError
from rstar_jax.settings.presets import PRESETS
from rstar_jax.settings.table import EVAL_SEARCH
from rstar_jax.stages import BY_NAME, Round, searches

REPOSITORY = pathlib.Path(__file__).parents[2]
FILES = sorted((REPOSITORY / 'experiments').glob('*.py'))


def experiment(name: str, preset: str = ''):
    return settings.load(str(REPOSITORY / 'experiments' / f'{name}.py') + preset)


@pytest.mark.parametrize('path', FILES, ids=lambda path: path.stem)
def test_every_experiment_is_valid_and_says_what_it_takes(path):
    config = settings.load(str(path))
    settings.validate(config)
    assert config.is_locked
    text = settings.docstring(path)
    for word in (f'--config=experiments/{path.name}', 'Hardware:', 'Time:', 'Score:'):
        assert word in text, word
    told = settings.describe(str(path))
    assert all(f'--config.{name}=' in told for name in SETTINGS)


def test_the_expected_experiments_are_there():
    names = {path.stem for path in FILES}
    rounds = {f'round{number}' for number in range(1, 5)}
    others = {'quickstart', 'gsm8k_mini', 'gsm8k_small', 'self_evolve', 'ablations'}
    assert names >= {'evaluate', 'solve', *others, *rounds}


def evaluation(config, number: int = 1) -> evals.Config:
    round_ = Round(settings.for_round(config, number), pathlib.Path(), number)
    return BY_NAME['eval'].config(round_)


def test_an_evaluation_is_the_same_in_every_round_whatever_is_searched():
    config = experiment('self_evolve')
    plain = evaluation(config)
    assert plain.search == evaluation(settings.default()).search
    assert (plain.search.rollouts, plain.search.candidates) == (4, 32)
    others = {'strategy': 'beam', 'answers_kept': 'all', 'prompt': 'few_shot'}
    rows = {name: row for name, row in SETTINGS.items() if name.startswith('search.')}
    fields = {field.name for field in dataclasses.fields(search.Config)}
    resources = {'slots', 'trees_in_flight', 'drafts', 'tensor'}
    for name, row in rows.items():
        key = name.removeprefix('search.')
        if key in fields - resources and not row.of_run:  # those of the run no round can change
            config.search[key] = others[key] if key in others else config.search[key] + 1
    settings.command_line_wins(config, dict.fromkeys(rows))
    for number in range(1, 5):
        assert evaluation(config, number) == plain
    start = evaluation(config, 0)
    assert start.search == dataclasses.replace(plain.search, prompt='few_shot')
    config.eval.prompt = 'sft'
    assert evaluation(config, 0) == plain


@pytest.mark.parametrize('key', EVAL_SEARCH)
def test_every_setting_of_an_evaluation_reaches_it(key):
    config = settings.default()
    choices, value = SETTINGS[f'eval.{key}'].choices, config.eval[key]
    config.eval[key] = choices[1] if choices else value + 1
    assert getattr(evaluation(config).search, key) == config.eval[key] != value


@pytest.mark.parametrize('key', ['trajectories', 'samples', 'mean_tokens'])
def test_how_much_is_evaluated_is_what_the_config_says(key):
    config = settings.default()
    config.eval[key] += 3
    assert getattr(evaluation(config), key) == config.eval[key]


def test_agreement_ends_an_evaluation_and_not_the_making_of_data():
    config = settings.default()
    config.search.agree, config.search.tokens = 3, 500
    assert evaluation(config).search.agree == 3 and evaluation(config).search.tokens == 0
    made = searches.search_config(config)
    assert (made.agree, made.tokens) == (0, 500)
    assert searches.search_config(config, use_ground_truth=False).agree == 3


# Where paper and released code differ; (settings, paper, released).
DIFFERENCES = [
    (['search.rollouts', 'search.candidates'], (16, 8), (48, 12)),
    (['eval.rollouts', 'eval.candidates'], (4, 32), (12, 32)),
    (['training.sft.length'], (4096,), (2048,)),
    (['training.ppm.epochs'], (1,), (2,)),
    (['training.ppm.squash'], ('tanh',), ('tanh5',)),
    (['curate.final_step_pairs'], ('trajectories',), ('steps',)),
    (['curate.synthetic_correct'], (0.5,), (0.0,)),
    (['search.answers_kept', 'eval.answers_kept'], ('all', 'all'), ('first', 'first')),
    (['search.unvisited_value', 'eval.unvisited_value'], (10.0, 10.0), (0.0, 0.0)),
    (['search.failed_steps'], ('once',), ('again',)),
    (['search.examples'], ('fixed',), ('shuffled',)),
    (['search.repetition'], (0,), (0,)),  # from ours alone
]


@pytest.mark.parametrize('which', ['paper', 'released'])
@pytest.mark.parametrize('name', ['round3', 'self_evolve'])
def test_presets_set_every_difference_of_paper_and_released_code(name, which):
    config = experiment(name, f':{which}')
    settings.validate(config)
    found = settings.flatten(settings.for_round(config, 3))
    for names, *values in DIFFERENCES:
        assert tuple(found[key] for key in names) == values[which == 'released']
    # Nothing else: what a preset sets is a difference.
    assert {*PRESETS[which]} <= {key for names, *_ in DIFFERENCES for key in names}


def test_a_preset_that_there_is_not():
    with pytest.raises(UserError) as error:
        experiment('round3', ':papr')
    assert error.value.argument == '--config=FILE:papr'


def test_the_flags_of_the_execution_reach_the_search():
    flags = ['isolation=strict', 'seconds=3', 'memory_mb=128', 'workers=5']
    arguments = [f'--config.execution.{flag}' for flag in flags]
    config, _ = main.parse(str(REPOSITORY / 'experiments' / 'solve.py'), arguments)
    made = searches.search_config(config)
    assert (made.isolation, made.code_seconds, made.code_memory_mb) == ('strict', 3.0, 128)
    assert made.workers == 5


UNMEASURED = {'training.measure_every': 5, 'training.ppm.held_out': 0.0}
FITTED = {'training.ppm.head': 'fitted'}


@pytest.mark.parametrize(
    ('values', 'argument'),
    [
        ({'search.step_tokens': 5000}, 'search.step_tokens'),
        ({'search.path_tokens': 256}, 'search.step_tokens'),
        ({'eval.benchmarks': ' ,'}, 'eval.benchmarks'),
        ({'eval.strategies': 'greedy,sampeld'}, 'eval.strategies'),
        ({'ablations.groups': 'judge,froms'}, 'ablations.groups'),
        ({'stages': 'serch'}, 'stages'),
        ({'last_round': 0}, 'last_round'),
        ({'data.solved': 1}, 'data.solved'),
        ({'data.problems': 'arithmetic', 'data.levels': '3'}, 'data.levels'),
        ({'job.leases': 'ray', 'search.agree': 2}, 'search.agree'),
        ({'training.keep': 'best'}, 'training.keep'),
        ({'training.keep': 'best', **UNMEASURED}, 'training.keep'),
        (FITTED, 'training.ppm.head'),
    ],
)
def test_values_that_do_not_go_together_are_refused(values, argument):
    config = settings.default()
    config.update_from_flattened_dict(values)
    with pytest.raises(UserError) as error:
        settings.validate(config)
    assert error.value.argument == argument and error.value.value == values.get(argument, 256)


@pytest.mark.parametrize(
    ('name', 'values', 'argument'),
    [
        (2, {'stages': ('search',)}, 'schedule.round2.stages'),
        (2, {'stages': 'serch'}, 'schedule.round2.stages'),
        (2, FITTED, 'schedule.round2.training.ppm.head'),
        (2, {'last_round': 3}, 'schedule.round2.last_round'),
        (2, {'search.top_p': 0.5}, 'schedule.round2.search.top_p'),
        (2, {'search.rolouts': 3}, 'config.schedule.round2.search.rolouts'),
        ('_2', {'search.rollouts': 3}, 'config.schedule.round_2'),
        (0, {'search.rollouts': 3}, 'config.schedule.round0'),
    ],
)
def test_what_a_round_of_the_schedule_cannot_have_is_refused(name, values, argument):
    with pytest.raises(UserError) as error:
        settings.validate(settings.schedule(settings.default(), {name: values}))
    assert error.value.argument == argument


def test_a_round_of_the_schedule_may_have_what_its_setting_takes():
    values = {'search.temperature': 1, 'search.more_rollouts': [64], 'stages': 'search'}
    config = settings.schedule(settings.default(), {2: values})
    settings.validate(config)
    made = settings.for_round(config, 2)
    assert (made.search.temperature, made.search.more_rollouts) == (1.0, (64,))


def test_a_tree_that_no_memory_holds_is_refused():
    for beams in ({'candidates': 100_000}, {'strategy': 'beam', 'width': 999, 'candidates': 100}):
        with pytest.raises(UserError):
            search.Config(**beams)


def test_a_round_of_the_schedule():
    config = experiment('self_evolve')
    config.policy.path = 'instruct'
    first, third = settings.for_round(config, 1), settings.for_round(config, 3)
    assert (first.search.rollouts, first.search.prompt, first.ppm.path) == (8, 'few_shot', 'none')
    assert (third.search.rollouts, third.search.prompt, third.ppm.path) == (16, 'sft', 'previous')
    assert first.policy.path == 'instruct'
    assert (third.policy.path, third.base.path) == ('previous', 'instruct')
    assert settings.for_round(config, 0).search.prompt == 'few_shot'
    assert settings.for_round(config, 4).search.more_rollouts == (64, 128)


def test_the_command_line_wins_over_the_schedule():
    config = experiment('self_evolve')
    config.search.rollouts = 2
    settings.command_line_wins(config, {'search.rollouts': 2})
    for number in range(1, 5):
        assert settings.for_round(config, number).search.rollouts == 2
    assert settings.for_round(config, 1).search.candidates == 5


def test_single_rounds_equal_the_schedule():
    whole = experiment('self_evolve')
    for number in range(1, 5):
        one = experiment(f'round{number}')
        theirs = settings.flatten(settings.for_round(whole, number).search)
        assert settings.flatten(settings.for_round(one, number).search) == theirs


@pytest.mark.parametrize(
    ('body', 'told'),
    [
        ('c.search.rolouts = 3', 'did you mean config.search.rollouts?'),
        ('c.serch.rollouts = 3', 'did you mean config.search?'),
        ('c.eval.top_p = 0.5', 'it is config.search.top_p now'),
        ('c.search.rollouts = "x"', ''),
        ('1 / 0', ''),
        ('raise SystemExit', ''),
    ],
)
def test_a_mistake_in_a_config_file_names_its_line(tmp_path, body, told):
    path = tmp_path / 'mine.py'
    path.write_text(
        'from rstar_jax import settings\n\n\ndef get_config():\n'
        f'    c = settings.default()\n    {body}\n    return c\n'
    )
    with pytest.raises(UserError) as error:
        settings.load(str(path))
    assert error.value.argument.startswith(f'{path}:6') and error.value.remedy == told


def test_a_config_file_that_is_none(tmp_path):
    with pytest.raises(UserError) as error:
        settings.load(str(tmp_path / 'missing.py'))
    assert error.value.argument == '--config' and 'quickstart.py' in error.value.remedy
    texts = {'empty': '', 'bad': 'x = 1\ndef (', 'three': 'def get_config():\n    return 3\n'}
    for name, text in texts.items():
        (tmp_path / f'{name}.py').write_text(text)
        with pytest.raises(UserError) as error:
            settings.load(str(tmp_path / f'{name}.py'))
        place = f'{tmp_path / name}.py'
        assert error.value.argument == (f'{place}:2' if name == 'bad' else place)


def test_the_projects_files_are_had_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert settings.load('experiments/quickstart.py').last_round == 3
    assert settings.load('experiments/round3.py:paper').search.failed_steps == 'once'
    assert settings.describe('experiments/serve.py').startswith('Serves a policy')
    (tmp_path / 'experiments').mkdir()
    (tmp_path / 'experiments' / 'quickstart.py').write_text('')  # one's own comes first
    with pytest.raises(UserError):
        settings.load('experiments/quickstart.py')


def test_the_argument_of_a_config_file(tmp_path):
    path = tmp_path / 'mine.py'
    path.write_text(
        'from rstar_jax import settings\n\n\ndef get_config(seed):\n'
        '    c = settings.default()\n    c.seed = int(seed)\n    return c\n'
    )
    assert settings.load(f'{path}:7').seed == 7


def test_round_0_is_evaluated_before_the_first_searches():
    config = settings.default()
    config.policy.path, config.first_round, config.last_round = 'instruct', 0, 2
    config.search.prompt = 'few_shot'
    made = [settings.for_round(config, number) for number in range(3)]
    assert [x.policy.path for x in made] == ['instruct', 'instruct', 'previous']
    assert [x.search.prompt for x in made] == ['few_shot', 'few_shot', 'sft']


def test_later_rounds_train_from_a_model_that_has_a_name():
    config = settings.paper_round(2)
    config.last_round = 4
    assert settings.for_round(config, 3).base.path == ''
    config.policy.path = 'mine'
    assert settings.for_round(config, 3).base.path == 'mine'
    config.bootstrap.demonstrations = 5  # then it is what they were trained into
    assert settings.for_round(config, 3).base.path == ''


def test_stages_run_in_their_order():
    assert settings.stages_of('sft, search') == ('search', 'sft')
    for text, remedy in (('serch', 'did you mean search?'), (',', '')):
        with pytest.raises(UserError) as error:
            settings.stages_of(text)
        assert (error.value.argument, error.value.remedy) == ('--stages', remedy)


@pytest.mark.parametrize('name', ['eval', 'bootstrap', 'sft'])
def test_a_workdir_of_an_earlier_version_goes_on(tmp_path, name):
    """Its stages hold settings that are gone, and others under the names that they had."""
    config = settings.default()
    config.search.step_tokens, config.training.dtype, config.training.sft.lora = 48, 'float32', 4
    number = 0 if name == 'bootstrap' else 1
    round_ = Round(settings.for_round(config, number), tmp_path, number)
    stage = BY_NAME[name].kept(round_)
    stage.begin()
    (stage.folder / 'made').touch()
    begun = ledger.read_json(stage.folder / 'begun.json')
    shared = ('dtype', 'moments', 'one_size', 'schedule', 'weight_decay', 'measure_every', 'keep')
    then = {f'training.{key}': f'training.{name}.{key}' for key in shared}
    if name == 'eval':
        then = {'search.step_tokens': 'eval.step_tokens', 'search.top_p': 'eval.top_p'}
    elif name == 'bootstrap':
        then |= {f'training.sft.{key}': f'training.bootstrap.{key}' for key in ('lora', 'marks')}
    old = {then.get(key, key): value for key, value in begun['settings'].items()}
    assert old.keys() != begun['settings'].keys()
    gone = {'search.top_k': 7, f'training.{name}.grad_clip': 3.0, 'eval.stop_reward': 0.5}
    ledger.write_json(stage.folder / 'begun.json', {**begun, 'settings': {**old, **gone}})
    defaults = settings.flatten(settings.default())
    assert not BY_NAME[name].kept(round_).grows('round', defaults)
    changed = settings.default()
    with pytest.raises(UserError):
        BY_NAME[name].kept(Round(changed, tmp_path, number)).grows('round', defaults)


@pytest.mark.parametrize('name', ['solve', 'serve'])
def test_one_question_is_searched_as_in_an_evaluation_but_for_what_is_told(name):
    made, measured = experiment(name), experiment('evaluate')
    text = ' '.join((REPOSITORY / 'experiments' / f'{name}.py').read_text().split())
    differ = {key for key in EVAL_SEARCH if made.search[key] != measured.eval[key]}
    assert differ == {'candidates', 'temperature'}
    trees = made.search.trees
    assert f'{trees} tree{"s" * (trees > 1)} in place of {measured.eval.trajectories},' in text
    for told in (
        '{0.candidates} candidates in place of {1.candidates}',
        'temperature {0.temperature:g} in place of {1.temperature:g}',
    ):
        assert told.format(made.search, measured.eval) in text
