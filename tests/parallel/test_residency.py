"""No device ever holds more than its part of a model, of its moments and gradients, and one tensor.

Looked at wherever an array is made, and whenever a function of the training has been called.
"""

import contextlib
import functools
import gc
import math
import os

import jax
import numpy as np
import pytest

from rstar_jax import models, parallel, training
from rstar_jax.models import decoder as decoders
from rstar_jax.models import sharding, trained, weights
from rstar_jax.stages import checkpoints
from rstar_jax.training import layers, step
from tests.models import test_gguf
from tests.parallel import training_program

MAKERS = ('device_put', 'make_array_from_callback', 'make_array_from_single_device_arrays')
CALLS = ('_run', 'zeros', 'init', 'whole')
BATCHES = 24 * 1024  # bytes of two micro batches on a device, and of all that is but a number


class Watch:
    """The most that a device has held at once of arrays that were not there before, bytes."""

    def __init__(self):
        gc.collect()
        self._before = jax.live_arrays()  # held, so that their places are not used again
        self._known = self._places(self._before).keys()
        self.most = 0

    def look(self) -> None:
        held = dict.fromkeys(jax.devices(), 0)
        for (device, place), size in self._places(jax.live_arrays()).items():
            if (device, place) not in self._known:
                held[device] += size
        self.most = max(self.most, *held.values())

    @staticmethod
    def _places(arrays) -> dict:
        """{(device, address): bytes}: an array and its shards, where both are alive, lie there."""
        shards = (s for x in arrays if not x.is_deleted() for s in x.addressable_shards)
        return {(s.device, s.data.unsafe_buffer_pointer()): s.data.nbytes for s in shards}


@pytest.fixture
def watched(monkeypatch):
    """watched(bytes): a block in which no device may hold more."""
    watches = []

    def look():
        for watch in watches:
            watch.look()

    def watching(function):
        @functools.wraps(function)
        def call(*args, **named):
            look()
            made = function(*args, **named)
            look()
            return made

        return call

    for owner, names in ((jax, MAKERS), (step.Compiled, CALLS), (weights, ['to_host'])):
        for name in names:
            monkeypatch.setattr(owner, name, watching(getattr(owner, name)))

    @contextlib.contextmanager
    def watched(limit):
        watches.append(Watch())
        yield
        look()
        assert watches.pop().most <= limit

    return watched


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A model in each kind of file."""
    made = tmp_path_factory.mktemp('models')
    test_gguf.write('qwen2', made / 'model.gguf')
    policy = models.load(made / 'model.gguf', 'float32')
    models.save(policy, made / 'hf')
    trained.save_model(policy, made / 'own')
    return made


@pytest.fixture(scope='module')
def mesh():
    mesh = parallel.global_mesh(fsdp=4, tensor=2)
    parallel.peak_flops(mesh, 'float32')  # measured once in a process, on an array of its own
    return mesh


@pytest.fixture(scope='module')
def sizes(folder, mesh):
    """Bytes of a device's part of the parameters, and of the largest tensor as a whole."""
    config = models.read_config(folder / 'hf')
    params = decoders.abstract_params(config)
    where = jax.tree.leaves(sharding.shardings(params, mesh, config))
    shapes = [leaf.shape for leaf in jax.tree.leaves(params)]
    part = sum(4 * math.prod(place.shard_shape(shape)) for place, shape in zip(where, shapes))
    largest, whole = (4 * f(map(math.prod, shapes)) for f in (max, sum))
    assert part < whole / 5 and part + largest < whole / 2
    return part, largest


@pytest.mark.parametrize('name', ['hf', 'own', 'model.gguf'])
def test_loading(folder, mesh, sizes, watched, name):
    part, largest = sizes
    with watched(part + largest):
        policy = checkpoints.load_model(folder / name, 'policy', 'float32', mesh=mesh)
    del policy
    with pytest.raises(AssertionError), watched(part + largest):  # and that would be seen
        sharding.shard(checkpoints.load_model(folder / name, 'policy', 'float32').params, mesh)


def test_training_and_saving(folder, mesh, sizes, watched, tmp_path):
    part, largest = sizes
    random = np.random.default_rng(0)
    most = 4 * part + largest + BATCHES  # parameters, gradients and two moments
    shape = dict(micro_batch=1, batch_size=8, held_out=0.3, epochs=2, checkpoint_minutes=0)
    with watched(most):
        policy = checkpoints.load_model(folder / 'hf', 'policy', 'float32', mesh=mesh)
        config = training_program.settings('sft', form=0.0, **shape)
        data = [*training_program.examples(random), *training_program.examples(random)]
        policy, _ = training.sft(policy, data, config, tmp_path / 'policy', mesh=mesh, release=True)
    with watched(largest + BATCHES):
        models.save(policy, tmp_path / 'hf')
    del policy
    with watched(most):
        policy = checkpoints.load_model(tmp_path / 'policy', 'policy', 'float32', mesh=mesh)
        config = training_program.settings('ppm', **shape)
        ppm, _ = training.ppm(
            policy, training_program.pairs(random), config, tmp_path / 'ppm', mesh=mesh,
            release=True,
        )  # fmt: skip
    with watched(largest + BATCHES):
        models.save_ppm(ppm, tmp_path / 'ppm_hf')


def resident():
    """Bytes of this process in memory."""
    with open('/proc/self/statm', encoding='ascii') as file:
        return int(file.read().split()[1]) * os.sysconf('SC_PAGE_SIZE')


def test_what_stacking_frees_goes_back_to_the_system():
    indices, kinds = range(16), 'abc'
    made = jax.jit(lambda i: jax.numpy.full((1024, 1024), i, jax.numpy.float32))
    made(0).block_until_ready().delete()  # from then on glibc keeps what is as small
    params = {str(i): {kind: {'weight': made(i)} for kind in kinds} for i in indices}
    behind = jax.block_until_ready(made(0))  # what is freed is not at the heap's end
    before, size = resident(), len(indices) * len(kinds) * behind.nbytes
    stacked = layers.stack({'layers': params}, release=True)
    assert resident() < before + size // 4
    assert sum(x.nbytes for x in jax.tree.leaves(stacked)) == size
