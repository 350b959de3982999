"""Programs a second and latency of the sandboxed pool, against pools that run bare `exec`.

Each program differs from the others, so that none is answered from memory. All pools have warm
workers, one a core, with numpy and sympy imported. pebble is compared where it is installed.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import importlib.util
import io
import itertools
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future

from rstar_jax import execution
from rstar_jax.execution.workers import cores

KINDS = {
    'programs': 'x = {n}\nprint(x * 2)',
    'numpy': 'import numpy as np\na = np.arange({n} + 9.0)\nprint(a @ a, np.sort(-a)[:3])',
    'sympy': """
import sympy as sp
x, a, b = sp.symbols('x'), {n} + 3, {n} + 4
print(sp.solve(x**2 - (a + b) * x + a * b, x))
""",
}
# Step 12 of a branch whose step 3 sleeps for a second.
BRANCH = ['x = 1', 'x += 1', 'import time\ntime.sleep(1)', *['x += 1'] * 8, 'print(x)']
AHEAD = 2  # programs that wait for each worker, so that none idles

Submit = Callable[[str], Future]


def _bare(program: str) -> str:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(program, {})
    return out.getvalue()


def _warm() -> None:
    import numpy  # noqa: F401
    import sympy

    sympy.solve('x**2 - 5*x + 6')


@contextlib.contextmanager
def _pools(count: int, isolation: str) -> Iterator[dict[str, Submit]]:
    """What submits a program, by the name of its pool; 'ours' first."""
    context = multiprocessing.get_context('spawn')
    with contextlib.ExitStack() as stack:
        ours = stack.enter_context(execution.Pool(count, isolation=isolation, announce=print))
        pools: dict[str, Submit] = {'ours': ours.submit}
        bare = concurrent.futures.ProcessPoolExecutor(count, context, _warm)
        stack.enter_context(bare)
        pools['bare_exec'] = lambda text: bare.submit(_bare, text)
        if importlib.util.find_spec('pebble'):
            import pebble

            other = pebble.ProcessPool(count, context=context, initializer=_warm)
            stack.enter_context(other)
            pools['pebble'] = lambda text: other.schedule(_bare, args=[text])
        yield pools


def _rate(submit: Submit, programs: list[str], count: int) -> float:
    """Programs a second, with enough of them waiting that no worker idles."""
    waiting: list[Future] = []
    started = time.perf_counter()
    for program in programs:
        if len(waiting) >= AHEAD * count:
            waiting.pop(0).result()
        waiting.append(submit(program))
    for future in waiting:
        future.result()
    return len(programs) / (time.perf_counter() - started)


def _latencies(submit: Submit, programs: list[str]) -> list[float]:
    """Milliseconds of each program when nothing else waits."""
    out = []
    for program in programs:
        started = time.perf_counter()
        submit(program).result()
        out.append(1e3 * (time.perf_counter() - started))
    return out


@dataclasses.dataclass(frozen=True)
class Settings:
    """programs: of each kind in one repeat. workers: of each pool; 0 is one a core. isolation: of
    our pool. repeats: of everything, the pools in turn."""

    programs: int = 300
    workers: int = 0
    isolation: str = 'auto'
    repeats: int = 5


Rates = dict[tuple[str, str], list[float]]  # by pool and kind of program


def run(settings: Settings) -> dict[str, float]:
    """Rates are the median of `repeats`; p50 and p99 are of lone programs, all repeats together.

    Returns:
      For a trivial program (no prefix), numpy_ and sympy_: *_per_second, p50_ms, p99_ms, and the
      ratio to the faster of the other pools; the others' rates; the seconds that step 12 of a
      branch takes whose step 3 sleeps for one.
    """
    count = settings.workers or cores()
    with _pools(count, settings.isolation) as pools:
        rates, alone = _measured(settings, pools, count)
        started = time.perf_counter()
        result = pools['ours'](BRANCH).result()
        branch = time.perf_counter() - started
        assert result.output == '10', result
    median = {key: statistics.median(values[1:]) for key, values in rates.items()}
    figures: dict[str, float] = {}
    for kind in KINDS:
        prefix = '' if kind == 'programs' else f'{kind}_'
        latencies = sorted(alone[kind])
        others = [value for (name, of), value in median.items() if of == kind and name != 'ours']
        figures[f'{kind}_per_second'] = median['ours', kind]
        figures[f'{prefix}p50_ms'] = latencies[len(latencies) // 2]
        figures[f'{prefix}p99_ms'] = latencies[int(len(latencies) * 0.99)]
        figures[f'{prefix}ratio_vs_bare_exec_pool'] = median['ours', kind] / max(others)
    for (name, kind), value in median.items():
        if name != 'ours':
            figures[f'{name}_{kind}_per_second'] = value
    return figures | {'branch_step_12_seconds': branch}


def _measured(
    settings: Settings, pools: dict[str, Submit], count: int
) -> tuple[Rates, dict[str, list[float]]]:
    """(rates of all repeats, the one that warms up first; milliseconds of lone programs)."""
    numbers = itertools.count()
    rates: Rates = {}
    alone: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for repeat in range(settings.repeats + 1):
        size = settings.programs if repeat else 10 * count
        for kind, template in KINDS.items():
            for name, submit in pools.items():
                texts = [template.format(n=next(numbers)) for _ in range(size)]
                rates.setdefault((name, kind), []).append(_rate(submit, texts, count))
            texts = [template.format(n=next(numbers)) for _ in range(size)]
            alone[kind] += _latencies(pools['ours'], texts) if repeat else []
    return rates, alone
