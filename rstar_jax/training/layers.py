"""The decoder of a training: one layer, run with the weights of one layer after the other.

    a model's parameters    layers/0/attention/q/weight [out, in], layers/1/...
    a training's            layers/attention/q/weight [L, out, in]

So what is compiled is one layer forwards and one backwards, whatever their number.

XLA for CPUs, where it writes one array into a stack of bfloat16, widens the whole stack before and
narrows it behind; where it reads one, it widens the whole stack. So there stacks are float32: the
weights, of which each layer is narrowed by itself, their gradients, and what goes from layer to
layer. Frozen weights in bfloat16, and what is kept (decoder.kept), are stacked as their bits.
"""

import functools
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from rstar_jax import parallel
from rstar_jax.models import decoder as decoders
from rstar_jax.models import rope, weights
from rstar_jax.models.sharding import STACKED
from rstar_jax.training import block_attention, lora, recompute
from rstar_jax.training.activations import rows_over_mesh

OF_A_LAYER = re.compile(r'((?:.*/)?layers/)(\d+)/(.*)')


def stack(params: Any, release: bool = False) -> Any:
    """A training's tree of a model's: a policy's, a PPM's, or what lora.split makes of either.

    release: deletes the arrays of single layers on the way, so that few are there twice.
    """
    flat = weights.flatten(params)
    of: dict[str, dict[int, jax.Array]] = {}
    for path in list(flat):
        if found := OF_A_LAYER.fullmatch(path):
            of.setdefault(found[1] + found[3], {})[int(found[2])] = flat.pop(path)
    for path, parts in of.items():
        flat[path] = _joined([parts[i] for i in range(len(parts))], release)
    return weights.nest(flat)


def _joined(parts: list[jax.Array], release: bool) -> jax.Array:
    if not release:
        return _stacked(*parts)
    where = parts[0].sharding
    if isinstance(where, NamedSharding) and where.spec:
        where = NamedSharding(where.mesh, PartitionSpec(None, *where.spec))
    whole = jax.jit(_stacked, out_shardings=where)(*parts).block_until_ready()
    for part in parts:
        part.delete()
    parallel.trim()  # a layer's arrays are small enough for glibc to keep
    return whole


def _stacked(*parts: jax.Array) -> jax.Array:
    return jnp.stack([decoders.bits(part) for part in parts])


def unstack(params: Any, release: bool = False) -> Any:
    """A model's tree of a training's: the reverse of `stack`.

    release: deletes the stacked arrays on the way.
    """
    flat = {}
    for path, leaf in weights.flatten(params).items():
        if not (found := STACKED.match(path)):
            flat[path] = leaf
            continue
        where = leaf.sharding
        if isinstance(where, NamedSharding):
            where = NamedSharding(where.mesh, PartitionSpec(*where.spec[1:]))
        parts = jax.block_until_ready(jax.jit(tuple, out_shardings=where)(leaf))
        if release:
            leaf.delete()
        flat |= {f'{found[0]}{i}/{path[found.end() :]}': part for i, part in enumerate(parts)}
    return weights.nest(flat)


def cast(params: Any, dtype: jnp.dtype) -> Any:
    """A training's parameters of a decoder, in `dtype` as far as `run` wants them to be."""

    def narrowed(path, x):
        stays = jax.tree_util.DictKey('layers') in path and parallel.platform() == 'cpu'
        return x if stays else x.astype(dtype)

    return jax.tree_util.tree_map_with_path(narrowed, params)


def run(config, params: Any, x: jax.Array, positions: jax.Array, attend: Callable) -> jax.Array:
    """What comes out of the final norm, [R, T, D], of what goes into the first layer.

    Args:
      params: a training's, of a decoder, as of `cast`.
      x: [R, T, D] in the network's dtype.
      positions: i32[R, T].
      attend: as of Decoder.__call__; it gets no cache.
    """
    cos, sin = rope.angles(config, positions)
    rotated = None
    if config.unrotated:
        rotated = jnp.array([i not in config.unrotated for i in range(config.num_layers)])
    windows, dtype = _windows(config), x.dtype
    between = recompute.between(dtype)

    def layer(x, own):
        own, window, turns = own
        turn = cos, sin
        if turns is not None:
            turn = jnp.where(turns, cos, 1), jnp.where(turns, sin, 0)
        own = jax.tree.map(lambda p: decoders.of_bits(p).astype(dtype), own)
        seen = functools.partial(attend, window=config.window(0) if windows is None else window)
        x, _ = lora.bind(config, own)(x.astype(dtype), *turn, seen, None)
        return rows_over_mesh(x.astype(between)), None

    policy = recompute.policy(config, *positions.shape, dtype)
    # A loop forwards and one backwards: no compiler finds equal products in both.
    layer = jax.checkpoint(layer, policy=policy, prevent_cse=False)
    x = rows_over_mesh(x.astype(between))
    x, _ = lax.scan(layer, x, (params['layers'], windows, rotated))
    return decoders.normed(x.astype(dtype), params['norm']['weight'], config.norm_eps)


def _windows(config) -> jax.Array | None:
    """i32[L]: each layer's, where they differ."""
    windows = {config.window(i) for i in range(config.num_layers)}
    if len(windows) == 1:
        return None
    every = [config.window(i) or block_attention.WHOLE for i in range(config.num_layers)]
    return jnp.array(every, jnp.int32)
