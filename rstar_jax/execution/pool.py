"""Running programs: the pool that users see, on the machinery of `workers`."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future

from rstar_jax.execution.limits import Limits, Result
from rstar_jax.execution.workers import Workers
from rstar_jax.settings.errors import UserError

Program = str | Sequence[str]
_SIGKILL, _SIGXCPU = 9, 24
_FAILED_CHILD = 70  # exit code of a child that could not send its report


class Pool(contextlib.AbstractContextManager):
    """Runs model-written programs in isolated children of warm workers; a context manager.

    Identical programs are run once: they are deterministic. Time-outs and other limits broken are
    not remembered.

    Args:
      workers: worker processes at most, as there are programs for them; None for one a core.
      limits: of every program.
      isolation: 'weak' uses every layer that the kernel allows; 'auto' does, too, and raises
        UserError where programs could read and write an ordinary user's home; 'strict' raises it
        where any layer is missing; 'none' keeps only the limits.
      announce: called once, in another thread, with one line that tells the layers in force; by
        default only a lack of some is logged.
    """

    def __init__(
        self,
        workers: int | None = None,
        limits: Limits | None = None,
        isolation: str = 'auto',
        announce: Callable[[str], None] | None = None,
    ) -> None:
        self.limits = limits or Limits()
        self._workers = Workers(
            'rstar_jax.execution.program',
            count=workers,
            jobs_per_child=1,
            isolation=isolation,
            limits=self.limits,
            finish=self._result,
            announce=announce,
        )
        if isolation == 'strict':
            self._workers.await_start()

    @property
    def layers(self) -> list[str]:
        """The isolation in force (waits until a worker is warm)."""
        return list(self._workers.await_start().layers)

    @property
    def missing(self) -> list[str]:
        """What this machine lacks of full isolation (waits until a worker is warm)."""
        return list(self._workers.await_start().missing)

    @property
    def counters(self) -> dict[str, int]:
        """Programs run, and programs answered from memory."""
        return {'computed': self._workers.computed, 'remembered': self._workers.remembered}

    def submit(self, program: Program, whole: bool = False, failed: str = '') -> Future[Result]:
        """Queue a program: source text, or cells run one after another in one namespace.

        Only what the last cell prints counts as output, and only its error makes ok False: the
        cells before it are history, and what they did before an error of theirs stays. With `whole`
        the cells are one program, which ends with the first error of any of them; `failed` is the
        error that those before the last one are known to end with: they do not run again, unless
        the last one goes on inside of their block.
        Returns at once. A future not yet running can be cancelled.
        """
        cells = [program] if isinstance(program, str) else list(program)
        known = {'failed': failed} if whole and failed else {}
        return self._workers.submit({'cells': cells, 'whole': whole} | known)

    def _result(self, report: dict) -> tuple[Result, bool]:
        killed = report.get('killed')
        seconds = float(report.get('seconds', 0.0))
        if killed:
            return Result(False, '', self._reason(killed, report.get('status', 0)), seconds), False
        error = report['error']
        # A lack of memory may be the machine's, the next time there may be enough.
        return Result(not error, report['output'], error, seconds), error != 'MemoryError'

    def _reason(self, killed: str, status: int) -> str:
        limits = self.limits
        if killed == 'seconds':
            return f'TimeoutError: ran longer than the limit of {limits.seconds:g} s'
        if killed == 'scratch':
            return f'OSError: wrote more than the limit of {limits.scratch_mb:g} MB'
        if killed == 'printed':
            return f'OutputError: printed more than the limit of {limits.printed_chars} characters'
        if killed == 'closed':
            return 'RuntimeError: the pool was closed'
        if killed == 'worker':
            return 'RuntimeError: the worker process died twice'
        if os.WIFSIGNALED(status):
            number = os.WTERMSIG(status)
            if number == _SIGXCPU:
                return f'TimeoutError: ran longer than the limit of {limits.seconds:g} s'
            if number == _SIGKILL:
                return 'RuntimeError: the process closed its output or was killed'
            return f'RuntimeError: the process was ended by signal {number}'
        if os.WEXITSTATUS(status) == _FAILED_CHILD:
            return 'RuntimeError: the process closed its output or was killed'
        return f'SystemExit: the process ended itself with code {os.WEXITSTATUS(status)}'

    def close(self) -> None:
        """End all worker processes."""
        self._workers.close()

    def __exit__(self, *_: object) -> None:
        self.close()


_SHARED: dict[tuple[Limits, str], Pool] = {}
_SHARED_LOCK = threading.Lock()


def run_many(
    programs: Sequence[Program], limits: Limits | None = None, isolation: str = 'auto'
) -> list[Result]:
    """Run programs in parallel on a pool that is kept for later calls; results in their order."""
    if isinstance(programs, str):  # else each of its letters
        raise UserError('programs', programs[:40], 'expected a list of programs', 'use [program]')
    limits = limits or Limits()
    with _SHARED_LOCK:
        pool = _SHARED.get((limits, isolation))
        if pool is None:
            while len(_SHARED) >= 2:
                _SHARED.pop(next(iter(_SHARED))).close()
            pool = _SHARED[limits, isolation] = Pool(limits=limits, isolation=isolation)
        futures = [pool.submit(program) for program in programs]
    return [future.result() for future in futures]
