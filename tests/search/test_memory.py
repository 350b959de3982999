"""The plan of a device's memory: what it counts is what the arrays take, and it never overdraws."""

import collections
import dataclasses
import functools
import math
import types

import jax
import numpy as np
import pytest

from rstar_jax import models, parallel
from rstar_jax.data.problem import Problem
from rstar_jax.models import decoder, tiny
from rstar_jax.models.config import Config as Shape
from rstar_jax.search.config import Config
from rstar_jax.search.engine import Engine, batch, memory, model, programs, sizes, state
from rstar_jax.search.nodes import HostTree, Node, Step
from rstar_jax.settings.errors import UserError
from rstar_jax.steps import marks

SHAPE = Shape(
    family='qwen2',
    vocab_size=512,
    embed_dim=64,
    mlp_dim=128,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
)
NETWORK = memory.Network(SHAPE, np.dtype('float32'), 32)
CONFIG = Config(rollouts=2, candidates=4, max_depth=3, step_tokens=32, path_tokens=128)


TPU = types.SimpleNamespace(devices=np.array([types.SimpleNamespace(platform='tpu')]))


@pytest.fixture
def mesh():
    return parallel.local_mesh(devices=jax.local_devices()[:1])


def plan(mesh, free, monkeypatch, trees=1000, networks=1, program=0, **changes):
    monkeypatch.setattr(memory, 'PROGRAM', program)
    monkeypatch.setattr(memory, 'free_bytes', lambda mesh: free)
    monkeypatch.setattr(sizes.Kind, 'largest_call', lambda *_: (4, 16))
    config = dataclasses.replace(CONFIG, **changes)
    return memory.plan(config, [NETWORK] * networks, mesh, trees, slots=64)


def test_devices_that_do_not_tell_their_memory(mesh, monkeypatch):
    monkeypatch.setattr(memory, 'device_bytes', lambda mesh: 0)
    with pytest.raises(UserError) as error:
        plan(mesh, 0, monkeypatch)
    assert error.value.argument == '$XLA_PYTHON_CLIENT_ALLOCATOR'


def test_a_tree_takes_what_its_arrays_take(mesh, monkeypatch):
    one = plan(mesh, 2**30, monkeypatch)
    path = state.empty_path(SHAPE, 1, 160, np.float32)
    cells = state.empty_cells(SHAPE, 4, 32, np.float32)
    held, of_path = (sum(x.nbytes for x in jax.tree.leaves(y)) for y in ((path, cells), path))
    held += of_path // (
        2 * SHAPE.num_layers
    )  # keys or values of a layer are there twice: they grow
    assert 0 < one.tree - held < 5000  # the tree's own statistics
    assert plan(mesh, 2**30, monkeypatch, networks=2).tree - one.tree == held
    assert one.path == of_path // 2  # blocks that are copied before a chunk's first token
    assert one.kept > 0
    kept = state.empty_kv(SHAPE, 1, memory.kept_room(one.kept), np.float32)
    total = one.trees * (one.tree + sum(x.nbytes for x in jax.tree.leaves(kept)))
    total += one.slots * one.slot
    decoding = one.trees * one.path + one.slots * one.row
    assert one.most == total + decoding + one.call
    assert one.rows == sizes.CPU.rows < one.slots


def test_compiled_programs_are_counted_where_they_lie(mesh, monkeypatch):
    without, counted = (plan(mesh, 2**34, monkeypatch, program=size) for size in (0, 5000))
    programs = memory.PROGRAMS * SHAPE.num_layers * 5000
    assert counted.programs == programs == counted.most - without.most > 0
    few, fewer = (plan(mesh, 3 * 10**6, monkeypatch, program=size) for size in (0, 50_000))
    assert fewer.trees < few.trees and fewer.most <= memory.MARGIN * 3e6


def test_steps_are_kept_in_what_is_left(mesh, monkeypatch):
    enough, short, none = (plan(mesh, int(free), monkeypatch) for free in (2**34, 3e7, 3e6))
    assert enough.kept > short.kept > none.kept == 0
    assert plan(mesh, 2**34, monkeypatch, rollouts=1).kept == 0
    assert plan(mesh, 2**34, monkeypatch, one_size=True).kept == 0


def test_with_one_size_free_memory_changes_no_shape(mesh, monkeypatch):
    """Where it is too little, the user says what is searched at once."""
    ample, enough = (plan(mesh, free, monkeypatch, one_size=True) for free in (2**34, 2**33))
    assert (ample.trees, ample.slots) == (enough.trees, enough.slots)
    four = dataclasses.replace(ample, trees=4, slots=8, rows=0, kept=0)
    free = int((four.most + ample.tree / 2) / memory.MARGIN)
    with pytest.raises(UserError) as error:
        plan(mesh, free, monkeypatch, one_size=True)
    assert (error.value.argument, error.value.value) == ('trees_in_flight', 48)
    assert '4 fit' in error.value.remedy
    assert plan(mesh, free, monkeypatch, one_size=True, trees_in_flight=4).trees == 4


def test_with_one_size_the_number_of_trees_changes_no_shape(mesh, monkeypatch):
    few, many = (
        plan(mesh, 2**34, monkeypatch, trees, one_size=True, candidates=1, rollouts=1)
        for trees in (1, 1000)
    )
    assert few == many
    assert few.slots == 64


@pytest.mark.parametrize('free', [3e6, 5e6, 1e7, 3e7])
def test_never_more_than_is_free(mesh, monkeypatch, free):
    small = plan(mesh, int(free), monkeypatch)
    assert 1 <= small.trees <= 48 and small.most <= free
    assert small.slots <= small.trees * CONFIG.candidates


def test_the_only_tree_that_fits_has_no_more_slots_than_do(mesh, monkeypatch):
    shape = {'candidates': 16, 'step_tokens': 64}
    roomy = plan(mesh, 2**34, monkeypatch, **shape)
    for slots in (8, 11, 16):
        most = dataclasses.replace(roomy, trees=1, slots=slots, rows=slots, kept=0).most
        tight = plan(mesh, int((most + roomy.slot / 2) / memory.MARGIN), monkeypatch, **shape)
        assert (tight.trees, tight.slots) == (1, slots)
        assert tight.most <= tight.room


def test_rows_for_drafts_where_slots_are_few(mesh, monkeypatch):
    few = plan(mesh, 2**34, monkeypatch, trees=1)
    assert few.slots == 4 < few.rows == sizes.CPU.rows
    same = plan(mesh, 2**34, monkeypatch, trees=1, one_size=True, trees_in_flight=1)
    assert (same.slots, same.rows, same.kept) == (4, 0, 0)
    assert plan(mesh, 2**34, monkeypatch, trees=1, drafts=0).rows == 0
    assert few.row == 3 * 4 * SHAPE.vocab_size
    most = dataclasses.replace(few, rows=6, kept=0).most
    tight = plan(mesh, int((most + few.row / 2) / memory.MARGIN), monkeypatch, trees=1)
    assert (tight.slots, tight.rows) == (4, 6) and tight.most <= tight.room


def test_as_many_trees_as_keep_the_slots_busy(mesh, monkeypatch):
    roomy = plan(mesh, 2**34, monkeypatch)
    assert (roomy.trees, roomy.slots) == (3 * 64 // 4, 64)
    assert plan(mesh, 2**34, monkeypatch, trees=6).trees == 6
    asked = plan(mesh, 2**34, monkeypatch, slots=10, trees_in_flight=7)
    assert (asked.trees, asked.slots) == (7, 10)
    asked = plan(mesh, 2**34, monkeypatch, slots=20, trees_in_flight=7)
    assert (asked.trees, asked.slots) == (7, 20)  # more than half of their 28 cells, as asked for
    single = plan(mesh, 2**34, monkeypatch, trees=60, candidates=1)
    assert (single.trees, single.slots) == (60, 32)
    count = {24: 16, 45: 32, 71: 32, 72: 64, 100: 64, 143: 64, 144: 96, 190: 96, 192: 128}
    assert {n: sizes.CPU.kept_busy(n, 1) for n in count} == count
    assert [sizes.CPU.kept_busy(n, 4) for n in (2, 22, 60, 128, 254)] == [1, 11, 32, 64, 96]
    assert sizes.TPU.kept_busy(60, 1) == 60 and sizes.TPU.kept_busy(60, 4) == 30


def test_no_room_is_one_clear_error(mesh, monkeypatch):
    with pytest.raises(UserError) as error:
        plan(mesh, 6 * 10**5, monkeypatch)
    assert (error.value.argument, error.value.value) == ('path_tokens', CONFIG.path_tokens)
    with pytest.raises(UserError) as error:
        plan(mesh, 10**7, monkeypatch, trees_in_flight=500)
    assert (error.value.argument, error.value.value) == ('trees_in_flight', 500)


@pytest.mark.parametrize('step_tokens', [32, 256, 1000])
def test_no_call_has_more_tokens_than_is_planned_for(mesh, step_tokens):
    config = dataclasses.replace(CONFIG, step_tokens=step_tokens)
    most = math.prod(sizes.CPU.largest_call(config.step_tokens, scored=True))
    for tokens in range(step_tokens + sizes.OUTPUT_TOKENS + 1):
        first, *others = sizes.CPU.call_shapes(tokens)
        assert tokens <= math.prod(first) <= most
        assert all(math.prod(shape) <= math.prod(first) for shape in others)
    assert math.prod(sizes.CPU.largest_call(config.step_tokens, scored=False)) <= most


@pytest.mark.parametrize(
    ('waiting', 'chosen'),
    [
        ([30], (2, 16)),
        ([40, 16], (4, 16)),
        ([60, 50], (8, 16)),
        ([69], (8, 16)),
        ([65, 7], (8, 16)),
        ([60] * 9, (8, 16)),
        ([130, 60], (4, 64)),
        ([400, 300], (4, 128)),
    ],
)
def test_a_call_has_room_for_the_longest_step(waiting, chosen):
    assert sizes.CPU.whole_call([waiting, []]) == chosen
    longest = CONFIG.step_tokens + sizes.OUTPUT_TOKENS
    assert sizes.CPU.whole_call([waiting, []], longest) == sizes.CPU.largest_call(
        CONFIG.step_tokens, scored=True
    )


def test_paths_that_grow_take_no_room_for_two_of_each(mesh, monkeypatch):
    """Only one array of keys or values is there twice at a time; the tokens stay."""
    config = dataclasses.replace(CONFIG, path_tokens=4000)
    params = decoder.init_params(SHAPE, jax.random.key(0))
    policy = model.Model('policy', mesh, config, SHAPE, params, 32)
    chosen = dataclasses.replace(plan(mesh, 2**32, monkeypatch), trees=8, kept=0)
    policy.prepare(chosen, collections.Counter())
    policy.reserve(300)
    policy.ledger.compute(3, 0, [5, 6, 7])
    policy.prefill()
    keys = np.asarray(policy.path.kv[1][0][3, :, :3])
    before, live, grow = held(), [], programs.GROW

    def watched(*given, **named):
        def run(x):
            made = jax.block_until_ready(grow(*given, **named)(x))
            live.append(held())
            return made

        return run

    monkeypatch.setattr(programs, 'GROW', watched)
    rooms = [policy.capacity]
    for tokens in (350, 700, 1500, 3900):
        policy.reserve(tokens)
        rooms.append(policy.capacity)
    array = policy.path.kv[0][0].nbytes
    grown = (1 - rooms[0] / rooms[-1]) * array * 2 * SHAPE.num_layers
    assert len(live) == 4 * (len(set(rooms)) - 1) == 12
    assert held() == pytest.approx(before + grown, rel=1e-6)
    assert max(live) <= before + grown + array
    np.testing.assert_array_equal(policy.path.kv[1][0][3, :, :3], keys)


def held() -> int:
    return sum(x.nbytes for x in jax.live_arrays())


def test_few_blocks_of_paths_are_read_few_ways(mesh):
    """Of 48 paths with room for 768: 288 blocks, of which half or fewer are worth a copy."""
    assert sizes.CPU.block_sizes(48, 768 + 32) == [4, 9, 18, 36, 72, 144, None]
    assert sizes.CPU.block_sizes(3, 256 + 32) == [1, None]
    assert sizes.CPU.block_sizes(1, 100) == [None]
    assert sizes.TPU.block_sizes(48, 768 + 32) == [None]
    rooms = [sizes.path_room(n, 3000) for n in (20, 480, 481, 2500, 3100)]
    assert rooms == [512, 512, 1024, 3032, 4096]
    assert sizes.slot_sizes(64) == [2, 4, 8, 16, 32, 64] and sizes.slot_sizes(3) == [2, 3]
    assert sizes.slot_sizes(96) == [4, 8, 16, 32, 64, 96] and sizes.slot_sizes(9) == [2, 4, 8, 9]


@pytest.mark.parametrize('least', [0, 1120])
def test_every_step_is_scored_whole(least):
    """Whatever waits, also where little is left: no call takes a part of a step, or nothing."""
    rng = np.random.default_rng(0)
    for _ in range(300):
        many, most = rng.integers(1, 40), rng.choice([20, 100, 300, 1000])
        left = sorted(rng.integers(1, most, many).tolist(), reverse=True)
        while left:
            taken = batch.fits(left, sizes.CPU.whole_call([left, []], least), cut=False)
            assert any(taken) and all(count in (0, n) for count, n in zip(taken, left))
            left = [n for n, count in zip(left, taken) if not count]


class Account:
    """Of the bytes on the device while each program of a search runs, by the compiler's figures.

    Attributes:
      peak: the most in use at a time, without what was there before; by `program`.
    """

    def __init__(self, monkeypatch):
        self.others = jax.live_arrays()  # so that none of them goes while a search is looked at
        self.before, self.programs = held(), collections.Counter()
        run = functools.cache(self._run)
        for name, program in vars(programs).copy().items():
            if isinstance(program, functools.partial):
                monkeypatch.setattr(
                    programs, name, lambda *x, of=program, **named: run(of(*x, **named))
                )

    @property
    def peak(self) -> int:
        return max(self.programs.values())

    def _run(self, f):
        compiled = {}

        def run(*arguments):
            shapes = tuple((np.shape(x), str(x.dtype)) for x in jax.tree.leaves(arguments))
            if shapes not in compiled:
                compiled[shapes] = f.lower(*arguments).compile()
            used = compiled[shapes].memory_analysis()
            made = used.output_size_in_bytes - used.alias_size_in_bytes
            now = held() - self.before + used.temp_size_in_bytes + made
            self.programs[f.__name__] = max(now, self.programs[f.__name__])
            return jax.block_until_ready(compiled[shapes](*arguments))

        return run


def test_a_search_stays_within_its_plan(monkeypatch):
    """Also when a path grows from 300 tokens to 4,000, and the longest step there is is scored."""
    policy = tiny.policy(['x'], num_layers=1, mlp_dim=128)
    ppm = models.init_ppm(policy, 0)
    config = dataclasses.replace(CONFIG, rollouts=1, path_tokens=4000, slots=8)
    monkeypatch.setattr(memory, 'free_bytes', lambda mesh: 2**30)
    monkeypatch.setattr(memory, 'PROGRAM', 0)  # arrays alone
    mesh = parallel.local_mesh(devices=jax.local_devices()[:1])
    account = Account(monkeypatch)
    engine = Engine(policy, ppm, config, mesh, 3, [[1] * 100, [2] * 100])

    def expand(rows):
        for row in rows:
            engine.expand(row, trees[row])
        ended = collections.Counter()
        while (chunk := engine.dispatch()) is not None:
            ended.update(step.row for step in engine.collect(chunk))
        assert ended == dict.fromkeys(rows, config.candidates)

    nodes = [Node(tokens=[5 + row] * 300) for row in range(3)]
    trees = [HostTree(Problem(i, ''), 0, 0, '', [node], [0]) for i, node in enumerate(nodes)]
    for row, tree in enumerate(trees):
        engine.start(row, tree)
    expand(range(3))
    rooms = [engine.policy.capacity]
    step = Step(2, 0, 'x', [7] * 20, marks.STEP)
    trees[2].nodes.append(Node(step, tokens=[7] * 3600))
    trees[2].path.append(1)
    expand([2])
    rooms.append(engine.policy.capacity)
    longest = sizes.OUTPUT_TOKENS + config.step_tokens
    ((values, *_),) = engine.scores([(2, 0, Node(step, tokens=[7] * longest))])
    assert np.isfinite(values).all() and rooms == [512, 4032]
    assert {'grow', 'append', 'decode', 'extend', 'score'} <= account.programs.keys()
    assert account.peak <= engine.plan.most, account.programs
    # Without what the largest calls need, arrays as long as they are planned:
    arrays, planned = (
        account.programs['look'],
        dataclasses.replace(engine.plan, path=0, row=0, call=0),
    )
    unread = engine.plan.trees * 2 * arrays_of_half_a_layer(policy.config)
    assert arrays <= planned.most
    assert arrays + unread == pytest.approx(planned.most, rel=0.1)


def arrays_of_half_a_layer(shape) -> int:
    """Bytes of the keys of a path of 4,000 tokens."""
    return state.empty_path(shape, 1, 4032, np.float32).kv[0][0].nbytes


def test_paths_grow_when_nothing_reads_them(monkeypatch):
    """A chunk under way holds on to what it reads; beside it all paths would be there twice."""
    policy = tiny.policy(['x'], num_layers=1, mlp_dim=128)
    config = dataclasses.replace(CONFIG, rollouts=1, path_tokens=600, slots=4, chunk=32)
    mesh = parallel.local_mesh(devices=jax.local_devices()[:1])
    engine = Engine(policy, None, config, mesh, 2, [[1] * 100, [2] * 100])
    over, grow = [], programs.GROW

    def watched(*given, **named):
        over.append(engine.slots.hidden.is_ready())
        return grow(*given, **named)

    monkeypatch.setattr(programs, 'GROW', watched)
    for row, tokens in enumerate((100, 500)):
        nodes = [Node(tokens=[5] * tokens)]
        engine.start(row, tree := HostTree(Problem(row, ''), 0, 0, '', nodes, [0]))
        engine.expand(row, tree)
        engine.dispatch()
    engine.close()
    assert over == [True]
