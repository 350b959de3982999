"""Attention of whole texts by the fast kernels that JAX ships, where the device has one.

    plain   attention.py: every device, the reference
    cudnn   flash attention of cuDNN (NVIDIA GPUs from Ampere on, 16-bit types)
    splash  the Pallas kernel for TPUs: skips what causality or the window hides

All agree with `attention.causal` at every place that is no padding.
"""

import functools
import re
from collections.abc import Callable

import jax
import jax.numpy as jnp

from rstar_jax.models import attention

LANES = 128  # splash wants lengths and head sizes in multiples of it
BLOCK = 512


def has_cudnn(dtype: jnp.dtype) -> bool:
    """Whether cuDNN's flash attention runs in `dtype` on this process's devices."""
    # NVIDIA's are '8.0' and the like; other makers' GPUs have other names there, or nothing.
    capability = str(getattr(jax.devices()[0], 'compute_capability', ''))
    able = re.fullmatch(r'([89]|\d\d)\.\d', capability)
    return bool(able) and jnp.dtype(dtype) in (jnp.bfloat16, jnp.float16)


def choose(length: int, head_dim: int, dtype: jnp.dtype, backend: str | None = None) -> str:
    """The kernel for texts of `length` tokens on `backend` (None = the default one)."""
    backend = backend or jax.default_backend()
    if backend == 'tpu' and length % LANES == 0:
        return 'splash'
    if backend in ('gpu', 'cuda') and has_cudnn(dtype) and head_dim % 8 == 0 and head_dim <= 128:
        return 'cudnn'
    return 'plain'


def full(
    lengths: jax.Array | None = None,
    kernel: str | None = None,
    interpret: bool = False,
) -> Callable:
    """The decoder's `attend` for texts [B, T] without a cache.

    Training has its own for packed rows, `training.attention`.

    lengths: i32[B]. kernel: 'plain', 'cudnn', 'splash'; None = `choose`. interpret: run splash
    without a TPU (slow; for tests).
    """

    def attend(q, k, v, cache=None, window=None):
        chosen = kernel or choose(q.shape[-3], q.shape[-1], q.dtype)
        if chosen == 'splash':
            out = _splash(q, k, v, lengths, window, interpret)
        elif chosen == 'cudnn':
            out = _cudnn(q, k, v, lengths, window)
        else:
            out = attention.causal(q, k, v, lengths=lengths, window=window)
        return out, cache

    return attend


def _cudnn(q, k, v, lengths, window, implementation='cudnn'):
    return jax.nn.dot_product_attention(
        q,
        k,
        v,
        is_causal=True,
        query_seq_lengths=lengths,
        key_value_seq_lengths=lengths,
        local_window_size=None if window is None else (window - 1, 0),
        implementation=implementation,
    )


def _splash(q, k, v, lengths, window, interpret):
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    batch, length, heads, dim = q.shape
    ids = jnp.zeros((batch, length), jnp.int32)
    if lengths is not None:  # padding becomes a segment of its own
        ids = jnp.where(jnp.arange(length) < lengths[:, None], ids, -1)
    pad = [(0, 0)] * 3 + [(0, -dim % LANES)]
    scaled = (q.astype(jnp.float32) * dim**-0.5).astype(q.dtype)
    q, k, v = (jnp.pad(x, pad).swapaxes(1, 2) for x in (scaled, k, v))
    run = _splash_kernel(length, heads // k.shape[1], window, interpret)
    q = q.reshape(batch, k.shape[1], heads // k.shape[1], length, -1)
    # Over kv heads (each with its group of query heads), then over rows.
    grouped = jax.vmap(run, in_axes=(0, 0, 0, None))
    out = jax.vmap(grouped)(q, k, v, splash.SegmentIds(ids, ids))
    return out.reshape(batch, heads, length, -1).swapaxes(1, 2)[..., :dim]


@functools.lru_cache(maxsize=32)
def _splash_kernel(length, group, window, interpret):
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    shape = (length, length)
    mask = splash.CausalMask(shape)
    if window is not None:
        mask = splash.LocalMask(shape, (window - 1, 0), 0)
    block = next(size for size in (BLOCK, 256, LANES) if length % size == 0)
    sizes = splash.BlockSizes(*[block] * 3)
    with jax.ensure_compile_time_eval():
        return splash.make_splash_mqa_single_device(
            splash.MultiHeadMask([mask] * group), block_sizes=sizes, interpret=interpret
        )
