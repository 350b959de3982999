"""The bench dispatcher: names, settings from a signature, the JSON file, one-line errors."""

import dataclasses
import json
import re

import pytest

from rstar_jax.bench import __main__ as dispatcher
from rstar_jax.settings.errors import UserError


@dataclasses.dataclass(frozen=True)
class Settings:
    left: int = 1
    right: float = 0.5
    twice: bool = False
    repeats: int = 3


def test_settings_are_typed():
    settings, path = dispatcher.parse(['--left=3', '--twice=true', '--json=x.json'], Settings())
    assert (settings, path) == (Settings(left=3, twice=True), 'x.json')


@pytest.mark.parametrize(
    ('given', 'argument'),
    [
        ('--lefd=3', '--lefd'),
        ('--left=x', '--left'),
        ('--twice=2', '--twice'),
        ('left', 'left'),
        ('--left=-1', '--left'),
        ('--right=nan', '--right'),
        ('--repeats=0', '--repeats'),
        ('--json=', '--json'),
        ('--json=/', '--json'),
    ],
)
def test_wrong_arguments_are_named(given, argument):
    with pytest.raises(UserError) as error:
        dispatcher.parse([given], Settings())
    assert error.value.argument == argument


def test_figures_are_written(tmp_path, capsys):
    path = tmp_path / 'out' / 'curate.json'
    assert dispatcher.main(['curate', '--trees=4', '--nodes=20', f'--json={path}']) == 0
    result = json.loads(path.read_text())
    assert result['bench'] == 'curate' and result['device']
    assert result['settings'] == {'trees': 4, 'nodes': 20, 'seed': 0}
    assert {*result['figures']} == {'trees_per_second', 'peak_memory_mb'}
    assert 'trees_per_second' in capsys.readouterr().out


def test_a_wrong_bench_is_one_line(capsys):
    assert dispatcher.main(['product']) == 2
    assert capsys.readouterr().err.count('\n') == 1


def test_help_lists_every_bench_with_a_description(capsys):
    assert dispatcher.main(['--help']) == 0
    told = capsys.readouterr().out
    for name in ('curate', 'decode', 'execution', 'grading', 'search', 'training', 'tree'):
        assert re.search(rf'^  {name} +\w', told, re.MULTILINE)
    assert dispatcher.main(['search', '--help']) == 0
    assert '--plain_at_most=0.0' in capsys.readouterr().out
