"""Programs a second and latency of the sandboxed pool, against pools that run bare `exec`."""

from __future__ import annotations

import concurrent.futures
import contextlib
import io
import multiprocessing
import statistics
import time

from rstar_jax import execution

TRIVIAL = 'x = {n}\nprint(x * 2)'
NUMPY = 'import numpy as np\na = np.arange({n} + 9.0).reshape(-1, 1)\nprint((a.T @ a).item())'
SYMPY = (
    'import sympy as sp\nx = sp.symbols("x")\nprint(sp.solve(x**2 - ({n} + 3) * x + {n} % 7, x))'
)
# The same equation every time, told apart by a comment: what the warm-up's caches can know.
SYMPY_KNOWN = 'import sympy as sp\nx = sp.symbols("x")\nprint(sp.solve(x**2 - 5*x + 6, x))  # {n}'


def _bare(program: str) -> str:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(program, {})
    return out.getvalue()


def _warm() -> None:
    import numpy  # noqa: F401
    import sympy  # noqa: F401


def _rate(submit, programs: list[str]) -> tuple[float, list[float]]:
    """(programs a second, latency of each in seconds) with two programs waiting for each worker."""
    latencies: list[float] = []
    waiting: list = []
    started = time.perf_counter()
    for program in programs:
        if len(waiting) >= 4:
            waiting.pop(0).result()
        begun = time.perf_counter()
        future = submit(program)
        future.add_done_callback(
            lambda _, begun=begun: latencies.append(time.perf_counter() - begun)
        )
        waiting.append(future)
    for future in waiting:
        future.result()
    return len(programs) / (time.perf_counter() - started), latencies


def _alone(submit, programs: list[str]) -> list[float]:
    """Latency of each program when nothing else waits, in milliseconds."""
    out = []
    for program in programs:
        started = time.perf_counter()
        submit(program).result()
        out.append(1e3 * (time.perf_counter() - started))
    return out


def run(
    *, programs: int = 600, workers: int = 0, isolation: str = 'auto', repeats: int = 3
) -> dict[str, float]:
    """Programs a second of three kinds (median of `repeats`); p50 and p99 of a lone trivial one."""
    count = workers or None
    figures: dict[str, float] = {}
    kinds = {
        'programs': (TRIVIAL, programs),
        'numpy': (NUMPY, programs),
        'sympy': (SYMPY, programs),
    }
    ours: dict[str, list[float]] = {kind: [] for kind in kinds}
    bare: dict[str, list[float]] = {kind: [] for kind in kinds}
    alone: list[float] = []
    number = 0
    context = multiprocessing.get_context('spawn')
    with (
        execution.Pool(count, isolation=isolation) as pool,
        concurrent.futures.ProcessPoolExecutor(
            len(pool._workers._threads), mp_context=context, initializer=_warm
        ) as other,
    ):
        list(other.map(_bare, ['import sympy'] * 8))
        for future in [pool.submit(f'print({-n})') for n in range(20)]:
            future.result()
        figures['layers'] = len(pool.layers)
        figures['missing_layers'] = len(pool.missing)
        for _ in range(repeats):
            for kind, (template, size) in kinds.items():
                texts = [template.format(n=number + n) for n in range(size)]
                number += size
                ours[kind].append(_rate(pool.submit, texts)[0])
                bare[kind].append(_rate(lambda text: other.submit(_bare, text), texts)[0])
            texts = [TRIVIAL.format(n=number + n) for n in range(programs // 3)]
            number += len(texts)
            alone += _alone(pool.submit, texts)
        started = time.perf_counter()
        cells = [f'x{n} = {n}' for n in range(11)] + ['print(x10)']
        cells[2] = 'import time\nx2 = 2\ntime.sleep(1)'
        assert pool.submit(cells).result().ok
        figures['branch_12_steps_seconds'] = time.perf_counter() - started
        started = time.perf_counter()
        futures = [pool.submit(f'print({n}, "s")') for n in range(200)]
        figures['submit_ms'] = 1e3 * (time.perf_counter() - started) / 200
        for future in futures:
            future.result()
    alone.sort()
    figures |= {
        'programs_per_second': statistics.median(ours['programs']),
        'numpy_per_second': statistics.median(ours['numpy']),
        'sympy_per_second': statistics.median(ours['sympy']),
        'sympy_distinct_per_second': statistics.median(ours['distinct']),
        'p50_ms': alone[len(alone) // 2],
        'p99_ms': alone[int(len(alone) * 0.99)],
        'bare_exec_per_second': statistics.median(bare['programs']),
        'bare_exec_sympy_per_second': statistics.median(bare['sympy']),
        'bare_exec_sympy_distinct_per_second': statistics.median(bare['distinct']),
    }
    figures['ratio_vs_bare_exec_pool'] = (
        figures['programs_per_second'] / figures['bare_exec_per_second']
    )
    figures['sympy_ratio_vs_bare_exec_pool'] = (
        figures['sympy_per_second'] / figures['bare_exec_sympy_per_second']
    )
    return figures
