"""Products whose sums are float32, forwards and backwards, whatever their operands' dtype."""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax

from rstar_jax import parallel

PART, LEAST_PART = 128, 16  # rows that `_turned` moves at once


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def product(spec: str, a: jax.Array, b: jax.Array) -> jax.Array:
    """einsum(spec, a, b) -> f32; the backward products run in the operands' dtype too.

    JAX's own derivative multiplies the float32 gradient as it is, at a fraction of the speed that
    a device has in bfloat16.

    spec: 'x,y->z', of which each letter stands in two of x, y, z at least.
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
    narrow = gradient.dtype == jnp.bfloat16 and parallel.platform() == 'cpu'
    if narrow and gradient.ndim == 2 and _part(gradient) >= LEAST_PART:
        out, gradient = out[::-1], _turned(gradient)
    grad_b = _wide(f'{out},{of_a}->{of_b}', gradient, a)
    return grad_a.astype(a.dtype), grad_b.astype(b.dtype)


def _turned(x: jax.Array) -> jax.Array:
    """x.T [O, R] of x [R, O], bfloat16, lying in memory as it is indexed.

    XLA for CPUs would leave it as x lies, and has no instruction for bfloat16 products along an
    array's first axis: they take twice as long. A loop is what it does not look into, over parts
    that the first cache holds; and bits it moves as they are, where it would widen bfloat16.
    """
    size = _part(x)
    bits = lax.bitcast_convert_type(x, jnp.uint16)

    def body(i, out):
        part = lax.dynamic_slice_in_dim(bits, i * size, size)
        return lax.dynamic_update_slice_in_dim(out, part.T, i * size, axis=1)

    out = lax.fori_loop(0, len(x) // size, body, jnp.zeros(x.shape[::-1], jnp.uint16))
    return lax.bitcast_convert_type(out, x.dtype)


def _part(x: jax.Array) -> int:
    """Rows that divide half of x's: a loop of one round is no loop."""
    return math.gcd(len(x) // 2, PART) if len(x) % 2 == 0 else 0


product.defvjp(_forward, _backward)
