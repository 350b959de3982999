"""The table of settings: what is made of it agrees with those whose settings they are."""

import dataclasses
import pathlib
import re

import pytest

from rstar_jax import evals, search, settings, training
from rstar_jax.data.pairs import Rules
from rstar_jax.search.strategies import WALKS
from rstar_jax.settings import SETTINGS, STAGES, Range, UserError, former
from rstar_jax.settings.presets import PRESETS, ROUNDS
from rstar_jax.settings.table import ABLATIONS, EVAL_SEARCH, STRATEGIES, TRAININGS, training_rows
from rstar_jax.stages import STAGES as STAGE_FILES
from rstar_jax.stages import searches, synthesize
from rstar_jax.study import variants

CODE = pathlib.Path(__file__).parents[2] / 'rstar_jax'
# Of the stage that searches: which trees, not how.
WHICH_TREES = ('trees', 'mean_tokens', 'more_rollouts')


def own(section: str) -> dict[str, object]:
    """{last word: default} of a section."""
    rows = {name: row for name, row in SETTINGS.items() if name.rpartition('.')[0] == section}
    return {name.rpartition('.')[2]: row.default for name, row in rows.items()}


def defaults(kind: type) -> dict[str, object]:
    return {field.name: field.default for field in dataclasses.fields(kind)}


def test_the_stages_are_those_of_the_stage_files():
    assert tuple(stage.name for stage in STAGE_FILES if stage.name != 'base') == STAGES
    known = {stage.name for stage in STAGE_FILES} | {'start'}
    for row in SETTINGS.values():
        assert {*row.grows} <= {*row.binds} <= known, row.name
    for stage in STAGE_FILES:
        assert stage.asked_by in ('', *SETTINGS)


@pytest.mark.parametrize(
    ('section', 'kind', 'left_out'),
    [
        ('search', search.Config, WHICH_TREES),
        ('curate', Rules, ('sft', 'pairs', 'rounds')),
        ('synthesize', synthesize.Rules, ('problems',)),
        ('eval', evals.Config, ('benchmarks', 'limit', 'strategies', 'prompt', *EVAL_SEARCH)),
    ],
)
def test_defaults_are_those_of_the_library(section, kind, left_out):
    ours = {key: value for key, value in own(section).items() if key not in left_out}
    theirs = defaults(kind)
    assert ours == {key: theirs[key] for key in ours}


def test_an_evaluation_and_programs_have_the_defaults_of_the_library():
    theirs = evals.Config()
    for key in EVAL_SEARCH:
        assert own('eval')[key] == getattr(theirs.search, key)
    assert own('eval')['strategies'] == ','.join(theirs.strategies)
    for key, name in searches.EXECUTION.items():
        assert own('execution')[key] == defaults(search.Config)[name]


@pytest.mark.parametrize('kind', TRAININGS)
def test_a_training_has_what_the_table_says(kind):
    made = training.settings(kind)
    for key, row in training_rows(kind).items():
        assert made[key] == row.default
    values = settings.training_values(settings.default(), kind)
    assert training.settings(kind, values) == made


def test_the_bootstrap_trains_as_sft_but_for_its_own():
    config = settings.default()
    config.training.sft.lora, config.training.sft.length, config.training.dtype = 4, 64, 'float32'
    values = settings.training_values(config, 'bootstrap')
    assert (values['lora'], values['length'], values['dtype']) == (4, 512, 'float32')
    config.job.keep_seconds = 120
    assert settings.training_values(config, 'sft')['checkpoint_minutes'] == 2


def test_choices_are_those_of_who_takes_them():
    assert SETTINGS['search.strategy'].choices == tuple(WALKS)
    assert ('greedy', 'sampled', 'unguided', *evals.GUIDED) == STRATEGIES
    assert SETTINGS['training.ppm.loss'].choices == tuple(training.LOSSES)
    assert tuple(variants.TITLES) == ABLATIONS
    assert {strategy for _, strategy, _ in variants.FORMS.values()} <= {*STRATEGIES}
    assert {*variants.JUDGES.values()} == {*training.LOSSES}


@pytest.mark.parametrize('name', SETTINGS)
def test_every_setting_is_read_somewhere(name):
    text = '\n'.join(
        path.read_text() for path in CODE.rglob('*.py') if path.parent.name != 'settings'
    )
    leaf = name.rpartition('.')[2]
    assert re.search(rf'\.{leaf}\b|\b{leaf}:|[\'"]{leaf}[\'"]', text)


@pytest.mark.parametrize('name', SETTINGS)
def test_every_range_refuses_what_is_outside_of_it(name):
    row = SETTINGS[name]
    assert row.meaning and not row.wrong(row.default)
    wrong = [None]
    if row.choices:
        wrong.append('no such choice')
    elif isinstance(row.allowed, Range):
        limits, step = row.allowed, 1 if isinstance(row.default, int | tuple) else 1e-6
        ends = [(limits.least, -step), (limits.most, step), (limits.above, 0), (limits.below, 0)]
        outside = [end + over for end, over in ends if end is not None]
        wrong += [(value,) for value in outside] if isinstance(row.default, tuple) else outside
    if isinstance(row.default, float):
        wrong += [float('nan'), float('inf')]
    for value in wrong:
        config = settings.schedule(settings.default(), {2: {name: value}})
        assert row.wrong(value)
        if row.of_run:
            continue
        with pytest.raises(UserError) as error:
            settings.validate(config)
        assert error.value.argument == f'schedule.round2.{name}' and error.value.expected
        assert settings.is_setting(error.value.argument)


def test_a_number_has_a_range():
    free = {'search.unvisited_value', 'eval.unvisited_value'}
    for name, row in SETTINGS.items():
        if isinstance(row.default, int | float) and not isinstance(row.default, bool):
            assert (row.allowed is None) == (name in free), name


def test_rounds_and_presets_are_of_settings_that_there_are():
    for rows in (*ROUNDS.values(), *PRESETS.values()):
        for name, value in rows.items():
            assert not SETTINGS[name].wrong(value), name


def test_a_library_is_told_of_its_own_argument():
    with pytest.raises(UserError) as error:
        search.Config(candidates=0)
    assert (error.value.argument, error.value.value) == ('candidates', 0)
    assert error.value.expected == 'needs at least 1'


def test_what_binds_a_stage():
    flat = settings.flatten(settings.default())
    searched, measured = settings.bound('search', flat), settings.bound('eval', flat)
    assert {'seed', 'search.rollouts', 'search.top_p', 'data.limit', 'ppm.path'} <= {*searched}
    assert {'search.top_p', 'eval.rollouts', 'policy.dtype'} <= {*measured}
    assert 'search.rollouts' not in measured and 'search.agree' not in searched
    assert not {'search.slots', 'execution.workers', 'data.folder'} & {*searched, *measured}
    assert settings.growing('search') == ('data.limit',)
    assert settings.bound('export', flat) == {}
    assert {'policy.path', 'search.prompt'} <= {*settings.bound('start', flat)}


def test_settings_of_an_earlier_version_have_the_names_of_now():
    recorded = {'eval.step_tokens': 48, 'eval.rollouts': 4, 'search.top_k': 3}
    today = former.today(recorded)
    assert today == {'search.step_tokens': 48, 'eval.rollouts': 4, 'search.top_k': 3}
    assert former.today({'training.bootstrap.lora': 2}) == {'training.sft.lora': 2}
    assert former.today({'training.ppm.dtype': 'float32'}) == {'training.dtype': 'float32'}
    assert not {*former.MOVED} & {*SETTINGS} and {*former.MOVED.values()} <= {*SETTINGS}


def test_the_reference_tells_all():
    text = settings.reference()
    for name in SETTINGS:
        assert f'| `{name}` |' in text
    assert '| `search.top_p` | `1.0` | (0, 1] |' in text
