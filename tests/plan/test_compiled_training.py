"""A training's own functions, compiled on fake devices: sizes that add up, what fits."""

import importlib.util
import math
import re

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh

from rstar_jax import models, parallel, training
from rstar_jax.models import published
from rstar_jax.parallel.chips import CHIPS
from rstar_jax.parallel.mesh import GLOBAL_AXES
from rstar_jax.plan import compiled_training, slices
from rstar_jax.training import block_attention, flops, memory, recompute, step

# Large enough for products to be most of the work.
TRAINED = models.Config('qwen2', 1024, 256, 512, 2, 4, 2, 64, qkv_bias=True)


def settings_of(kind, **changes):
    return training.settings(kind, changes)


def small(kind, **changes):
    return settings_of(kind, batch_size=8, length=256, micro_batch=1, dtype='float32', **changes)


def mesh_of(count):
    return parallel.global_mesh(devices=jax.devices()[:count])


@pytest.mark.parametrize('kind, lora', [('sft', 0), ('sft', 4), ('ppm', 0), ('ppm', 4)])
def test_what_a_training_holds_are_the_arrays_that_it_makes(kind, lora):
    settings, mesh = small(kind, lora=lora, moments='bfloat16'), mesh_of(4)
    params = models.decoder.init_params(TRAINED, jax.random.key(0))
    if kind == 'ppm':
        params = models.init_ppm(models.Policy(TRAINED, None, params)).params
    planned = compiled_training.Training(kind, settings, TRAINED, mesh, 2**40)
    made = step.Compiled(TRAINED, settings, planned.loss, mesh, 9, planned.new_rows)
    state = made.init(params)
    leaves = jax.tree.leaves((state, made.frozen))
    least = memory.merging(made.frozen) + parallel.bytes_on_a_device(state['params'])
    tight = compiled_training.Training(kind, settings, TRAINED, mesh, least - 1)
    assert not lora or tight.compile() == (least, None)
    assert planned.held == made.held(state) == sum(x.addressable_data(0).nbytes for x in leaves)
    shapes = jax.tree.leaves((planned.state, planned.frozen))
    assert [(x.shape, x.dtype) for x in shapes] == [(x.shape, x.dtype) for x in leaves]


@pytest.mark.parametrize('again', [False, True])
@pytest.mark.parametrize('kind, lora', [('sft', 0), ('ppm', 0), ('sft', 8)])
def test_products_are_what_the_compiler_counts(kind, lora, again, monkeypatch):
    monkeypatch.setattr(step.Compiled, 'for_activations', lambda *_: 0 if again else 2**40)
    block = {'sft': 128, 'ppm': 256}[kind]  # half of a row
    monkeypatch.setattr(block_attention, 'BLOCKS', {'cpu': block})
    compile_, counted = compiled_training.Training._compile, []

    def noting(self, call):
        times = {'accumulate': 2, 'update': 1}[call[0]]
        counted.append((times, compile_(self, call)))
        return counted[-1][1]

    monkeypatch.setattr(compiled_training.Training, '_compile', noting)
    settings, mesh = small(kind, lora=lora), mesh_of(4)
    made = compiled_training.plan_training(kind, settings, TRAINED, mesh, 1e12)
    assert made.needed < made.computed
    flops = sum(times * program.cost_analysis()['flops'] for times, program in counted)
    # The compiler counts a loop's body once: one layer, and in it one pair of blocks.
    with monkeypatch.context() as once:
        once.setattr(compiled_training, 'scored_pairs', lambda *_: block**2)
        one = TRAINED.replace(num_layers=1)
        _, computed = compiled_training.Training(kind, settings, one, mesh, 10**12).products()
    assert computed < 4 * flops < 1.05 * computed
    assert made.micros == {'sft': {(4, 256): 2}, 'ppm': {(4, 512): 2}}[kind]
    assert made.mesh == {'data': 1, 'fsdp': 4, 'tensor': 1}
    # Parameters are gathered for each micro batch, gradients are summed.
    assert made.work.exchanged['all-gather'].bytes > 0
    assert made.peak > made.held
    monkeypatch.setattr(compiled_training.Training, '_compile', compile_)
    alone = compiled_training.plan_training(kind, small(kind, lora=lora), TRAINED, mesh_of(1), 1e12)
    assert alone.micros == {(1, made_row): 8 for _, made_row in made.micros}
    assert alone.needed == pytest.approx(4 * made.needed) and not alone.work.exchanged


def test_the_memory_counts_the_micro_batch_of_the_most_tokens():
    """Three rows of 192 are rounded down to two, of 128 tokens there are four."""
    config, mesh = settings_of('sft', batch_size=8, length=192, micro_batch=3), mesh_of(1)
    config.dtype = 'float32'
    planned = compiled_training.Training('sft', config, TRAINED, mesh, 2**40)
    assert planned.micros == {(2, 192): 4}
    assert planned.largest == ('accumulate', (4, 128))
    made = step.Compiled(TRAINED, config, 'sft', mesh, 9, planned.new_rows, 2**40)
    worst, usual = (
        made.prepare(planned.state, [('accumulate', planned._batch(*micro))])
        for micro in ((4, 128), (2, 192))
    )
    peak, work = planned.compile()
    assert peak == worst > usual
    assert compiled_training.Training('sft', config, TRAINED, mesh, worst - 1).compile() == (
        worst,
        None,
    )
    # Of the step that is planned are the collectives; examples of a given size have their own.
    assert work.exchanged == {}
    assert compiled_training.Training('sft', config, TRAINED, mesh, 2**40, 192).largest[1] == (
        2,
        192,
    )


def test_attention_counts_what_is_seen():
    long = TRAINED.replace(windows=(300, 5000))
    seen = flops.work(long, 'sft').seen(np.arange(1000))
    scored = compiled_training.scored_pairs(long, 1000)
    row, column = np.arange(1000)[:, None], np.arange(1000)
    visible = [(column <= row) & (column > row - window) for window in (300, 5000)]
    assert seen == sum(mask.sum() for mask in visible)
    # A block of queries looks at four of keys, at the beginning at fewer; without a window at all.
    assert block_attention.block_size(1000) == 128 and scored == (10 + 4 * 4 + 8 * 9 // 2) * 128**2


def test_a_training_that_does_not_fit():
    mesh, settings = mesh_of(2), small('ppm')
    fits = compiled_training.plan_training('ppm', settings, TRAINED, mesh, 1e12)
    count = sum(
        x.size for x in jax.tree.leaves(models.decoder.abstract_params(TRAINED, headless=True))
    )
    assert 12 * count < 2 * fits.held < 12.5 * count
    assert fits.held + 2 * count < fits.peak
    less = compiled_training.plan_training('ppm', settings, TRAINED, mesh, fits.peak - 1)
    assert less.work is None and less.peak == fits.peak
    # Not compiled at all.
    none = compiled_training.plan_training('ppm', settings, TRAINED, mesh, fits.held + 1)
    assert none.work is None and fits.held < none.peak < fits.peak


V5E, V6E = (CHIPS[kind] for kind in ('TPU v5 lite', 'TPU v6 lite'))
BOTH = 'sft', 'ppm'
KINDS = {'v5e': 'TPU v5 lite', 'v6e': 'TPU v6 lite', 'v5p': 'TPU v5'}


def held(count, name, kind, lora):
    """Bytes on each chip all the time, and those of gradients."""
    mesh = AbstractMesh((1, count, 1), GLOBAL_AXES)
    settings = settings_of(kind, lora=lora, dtype='bfloat16')
    planned = compiled_training.Training(
        kind, settings, published.SHAPES[name], mesh, int(V5E.memory)
    )
    return planned.held, parallel.bytes_on_a_device(planned.state['params'])


# Slice, model, training, rank of LoRA or 0: trainings of the paper's models that fit.
FITTING = (
    *((s, 'qwen2.5-math-7b', k, 0) for s in ('v5e:4x4', 'v6e:2x4', 'v5p:2x2x1') for k in BOTH),
    *(('v5e:2x4', 'qwen2.5-math-1.5b', k, rank) for rank in (0, 16) for k in BOTH),
    *(('v5e:1x1', 'qwen2.5-math-1.5b', k, 16) for k in BOTH),
    ('v5e:2x4', 'phi3-mini-4k', 'sft', 0),
    ('v5e:2x4', 'phi3-mini-128k', 'sft', 0),
)


@pytest.mark.parametrize('slice_, model, kind, lora', FITTING)
def test_what_is_claimed_to_fit_leaves_room_for_a_micro_batch(slice_, model, kind, lora):
    generation, _, sides = slice_.partition(':')
    count = math.prod(map(int, sides.split('x')))
    need = sum(held(count, model, kind, lora))
    assert need < 0.8 * CHIPS[KINDS[generation]].memory


@pytest.mark.parametrize(
    'count, chip, name, lora',
    [
        (8, V5E, 'qwen2.5-math-7b', 0),
        (4, V6E, 'qwen2.5-math-7b', 0),
        (1, V5E, 'qwen2.5-math-1.5b', 0),
    ],
)
def test_smaller_slices_do_not_hold_it(count, chip, name, lora):
    assert sum(held(count, name, 'sft', lora)) > 0.9 * chip.memory


needs_slices = pytest.mark.skipif(
    not importlib.util.find_spec('libtpu'), reason='needs the extra `plan`'
)


@needs_slices
def test_a_training_on_a_real_slice(monkeypatch):
    compile_, texts = compiled_training.Training._compile, []

    def noting(self, call):
        program = compile_(self, call)
        texts.append(program.as_text())
        return program

    monkeypatch.setattr(compiled_training.Training, '_compile', noting)
    mesh = parallel.global_mesh(devices=slices.slice_chips('v5e:2x4'))
    settings = settings_of('ppm', batch_size=8, length=512, micro_batch=1)
    made = compiled_training.plan_training('ppm', settings, TRAINED, mesh, V5E.memory)
    assert made.mesh == {'data': 1, 'fsdp': 8, 'tensor': 1} and made.micros == {(8, 1024): 1}
    with jax.set_mesh(mesh):
        assert block_attention.block_size(1024) == block_attention.BLOCK
        kept = recompute.kept_bytes(TRAINED, 8, 1024, 'bfloat16')
    gathered = made.work.exchanged['all-gather'].bytes
    assert made.held + kept < made.peak < made.held + 16 * kept and gathered > 0
    # What attention's kernel gives is kept: backwards there are its backward parts alone.
    found = re.findall(r'%splash_mha_([a-z]+)\S* = .*"tpu_custom_call"', '\n'.join(texts))
    assert sorted(found) == ['dkv', 'dq', 'fwd']
