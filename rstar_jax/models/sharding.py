"""Where parameters lie: one table by parameter path, for mesh axes data, fsdp and tensor.

Dense weights are [out, in]. The first product of a block (q, k, v, gate, up) is cut along its
outputs over `tensor`, the second (o, down) along its inputs, so that one sum per block crosses
devices; the other axis is cut over `fsdp`. Along `data` everything is repeated.
"""

import re

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rstar_jax.models import decoder, weights
from rstar_jax.models.config import Config

TABLE = (
    (r'(embed|output)/weight', ('tensor', 'fsdp')),
    (r'(embed|output)/new', (None, 'fsdp')),
    (r'attention/[qkv]/weight', ('tensor', 'fsdp')),
    (r'(output|attention/[qkv]|mlp/(gate|up))/scale', ('tensor',)),
    (r'attention/[qkv]/bias', ('tensor',)),
    (r'attention/o/weight', ('fsdp', 'tensor')),
    (r'mlp/(gate|up)/weight', ('tensor', 'fsdp')),
    (r'mlp/(gate|up)/bias', ('tensor',)),
    (r'mlp/down/weight', ('fsdp', 'tensor')),
    # Low-rank parts (training.lora): A [rank, in] as the weight's inputs, B [out, rank] as outputs.
    (r'(attention/[qkv]|mlp/(gate|up))/lora_a', (None, 'fsdp')),
    (r'(attention/[qkv]|mlp/(gate|up))/lora_b', ('tensor',)),
    (r'(attention/o|mlp/down)/lora_a', (None, 'tensor')),
    (r'(attention/o|mlp/down)/lora_b', ('fsdp',)),
    (r'.*', ()),  # norms, biases of what is summed over devices, the value head
)
KV = re.compile(r'attention/[kv]/')
# The arrays of all layers in one, [L, ...]: see training.layers.
STACKED = re.compile(r'(.*/)?layers/(?=\D)')


def spec(path: str, shape: tuple[int, ...], mesh: Mesh, config: Config | None = None):
    """PartitionSpec of the parameter at `path` ('layers/0/attention/q/weight').

    Also of those of all layers in one [L, ...] ('layers/attention/q/weight'), which no axis cuts.

    An axis that the mesh lacks, or that does not divide the dimension, is left out. With `config`,
    keys and values are repeated over `tensor` where it does not divide the kv heads: cutting
    through a head would cost an exchange in every attention.
    """
    axes = next(axes for pattern, axes in TABLE if re.search(rf'(^|/){pattern}$', path))
    if STACKED.match(path):
        axes = (None, *axes)
    sizes = dict(mesh.shape)
    if config is not None and KV.search(path) and config.num_kv_heads % sizes.get('tensor', 1):
        axes = tuple(None if axis == 'tensor' else axis for axis in axes)
    kept = [
        axis if axis in sizes and sizes[axis] > 1 and length % sizes[axis] == 0 else None
        for axis, length in zip(axes, shape)
    ]
    while kept and kept[-1] is None:
        kept.pop()
    return PartitionSpec(*kept)


def shardings(params: decoder.Params, mesh: Mesh, config: Config | None = None) -> decoder.Params:
    """The tree of NamedShardings for `params` (arrays or shapes; a policy's or a PPM's)."""
    flat = weights.flatten(params)
    return weights.nest(
        {p: NamedSharding(mesh, spec(p, x.shape, mesh, config)) for p, x in flat.items()}
    )


def mesh_of(array: jax.Array) -> Mesh | None:
    """The mesh that `array` is laid out over; None for an array of a single device."""
    where = getattr(array, 'sharding', None)
    return where.mesh if isinstance(where, NamedSharding) else None


def shard(params: decoder.Params, mesh: Mesh, config: Config | None = None) -> decoder.Params:
    """`params` laid out over `mesh` as the table says."""
    return jax.device_put(params, shardings(params, mesh, config))
