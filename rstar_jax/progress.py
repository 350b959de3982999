"""What a run tells: progress lines with the time left, TensorBoard events, the final table."""

import math
import pathlib
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

LINE_SECONDS = 15.0  # between lines in a log file
TTY_SECONDS = 1.0  # between redraws of the line in a terminal


def clock(seconds: float) -> str:
    """5 -> '0:05', 3725 -> '1:02:05'; '?' where it is not known."""
    if not math.isfinite(seconds) or seconds < 0:
        return '?'
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f'{hours}:{minutes:02}:{rest:02}' if hours else f'{minutes}:{rest:02}'


def percent(share: float | None) -> str:
    """0.125 -> '12.5 %'; '-' where there is none."""
    return '-' if share is None or not math.isfinite(share) else f'{100 * share:.1f} %'


class Events:
    """TensorBoard scalars in the workdir; nothing is written where `directory` is None."""

    def __init__(self, directory: pathlib.Path | None):
        self._directory, self._writer = directory, None

    def add(self, prefix: str, scalars: Mapping[str, Any], step: int) -> None:
        """Writes the numbers among `scalars` under the names prefix/key."""
        if self._directory is None:
            return
        if self._writer is None:
            from tensorboardX import SummaryWriter

            self._writer = SummaryWriter(str(self._directory))
        for key, value in scalars.items():
            if isinstance(value, int | float) and math.isfinite(value):
                self._writer.add_scalar(f'{prefix}/{key}', value, step)

    def close(self) -> None:
        """Writes what is pending; the object can be used again."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


class Line:
    """One stage's line of progress: redrawn in a terminal, now and then a new one in a log."""

    def __init__(self, label: str, stream=None):
        self._label, self._stream = label, stream or sys.stdout
        self._tty = self._stream.isatty()
        self._last, self._width = -math.inf, 0

    def show(self, text: str, *, force: bool = False) -> None:
        """Prints `text` unless the line before it is too recent."""
        now = time.monotonic()
        if not force and now - self._last < (TTY_SECONDS if self._tty else LINE_SECONDS):
            return
        self._last = now
        text = f'{self._label}: {text}'
        if self._tty:
            print('\r' + text.ljust(self._width), end='', file=self._stream, flush=True)
            self._width = len(text)
        else:
            print(text, file=self._stream, flush=True)

    def end(self, text: str) -> None:
        """The stage's last line."""
        self.show(text, force=True)
        if self._tty:
            print(file=self._stream, flush=True)


def table(rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    """Text columns as wide as their widest cell; the columns in `right` are aligned right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths))
        ]
        lines.append('  '.join(cells).rstrip())
    return '\n'.join(lines)
