"""What chips are capable of: makers' figures, or a measurement where there are none."""

import contextlib
import dataclasses
import functools
import math
import os
import pathlib
import re
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh

from rstar_jax.parallel.memory import GIB, device_bytes

# Of the product that is measured; elsewhere it has to take long beside the call itself.
SIDES = {'cpu': 1024}
SIDE = 8192
SECONDS = 0.2  # of measuring, compilation apart
STREAM = 1 << 26  # numbers of the array that is read and written to measure the memory


@dataclasses.dataclass(frozen=True)
class Chip:
    """A chip's limits: bytes a program may use (a TPU compiler's own limit, elsewhere the memory),
    FLOP/s of the matrix units in 16 bits, without sparsity, bytes/s of its memory, and of a TPU
    bytes/s that it receives over all its links to other chips: half of the maker's "bidirectional
    ICI bandwidth per chip".

    The makers' figures; TPU: https://docs.cloud.google.com/tpu/docs/v5e, .../v6e, .../v5p, .../v4,
    .../tpu7x; the links of v4: https://arxiv.org/abs/2304.01433.
    """

    memory: float
    flops: float
    bandwidth: float
    links: float = 0.0


CHIPS = {  # by how device_kind begins
    'TPU v4': Chip(30.75 * GIB, 275e12, 1200e9, 300e9),
    'TPU v5 lite': Chip(15.75 * GIB, 197e12, 819e9, 200e9),
    'TPU v6 lite': Chip(31.25 * GIB, 918e12, 1640e9, 400e9),
    'TPU v5': Chip(95.74 * GIB, 459e12, 2765e9, 600e9),
    # Each of a chip's two cores is a device; what comes over the chip's links may be for both.
    'TPU7x': Chip(94.74 * GIB, 2307e12 / 2, 7380e9 / 2, 600e9),
    'NVIDIA B200': Chip(180e9, 2250e12, 8000e9),
    'NVIDIA H200': Chip(141e9, 989e12, 4800e9),
    'NVIDIA H200 NVL': Chip(141e9, 835e12, 4800e9),
    'NVIDIA H100': Chip(80e9, 989e12, 3350e9),
    'NVIDIA H100 NVL': Chip(94e9, 835e12, 3900e9),
    'NVIDIA H100 PCIe': Chip(80e9, 756e12, 2000e9),
    'NVIDIA A100': Chip(80e9, 312e12, 2039e9),
    'NVIDIA A100 80GB PCIe': Chip(80e9, 312e12, 1935e9),
    'NVIDIA A100-SXM4-40GB': Chip(40e9, 312e12, 1555e9),
    'NVIDIA A100-PCIE-40GB': Chip(40e9, 312e12, 1555e9),
    'NVIDIA A10G': Chip(24e9, 70e12, 600e9),
    'NVIDIA L4': Chip(24e9, 121e12, 300e9),
    'Tesla T4': Chip(16e9, 65e12, 320e9),  # in float16: it has no bfloat16
}
ALSO = {'TPU v5e': 'TPU v5 lite', 'TPU v5p': 'TPU v5', 'TPU v6e': 'TPU v6 lite'}


def find_chip(device_kind: str) -> Chip | None:
    """The chip of that `jax.Device.device_kind`: the longest name that it begins with, or None."""
    device_kind = ALSO.get(device_kind, device_kind)
    words = f'{device_kind} '.replace('-', ' ')
    names = [name for name in CHIPS if words.startswith(f'{name} '.replace('-', ' '))]
    return CHIPS[max(names, key=len)] if names else None


def devices_in_use() -> str:
    """Kind and number of the devices of all processes, in words."""
    device = jax.devices()[0]
    if device.platform == 'cpu':
        return f'cpu ({os.cpu_count()} cores)'
    return f'{jax.device_count()} x {device.device_kind}'


def has_bfloat16() -> bool:
    """Whether this process's devices have instructions for products in bfloat16."""
    platform = jax.default_backend()
    if platform == 'cpu':
        with contextlib.suppress(OSError):
            flags = pathlib.Path('/proc/cpuinfo').read_text(encoding='utf-8')
            return re.search(r'\b(avx512_bf16|amx_bf16)\b', flags) is not None
        return False
    # NVIDIA's are '7.5' and the like; other makers' GPUs have other names there, or nothing.
    capability = str(getattr(jax.local_devices()[0], 'compute_capability', ''))
    return not (platform == 'gpu' and re.fullmatch(r'[1-7]\.\d', capability))


def fast_dtype() -> str:
    """What the devices are fast at: bfloat16 where they have instructions for it, else float32."""
    return 'bfloat16' if has_bfloat16() else 'float32'


def platform() -> str:
    """What is compiled for: the devices of jax.set_mesh, or the default ones."""
    device = getattr(jax.sharding.get_abstract_mesh(), 'abstract_device', None)
    return getattr(device, 'platform', None) or jax.default_backend()


def peak_flops(mesh: Mesh, dtype) -> float:
    """FLOP/s of all devices of `mesh` in products of `dtype`.

    The table's in 16 bits on the chips that it has; elsewhere what a large product reaches on the
    first device of this process, measured once in a process.
    """
    device, dtype = mesh.local_devices[0], jnp.dtype(dtype)
    chip = find_chip(device.device_kind)
    if chip is not None and dtype.itemsize == 2:
        return mesh.size * chip.flops
    # The CPU devices of a process are one processor, and each of them runs on all of its cores.
    processes = len({device.process_index for device in mesh.devices.flat})
    return (processes if device.platform == 'cpu' else mesh.size) * _measured(device, dtype)


def here(dtype) -> Chip:
    """One of this process's devices: as the table has it, or as it measures in `dtype` now.

    The CPU devices of a process share the figures, which are of what other work leaves.
    """
    devices, dtype = jax.local_devices(), jnp.dtype(dtype)
    chip, memory = find_chip(devices[0].device_kind), device_bytes(Mesh(devices, 'data'))
    if chip is not None:  # of a GPU JAX takes a part
        flops = chip.flops if dtype.itemsize == 2 else _product(devices[0], dtype)
        return dataclasses.replace(
            chip, memory=min(chip.memory, memory or chip.memory), flops=flops
        )
    share = len(devices) if devices[0].platform == 'cpu' else 1
    rates = _product(devices[0], dtype), _stream(devices[0])
    return Chip(memory, *(rate / share for rate in rates))


def _product(device: jax.Device, dtype: jnp.dtype) -> float:
    """FLOP/s of one product, as the decoder has them: the best of some."""
    side = SIDES.get(device.platform, SIDE)
    precision = lax.Precision.HIGHEST if dtype == jnp.float32 else None

    def product(weight, x):
        return lax.dot_general(
            weight, x, (((1,), (1,)), ((), ())), precision, preferred_element_type=jnp.float32
        )

    square = jax.device_put(jnp.ones((side, side), dtype), device)
    run = jax.jit(product).lower(square, square).compile()
    return 2 * side**3 / _best(lambda: run(square, square).block_until_ready())


_measured = functools.cache(_product)


def _stream(device: jax.Device) -> float:
    """Bytes/s of memory that is read and written: the best of some."""
    held = [jax.device_put(jnp.zeros(STREAM, jnp.float32), device)]
    add = jax.jit(lambda x: x + 1, donate_argnums=0)  # in place: the only reference is replaced

    def run() -> None:
        held[0] = add(held[0]).block_until_ready()

    return 2 * held[0].nbytes / _best(run)


def _best(run: Callable[[], object]) -> float:
    """Seconds of the shortest of some calls, the first, which may compile, left out."""
    run()
    best, end = math.inf, time.perf_counter() + SECONDS
    while time.perf_counter() < end:
        start = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - start)
    return best
