"""The bench dispatcher: names, settings from a signature, the JSON file, one-line errors."""

import json
import types

import pytest

from rstar_jax.bench import __main__ as dispatcher
from rstar_jax.settings.errors import UserError


@pytest.fixture
def fake_bench(monkeypatch):
    """A bench `sum` that adds its settings, in place of what is in the package."""

    def run(*, left: int = 1, right: float = 0.5, twice: bool = False):
        return {'sum': (left + right) * (2 if twice else 1)}

    module = types.SimpleNamespace(run=run, __doc__='Adds.')
    monkeypatch.setattr(dispatcher, 'names', lambda: {'sum': 'Adds.'})
    monkeypatch.setattr(dispatcher.importlib, 'import_module', lambda name: module)


def test_settings_are_typed_and_written(fake_bench, tmp_path, capsys):
    path = tmp_path / 'out' / 'sum.json'
    assert dispatcher.main(['sum', '--left=3', '--twice=true', f'--json={path}']) == 0
    result = json.loads(path.read_text())
    assert result['bench'] == 'sum'
    assert result['settings'] == {'left': 3, 'right': 0.5, 'twice': True}
    assert result['figures'] == {'sum': 7.0}
    assert result['device']
    assert '7' in capsys.readouterr().out


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['product'], 'error: product: no such bench; there are sum'),
        (
            ['sum', '--lefd=3'],
            'error: --lefd: bench sum has no such setting',
        ),
        (['sum', '--left=x'], 'error: --left=x: expected a value of type int'),
        (['sum', '--twice=2'], 'error: --twice=2: expected true or false'),
        (['sum', 'left'], 'error: left: expected --key=value'),
        (['sum', '--left=-1'], 'error: --left=-1: expected at least 0'),
        (['sum', '--right=nan'], 'error: --right=nan: expected at least 0'),
        (['sum', '--json='], 'error: --json=: expected a file to write to'),
        (['sum', '--json=/'], 'error: --json=/: expected a file to write to'),
        (['sum', '--json=/proc/none/x'], 'error: --json=/proc/none: cannot be written'),
        (['leases', '--hosts=0'], 'error: leases: no such bench'),
    ],
)
def test_wrong_arguments_are_one_line(fake_bench, capsys, arguments, message):
    assert dispatcher.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith(message)
    assert error.count('\n') == 1


def test_figures_need_a_run():
    with pytest.raises(UserError, match='^--repeats=0: expected at least 1$'):
        dispatcher.parse('decode', ['--repeats=0'], {'repeats': 3})


def test_help_lists_the_names(fake_bench, capsys):
    assert dispatcher.main(['--help']) == 0
    assert 'sum          Adds.' in capsys.readouterr().out


def test_every_bench_of_the_package_has_a_line_of_description():
    for name, line in dispatcher.names().items():
        assert line, name
