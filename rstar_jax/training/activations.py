"""Where the activations of a training lie, as constraints to the compiler.

They are of the mesh of jax.set_mesh; without one they do nothing. models.sharding says where
parameters lie.
"""

import jax
from jax.sharding import PartitionSpec


def rows_over_mesh(x: jax.Array, heads: bool = False) -> jax.Array:
    """Keeps the rows of activations x [R, ...] cut over data and fsdp, in the mesh of jax.set_mesh.

    Left to itself the compiler cuts activations as it finds the weights cut: along D over fsdp,
    and then moves them about in each layer. heads: x is [R, T, H, d], heads are cut over tensor.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    spec = [('data', 'fsdp')] + [None] * (x.ndim - 1)
    if heads and x.shape[2] % mesh.shape['tensor'] == 0:
        spec[2] = 'tensor'
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*spec))


def columns_over_mesh(x: jax.Array) -> jax.Array:
    """Cuts the last axis of x [R, T, D] over fsdp, as the embedding's columns are cut."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or x.shape[-1] % mesh.shape['fsdp']:
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(None, None, 'fsdp'))


def words_missing(vocab_size: int) -> int:
    """How many words more the devices of jax.set_mesh would divide."""
    mesh = jax.sharding.get_abstract_mesh()
    return 0 if mesh.empty else -vocab_size % mesh.size


def vocabulary_over_mesh(x: jax.Array) -> jax.Array:
    """Cuts x [V, ...] along the vocabulary over all devices, where they divide it."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or x.shape[0] % mesh.size:
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(mesh.axis_names))


def whole_columns(table: jax.Array) -> jax.Array:
    """Gathers the columns of the embedding [V, D] from fsdp, so that rows are looked up whole."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return table
    vocab = 'tensor' if table.shape[0] % mesh.shape['tensor'] == 0 else None
    return jax.lax.with_sharding_constraint(table, PartitionSpec(vocab))
