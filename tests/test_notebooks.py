"""The notebooks of launch/: run as they are, with a small world, on CPU."""

import os
import pathlib
import re
import shutil
import subprocess

import nbclient
import nbformat
import pytest

from rstar_jax import data, steps
from rstar_jax.data import arithmetic

REPOSITORY = pathlib.Path(__file__).parents[1]
FILES = sorted((REPOSITORY / 'launch').glob('*.ipynb'))
# Enough for the first policy to know the form of a solution, and little of everything else; what it
# finds is too little to learn from, so that examples are given.
SMALL = {
    'last_round': 1,
    'stages': 'bootstrap,search,curate,sft,ppm,eval,export',
    'bootstrap.demonstrations': 480,
    'data.limit': 12,
    'search.rollouts': 2,
    'search.candidates': 4,
    'training.sft.form': 0,
    'training.sft.epochs': 1,
    'training.ppm.epochs': 1,
    'eval.limit': 8,
    'eval.trajectories': 1,
    'eval.candidates': 2,
    'execution.workers': 1,
}
# What only says where a notebook is opened.
PLACE = re.compile(r'^\[!\[Open.*|^For (Colab|Kaggle): .*', re.M)


def examples(folder):
    """Files of solutions and of pairs of steps, and the settings that name them."""
    sft = arithmetic.world(demonstrations=64, train=1, test=1, seed=9).demonstrations
    first = [e['response'].partition(steps.STEP_END)[0] + steps.STEP_END for e in sft]
    pairs = [
        {'prompt': steps.prompt(e['query']), 'pos': pos, 'neg': neg, 'pos_count': 1, 'neg_count': 1}
        for e, pos, neg in zip(sft, first, [*first[1:], first[0]])
    ]
    data.write_json_items(sft, folder / 'sft.json')
    data.write_json_items(pairs, folder / 'pairs.json')
    return {f'curate.{kind}': folder / f'{kind}.json' for kind in ('sft', 'pairs')}


def read(path):
    return nbformat.read(path, as_version=4)


def sources(notebook, kind):
    return [cell.source for cell in notebook.cells if cell.cell_type == kind]


@pytest.mark.parametrize('path', FILES, ids=lambda path: path.stem)
def test_a_notebook_is_clean_and_its_badge_opens_it(path):
    notebook = read(path)
    nbformat.validate(notebook)
    assert not any(cell.get('outputs') for cell in notebook.cells)
    badge = re.search(r'\]\((.*)\)', sources(notebook, 'markdown')[0])[1]
    repository = re.search(r"REPOSITORY = 'https://github.com/(.*?)'", sources(notebook, 'code')[0])
    assert badge.endswith(f'{repository[1]}/blob/main/launch/{path.name}')


def test_one_command_sets_the_repository(tmp_path):
    launch = shutil.copytree(REPOSITORY / 'launch', tmp_path / 'launch')

    def set_to(*arguments):
        command = ['bash', str(launch / 'notebooks.sh'), *arguments]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)

    subprocess.run(['git', 'init', '-q', tmp_path], check=True)
    for arguments, name in ((['me/a.fork'], 'me/a.fork'), (['you/it'], 'you/it'), ([], 'us/ours')):
        if not arguments:
            url = f'git@github.com:{name}.git'
            subprocess.run(['git', 'remote', 'add', 'origin', url], cwd=tmp_path, check=True)
        assert set_to(*arguments).returncode == 0
        for path in FILES:
            text = (launch / path.name).read_text(encoding='utf-8')
            assert text == path.read_text(encoding='utf-8').replace('OWNER/rstar_jax', name)
            test_a_notebook_is_clean_and_its_badge_opens_it(launch / path.name)
    failed = set_to('https://github.com/me/it')
    assert failed.returncode == 2 and 'expected OWNER/NAME' in failed.stderr


def test_a_clone_that_is_there_is_used(tmp_path, monkeypatch):
    """As after 'restart session and run all'."""
    git = tmp_path / 'git'
    git.write_text('#!/bin/sh\n[ "$1" = clone ] && mkdir "$4"\n')
    git.chmod(0o755)
    monkeypatch.setenv('PATH', str(tmp_path), prepend=':')
    cell = sources(read(FILES[0]), 'code')[1]
    for _ in range(2):
        monkeypatch.chdir(tmp_path)
        exec(cell, {'REPOSITORY': 'https://github.com/us/ours'})
        assert pathlib.Path.cwd() == tmp_path / 'clone_of_rstar_jax'


def test_the_notebooks_are_the_same_but_for_the_place():
    assert [path.stem for path in FILES] == ['colab_tpu', 'kaggle_tpu']
    colab, kaggle = map(read, FILES)
    assert sources(colab, 'code') == sources(kaggle, 'code')
    texts = [PLACE.sub('', '\n'.join(sources(n, 'markdown'))) for n in (colab, kaggle)]
    assert texts[0] == texts[1] and 'A tiny policy learns' in texts[0]


def test_a_notebook_runs_on_cpu(tmp_path, monkeypatch):
    flags = '--xla_force_host_platform_device_count=1'
    monkeypatch.setenv('XLA_FLAGS', f'{os.environ["XLA_FLAGS"]} {flags}')
    notebook = read(FILES[0])
    (parameters,) = [c for c in notebook.cells if 'parameters' in c.metadata.get('tags', [])]
    small = {**SMALL, **examples(tmp_path)}
    settings = ' '.join(f'--config.{key}={value}' for key, value in small.items())
    parameters.source += f'\nWORKDIR = {str(tmp_path / "run")!r}\nSETTINGS = {settings!r}'
    resources = {'metadata': {'path': str(REPOSITORY / 'launch')}}
    nbclient.NotebookClient(notebook, timeout=3600, resources=resources).execute()
    if folder := os.environ.get('RSTAR_NOTEBOOK'):  # to be looked at
        nbformat.write(notebook, pathlib.Path(folder) / FILES[0].name)
    outputs = [out for cell in notebook.cells for out in cell.get('outputs', [])]
    printed = ''.join(out.text for out in outputs if out.output_type == 'stream')
    assert 'CPU with' in printed and 'qwen2.5-math-7b' in printed
    for number in (0, 1):
        assert re.search(rf'round {number}, arithmetic: the policy alone solves [\d.]+ %', printed)
    assert re.search(r'^(Answer: |No answer found)', printed, re.M)
    assert 'dry run: nothing was pushed' in printed
    pages = [out.data['text/html'] for out in outputs if 'text/html' in out.get('data', {})]
    frames = [page for page in pages if '<iframe srcdoc="&lt;!doctype html&gt;' in page.lower()]
    assert len(frames) == 2 and 'class=&quot;card&quot;' in frames[0]  # a tree, the report
    assert (tmp_path / 'run' / 'exported' / 'policy' / 'README.md').exists()
