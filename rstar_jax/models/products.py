"""Products whose sums are float32, forwards and backwards, whatever their operands' dtype."""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax

from rstar_jax import parallel

PART, LEAST_PART = 128, 16  # rows that `turned` moves at once
MOST_ROWS, LEAST_WEIGHT = 64, 1 << 16  # see `features_first`


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def product(spec: str, a: jax.Array, b: jax.Array) -> jax.Array:
    """einsum(spec, a, b) -> f32; the backward products run in the operands' dtype too.

    JAX's own derivative multiplies the float32 gradient as it is, at a fraction of the speed that
    a device has in bfloat16.

    spec: 'x,y->z', of which each letter stands in two of x, y, z at least. Where z has two, its
        first is that of x, too.
    """
    return _wide(spec, a, b)


def _wide(spec, a, b):
    return jnp.einsum(spec, a, b, preferred_element_type=jnp.float32)


def _forward(spec, a, b):
    return _wide(spec, a, b), (a, b)


def _backward(spec, operands, gradient):
    a, b = operands
    of, out = spec.split('->')
    of_a, of_b = of.split(',')
    gradient = gradient.astype(jnp.result_type(a, b))
    grad_a = _wide(f'{out},{of_b}->{of_a}', gradient, b)
    if gradient.ndim == 2:
        grad_b = along_rows(gradient, a)
        grad_b = grad_b if of_b[0] == out[1] else grad_b.T
    else:
        grad_b = _wide(f'{out},{of_a}->{of_b}', gradient, a)
    return grad_a.astype(a.dtype), grad_b.astype(b.dtype)


def along_rows(x: jax.Array, y: jax.Array) -> jax.Array:
    """x.T y, f32[A, B], of x [R, A] and y [R, B]: sums along the first axis of both."""
    narrow = x.dtype == jnp.bfloat16 and parallel.platform() == 'cpu' and not _cut()
    if narrow and _part(x) >= LEAST_PART:
        return _wide('ar,rb->ab', turned(x), y)
    return _wide('ra,rb->ab', x, y)


def features_first(rows: jax.Array, weight: jax.Array) -> bool:
    """Whether weight [O, D] times rows [R, D] is best computed as [O, R], and `turned`.

    XLA for CPUs turns the weight for each product that is to be [R, O], which takes as long as few
    rows' product itself. Of bfloat16 rows its kernels for [O, R] take 32 or 64 at once.
    """
    if _cut() or parallel.platform() != 'cpu' or weight.size < LEAST_WEIGHT:
        return False
    count = len(rows)
    fits = rows.dtype == jnp.float32 or (count & (count - 1) == 0 and count >= LEAST_PART)
    return fits and 1 < count <= MOST_ROWS and _part(weight) >= LEAST_PART


def _cut() -> bool:
    """Whether arrays may be cut over devices here."""
    mesh = jax.sharding.get_abstract_mesh()
    return any(
        size > 1 and kind != jax.sharding.AxisType.Manual
        for size, kind in zip(mesh.axis_sizes, mesh.axis_types)
    )


@jax.custom_vjp
def turned(x: jax.Array) -> jax.Array:
    """x.T [O, R] of x [R, O], bfloat16 or float32, lying in memory as it is indexed.

    XLA for CPUs would leave it as x lies, and has no instruction for bfloat16 products along an
    array's first axis: they take twice as long. A loop is what it does not look into, over parts
    that the first cache holds; and bits it moves as they are, where it would widen bfloat16.
    """
    size = _part(x)
    kind = jnp.uint16 if x.dtype == jnp.bfloat16 else jnp.uint32
    bits = lax.bitcast_convert_type(x, kind)

    def body(i, out):
        part = lax.dynamic_slice_in_dim(bits, i * size, size)
        return lax.dynamic_update_slice_in_dim(out, part.T, i * size, axis=1)

    out = lax.fori_loop(0, len(x) // size, body, jnp.zeros(x.shape[::-1], kind))
    return lax.bitcast_convert_type(out, x.dtype)


def _part(x: jax.Array) -> int:
    """Rows that divide half of x's: a loop of one round is no loop."""
    return math.gcd(len(x) // 2, PART) if len(x) % 2 == 0 else 0


product.defvjp(_forward, _backward)
turned.defvjp(lambda x: (turned(x), None), lambda _, gradient: (gradient.T,))
