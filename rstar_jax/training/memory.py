"""Bytes that the arrays of a model take: its weights, and what a training adds to them.

Counted from the shape alone, on all devices together, before anything is loaded. What comes on top
while it runs, keys and values of a search's trees or activations of a training, who runs it counts.
"""

import dataclasses

import jax
import jax.numpy as jnp

from rstar_jax import models
from rstar_jax.training import lora

WIDE = 4  # bytes of a number in float32


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
