"""What a training tells: metrics.jsonl, a line a step; progress; its speed and its figures."""

import contextlib
import itertools
import json
import math
import os
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from rstar_jax import parallel
from rstar_jax.job import atomic, hosts
from rstar_jax.training import flops
from rstar_jax.training.defaults import compute_dtype
from rstar_jax.training.step import Compiled

Progress = Callable[[dict[str, float]], None]

WRITE_SECONDS = 1.0  # between writes: at every step they would be the step's time on a shared disk
TOLD = ('loss', 'accuracy', 'margin')  # of the latest step, until the next one ends


class Log:
    """Of one training, in this process.

    Attributes:
      path: of metrics.jsonl.
      lines: what it holds, one a step; on disk within WRITE_SECONDS, or as `flush` is called.
    """

    def __init__(
        self,
        directory: str | os.PathLike,
        sizes: Sequence[int],
        compiled: Compiled,
        settings,
        work: flops.Work,
        progress: Progress | None,
    ):
        """Args:
        directory: gets metrics.jsonl.
        sizes: examples of each step.
        settings: what the network runs in is read.
        work: what tokens cost.
        progress: gets the numbers of `tell`.
        """
        self.path = pathlib.Path(directory) / 'metrics.jsonl'
        self.lines: list[dict[str, Any]] = []
        self._on_disk, self._written = 0, -math.inf  # number of lines, time of the latest write
        self._sizes, self._compiled, self._work, self._progress = sizes, compiled, work, progress
        self._before = [0, *itertools.accumulate(sizes)]  # examples of the steps before each
        self._peak = parallel.peak_flops(compiled.mesh, compute_dtype(settings))
        self._began = time.monotonic()
        self._aside = 0.0  # seconds that no step took: before the first, measuring; not compilation
        self._start = 0
        self._counts = {'tokens': 0, 'tokens_alone': 0, 'places': 0, 'flops': 0}

    def resume(self, start: int) -> None:
        """Begins with step `start`, and keeps the lines of those before it that are there.

        Some may be lost, as of a machine that is gone: there is a line of the last step in any
        case, for what is measured after it; without one, its loss is nan.
        """
        self._start, self.lines = start, []
        text = self.path.read_text(encoding='utf-8') if self.path.exists() else ''
        for line in text.splitlines():
            try:
                found = json.loads(line)
            except ValueError:  # cut off as it was written
                break
            if found['step'] <= start:
                self.lines.append(found)
        if start and (not self.lines or self.lines[-1]['step'] < start):
            self.lines.append({'step': start, 'loss': math.nan, 'tokens': 0})
        hosts.barrier('log is read')
        self._write()
        self._aside += self._busy()

    def count(self, batch: Mapping[str, np.ndarray]) -> None:
        """Counts the tokens of a micro batch, and their work."""
        self._counts['tokens'] += np.count_nonzero(batch['end'])
        self._counts['flops'] += self._work.of_batch(batch)

    def add(self, line: dict[str, Any], alone: int, places: int) -> None:
        """Keeps and tells the line of a step that has ended.

        alone: its tokens, had every sequence been run by itself. places: padding included.
        """
        self._counts['tokens_alone'] += alone
        self._counts['places'] += places
        self.lines.append(line)
        if time.monotonic() - self._written >= WRITE_SECONDS:
            self.flush()
        self.tell(line['step'], 0, line)

    def flush(self) -> None:
        """Writes what is not on disk yet: before a state is saved, and at the end."""
        if hosts.is_first() and self._on_disk < len(self.lines):
            with open(self.path, 'a', encoding='utf-8') as file:
                file.write(_text(self.lines[self._on_disk :]))
        self._on_disk, self._written = len(self.lines), time.monotonic()

    def amend(self, found: dict[str, Any]) -> None:
        """Adds what was measured after the latest step to its line."""
        self.lines[-1] |= found
        self._write()
        self.tell(self.lines[-1]['step'], 0, found)

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """Around what is no part of any step."""
        began, compiling = time.monotonic(), self._compiled.seconds
        yield
        self._aside += time.monotonic() - began - (self._compiled.seconds - compiling)

    def tell(self, number: int, share: float = 0, line: dict[str, float] | None = None) -> None:
        """Calls `progress`. number: steps done; share: of the next one."""
        if self._progress is None:
            return
        busy = self._busy()
        done = self._before[number] - self._before[self._start]
        done += share * self._sizes[number] if share else 0
        left = self._before[-1] - self._before[self._start] - done
        numbers = {
            'step': number,
            'steps': len(self._sizes),
            'seconds': time.monotonic() - self._began,
            'seconds_left': busy / done * left if done else math.nan,
        }
        if self.lines:
            numbers |= {name: self.lines[-1][name] for name in TOLD if name in self.lines[-1]}
        self._progress(numbers | (line or {}) | self._speed())

    def summary(self) -> dict[str, float]:
        """Figures of the whole training; rates and shares are of the part that ran here."""
        seconds = time.monotonic() - self._began
        losses = [line['loss'] for line in self.lines if not math.isnan(line['loss'])]
        counts, ends = self._counts, max(1, len(losses) // 10)
        return {
            'steps': len(self._sizes),
            'loss_first': float(np.mean(losses[:ends])),
            'loss_last': float(np.mean(losses[-ends:])),
            'tokens': sum(line['tokens'] for line in self.lines),
            **self._speed(),
            'padding_share': 1 - counts['tokens'] / max(1, counts['places']),
            'shared_prefix_tokens_share': counts['tokens'] / max(1, counts['tokens_alone']),
            'seconds': seconds,
            'compiles': self._compiled.count,
            'compile_seconds': self._compiled.seconds,
        }

    def _busy(self) -> float:
        """Seconds that the steps took so far."""
        return time.monotonic() - self._began - self._compiled.seconds - self._aside

    def _speed(self) -> dict[str, float]:
        """By the clock, over all steps; what does not depend on it is in the lines."""
        seconds = max(self._busy(), 1e-9)
        return {
            'tokens_per_second': self._counts['tokens'] / seconds,
            'mfu': self._counts['flops'] / seconds / self._peak,
        }

    def _write(self) -> None:
        """Writes metrics.jsonl anew, atomically."""
        if hosts.is_first():
            atomic.write_text(self.path, _text(self.lines))
        self._on_disk, self._written = len(self.lines), time.monotonic()


def _text(lines: Sequence[dict[str, Any]]) -> str:
    return ''.join(json.dumps(line) + '\n' for line in lines)
