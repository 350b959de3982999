"""What a training keeps of the forward pass, and what the backward pass computes again.

Kept of each layer are what goes into it and the results of its products, for whoever has them has
the rest by cheap elementwise work: norms, rotations, gates and the attention's weights are computed
again. Where even that is too much for the device, a layer's input alone is kept, and the layer is
computed again as a whole, which takes a third more time.

`jax.checkpoint` alone does not do it on CPUs: there XLA drops the barriers that hold the second
computation apart from the first, finds the two to be equal, and keeps everything after all (Qwen
0.5B, 4,096 tokens: 24 GB in place of 5). So the second computation is made to depend on the
gradient that comes in. What only the forward pass needs of it, the products above all, the compiler
leaves out.
"""

import contextlib
import contextvars
import math
import types
from collections.abc import Callable, Iterator

import jax
from flax import nnx

# Bytes on a device that the results of products may take: 3 GiB where nobody says.
_ROOM = contextvars.ContextVar('room', default=3 * 2**30)


@contextlib.contextmanager
def room(size: int) -> Iterator[None]:
    """Gives what is traced inside `size` bytes on a device for the results of products."""
    token = _ROOM.set(size)
    try:
        yield
    finally:
        _ROOM.reset(token)


def kept_bytes(config, rows: int, length: int, itemsize: int) -> int:
    """Bytes on a device of the products' results in all layers for `rows` x `length` tokens."""
    mesh = jax.sharding.get_abstract_mesh()
    devices = 1 if mesh.empty else math.prod(mesh.shape.values())
    heads = config.num_heads + 2 * config.num_kv_heads
    each = 2 * config.embed_dim + heads * config.head_dim + 2 * config.mlp_dim
    return itemsize * each * config.num_layers * rows * length // devices


def whole_layers(config, rows: int, length: int, itemsize: int) -> bool:
    """Whether layers are computed again as a whole: the products' results exceed the room."""
    return kept_bytes(config, rows, length, itemsize) > _ROOM.get()


def layers_of(decoder, rows: int, length: int) -> types.SimpleNamespace:
    """What Decoder.__call__ reads of `decoder`, with layers that keep little for `rows` of tokens.

    rows, length: of the tokens that it will be called with.
    """
    itemsize = decoder.norm.weight.dtype.itemsize
    kind = _Whole if whole_layers(decoder.config, rows, length, itemsize) else _Parts
    return types.SimpleNamespace(
        config=decoder.config,
        embed=decoder.embed,
        layers=[kind(layer) for layer in decoder.layers],
        norm=decoder.norm,
    )


class _Whole:
    """A layer of which the input is kept."""

    def __init__(self, layer):
        self._layer = layer

    def __call__(self, x, cos, sin, attend, cache):
        return _again(self._layer, lambda layer, x: layer(x, cos, sin, attend, None)[0], x), cache


class _Parts:
    """A layer of which the inputs and the results of its products are kept."""

    def __init__(self, layer):
        self._attention = layer.attention_norm, layer.attention
        self._mlp = layer.mlp_norm, layer.mlp

    def __call__(self, x, cos, sin, attend, cache):
        def project(norm, attention, x):
            return attention.project(norm(x), cos, sin)

        def combine(attention, q, k, v):
            return attention.combine(attend(q, k, v, None)[0])

        (norm, attention), (mlp_norm, mlp) = self._attention, self._mlp
        heads = _again((norm, attention), lambda pair, x: project(*pair, x), x)
        x = x + _again(attention, combine, *heads)
        inner = _again((mlp_norm, mlp), lambda pair, x: pair[1].expand(pair[0](x)), x)
        return x + _again(mlp, lambda mlp, *inner: mlp.contract(*inner), *inner), cache


def _again(modules, function: Callable, *args):
    """function(modules, *args), of whose inner values none is kept for the backward pass."""
    graph, state = nnx.split(modules)

    def plain(state, args):
        return function(nnx.merge(graph, state), *args)

    def forward(state, args):
        return plain(state, args), (state, args)

    def backward(kept, gradient):
        state, args = kept
        args, gradient = jax.lax.optimization_barrier((args, gradient))
        # Zero, but no compiler knows: a gradient may be infinite.
        first = jax.tree.leaves(gradient)[0]
        zero = 0 * first[(0,) * first.ndim]
        args = jax.tree.map(lambda x: x + zero.astype(x.dtype), args)
        return jax.vjp(plain, state, args)[1](gradient)

    run = jax.custom_vjp(plain)
    run.defvjp(forward, backward)
    return run(state, args)
