"""Computing layers again in the backward pass instead of keeping what they computed.

`jax.checkpoint` alone does not do it on CPUs: there XLA drops the barriers that hold the second
computation apart from the first, finds the two to be equal, and keeps everything after all (Qwen
0.5B, 4,096 tokens: 24 GB in place of 5). So the second computation is made to depend on the
gradient that comes in.
"""

import math
import types
from collections.abc import Callable

import jax
from flax import nnx

# Activations that may be kept, bytes on a device: computing them again takes a third more time.
KEPT_BYTES = 3 * 2**30


def needed(config, rows: int, length: int) -> bool:
    """Whether the activations of `rows` x `length` tokens are too large to be kept."""
    mesh = jax.sharding.get_abstract_mesh()
    devices = 1 if mesh.empty else math.prod(mesh.shape.values())
    scores = 2 * config.num_heads * length
    each = 6 * config.mlp_dim + 24 * config.embed_dim + scores  # float32 numbers a token
    return 4 * each * config.num_layers * rows * length / devices > KEPT_BYTES


def layers_of(decoder) -> types.SimpleNamespace:
    """What Decoder.__call__ reads of `decoder`, with layers that are computed again."""
    return types.SimpleNamespace(
        config=decoder.config,
        embed=decoder.embed,
        layers=[_Layer(layer) for layer in decoder.layers],
        norm=decoder.norm,
    )


class _Layer:
    def __init__(self, layer):
        self._graph, self._state = nnx.split(layer)

    def __call__(self, x, cos, sin, attend, cache):
        def run(state, x):
            return nnx.merge(self._graph, state)(x, cos, sin, attend, None)[0]

        return again(run)(self._state, x), cache


def again(function: Callable) -> Callable:
    """`function` (parameters, x) -> y, of whose inner values none is kept for the backward pass."""

    @jax.custom_vjp
    def run(params, x):
        return function(params, x)

    def forward(params, x):
        return function(params, x), (params, x)

    def backward(kept, gradient):
        params, x = kept
        x, gradient = jax.lax.optimization_barrier((x, gradient))
        # Zero, but no compiler knows: a gradient may be infinite.
        zero = 0 * gradient[(0,) * gradient.ndim]
        return jax.vjp(function, params, x + zero.astype(x.dtype))[1](gradient)

    run.defvjp(forward, backward)
    return run
