"""Training, saving and export by two processes give what one process gives."""

import json
import pathlib
import sys

import numpy as np
import pytest

from rstar_jax import models
from rstar_jax.models import trained
from tests.models import test_gguf
from tests.parallel import processes

PROGRAM = pathlib.Path(__file__).with_name('training_program.py')


@pytest.fixture(scope='module')
def made(tmp_path_factory) -> pathlib.Path:
    """A folder with what one process made of the models, and what two made."""
    folder = tmp_path_factory.mktemp('models')
    test_gguf.write('qwen2', folder / 'model.gguf')
    policy = models.load(folder / 'model.gguf', 'float32')
    models.save(policy, folder / 'hf')
    trained.save_model(policy, folder / 'own')
    for count in (1, 2):
        command = [sys.executable, '-m', 'tests.parallel.training_program']
        command += [str(folder), str(folder / str(count))]
        processes.run(command, count, 4 // count)
    return folder


@pytest.mark.parametrize('name', ['hf', 'own', 'model.gguf', 'ppm'])
def test_two_processes_train_as_one(made, name):
    """SFT from each kind of file, and a PPM from what came of it."""
    one, two = (
        [json.loads(line) for line in (made / n / name / 'metrics.jsonl').open()] for n in '12'
    )
    assert len(one) == len(two) > 2
    for key in ('loss', 'grad_norm'):
        np.testing.assert_allclose([x[key] for x in two], [x[key] for x in one], rtol=1e-6)


def test_two_processes_begin_with_the_same_head(made):
    """Solving for it makes more of how each rounds than a step of a training does."""
    one, two = (
        [json.loads(line) for line in (made / n / 'fitted' / 'metrics.jsonl').open()] for n in '12'
    )
    np.testing.assert_allclose([x['loss'] for x in two], [x['loss'] for x in one], rtol=1e-5)
    plain = [json.loads(line) for line in (made / '1' / 'ppm' / 'metrics.jsonl').open()]
    assert abs(one[0]['loss'] - plain[0]['loss']) > 0.01
    heads = (models.load_ppm(made / n / 'fitted', 'float32').params['value_head'] for n in '12')
    one, two = (np.asarray(head['weight']) for head in heads)
    np.testing.assert_allclose(two, one, atol=1e-4 * np.abs(one).max())


def test_their_exports_are_alike(made):
    tokens, lengths = np.arange(3, 43)[None], np.array([40])
    one, two = (
        models.load(made / n / 'export' / 'policy', 'float32').logits(tokens, lengths) for n in '12'
    )
    np.testing.assert_allclose(two, one, atol=1e-5)
    one, two = (
        models.load_ppm(made / n / 'export' / 'ppm', 'float32').scores(tokens, lengths)
        for n in '12'
    )
    np.testing.assert_allclose(two, one, atol=1e-6)
