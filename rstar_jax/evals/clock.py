"""How long an evaluation took, whatever stopped it in between."""

import pathlib
import time

from rstar_jax import atomic, ledger, parallel

KEPT_SECONDS = 1.0  # between two writes


class Clock:
    """Seconds spent, those of runs that were killed included, as of their last finished tree.

    Compilation is left out: it depends on what was compiled before, not on what is measured.
    """

    def __init__(self, path: pathlib.Path | None, before: float):
        self._path, self._before = path, before
        if path is not None and path.exists():
            self._before = float(ledger.read_json(path)['seconds'])
        self._begin = self._end = self._kept = self._now()

    @staticmethod
    def _now() -> float:
        return time.monotonic() - parallel.compile_seconds()

    def tick(self) -> None:
        self._end = max(self._end, self._now())
        if self._end - self._kept >= KEPT_SECONDS:
            self.keep()

    def keep(self) -> None:
        self._kept = self._end
        if self._path is not None:
            atomic.write_json(self._path, {'seconds': self.seconds})

    @property
    def seconds(self) -> float:
        return self._before + self._end - self._begin
