"""Configs: every file of experiments/, overrides, unknown keys, values that cannot be meant."""

import dataclasses
import pathlib
import re

import pytest

from rstar_jax import evals, main, search, training
from rstar_jax.search.strategies import WALKS
from rstar_jax.settings import bounds, configs, table
from rstar_jax.settings.errors import UserError
from rstar_jax.stages import BY_NAME, Round, searches, synthesize
from rstar_jax.study import ablations

REPOSITORY = pathlib.Path(__file__).parents[2]
FILES = sorted((REPOSITORY / 'experiments').glob('*.py'))


@pytest.mark.parametrize('path', FILES, ids=lambda path: path.stem)
def test_every_experiment_is_valid_and_says_what_it_takes(path):
    config = configs.load(str(path))
    configs.validate(config)
    assert config.is_locked
    text = configs.docstring(path)
    assert f'--config=experiments/{path.name}' in text
    for word in ('Hardware:', 'Time:', 'Score:'):
        assert word in text, word
    assert configs.describe(str(path)).count('--config.') >= len(table.KEYS)


def test_the_expected_experiments_are_there():
    names = {path.stem for path in FILES}
    rounds = {f'round{number}' for number in range(1, 5)}
    others = {'quickstart', 'gsm8k_mini', 'gsm8k_small', 'self_evolve', 'ablations'}
    assert names >= {'evaluate', 'solve', *others, *rounds}


def test_search_keys_are_those_of_the_search():
    ours = {k.partition('.')[2]: v for k, (v, _) in table.KEYS.items() if k.startswith('search.')}
    theirs = {field.name: field.default for field in dataclasses.fields(search.Config)}
    for key in ('trees', 'mean_tokens', 'more_rollouts'):
        del ours[key]  # of the stage: which trees, not how
    del theirs['use_ground_truth']  # of the task: making data, or solving
    for key, name in searches.EXECUTION.items():
        ours[name] = table.KEYS[f'execution.{key}'][0]
    assert ours == theirs


def test_synthesis_keys_are_those_of_the_synthesis():
    ours = {k.partition('.')[2]: v for k, (v, _) in table.KEYS.items() if 'synthesize.' in k}
    assert dataclasses.asdict(synthesize.Rules(problems=0)) == ours
    config = configs.default()
    config.synthesize.shown = 5
    assert synthesize.Rules(**config.synthesize).shown == 5


def test_every_form_of_a_search_that_is_compared_is_an_evaluations():
    assert tuple(ablations.TITLES) == table.ABLATIONS
    assert {strategy for _, strategy, _ in ablations.FORMS.values()} <= set(table.STRATEGIES)
    assert set(ablations.JUDGES.values()) == set(training.LOSSES)
    config = configs.default()
    config.ablations.groups = 'judge,froms'
    with pytest.raises(UserError, match='ablations.groups=judge,froms: no group froms; did you'):
        configs.validate(config)
    config.ablations.groups, config.ablations.rollouts = '', (1, 0)
    with pytest.raises(UserError, match=r'ablations.rollouts=\(1, 0\): needs whole numbers'):
        configs.validate(config)


def evaluation(config, number: int = 1) -> evals.Config:
    round_ = configs.for_round(config, number)
    return BY_NAME['eval'].config(Round(round_, pathlib.Path(), number, None))


def test_an_evaluation_is_the_same_in_every_round_whatever_is_searched():
    config = configs.load(str(REPOSITORY / 'experiments' / 'self_evolve.py'))
    plain = evaluation(config)
    assert plain.search == evaluation(configs.default()).search
    assert (plain.search.rollouts, plain.search.candidates) == (4, 32)
    fields = {field.name for field in dataclasses.fields(search.Config)}
    others = {'strategy': 'beam', 'answers_kept': 'all', 'failed_steps': 'once'} | {
        'examples': 'shuffled', 'prompt': 'few_shot', 'top_p': 0.5, 'min_p': 0.1,
    }  # fmt: skip
    resources = {'slots', 'trees_in_flight', 'chunk', 'drafts', 'tensor', 'one_size'}
    for key, value in config.search.items():
        if key in fields - resources:
            config.search[key] = others[key] if key in others else value + 1
    configs.command_line_wins(config, {f'search.{key}': 0 for key in config.search})
    for number in range(1, 5):
        assert evaluation(config, number) == plain
    start = evaluation(config, 0)
    assert start.search == dataclasses.replace(plain.search, prompt='few_shot')
    config.eval.prompt = 'sft'
    assert evaluation(config, 0) == plain


@pytest.mark.parametrize('key', ['rollouts', 'candidates', *table.EVAL_SEARCH])
def test_every_setting_of_an_evaluation_reaches_it(key):
    config = configs.default()
    choices = bounds.CHOICES.get(f'eval.{key}')
    value = config.eval[key]
    value = choices[1] if choices else 0.5 if isinstance(value, float) else value + 1
    assert value != config.eval[key]
    config.eval[key] = value
    assert getattr(evaluation(config).search, key) == value


@pytest.mark.parametrize('key', ['trajectories', 'samples', 'mean_tokens', 'top'])
def test_how_much_is_evaluated_is_what_the_config_says(key):
    config = configs.default()
    config.eval[key] += 3
    assert getattr(evaluation(config), key) == config.eval[key]


def test_strategies_are_those_of_the_evaluation():
    assert ('greedy', 'sampled', 'unguided', *evals.GUIDED) == table.STRATEGIES
    assert bounds.CHOICES['search.strategy'] == tuple(WALKS)
    config = configs.default()
    config.eval.strategies = 'sampled, dvts'
    assert evaluation(config).strategies == ('sampled', 'dvts')
    config.eval.strategies = 'greedy,sampeld'
    with pytest.raises(UserError, match='no strategy sampeld; did you mean sampled'):
        configs.validate(config)


# Where paper and released code differ; (keys, paper, released).
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
    (['search.failed_steps', 'eval.failed_steps'], ('once', 'once'), ('again', 'again')),
    (['search.examples', 'eval.examples'], ('fixed', 'fixed'), ('shuffled', 'shuffled')),
    (['search.repetition', 'eval.repetition'], (0, 0), (0, 0)),  # from ours alone
]


@pytest.mark.parametrize('which', ['paper', 'released'])
@pytest.mark.parametrize('name', ['round3', 'self_evolve'])
def test_presets_set_every_difference_of_paper_and_released_code(name, which):
    config = configs.load(str(REPOSITORY / 'experiments' / f'{name}.py') + f':{which}')
    configs.validate(config)
    found = configs.flatten(configs.for_round(config, 3))
    for names, *values in DIFFERENCES:
        expected = values[which == 'released']
        assert tuple(found[key] for key in names) == expected
    # Nothing else: what a preset sets is a difference.
    assert set(table.PRESETS[which]) <= {key for names, *_ in DIFFERENCES for key in names}


def test_a_preset_that_there_is_not():
    with pytest.raises(UserError, match='FILE:papr: no such preset; there are paper, released'):
        configs.load(str(REPOSITORY / 'experiments' / 'round3.py') + ':papr')


def test_the_flags_of_the_execution_reach_the_search():
    flags = ['isolation=strict', 'seconds=3', 'memory_mb=128', 'workers=5']
    arguments = [f'--config.execution.{flag}' for flag in flags]
    config, _ = main.parse(str(REPOSITORY / 'experiments' / 'solve.py'), arguments)
    made = searches.search_config(config)
    assert (made.isolation, made.code_seconds, made.code_memory_mb) == ('strict', 3.0, 128)
    assert made.workers == 5


def test_the_losses_of_a_ppm_are_those_of_the_training():
    assert bounds.CHOICES['training.ppm.loss'] == tuple(training.LOSSES)
    config = configs.default()
    config.training.ppm.loss = 'dpo'
    message = r'^--config.training.ppm.loss=dpo: needs one of pairwise, orm, pqm, prm$'
    with pytest.raises(UserError, match=message):
        configs.validate(config)


def test_every_key_of_our_own_is_read_somewhere():
    text = '\n'.join(path.read_text() for path in (REPOSITORY / 'rstar_jax').rglob('*.py'))
    for key in table.KEYS:
        section, _, leaf = key.rpartition('.')
        sections = ('', 'policy', 'base', 'ppm', 'bootstrap', 'data', 'ablations', 'eval', 'job')
        of_the_stage = leaf in ('trees', 'mean_tokens', 'more_rollouts')
        ours = section in sections and leaf not in table.EVAL_SEARCH
        if ours or of_the_stage:
            assert re.search(rf'\b(config|settings|search|made|job)\.(\w+\.)*{leaf}\b', text), key


def test_limits_and_choices_are_of_keys_that_exist():
    tables = (bounds.AT_LEAST, bounds.ABOVE, bounds.AT_MOST, bounds.BELOW, bounds.CHOICES)
    rows = (*table.ROUNDS.values(), *table.PRESETS.values())
    for key in (key for own in (*tables, *rows) for key in own):
        assert key in table.KEYS, key
    for key, (value, _) in table.KEYS.items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            assert any(key in table for table in tables) or key.endswith(
                ('unvisited_value', 'stop_reward')
            ), key


@pytest.mark.parametrize(
    ('flag', 'message'),
    [
        ('search.top_p=2', 'needs at most 1'),
        ('search.top_p=0', 'needs more than 0'),
        ('eval.top_p=1.5', 'needs at most 1'),
        ('eval.error_threshold=0', 'needs at least 1'),
        ('training.sft.learning_rate=inf', 'needs a finite number'),
        ('search.unvisited_value=nan', 'needs a finite number'),
        ('training.ppm.dropout=1', 'needs less than 1'),
        ('search.step_tokens=5000', 'one step needs to fit into path_tokens=4096'),
        ('eval.path_tokens=100', 'needs to fit into path_tokens=100'),
        ('eval.path_tokens=256', 'needs to fit into path_tokens=256 behind a prompt'),
        ('seed=-1', 'needs at least 0'),
        ('seed=4294967296', 'needs at most 4294967295'),
        ('last_round=99999', 'needs at most 1000'),
        ('training.sft.length=2000000000', 'needs at most 1048576'),
        ('training.ppm.lora=2000000000', 'needs at most 65536'),
        ('eval.failed_steps=twice', 'needs one of again, once'),
        ('eval.benchmarks= ,', 'names no benchmark'),
    ],
)
def test_a_value_that_cannot_be_meant_is_refused(flag, message):
    arguments = [f'--config.{flag}']
    config, _ = main.parse(str(REPOSITORY / 'experiments' / 'round3.py'), arguments)
    with pytest.raises(UserError, match=message) as error:
        configs.validate(config)
    assert str(error.value).startswith('--config.') and '\n' not in str(error.value)


UNMEASURED = {'keep': 'best', 'measure_every': 5, 'held_out': 0.0}


@pytest.mark.parametrize(
    ('name', 'values', 'message'),
    [
        (2, {'search.rollouts': '16'}, "round2.search.rollouts='16': needs a whole number"),
        (2, {'search.rollouts': 1.5}, 'round2.search.rollouts=1.5: needs a whole number'),
        (2, {'search.rollouts': None}, 'round2.search.rollouts=None: needs a whole number'),
        (2, {'search.one_size': 'no'}, "round2.search.one_size='no': needs True or False"),
        (2, {'search.more_rollouts': 3}, 'round2.search.more_rollouts=3: needs a list'),
        (2, {'stages': ('search',)}, 'round2.stages=.*: needs a text'),
        (2, {'search.step_tokens': 5000}, 'round2.search.step_tokens=5000: one step needs to fit'),
        (2, {'training.sft.keep': 'best'}, 'round2.training.sft.keep=best: needs.*measure_every'),
        (
            2,
            {f'training.ppm.{k}': v for k, v in UNMEASURED.items()},
            'round2.training.ppm.keep=best: needs --config.training.ppm.held_out, the share',
        ),
        (2, {'last_round': 3}, 'round2.last_round=3: is of the whole run: set --config.last_round'),
        ('_2', {'search.rollouts': 3}, 'config.schedule.round_2: no round; expected round1'),
        (0, {'search.rollouts': 3}, 'config.schedule.round0: no round; expected round1'),
    ],
)
def test_what_a_round_of_the_schedule_cannot_have_is_refused(name, values, message):
    config = configs.schedule(configs.default(), {name: values})
    with pytest.raises(UserError, match=message) as error:
        configs.validate(config)
    assert '\n' not in str(error.value)


def test_a_round_of_the_schedule_may_have_what_its_setting_takes():
    values = {'search.temperature': 1, 'search.more_rollouts': [64], 'stages': 'search'}
    config = configs.schedule(configs.default(), {2: values})
    configs.validate(config)
    made = configs.for_round(config, 2)
    assert (made.search.temperature, made.search.more_rollouts) == (1.0, (64,))


def test_a_value_that_is_none_is_refused():
    config = configs.default()
    config.search.rollouts = None
    with pytest.raises(UserError, match=r'--config.search.rollouts=None: needs a whole number'):
        configs.validate(config)


def test_a_tree_that_no_memory_holds_is_refused():
    with pytest.raises(UserError, match='candidates=100000: a tree of 4,800,001 nodes, with rol'):
        search.Config(rollouts=8, max_depth=6, candidates=100_000)
    with pytest.raises(UserError, match='beams: width=999.*at most 1,048,576 nodes'):
        search.Config(strategy='beam', width=999, candidates=100)


def test_a_round_of_the_schedule():
    config = configs.load(str(REPOSITORY / 'experiments' / 'self_evolve.py'))
    config.policy.path = 'instruct'
    first, third = configs.for_round(config, 1), configs.for_round(config, 3)
    assert (first.search.rollouts, first.search.prompt, first.ppm.path) == (8, 'few_shot', 'none')
    assert (third.search.rollouts, third.search.prompt, third.ppm.path) == (16, 'sft', 'previous')
    assert first.policy.path == 'instruct'
    assert (third.policy.path, third.base.path) == ('previous', 'instruct')
    assert configs.for_round(config, 0).search.prompt == 'few_shot'
    assert configs.for_round(config, 4).search.more_rollouts == (64, 128)


def test_the_command_line_wins_over_the_schedule():
    config = configs.load(str(REPOSITORY / 'experiments' / 'self_evolve.py'))
    config.search.rollouts = 2
    configs.command_line_wins(config, {'search.rollouts': 2})
    for number in range(1, 5):
        assert configs.for_round(config, number).search.rollouts == 2
    assert configs.for_round(config, 1).search.candidates == 5


def test_single_rounds_equal_the_schedule():
    whole = configs.load(str(REPOSITORY / 'experiments' / 'self_evolve.py'))
    for number in range(1, 5):
        one = configs.load(str(REPOSITORY / 'experiments' / f'round{number}.py'))
        theirs = configs.flatten(configs.for_round(whole, number).search)
        assert configs.flatten(configs.for_round(one, number).search) == theirs


@pytest.mark.parametrize(
    ('body', 'message'),
    [
        ('c.search.rolouts = 3', 'config.search.rolouts: no such key; did you mean '
         r'config.search.rollouts\?'),
        ('c.serch.rollouts = 3', r'config.serch: no such key; did you mean config.search\?'),
        ('c.search.rollouts = "x"', 'TypeError'),
        ('1 / 0', 'ZeroDivisionError: division by zero'),
        ('raise SystemExit', 'SystemExit: SystemExit'),
        ('return 3', 'returned 3, not a ConfigDict'),
    ],
)  # fmt: skip
def test_a_mistake_in_a_config_file_names_its_line(tmp_path, body, message):
    path = tmp_path / 'mine.py'
    path.write_text(
        'from rstar_jax.settings import configs\n\n\ndef get_config():\n'
        f'    c = configs.default()\n    {body}\n    return c\n'
    )
    with pytest.raises(UserError, match=message) as error:
        configs.load(str(path))
    assert '\n' not in str(error.value)
    if 'return' not in body:
        assert str(error.value).startswith(f'{path}:6: ')


def test_a_config_file_that_is_none(tmp_path):
    with pytest.raises(UserError, match=r'no such file; there are .*experiments/quickstart\.py'):
        configs.load(str(tmp_path / 'missing.py'))
    (tmp_path / 'empty.py').write_text('')
    with pytest.raises(UserError, match=r'has no get_config\(\)'):
        configs.load(str(tmp_path / 'empty.py'))
    (tmp_path / 'bad.py').write_text('x = 1\ndef (')
    with pytest.raises(UserError, match=r'bad\.py:2: SyntaxError'):
        configs.load(str(tmp_path / 'bad.py'))


def test_the_projects_files_are_had_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert configs.load('experiments/quickstart.py').last_round == 3
    assert configs.load('experiments/round3.py:paper').search.failed_steps == 'once'
    assert configs.describe('experiments/serve.py').startswith('Serves a policy')
    (tmp_path / 'experiments').mkdir()
    (tmp_path / 'experiments' / 'quickstart.py').write_text('')  # one's own comes first
    with pytest.raises(UserError, match=r'experiments/quickstart\.py: has no get_config\(\)'):
        configs.load('experiments/quickstart.py')


def test_the_argument_of_a_config_file(tmp_path):
    path = tmp_path / 'mine.py'
    path.write_text(
        'from rstar_jax.settings import configs\n\n\ndef get_config(seed):\n'
        '    c = configs.default()\n    c.seed = int(seed)\n    return c\n'
    )
    assert configs.load(f'{path}:7').seed == 7


def test_round_0_is_evaluated_before_the_first_searches():
    config = configs.default()
    config.policy.path, config.first_round, config.last_round = 'instruct', 0, 2
    config.search.prompt = 'few_shot'
    made = [configs.for_round(config, number) for number in range(3)]
    assert [x.policy.path for x in made] == ['instruct', 'instruct', 'previous']
    assert [x.search.prompt for x in made] == ['few_shot', 'few_shot', 'sft']


def test_later_rounds_train_from_a_model_that_has_a_name():
    config = configs.paper_round(2)
    config.last_round = 4
    assert configs.for_round(config, 3).base.path == ''
    config.policy.path = 'mine'
    assert configs.for_round(config, 3).base.path == 'mine'
    config.bootstrap.demonstrations = 5  # then it is what they were trained into
    assert configs.for_round(config, 3).base.path == ''


def test_stages_run_in_their_order():
    assert configs.stages_of('sft, search') == ('search', 'sft')
    with pytest.raises(UserError, match='no stage serch; did you mean search'):
        configs.stages_of('serch')
    with pytest.raises(UserError, match='needs at least one of'):
        configs.stages_of(',')


@pytest.mark.parametrize('name', ['solve', 'serve'])
def test_one_question_is_searched_as_in_an_evaluation_but_for_what_is_told(name):
    made, measured = (
        configs.load(str(REPOSITORY / 'experiments' / f'{file}.py')) for file in (name, 'evaluate')
    )
    text = ' '.join((REPOSITORY / 'experiments' / f'{name}.py').read_text().split())
    shared = ('rollouts', 'candidates', *table.EVAL_SEARCH)
    differ = {key for key in shared if made.search[key] != measured.eval[key]}
    assert differ == {'candidates', 'temperature'}
    trees = made.search.trees
    assert f'{trees} tree{"s" * (trees > 1)} in place of {measured.eval.trajectories},' in text
    for told in (
        '{0.candidates} candidates in place of {1.candidates}',
        'temperature {0.temperature:g} in place of {1.temperature:g}',
    ):
        assert told.format(made.search, measured.eval) in text
