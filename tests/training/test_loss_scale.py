"""Training in float16: the scaled loss alone, and in the trainer's own functions."""

import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rstar_jax import models, parallel, training
from rstar_jax.models import checkpoint, decoder
from rstar_jax.settings import bounds
from rstar_jax.settings.errors import UserError
from rstar_jax.training import dtypes, loss_scale, packing, step, trainer
from rstar_jax.training.examples import Encoded
from tests.training import words

SHAPE = models.Config('llama', 64, 32, 48, 2, 4, 2, 8, tie_embeddings=True)


def test_steps_that_are_not_finite_are_left_out_and_halve_the_factor(monkeypatch):
    monkeypatch.setattr(loss_scale, 'PATIENCE', 2)
    inner = optax.adamw(0.1)
    scaled = loss_scale.scaled(inner)
    params = {'w': jnp.arange(3.0)}
    state, plain = scaled.init(params), inner.init(params)
    grads = {'w': jnp.array([1.0, -2.0, 3.0])}
    for bad in (jnp.inf, jnp.nan, jnp.inf):
        before = state
        updates, state = scaled.update({'w': grads['w'].at[1].set(bad)}, state, params)
        assert np.array_equal(updates['w'], np.zeros(3))
        assert state.factor == before.factor / 2
        assert jax.tree.all(jax.tree.map(np.array_equal, state.inner, before.inner))
    factors = []
    for _ in range(4):
        expected, plain = inner.update(grads, plain, params)
        updates, state = scaled.update({'w': state.factor * grads['w']}, state, params)
        np.testing.assert_allclose(updates['w'], expected['w'], rtol=1e-6)
        factors.append(float(state.factor / loss_scale.START))
    assert factors == [1 / 8, 1 / 4, 1 / 4, 1 / 2]


def settings(dtype, **changes):
    shape = dict(dtype=dtype, length=128, batch_size=2, learning_rate=1e-3)
    return training.settings('sft', shape | changes)


def encoded():
    rng = np.random.default_rng(0)
    made = Encoded({'targets': np.int32, 'weights': np.float32}, 128)
    for _ in range(4):
        tokens = rng.integers(1, 60, 24).astype(np.int32)
        fields = {
            'targets': np.append(tokens[1:], 0).astype(np.int32),
            'weights': np.ones(24, np.float32),
        }
        made.add('q', packing.Example((tokens,), (0,), (fields,)))
    return made


def gradients(dtype, scale, factor=None):
    """Gradients by the trainer's functions of `scale` times the loss, as float32 of that loss."""
    config, mesh, examples = settings(dtype), parallel.one_device(), encoded()
    compiled = step.Compiled(SHAPE, config, 'sft', mesh, 4)
    state = compiled.init(decoder.init_params(SHAPE, jax.random.key(0)))
    (batch,) = trainer.Micros(examples, range(4), config, mesh).batches
    by = compiled.scale_of(state, scale) if factor is None else factor * scale
    zeros = compiled.zeros(state['params'])
    grads, _ = compiled.accumulate(zeros, state['params'], batch, by, (0, 0))
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(grads)]) / by


def test_gradients_that_float16_would_lose_are_kept():
    expected = gradients('float32', 1e-6)

    def error(found):
        return np.linalg.norm(found - expected) / np.linalg.norm(expected)

    assert error(gradients('float16', 1e-6)) < 0.02
    assert error(gradients('float16', 1e-6, factor=1.0)) > 0.3


@pytest.mark.filterwarnings('error:optax')  # of what is deprecated
@pytest.mark.parametrize('changes', [{}, {'lora': 4, 'learning_rate': 1e-2}])
def test_a_training_in_float16_ends_near_one_in_float32(tmp_path, changes):
    policy = models.Policy(SHAPE, None, decoder.init_params(SHAPE, jax.random.key(0)))
    losses = {}
    for dtype in ('float32', 'float16'):
        _, _, found = trainer.train(
            SHAPE,
            policy.params,
            encoded(),
            range(4),
            'sft',
            settings(dtype, **changes),
            tmp_path / dtype,
            name='x',
        )
        losses[dtype] = found['loss_first'], found['loss_last']
    assert losses['float16'] == pytest.approx(losses['float32'], rel=2e-3)
    assert losses['float16'][1] < losses['float16'][0] - 0.01


def test_the_rate_that_is_told_is_the_one_that_was_taken(tmp_path, monkeypatch):
    """A step that is left out is none to the schedule."""
    monkeypatch.setattr(loss_scale, 'START', 2.0**20)
    config = settings('float16', epochs=6)
    params = decoder.init_params(SHAPE, jax.random.key(0))
    args = SHAPE, params, encoded(), range(4), 'sft', config, tmp_path
    updates, real = [], step.Compiled.step

    def noted(self, state, *rest):
        updates.append(int(state['optimiser'].inner[-1].count))
        return real(self, state, *rest)

    monkeypatch.setattr(step.Compiled, 'step', noted)
    trainer.train(*args, name='x')
    lines = [json.loads(line) for line in (tmp_path / 'metrics.jsonl').read_text().splitlines()]
    left_out = sum('left_out' in line for line in lines)
    assert 0 < left_out < len(lines) == 12 and updates[-1] == 11 - left_out
    expected = [1e-3 * (1 - done / 12) for done in updates]
    assert [line['learning_rate'] for line in lines] == pytest.approx(expected)


def test_what_an_old_gpu_has_begun_no_other_device_goes_on_with(policy, tmp_path, monkeypatch):
    config = words.sft_settings(dtype='', epochs=1, checkpoint_minutes=0)

    def killed(now):
        if now.get('step') == 2:
            raise InterruptedError

    def run(dtype):
        monkeypatch.setattr(dtypes, 'fast_dtype', lambda: dtype)
        training.sft(policy, words.sft_examples(), config, tmp_path, progress=killed)

    with pytest.raises(InterruptedError):
        run('float16')
    with pytest.raises(UserError, match='another training .* in float16, here in float32'):
        run('float32')


@pytest.mark.parametrize(
    'capability, dtype',
    [('7.5', 'float16'), ('8.0', 'bfloat16'), ('12.0', 'bfloat16'), ('gfx90a', 'bfloat16')],
)
def test_only_old_gpus_of_nvidia_train_in_float16(monkeypatch, capability, dtype):
    """And search in float32, for which bfloat16 would be turned into it in every step."""
    device = types.SimpleNamespace(platform='gpu', compute_capability=capability)
    monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
    monkeypatch.setattr(jax, 'local_devices', lambda: [device])
    assert dtypes.fast_dtype() == dtype
    assert checkpoint.default_dtype() == ('float32' if dtype == 'float16' else dtype)
    assert dtypes.lacks(jnp.dtype('bfloat16')) == (dtype == 'float16')
    assert not dtypes.lacks(jnp.dtype('float16'))


def test_models_are_loaded_in_a_dtype_that_loading_knows():
    every = bounds.CHOICES['training.sft.dtype'][1:]
    names = {name: training.start_dtype(settings(name, lora=4)) for name in every}
    assert names == {'float32': 'float32', 'bfloat16': 'bfloat16', 'float16': 'float32'}
    assert training.start_dtype(settings('bfloat16')) == 'float32'
