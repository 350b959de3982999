"""Mapping a function over the devices of the local mesh, compiled once a process."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

LANES = {'tpu': 128}  # numbers that a platform stores side by side, where that matters


@functools.lru_cache(maxsize=1024)
def mapped(
    f: Callable,
    mesh: Mesh,
    shared: tuple[str, ...] = (),
    donated: tuple[str, ...] = (),
    **settings: Any,
) -> Callable:
    """Returns `f(..., **settings)` jitted and mapped over the `data` axis of the mesh.

    Each device sees its part of the first axis of every array, and nothing is communicated; the
    `tensor` axis is left to the compiler. Equal arguments give the same function, so that a
    second search compiles nothing that the first one did.

    Args:
      f: a function of a module.
      shared: names of arguments that are whole on each device.
      donated: names of arguments whose memory the result may take over.
      **settings: hashable values of its keyword-only arguments.
    """
    parameters = inspect.signature(f).parameters.values()
    names = [p.name for p in parameters if p.kind is not p.KEYWORD_ONLY]
    specs = tuple(P() if name in shared else P('data') for name in names)

    @functools.wraps(f)
    def exact(*operands):
        # Where all is float32, products are too, on TPUs and GPUs as well, whatever is set.
        narrow = any(x.dtype == jnp.bfloat16 for x in jax.tree.leaves(operands))
        with jax.default_matmul_precision(None if narrow else 'highest'):
            return f(*operands, **settings)

    whole = jax.shard_map(
        exact,
        mesh=mesh,
        in_specs=specs,
        out_specs=P('data'),
        axis_names={'data'},
        check_vma=False,
    )
    return jax.jit(whole, donate_argnums=tuple(map(names.index, donated)))


def platform(mesh: Mesh) -> str:
    """What its devices are: 'cpu', 'gpu', 'tpu'."""
    return mesh.devices.flat[0].platform


def on_cpu(mesh: Mesh) -> bool:
    return platform(mesh) == 'cpu'


def make(mesh: Mesh, f: Callable, *args: Any) -> Any:
    """Makes each device's part of a state, `f(*args)`, where `shapes` says."""
    return _maker(mesh, f, args)[0]()


def shapes(mesh: Mesh, f: Callable, *args: Any) -> Any:
    """What `make` makes, as ShapeDtypeStructs in their sharding.

    Keys and values, [rows,K,positions,d], lie beside the heads that made them: cut over `tensor`
    where that divides K. All else is whole on the devices of a `data` row. On TPUs d is made a
    multiple of LANES, with zeros: otherwise the compiler stores positions side by side, and copies
    the whole array wherever some positions are written. On CPUs those in bfloat16 are kept as their
    bits, u16: XLA widens a bfloat16 array as a whole for each slice that a loop writes into it.
    """
    return _maker(mesh, f, args)[1]


def split(mesh: Mesh, x: Any) -> Any:
    """Puts arrays, the devices' parts one after another on the first axis, on the devices."""
    return jax.device_put(x, NamedSharding(mesh, P('data')))


def everywhere(mesh: Mesh, x: Any) -> Any:
    """Puts whole arrays on every device."""
    return jax.device_put(x, NamedSharding(mesh, P()))


def replaced(kv: list[Any], f: Callable[[jax.Array], jax.Array]) -> list[Any]:
    """Replaces each array by `f` of it, one after the other: only one is there twice at a time.

    kv: keys and values, with the only references to them; it is emptied.
    """
    arrays, shape = jax.tree.flatten(kv)
    kv.clear()
    arrays.reverse()
    made = []
    while arrays:
        made.append(jax.block_until_ready(f(arrays.pop())))
    return jax.tree.unflatten(shape, made)


def whole(x: jax.Array) -> jax.Array:
    """`x` inside a mapped function, in full on every device that shares the weights.

    What follows is then computed by each of them alone. Loops of different rows of the mesh end at
    different times, so no operation in them may exchange data among all devices.
    """
    return jax.lax.with_sharding_constraint(x, P())


@functools.lru_cache(maxsize=1024)
def _maker(mesh: Mesh, f: Callable, args: tuple) -> tuple[Callable, Any]:
    lanes = LANES.get(platform(mesh), 1)
    how = {'lanes': lanes, 'bits': on_cpu(mesh)}
    make = mapped(_call, mesh, function=f, args=args, **how)

    def place(x):
        ways = mesh.shape['tensor']
        cut = ways > 1 and x.ndim == 4 and x.shape[1] % ways == 0
        where = NamedSharding(mesh, P('data', 'tensor') if cut else P('data'))
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)

    placed = jax.tree.map(place, jax.eval_shape(make))
    return jax.jit(make, out_shardings=jax.tree.map(lambda x: x.sharding, placed)), placed


def _call(*, function: Callable, args: tuple, lanes: int, bits: bool) -> Any:
    def store(x):
        if x.ndim != 4:
            return x
        x = x.astype(jnp.uint16) if bits and x.dtype == jnp.bfloat16 else x  # they are zeros
        return jnp.pad(x, [*[(0, 0)] * 3, (0, -x.shape[3] % lanes)])

    return jax.tree.map(store, function(*args))
