"""How long an evaluation took, whatever stopped it in between."""

import pathlib
import time
from collections.abc import Sequence

from rstar_jax import parallel
from rstar_jax.job import atomic, ledger

KEPT_SECONDS = 1.0  # between two writes


def keep_share(path: pathlib.Path, share: float) -> None:
    """Leaves a share of the seconds that are kept, if any: the rest was spent on what is gone."""
    if kept := ledger.read_json(path):
        atomic.write_json(path, {'seconds': share * kept['seconds']})


class Clock:
    """Seconds spent on each of several benchmarks that are searched at once, by their tokens.

    Those of runs that were killed are included, as of their last finished tree. Compilation is left
    out: it depends on what was compiled before, not on what is measured.
    """

    def __init__(self, paths: Sequence[pathlib.Path | None], before: Sequence[float]):
        """Args:
        paths: where the seconds of each are kept.
        before: seconds spent on each before, where nothing has been kept.
        """
        self._paths = paths
        self._before = [
            float(ledger.read_json(path)['seconds']) if path and path.exists() else seconds
            for path, seconds in zip(paths, before)
        ]
        self._tokens = [0.0] * len(paths)
        self.begin()

    @staticmethod
    def _now() -> float:
        return time.monotonic() - parallel.compile_seconds()

    def begin(self) -> None:
        self._begin = self._end = self._kept = self._now()

    def tick(self, which: int, tokens: float) -> None:
        """A tree of one of them has ended, of so many tokens."""
        self._tokens[which] += max(1.0, tokens)
        self._end = max(self._end, self._now())
        if self._end - self._kept >= KEPT_SECONDS:
            self.keep()

    def keep(self) -> None:
        self._kept = self._end
        for path, seconds in zip(self._paths, self.seconds):
            if path is not None:
                atomic.write_json(path, {'seconds': seconds})

    @property
    def seconds(self) -> list[float]:
        """Of each benchmark."""
        share = (self._end - self._begin) / max(1.0, sum(self._tokens))
        return [before + share * own for before, own in zip(self._before, self._tokens)]
