"""Plans: a run's own functions compiled on fake devices, sizes that add up, tables, claims."""

import dataclasses
import importlib.util
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, Mesh
from jax.sharding import PartitionSpec as P

from rstar_jax import models, parallel, search, training
from rstar_jax.models import published, tiny, trained
from rstar_jax.parallel.mesh import GLOBAL_AXES
from rstar_jax.plan import collectives, topology
from rstar_jax.plan import searches as searches
from rstar_jax.plan import trainings as trainings
from rstar_jax.search import tree
from rstar_jax.search.engine import batch, copies, devices, memory, programs, state
from rstar_jax.settings import configs
from rstar_jax.settings.errors import UserError
from rstar_jax.training import attention, flops, recompute, step

GIB = topology.GIB
SHAPE = models.Config('qwen2', 320, 64, 96, 1, 8, 2, 8, qkv_bias=True)
SETTINGS = search.Config(rollouts=2, candidates=4, step_tokens=16, path_tokens=200, slots=8)
KEPT = 1024  # tokens of each tree


@pytest.fixture(scope='module')
def ample():
    return searches.plan(SETTINGS, jax.devices()[:2], 1e9, SHAPE)


def test_sizes_are_those_of_the_arrays(ample):
    """One chip, all trees: what the state really takes, counted array by array."""
    mesh = parallel.local_mesh(devices=jax.devices()[:1])
    params = models.decoder.init_params(SHAPE, jax.random.key(0), 'bfloat16')
    made = [
        params,
        models.init_ppm(models.Policy(SHAPE, None, params)).params,
        *(
            devices.make(mesh, f, SHAPE, rows, length, 'bfloat16')
            for f, rows, length in (
                (state.empty_path, 6, 200 + copies.COPIED),
                (state.empty_cells, 24, 16),
                (state.empty_slots, 8, 16),
                (state.empty_path, 6, 200 + copies.COPIED),
                (state.empty_kv, 24, 96),  # 16 + 64, in thirty-twos
                *[(state.empty_kv, 6, KEPT + copies.COPIED)] * 2,
            )
        ),
        devices.make(mesh, tree.init, 6, SETTINGS.nodes),
    ]
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(made))
    held += searches.MARK_STATES * (SHAPE.vocab_size + 1) + 4
    assert (ample.tensor, ample.trees, ample.slots) == (1, 6, 8)
    assert min(ample.decode, ample.score) > held
    group = searches.Group(SETTINGS, mesh, SHAPE)
    assert group.choose(1e9) and group.resident() == held
    assert ample.weights == sum(x.nbytes for x in jax.tree.leaves(made[:2]))
    # The products of one step of 8 sequences, embedding look-up left out.
    products = sum(x.size for x in jax.tree.leaves(params) if x.ndim == 2)
    products -= params['embed']['weight'].size
    assert 2 * 8 * products < ample.flops < 8 * 2 * 8 * products
    caches = sum(x.nbytes for x in jax.tree.leaves((made[2].kv, made[4].kv)))
    unread = params['embed']['weight'].nbytes
    assert ample.floor == sum(x.nbytes for x in jax.tree.leaves(params)) - unread + caches
    assert ample.floor < ample.traffic
    assert ample.step > 0  # measured, as these devices are at hand


class Compiled:
    """Stands for a function whose compilation is not what is tested."""

    temp_size_in_bytes = 1000
    argument_size_in_bytes = output_size_in_bytes = alias_size_in_bytes = 0
    generated_code_size_in_bytes = 0

    def compile(self):
        return self

    def memory_analysis(self):
        return self

    def cost_analysis(self):
        return {'flops': 1.0, 'bytes accessed': 1.0}


def test_all_slots_write_in_the_step_that_is_measured():
    planned = searches.Group(SETTINGS, parallel.local_mesh(devices=jax.devices()[:2]), SHAPE)
    assert planned.choose(1e9)
    compiled, done = planned._decode().compile(), []

    def decode(*arrays):
        results = compiled(*arrays)
        done.append(np.asarray(results[-1]).tolist())
        return results

    assert planned._measure(decode) > 0
    assert done == 3 * [2 * [[4, 4 * 8, 4 * 8]]]  # calls, devices: steps, live slots and tokens


def test_little_memory_means_fewer_trees_then_more_chips_then_none(monkeypatch, ample):
    monkeypatch.setattr(searches.Group, '_decode', lambda *_: Compiled())
    monkeypatch.setattr(searches.Group, '_score', lambda *_: Compiled())
    monkeypatch.setattr(searches.Group, '_measure', lambda *_: 1.0)
    monkeypatch.setattr(memory, '_call_bytes', lambda *_: 0)  # its need would hide the trees'
    monkeypatch.setattr(memory, 'PROGRAM', 0)  # and theirs

    def plan(memory):
        return searches.plan(SETTINGS, jax.devices()[:2], memory, SHAPE)

    one, two = (
        searches.Group(SETTINGS, parallel.local_mesh(n, jax.devices()[:n]), SHAPE) for n in (1, 2)
    )
    found = [plan(one.weights + room) for room in range(-60_000, 1_100_000, 60_000)]
    trees = {(made.tensor, made.trees) for made in found if made}
    assert {(1, 3), (1, 6)} <= trees and max(n for _, n in trees) == 6
    assert one.choose(1e9) and plan(1e9).decode == one.resident() + 1000
    assert found[-1].most > found[-1].trees
    shared = next(made for made in found if made)
    assert shared.tensor == 2 and shared.weights == two.weights < one.weights
    assert found[0] is None


def test_weights_that_leave_room_for_one_tree_are_shared(monkeypatch):
    monkeypatch.setattr(memory, '_call_bytes', lambda *_: 0)
    monkeypatch.setattr(memory, 'PROGRAM', 0)
    heavy = SHAPE.replace(mlp_dim=4096)
    meshes = [parallel.local_mesh(n, jax.devices()[:2]) for n in (1, 2)]
    one, two = (searches.Group(SETTINGS, mesh, heavy) for mesh in meshes)
    planned = []
    for room in (160_000, 300_000):
        assert one.choose(one.weights + room) and two.choose(one.weights + room)
        planned.append((one.chosen.trees, two.chosen.trees))
        made = searches.plan(SETTINGS, jax.devices()[:2], one.weights + room, heavy)
        planned.append((made.tensor, made.groups, made.trees))
    # One tree has no use for all slots; two have, and then the smaller groups are as fast.
    assert planned == [(1, 6), (2, 1, 6), (2, 6), (1, 2, 2)]


def test_keys_and_values_are_cut_over_tensor():
    settings, held = dataclasses.replace(SETTINGS, trees_in_flight=3), []
    for n in (1, 2, 4):
        group = searches.Group(settings, parallel.local_mesh(n, jax.devices()[:n]), SHAPE)
        assert group.choose(1e9)
        _, _, _, path, *_ = group.decoded
        held.append(parallel.bytes_on_a_device(path.kv))
    one, two, four = held
    assert one == 2 * two == four  # 2 heads, 4 chips


def test_the_table_has_a_row_for_each_model(monkeypatch, ample):
    class Chip:
        device_kind = 'TPU v5 lite'
        process_index = 0

    monkeypatch.setattr(topology, 'slice_chips', lambda topology: [Chip()] * 4)
    monkeypatch.setattr(
        searches, 'plan', lambda settings, *_: ample if settings.tensor == 1 else None
    )
    config = configs.default()
    lines = list(topology.plan(config, 'v5e:2x4', ['search']))
    assert lines[0].startswith('v5e:2x4: 4 TPU v5 lite, 4 a host, each 15.75 GiB, 197 TFLOP/s')
    for name in published.PAPER:
        row = next(line for line in lines if line.startswith(f'{name} '))
        assert row.split()[1:4] == [str(ample.tensor), str(ample.trees), str(ample.most)]
    config.policy.path = 'Qwen/Qwen2.5-Math-7B-Instruct'
    lines = list(topology.plan(config, 'v5e:2x4', ['search']))
    assert [line.split()[0] for line in lines if 'math' in line] == ['qwen2.5-math-7b']
    config.search.tensor = 2
    assert any(
        '7b    does not fit' in line for line in topology.plan(config, 'v5e:2x4', ['search'])
    )
    Chip.device_kind = 'TPU v9'
    with pytest.raises(UserError, match='--plan=v9:2x2: TPU v9 is none of TPU v4, TPU v5 lite'):
        next(topology.plan(config, 'v9:2x2'))


@pytest.mark.parametrize('topology', ['v5e:0x0', 'v5e:2x', 'v5e', 'v9:2x2', ''])
def test_a_topology_that_there_is_not_is_one_line(topology):
    told = rf'--plan={topology}: expected a TPU slice .*\[tpu\]'
    with pytest.raises(UserError, match=told) as e:
        topology.slice_chips(topology)
    assert '\n' not in str(e.value)


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
    planned = trainings.Training(kind, settings, TRAINED, mesh, 2**40)
    made = step.Compiled(TRAINED, settings, planned.loss, mesh, 9, planned.new_rows)
    state = made.init(params)
    leaves = jax.tree.leaves((state, made._frozen))
    least = step.merging(made._frozen) + parallel.bytes_on_a_device(state['params'])
    tight = trainings.Training(kind, settings, TRAINED, mesh, least - 1)
    assert not lora or tight.compile() == (least, None)
    assert planned.held == made.held(state) == sum(x.addressable_data(0).nbytes for x in leaves)
    shapes = jax.tree.leaves((planned.state, planned.frozen))
    assert [(x.shape, x.dtype) for x in shapes] == [(x.shape, x.dtype) for x in leaves]


@pytest.mark.parametrize('again', [False, True])
@pytest.mark.parametrize('kind, lora', [('sft', 0), ('ppm', 0), ('sft', 8)])
def test_products_are_what_the_compiler_counts(kind, lora, again, monkeypatch):
    monkeypatch.setattr(step.Compiled, 'room', lambda *_: 0 if again else 2**40)
    block = {'sft': 128, 'ppm': 256}[kind]  # half of a row
    monkeypatch.setattr(attention, 'BLOCKS', {'cpu': block})
    compile_, counted = trainings.Training._compile, []

    def noting(self, call):
        times = {'accumulate': 2, 'update': 1}[call[0]]
        counted.append((times, compile_(self, call)))
        return counted[-1][1]

    monkeypatch.setattr(trainings.Training, '_compile', noting)
    settings, mesh = small(kind, lora=lora), mesh_of(4)
    made = trainings.plan(kind, settings, TRAINED, mesh, 1e12)
    assert made.needed < made.computed
    flops = sum(times * program.cost_analysis()['flops'] for times, program in counted)
    # The compiler counts a loop's body once: one layer, and in it one pair of blocks.
    with monkeypatch.context() as once:
        once.setattr(trainings, '_scored', lambda *_: block**2)
        one = TRAINED.replace(num_layers=1)
        _, computed = trainings.Training(kind, settings, one, mesh, 10**12).products()
    assert computed < 4 * flops < 1.05 * computed
    assert made.micros == {'sft': {(4, 256): 2}, 'ppm': {(4, 512): 2}}[kind]
    assert made.mesh == {'data': 1, 'fsdp': 4, 'tensor': 1}
    # Parameters are gathered for each micro batch, gradients are summed.
    assert made.work.exchanged['all-gather'].bytes > 0
    assert made.peak > made.held
    monkeypatch.setattr(trainings.Training, '_compile', compile_)
    alone = trainings.plan(kind, small(kind, lora=lora), TRAINED, mesh_of(1), 1e12)
    assert alone.micros == {(1, made_row): 8 for _, made_row in made.micros}
    assert alone.needed == pytest.approx(4 * made.needed) and not alone.work.exchanged


def test_the_memory_counts_the_micro_batch_of_the_most_tokens():
    """Three rows of 192 are rounded down to two, of 128 tokens there are four."""
    config, mesh = settings_of('sft', batch_size=8, length=192, micro_batch=3), mesh_of(1)
    config.dtype = 'float32'
    planned = trainings.Training('sft', config, TRAINED, mesh, 2**40)
    assert planned.micros == {(2, 192): 4}
    assert planned.largest == ('accumulate', (4, 128))
    made = step.Compiled(TRAINED, config, 'sft', mesh, 9, planned.new_rows, 2**40)
    worst, usual = (
        made.prepare(planned.state, [('accumulate', planned._batch(*micro))])
        for micro in ((4, 128), (2, 192))
    )
    peak, work = planned.compile()
    assert peak == worst > usual
    assert trainings.Training('sft', config, TRAINED, mesh, worst - 1).compile() == (worst, None)
    # Of the step that is planned are the collectives; examples of a given size have their own.
    assert work.exchanged == {}
    assert trainings.Training('sft', config, TRAINED, mesh, 2**40, 192).largest[1] == (2, 192)


def test_attention_counts_what_is_seen():
    long = TRAINED.replace(windows=(300, 5000))
    seen = flops.work(long, 'sft').seen(np.arange(1000))
    scored = trainings._scored(long, 1000)
    row, column = np.arange(1000)[:, None], np.arange(1000)
    visible = [(column <= row) & (column > row - window) for window in (300, 5000)]
    assert seen == sum(mask.sum() for mask in visible)
    # A block of queries looks at four of keys, at the beginning at fewer; without a window at all.
    assert attention.block_size(1000) == 128 and scored == (10 + 4 * 4 + 8 * 9 // 2) * 128**2


def test_a_training_that_does_not_fit(monkeypatch):
    mesh, settings = mesh_of(2), small('ppm')
    fits = trainings.plan('ppm', settings, TRAINED, mesh, 1e12)
    count = sum(
        x.size for x in jax.tree.leaves(models.decoder.abstract_params(TRAINED, headless=True))
    )
    assert 12 * count < 2 * fits.held < 12.5 * count
    assert fits.held + 2 * count < fits.peak
    less = trainings.plan('ppm', settings, TRAINED, mesh, fits.peak - 1)
    assert less.work is None and less.peak == fits.peak

    def lower(*_):
        raise jax.errors.JaxRuntimeError('Ran out of memory. Used 2.50G of 1.00G hbm. Exceeded')

    monkeypatch.setattr(step.Compiled, 'lower', lower)
    over = trainings.plan('ppm', settings, TRAINED, mesh, 1e12)
    assert over.work is None and 2.5 * GIB < over.peak < 2.5 * GIB + fits.held
    # Not compiled at all.
    monkeypatch.setattr(step.Compiled, 'lower', None)
    none = trainings.plan('ppm', settings, TRAINED, mesh, fits.held + 1)
    assert none.work is None and fits.held < none.peak < fits.peak


def test_collectives_of_a_known_program():
    mesh = Mesh(jax.devices()[:4], 'x')

    def program(x, passes):
        x = jnp.sin(jax.lax.all_gather(x, 'x', tiled=True))  # f32[32,16]
        x = jnp.sin(jax.lax.psum_scatter(x, 'x', tiled=True))  # f32[8,16]
        x = jnp.sin(jax.lax.ppermute(x, 'x', [(0, 1), (1, 0)]))
        x = jnp.sin(jax.lax.all_to_all(x, 'x', 0, 1, tiled=True))  # f32[2,64]
        x = jax.lax.fori_loop(0, 7, lambda _, y: jnp.sin(jax.lax.psum(y, 'x')), x)
        return jax.lax.fori_loop(0, passes, lambda _, y: jnp.sin(jax.lax.psum(y, 'x')), x)

    mapped = jax.shard_map(
        program, mesh=mesh, in_specs=(P('x'), P()), out_specs=P('x'), check_vma=False
    )
    text = jax.jit(mapped).lower(np.zeros((32, 16), np.float32), 5).compile().as_text()
    found = collectives.exchanged(text, trips=3)
    part = 8 * 16 * 4
    assert {kind: (x.calls, x.bytes) for kind, x in found.items()} == {
        'all-gather': (1, 3 * part),
        'reduce-scatter': (1, 3 * part),
        'all-reduce': (10, 10 * 2 * part * 3 / 4),
        'all-to-all': (1, part * 3 / 4),
        'collective-permute': (1, part),
    }


# As the compiler for TPUs writes them: a chain of two for one all-gather, a loop of 4 passes.
TPU = """\
HloModule jit_f, is_scheduled=true, num_partitions=8

%all-reduce-scatter.1 (input: f32[64,128]) -> f32[8,128] {
  %input = f32[64,128]{1,0:T(8,128)} parameter(0)
  %all-reduce = f32[64,128]{1,0:T(8,128)} all-reduce(%input), replica_groups={{0,1,2,3,4,5,6,7}}
  ROOT %slice = f32[8,128]{1,0:T(8,128)} dynamic-slice(%all-reduce, %i, %z)
}

%fused.1 (x: bf16[8,128]) -> bf16[16,128] {
  ROOT %ag.1 = bf16[16,128]{1,0} all-gather(%x), channel_id=3, replica_groups=mesh['a'=4,'b'=2] \
{'b'}, dimensions={0}, frontend_attributes={chain_id="1"}
}

%fused.2 (x: bf16[8,128]) -> bf16[16,128] {
  ROOT %ag.2 = bf16[16,128]{1,0} all-gather(%x), channel_id=3, replica_groups=mesh['a'=4,'b'=2] \
{'b'}, dimensions={0}, frontend_attributes={chain_id="1"}
}

%condition (p: (f32[8], /*index=1*/u32[])) -> pred[] {
  %limit = u32[]{:T(128)} constant(8)
  %p = (f32[8]{0}, /*index=1*/u32[]) parameter(0)
  %i = u32[]{:T(128)} get-tuple-element(%p), index=1
  ROOT %less = pred[]{:T(512)} compare(%i, %limit), direction=LT
}

%body (p: (f32[8], /*index=1*/u32[])) -> (f32[8], /*index=1*/u32[]) {
  %two = u32[]{:T(128)} constant(2)
  %p = (f32[8]{0}, /*index=1*/u32[]) parameter(0)
  %x = f32[8]{0} get-tuple-element(%p), index=0
  %i = u32[]{:T(128)} get-tuple-element(%p), index=1
  %cp = (f32[8]{0}, f32[8]{0}, u32[]{:S(2)}, u32[]) collective-permute-start(%x), channel_id=4
  %y = f32[8]{0} collective-permute-done(%cp)
  %next = u32[]{:T(128)} add(%i, %two)
  ROOT %tuple = (f32[8]{0}, /*index=1*/u32[]) tuple(%y, /*index=1*/%next)
}

ENTRY %main (x: bf16[8,128]) -> f32[8,128] {
  %ag = (bf16[8,128]{1,0}, bf16[64,128]{1,0:S(1)}) all-gather-start(%x), replica_groups=[2,4]<=[8]
  %done = bf16[64,128]{1,0:T(8,128)(2,1)S(1)} all-gather-done(%ag)
  %first = bf16[16,128]{1,0} fusion(%x), kind=kCustom, calls=%fused.1
  %second = bf16[16,128]{1,0} fusion(%x), kind=kCustom, calls=%fused.2
  %loop = (f32[8]{0}, /*index=1*/u32[]) while(%tuple), condition=%condition, body=%body
  ROOT %rs = f32[8,128]{1,0} fusion(%y), kind=kCustom, calls=%all-reduce-scatter.1
}
"""


def test_collectives_as_the_compiler_for_tpus_writes_them():
    found = collectives.exchanged(TPU, trips=100)
    assert {kind: (x.calls, x.bytes) for kind, x in found.items()} == {
        'all-gather': (2, 64 * 128 * 2 * 3 / 4 + 16 * 128 * 2 / 2),
        'reduce-scatter': (1, 64 * 128 * 4 * 7 / 8),
        'collective-permute': (4, 4 * 8 * 4),
    }


FITS = trainings.Plan(
    mesh={'data': 1, 'fsdp': 1, 'tensor': 1},
    micros={(1, 4096): 128},
    held=3 * GIB,
    peak=9 * GIB,
    needed=197e12,
    computed=394e12,
    work=trainings.Work({'all-gather': collectives.Exchange(5, 2e11)}, 77.0),
)


def test_the_table_of_trainings(monkeypatch):
    class Chip:
        device_kind = 'TPU v5 lite'
        process_index = 0

    fits = dataclasses.replace(
        FITS,
        mesh={'data': 1, 'fsdp': 8, 'tensor': 1},
        micros={(8, 4096): 16},
        held=5 * GIB,
        work=trainings.Work({'all-gather': collectives.Exchange(5, 4e11)}, 77.0),
    )
    asked, meshes = [], []

    def plan(kind, settings, shape, mesh, memory):
        asked.append((kind, settings.lora, settings.length, memory))
        return fits if kind == 'sft' else dataclasses.replace(fits, peak=20 * GIB, work=None)

    monkeypatch.setattr(topology, 'slice_chips', lambda topology: [Chip()] * 8)
    monkeypatch.setattr(parallel, 'training_mesh', lambda *asked: meshes.append(asked))
    monkeypatch.setattr(trainings, 'plan', plan)
    config = configs.default()
    config.base.path = 'Qwen/Qwen2.5-Math-7B'
    config.training.sft.lora = 16
    lines = list(topology.plan(config, 'v5e:2x4,v6e:2x4', ['sft', 'ppm']))
    assert asked == 2 * [('sft', 16, 4096, 15.75 * GIB), ('ppm', 0, 2048, 15.75 * GIB)]
    shape = published.SHAPES['qwen2.5-math-7b']
    assert [row[:2] for row in meshes] == 2 * [(128, shape), (512, shape)]
    sft, ppm, *_ = (line for line in lines if line.startswith('qwen2.5-math-7b '))
    assert sft.split()[:8] == ['qwen2.5-math-7b', 'sft', '8', '16', 'x', '8x4096', '5.00', '9.00']
    # Two seconds by FLOPs, of which one is needed, two by what is received.
    assert ' 0.20, 0.39 ' in sft and ' 2.00, 2.00 ' in sft and ' 50% ' in sft
    assert sft.endswith('77  all-gather 400.0')
    assert '5.00  20.00  does not fit into 15.75 GiB' in ppm
    cut = dataclasses.replace(fits, mesh={'data': 1, 'fsdp': 256, 'tensor': 4})
    row = topology.training_row('m', 'sft', cut, topology.CHIPS['TPU v5 lite'])
    assert row.split()[2] == '256x4'
    assert any(line.startswith('sft: LoRA of rank 16, bfloat16, ') for line in lines)
    with pytest.raises(UserError, match='--stages=eval: a plan needs search, sft or ppm'):
        next(topology.plan(config, 'v5e:2x4', ['eval']))
    with pytest.raises(UserError, match='--plan=,: expected a TPU slice such as v5e:2x4'):
        next(topology.plan(config, ',', ['sft']))
    config.base.path = 'Qwen/Qwen9-7B'
    with pytest.raises(UserError, match='Qwen/Qwen9-7B: its shape is not known; known are qwen2'):
        list(topology.plan(config, 'v5e:2x4', ['sft']))


V5E, V6E = (topology.CHIPS[kind] for kind in ('TPU v5 lite', 'TPU v6 lite'))
BOTH = 'sft', 'ppm'
KINDS = {'v5e': 'TPU v5 lite', 'v6e': 'TPU v6 lite', 'v5p': 'TPU v5'}


def held(count, name, kind, lora):
    """Bytes on each chip all the time, and those of gradients."""
    mesh = AbstractMesh((1, count, 1), GLOBAL_AXES)
    settings = settings_of(kind, lora=lora, dtype='bfloat16')
    planned = trainings.Training(kind, settings, published.SHAPES[name], mesh, int(V5E.memory))
    return planned.held, parallel.bytes_on_a_device(planned.state['params'])


# Slice, model, training, rank of LoRA or 0: trainings of the paper's models that fit.
FITTING = (
    *((s, 'qwen2.5-math-7b', k, 0) for s in ('v5e:4x4', 'v6e:2x4', 'v5p:2x2x1') for k in BOTH),
    *(('v5e:2x4', 'qwen2.5-math-1.5b', k, rank) for rank in (0, 16) for k in BOTH),
    *(('v5e:1x1', 'qwen2.5-math-1.5b', k, 16) for k in BOTH),
    ('v5e:2x4', 'phi3-mini-4k', 'sft', 0),
    ('v5e:2x4', 'phi3-mini-128k', 'sft', 0),
)


@pytest.mark.parametrize('topology_, model, training_, lora', FITTING)
def test_what_is_claimed_to_fit_leaves_room_for_a_micro_batch(topology_, model, training_, lora):
    kind, _, sides = topology_.partition(':')
    count = math.prod(map(int, sides.split('x')))
    need = sum(held(count, model, training_, lora))
    assert need < 0.8 * topology.CHIPS[KINDS[kind]].memory


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


@pytest.mark.parametrize(
    ('topology', 'options'),
    [
        ('v5e:2x4', {'chips_per_host_bounds': (2, 4, 1)}),
        ('v6e:2x4', {'chips_per_host_bounds': (2, 4, 1)}),
        ('v5e:1x1', {'chips_per_host_bounds': (1, 1, 1)}),
        ('v5e:4x4', {}),
        ('v4:2x2x1', {'chip_config_name': 'megacore'}),
    ],
)
def test_a_slice_is_as_jax_finds_it(monkeypatch, topology, options):
    asked = {}

    class Described:
        devices = ()

    def describe(name, platform, **more):
        asked[name] = more
        return Described()

    monkeypatch.setattr(topology, 'QUIET', {})
    monkeypatch.setattr('jax.experimental.topologies.get_topology_desc', describe)
    assert topology.slice_chips(topology) == []
    assert asked == {topology: options}


@needs_slices
def test_a_real_slice(monkeypatch):
    chips = topology.host_chips(topology.slice_chips('v5e:2x4'))
    assert {chip.device_kind for chip in chips} == {'TPU v5 lite'} and len(chips) == 8
    assert len(topology.slice_chips('v5e:1x1')) == 1
    assert len(topology.host_chips(topology.slice_chips('v5e:4x4'))) == 4
    made = searches.plan(SETTINGS, chips, topology.CHIPS['TPU v5 lite'].memory, SHAPE)
    assert made.trees == 6 and np.isfinite(made.flops)
    # As many trees as there is room for, of a model with layers of 0.5B parameters.
    large = models.Config('qwen2', 50_000, 896, 4864, 12, 14, 2, 64, qkv_bias=True)
    made = searches.plan(search.Config(candidates=4), chips, 8 * GIB, large)
    assert 0.9 * made.planned <= max(made.decode, made.score) <= made.planned < 8 * GIB


@needs_slices
def test_calls_on_a_real_slice_copy_no_paths():
    """Of known tokens: 16 rows of 40 trees' paths, which XLA would copy whole in parts."""
    shape = models.Config('qwen2', 512, 256, 512, 1, 4, 2, 128)
    mesh = parallel.local_mesh(1, topology.slice_chips('v5e:1x1'))
    group = searches.Group(search.Config(path_tokens=4096), mesh, shape)
    assert group.choose(16 * GIB, trees=40)
    integers, tokens = (devices.shapes(mesh, jnp.zeros, size, jnp.int32) for size in (16, (16, 16)))
    score = programs.SCORE(mesh, config=shape, squash='tanh')
    known = batch.Known(integers, tokens, *[integers] * 3)
    compiled = score.lower(*group.scored, known).compile()
    paths = parallel.bytes_on_a_device(group.scored[2].kv)
    assert compiled.memory_analysis().temp_size_in_bytes < paths / 10
    assert compiled.cost_analysis()['bytes accessed'] < 5 * paths


@needs_slices
def test_a_training_on_a_real_slice(monkeypatch):
    compile_, texts = trainings.Training._compile, []

    def noting(self, call):
        program = compile_(self, call)
        texts.append(program.as_text())
        return program

    monkeypatch.setattr(trainings.Training, '_compile', noting)
    mesh = parallel.global_mesh(devices=topology.slice_chips('v5e:2x4'))
    settings = settings_of('ppm', batch_size=8, length=512, micro_batch=1)
    made = trainings.plan('ppm', settings, TRAINED, mesh, V5E.memory)
    assert made.mesh == {'data': 1, 'fsdp': 8, 'tensor': 1} and made.micros == {(8, 1024): 1}
    with jax.set_mesh(mesh):
        assert attention.block_size(1024) == attention.BLOCK
        kept = recompute.kept_bytes(TRAINED, 8, 1024, 'bfloat16')
    gathered = made.work.exchanged['all-gather'].bytes
    assert made.held + kept < made.peak < made.held + 16 * kept and gathered > 0
    # What attention's kernel gives is kept: backwards there are its backward parts alone.
    found = re.findall(r'%splash_mha_([a-z]+)\S* = .*"tpu_custom_call"', '\n'.join(texts))
    assert sorted(found) == ['dkv', 'dq', 'fwd']


def test_models_on_disk_are_planned_by_their_shape(tmp_path, monkeypatch):
    policy = tiny.policy(['print(1)\n x'], num_layers=1)
    trained.save_model(policy, tmp_path / 'trained')
    models.save(policy, tmp_path / 'hf')
    monkeypatch.setenv('HOME', str(tmp_path))
    for path in (f'{tmp_path}/trained', '~/trained', '~/hf/'):
        ((name, shape),) = topology.models_of(path).items()
        assert name == path.strip('/').rpartition('/')[2]
        assert shape.embed_dim == policy.config.embed_dim and shape.num_layers == 1
