"""Bytes that the arrays of a model take: its weights, and what a training adds to them.

`held` counts them from the shape alone, on all devices together, before anything is loaded; `Room`
asks the devices what they have. What comes on top while it runs, keys and values of a search's
trees or activations of a training, who runs it counts.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from rstar_jax import models, parallel
from rstar_jax.job import hosts
from rstar_jax.parallel.memory import GIB
from rstar_jax.settings.errors import UserError
from rstar_jax.training import lora

MIB = 2**20
WIDE = 4  # bytes of a number in float32
LESS = 'lower length or micro_batch, train with lora=16, or use more devices'


@dataclasses.dataclass(frozen=True)
class Held:
    """Bytes, on all devices together.

    Attributes:
      weights: frozen ones in the network's dtype, trained ones in float32.
      gradients: of what is trained, float32.
      moments: both of AdamW.
      merged: at the end of LoRA, the whole model in float32 beside what was trained.
    """

    weights: int
    gradients: int = 0
    moments: int = 0
    merged: int = 0

    @property
    def least(self) -> int:
        """What no training can do without: gradients may be gone before others are there."""
        return max(self.weights + self.moments, self.merged)

    @property
    def most(self) -> int:
        """All of it."""
        return max(self.weights + self.gradients + self.moments, self.merged)


def held(shape: models.Config, dtype, settings=None, headless: bool = False) -> Held:
    """What a model takes in a search, or in a training.

    Args:
      dtype: that the network runs in.
      settings: of the training (`defaults.settings`), of which `lora` and `moments` count; None =
        it is only run, as in a search.
      headless: without the vocabulary's output, as a PPM is.
    """
    params = models.decoder.abstract_params(shape, headless=headless)
    count, narrow = sum(x.size for x in jax.tree.leaves(params)), jnp.dtype(dtype).itemsize
    if settings is None:
        return Held(narrow * count)
    moments = WIDE + jnp.dtype(settings.moments).itemsize
    if not settings.lora:
        return Held(WIDE * count, WIDE * count, moments * count)
    beside = settings.lora * sum(map(sum, lora.dense(shape).values()))
    weights = narrow * count + WIDE * beside
    return Held(weights, WIDE * beside, moments * beside, WIDE * (count + beside))


class Room:
    """What the devices of a training have in all, and what of it is free; by all processes at once.

    Attributes:
      size: bytes of the smallest device; 0: a device does not say what it has, as with
        XLA_PYTHON_CLIENT_ALLOCATOR=platform.
    """

    def __init__(self, mesh: Mesh, size: int | None = None):
        """size: None = what the devices say."""
        self._mesh = mesh
        self.size = _least(parallel.device_bytes(mesh)) if size is None else size

    def free(self) -> int | None:
        """Bytes that are free on the device that has the fewest; None: not known."""
        return _least(parallel.free_bytes(self._mesh)) if self.size else None

    def check(self, what: str, need: int, remedy: str = LESS) -> None:
        """Raises UserError, in all processes, where a device has less than `need` bytes free."""
        free = self.free()
        if free is not None and need > free:
            needs = f'{what} {need / GIB:.2f} GiB, and {free / GIB:.2f} GiB are free on a device'
            raise UserError('training', expected=needs, remedy=remedy)


def _least(size: int) -> int:
    """The least of the bytes that the processes call this with.

    Processes that decided by their own would compile programs that differ. What they exchange are
    32 bits: MiB.
    """
    if jax.process_count() == 1:
        return size
    return -hosts.greatest(-(size // MIB)) * MIB


def merging(frozen) -> int:
    """Most bytes on a device while Compiled.whole merges LoRA into these weights or shapes.

    First the largest stack of layers is there twice, in the end all is float32.
    """
    bytes_of = parallel.bytes_on_a_device
    wide = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, jnp.float32, sharding=x.sharding), frozen
    )
    largest = max(map(bytes_of, jax.tree.leaves(frozen)), default=0)
    return max(bytes_of(frozen) + largest, bytes_of(wide))
