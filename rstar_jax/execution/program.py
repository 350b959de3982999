"""Inside a child: run the cells of one program, pass on its prints, reduce its error to a line."""

from __future__ import annotations

import functools
import importlib
import io
import os
import random
import sys
import types
import warnings

from rstar_jax.execution.limits import format_output

ERROR_CHARS = 400
WARM_IMPORTS = [
    'cmath', 'collections', 'decimal', 'fractions', 'functools', 'heapq', 'itertools',
    'json', 'math', 'operator', 're', 'statistics', 'string', 'datetime', 'time', 'typing',
    'dataclasses', 'numpy', 'numpy.random', 'numpy.linalg', 'numpy.polynomial', 'scipy',
    'scipy.special', 'scipy.linalg', 'scipy.optimize', 'scipy.integrate', 'sympy',
    'sympy.abc', 'sympy.solvers.inequalities', 'sympy.ntheory.modular', 'sympy.geometry',
    'sympy.combinatorics', 'sympy.functions.combinatorial.numbers',
]  # fmt: skip
# Programs whose lazy imports and caches every child should inherit.
WARM_PROGRAMS = (
    """
import sympy as sp
x, y, z = sp.symbols('x y z')
n = sp.symbols('n', integer=True, positive=True)
sp.solve(x**2 - 5*x + 6, x); sp.solve([x + y - 5, x - y - 1], [x, y]); sp.solve(x**3 - x - 1, x)
sp.solve(sp.Eq(2*x + 3, 7), x); sp.solve(sp.sqrt(x + 1) - 3, x); sp.solve(x**2 < 4, x)
sp.simplify((x**2 - 1)/(x - 1)); sp.expand((x + y)**3); sp.factor(x**3 - 1)
sp.apart(1/(x*(x + 1)))
sp.integrate(x*sp.exp(x), x); sp.integrate(sp.sin(x), (x, 0, sp.pi)); sp.diff(sp.sin(x)**2, x)
sp.limit(sp.sin(x)/x, x, 0); sp.summation(n, (n, 1, x)); sp.series(sp.cos(x), x, 0, 4)
sp.N(sp.sqrt(2) + sp.pi, 20); sp.Matrix([[1, 2], [3, 4]]).inv()
sp.Matrix([[2, 0], [0, 3]]).eigenvals()
sp.gcd(12, 18); sp.isprime(97); sp.factorint(360); sp.divisors(28)
sp.nsimplify(0.5); sp.Rational(1, 3)
sp.trigsimp(sp.sin(x)**2 + sp.cos(x)**2); sp.solveset(x**2 - 1, x, sp.S.Reals); sp.binomial(10, 3)
print(sp.latex(sp.sqrt(x)/2), sp.sqrt(8), sp.pi*x**2)
""",
    """
import numpy as np, math, itertools, random
from fractions import Fraction
a = np.arange(12.0).reshape(3, 4)
print(a @ a.T, a.mean(axis=0), np.linalg.solve(np.eye(3), np.ones(3)), np.roots([1, -3, 2]))
print(f'{math.pi:.3f}', Fraction(3, 4) + 1, sorted(itertools.permutations(range(3)))[0])
""",
)


# The child's descriptor 1 is its pipe to the zygote. Made once, before any fork.
_STDOUT = io.TextIOWrapper(
    io.BufferedWriter(io.FileIO(1, 'w', closefd=False)), 'utf-8', 'backslashreplace'
)


_SYSTEM = random.Random(0)


def warm() -> None:
    """Import and run what most programs need, once, before any child is forked."""
    for name in WARM_IMPORTS:
        try:
            importlib.import_module(name)
        except ImportError:
            if name.split('.')[0] in ('numpy', 'sympy'):
                raise
    streams = sys.stdout, sys.stderr
    for program in WARM_PROGRAMS:
        try:
            error = _run([program], io.StringIO())
        finally:
            sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__ = streams
        if error:
            raise RuntimeError(f'a warm-up program failed: {error}')
    warnings.simplefilter('ignore')
    sys.set_int_max_str_digits(0)  # the limits bound what a program may convert
    _seed_generators()


def _seed_generators() -> None:
    """Same program, same random numbers: also of a generator that it makes without a seed."""
    import numpy

    unseeded = random.Random.seed

    @functools.wraps(unseeded)
    def seed(self, a=None, version=2):
        unseeded(self, 0 if a is None else a, version)

    random.Random.seed, random.seed = seed, functools.partial(seed, random._inst)
    numpy.random.bit_generator.randbits = lambda bits: 0  # what numpy seeds with, left to itself
    random.seed(0)
    numpy.random.seed(0)


def handle(job: dict) -> bytes:
    """In the child: run job['cells'] in one namespace; b'' or the error, as one line.

    With job['whole'] the error is the first of any cell, else that of the last. job['failed'] is
    the error that the cells but the last are known to raise.

    What the last cell prints goes to descriptor 1.
    """
    os.urandom = random._urandom = _SYSTEM.randbytes  # of secrets and uuid, here alone
    error = _run(job['cells'], _STDOUT, job['whole'], job.get('failed', ''))
    try:
        _STDOUT.flush()
    except BaseException as caught:  # closed by the program
        error = error or last_line(caught)
    return error.encode('utf-8', 'backslashreplace')


def present(report: dict) -> dict:
    """In the zygote: a child's report as the main process gets it."""
    return {'output': format_output(report['output']), 'error': report['ending']}


def _run(cells: list[str], stdout: io.TextIOBase, whole: bool = False, failed: str = '') -> str:
    """Run the cells; '' or the error of the last. What the others print or raise is dropped.

    whole: the first error of any cell is the error, and ends the program.
    """
    main = sys.modules['__main__'] = types.ModuleType('__main__')  # pickle looks up classes there
    namespace = vars(main)
    try:
        sources = blocks(cells, whole)
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        return last_line(error)
    if failed and len(sources) == len(cells):  # none goes on inside the block of another
        return failed
    sys.stderr = sys.__stderr__ = io.StringIO()
    error = ''
    for number, code in enumerate(sources):
        sys.stdout = sys.__stdout__ = stdout if number == len(sources) - 1 else io.StringIO()
        try:
            exec(code, namespace)
            error = ''
        except BaseException as caught:
            error = last_line(caught)
            if whole:
                break
    return error


def blocks(cells: list[str], whole: bool = False) -> list:
    """Code objects of the cells; a cell that goes on inside the block of the one before is joined.

    An earlier cell that compiles neither alone nor joined to the next is left out.

    Raises:
      SyntaxError: the last cell compiles neither alone nor joined; with `whole`, any cell.
    """
    done: list[tuple[str, object]] = []
    problem = None
    for cell in cells:
        problem = None
        try:
            done.append((cell, _compile(cell)))
            continue
        except SyntaxError as error:
            problem = error
        for start in range(len(done) - 1, -1, -1):
            source = '\n'.join([text for text, _ in done[start:]] + [cell])
            try:
                done[start:] = [(source, _compile(source))]
                problem = None
                break
            except SyntaxError:
                continue
        else:
            done.append((cell, problem))
    faults = [code for _, code in done if isinstance(code, SyntaxError)]
    if problem or (whole and faults):
        raise problem or faults[0]
    return [code for _, code in done if not isinstance(code, SyntaxError)]


def _compile(source: str):
    return compile(source, '<step>', 'exec', dont_inherit=True)


def last_line(error: BaseException) -> str:
    """`TypeOfError: message` on one line, as at the end of a traceback."""
    name = type(error).__name__
    try:
        message = str((isinstance(error, SyntaxError) and error.msg) or error)
    except BaseException:
        message = '(its message cannot be shown)'
    message = ' '.join(message[: 4 * ERROR_CHARS].split())[:ERROR_CHARS]
    return f'{name}: {message}' if message else name
