"""Mapping a function over the devices of the local mesh, compiled once a process."""

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P


@functools.lru_cache(maxsize=1024)
def mapped(
    f: Callable,
    mesh: Mesh,
    arguments: int,
    shared: tuple[int, ...] = (),
    donate: tuple[int, ...] = (),
    **settings: Any,
) -> Callable:
    """Returns `f(..., **settings)` jitted and mapped over the `data` axis of the mesh.

    Each device sees its part of the first axis of every array, and nothing is communicated; the
    `tensor` axis is left to the compiler. Equal arguments give the same function, so that a
    second search compiles nothing that the first one did.

    Args:
      f: a function of a module.
      arguments: how many positional arguments it takes.
      shared: those that are whole on each device.
      donate: those whose memory the result may take over.
      **settings: hashable keyword arguments.
    """
    specs = tuple(P() if i in shared else P('data') for i in range(arguments))
    whole = jax.shard_map(
        functools.partial(f, **settings),
        mesh=mesh,
        in_specs=specs,
        out_specs=P('data'),
        axis_names={'data'},
        check_vma=False,
    )
    return jax.jit(whole, donate_argnums=donate)


def make(mesh: Mesh, f: Callable, *args: Any) -> Any:
    """Makes each device's part of a state, `f(*args)`, on that device."""
    return mapped(_call, mesh, 0, function=f, args=args)()


def _call(function: Callable, args: tuple) -> Any:
    return function(*args)
