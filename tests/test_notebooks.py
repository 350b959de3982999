"""The notebooks of launch/: run as they are, with a small world, on CPU."""

import os
import pathlib
import re

import nbclient
import nbformat
import pytest

REPOSITORY = pathlib.Path(__file__).parents[1]
FILES = sorted((REPOSITORY / 'launch').glob('*.ipynb'))
# Enough for the first policy to know the form of a solution, and little of everything else.
SMALL = {
    'bootstrap.demonstrations': 1920,
    'data.limit': 12,
    'search.rollouts': 2,
    'search.candidates': 4,
    'training.sft.epochs': 1,
    'training.ppm.epochs': 1,
    'curate.edit_distance': 1,
    'eval.limit': 8,
    'eval.trajectories': 1,
    'eval.candidates': 2,
    'execution.workers': 1,
}
# What only says where a notebook is opened.
PLACE = re.compile(r'^\[!\[Open.*|^For (Colab|Kaggle): .*', re.M)


def read(path):
    return nbformat.read(path, as_version=4)


def sources(notebook, kind):
    return [cell.source for cell in notebook.cells if cell.cell_type == kind]


@pytest.mark.parametrize('path', FILES, ids=lambda path: path.stem)
def test_a_notebook_is_clean_and_its_badge_opens_it(path):
    notebook = read(path)
    nbformat.validate(notebook)
    assert not any(cell.get('outputs') for cell in notebook.cells)
    badge, first = re.search(r'\]\((.*)\)', sources(notebook, 'markdown')[0])[1], FILES[0].name
    repository = re.search(r"REPOSITORY = 'https://github.com/(.*?)'", sources(notebook, 'code')[0])
    assert badge.endswith(f'{repository[1]}/blob/main/launch/{path.name}')
    assert first in {file.name for file in FILES}


def test_the_notebooks_are_the_same_but_for_the_place():
    assert [path.stem for path in FILES] == ['colab_tpu', 'kaggle_tpu']
    colab, kaggle = map(read, FILES)
    assert sources(colab, 'code') == sources(kaggle, 'code')
    texts = [PLACE.sub('', '\n'.join(sources(n, 'markdown'))) for n in (colab, kaggle)]
    assert len(texts[0]) > 500 and texts[0].split()[:8] == texts[1].split()[:8]


def test_a_notebook_runs_on_cpu(tmp_path, monkeypatch):
    flags = '--xla_force_host_platform_device_count=1'
    monkeypatch.setenv('XLA_FLAGS', f'{os.environ["XLA_FLAGS"]} {flags}')
    monkeypatch.delenv('JAX_DISABLE_MOST_OPTIMIZATIONS')  # it trains more than it compiles
    notebook = read(FILES[0])
    (parameters,) = [c for c in notebook.cells if 'parameters' in c.metadata.get('tags', [])]
    settings = ' '.join(f'--config.{key}={value}' for key, value in SMALL.items())
    parameters.source += f'\nWORKDIR = {str(tmp_path / "run")!r}\nSETTINGS = {settings!r}'
    resources = {'metadata': {'path': str(REPOSITORY / 'launch')}}
    nbclient.NotebookClient(notebook, timeout=900, resources=resources).execute()
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
    assert any('<iframe srcdoc="&lt;!doctype html&gt;' in page.lower() for page in pages)
    assert (tmp_path / 'run' / 'exported' / 'policy' / 'README.md').exists()
