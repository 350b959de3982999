"""The decode bench on a tiny model: its figures, and what it refuses."""

import pytest

from rstar_jax import models
from rstar_jax.bench import decode
from rstar_jax.models import published, tiny
from rstar_jax.settings.errors import UserError


def test_figures(tmp_path):
    models.save(tiny.policy(['print(1)'], num_layers=1), tmp_path)
    settings = decode.Settings(str(tmp_path), prompt=9, tokens=4, batches='3', repeats=1)
    figures = decode.run(settings)
    theirs = max(figures[f'transformers_{kind}_b3'] for kind in decode.DTYPES)
    ours = figures['tokens_per_second_b3']
    assert figures['ratio_vs_transformers_b3'] == pytest.approx(ours / theirs)
    assert figures['products_share_b3'] > 0 and len(figures) == 5


def test_a_model_that_there_is_not():
    with pytest.raises(UserError, match='none/such'):
        decode.run(decode.Settings('none/such'))


def test_a_published_name_is_found_with_its_owner_and_kind():
    assert published.find('Qwen/Qwen2.5-Math-7B-Instruct') == 'qwen2.5-math-7b'
    assert published.find('models/smollm2-135m-instruct.gguf') == 'smollm2-135m'
    assert published.find('microsoft/Phi-3-mini-4k-instruct') == 'phi3-mini-4k'
    assert published.find('previous') is None
