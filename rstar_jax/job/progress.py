"""What a run tells: progress with the time left, tables, TensorBoard events.

In a terminal both are drawn by rich, in colours and to its width; into a file or a pipe go plain
lines, whatever their length.
"""

import contextlib
import io
import math
import pathlib
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Column, Table

LINE_SECONDS = 15.0  # between lines in a log file
TTY_SECONDS = 1.0  # between redraws of the line in a terminal
ANY_WIDTH = 100_000


def clock(seconds: float) -> str:
    """5 -> '0:05', 3725 -> '1:02:05'; '?' where it is not known."""
    if not math.isfinite(seconds) or seconds < 0:
        return '?'
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f'{hours}:{minutes:02}:{rest:02}' if hours else f'{minutes}:{rest:02}'


def times(seconds: float, left: float) -> str:
    """'0:05 gone, 0:10 left'; without the time left where it is not known."""
    known = f', {clock(left)} left' if math.isfinite(left) else ''
    return f'{clock(seconds)} gone{known}'


def percent(share: float | None) -> str:
    """0.125 -> '12.5 %'; '-' where there is none."""
    return '-' if share is None or not math.isfinite(share) else f'{100 * share:.1f} %'


def mean(count: float) -> str:
    """A mean of counts: 8 -> '8', 10 / 3 -> '3.33'."""
    return f'{round(count, 2):g}'


def of_search(now: Mapping[str, Any], before: str = '', solved: bool = False) -> tuple[str, float]:
    """What `Line.show` is to show of a search that is this far; see `search.run`'s progress.

    before: in front of the text. solved: whether problems are being solved, and to be counted.
    """
    found = f'{now["solved"]} solved, ' if solved else ''
    use = now['slot_use']  # not known where a server writes the steps
    slots = f'slots {percent(use)} used, ' if math.isfinite(use) else ''
    text = (
        f'{before}{now["trees_done"]}/{now["trees_total"]} trees, {found}'
        f'{now["tokens_per_second"]:.0f} tokens/s, {slots}'
        f'{times(now["seconds"], now["seconds_left"])}'
    )
    return text, now['trees_done'] / now['trees_total']


def of_training(now: Mapping[str, float]) -> tuple[str, float]:
    """The same of a training; see `training.sft`'s progress."""
    if 'to_read' in now:
        text = f'{now["read"]:,} of {now["to_read"]:,} examples read'
        return f'{text}, {times(now["seconds"], now["seconds_left"])}', now['read'] / now['to_read']
    figures = [f'step {now["step"]}/{now["steps"]}']
    if 'loss' in now:  # after the first step
        figures.append(f'loss {now["loss"]:.3f}')
        if 'margin' in now:  # of pairs
            figures.append(f'{percent(now["accuracy"])} right by {now["margin"]:.3f}')
        if not math.isnan(now['seconds_left']):  # a training that goes on has done nothing yet
            figures.append(f'{now["tokens_per_second"]:.0f} tokens/s')
            figures.append(f'{100 * now["mfu"]:.0f} % of peak')
    figures.append(times(now['seconds'], now['seconds_left']))
    return ', '.join(figures), now['step'] / now['steps']


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


class Line(contextlib.AbstractContextManager):
    """One stage's progress: a bar that is redrawn in a terminal, now and then a line in a log.

    A context manager: leaving it, by an exception too, gives the terminal back.
    """

    def __init__(self, label: str, stream=None):
        self._label, self._stream = label, stream or sys.stdout
        self._bar: Progress | None = None
        self._last = -math.inf

    def __exit__(self, *_: object) -> None:
        self._stop()

    def show(self, text: str, share: float | None = None) -> None:
        """Shows `text`, unless what was shown before is too recent.

        share: how much of the stage is done, 0 to 1, where that is known.
        """
        now, terminal = time.monotonic(), self._stream.isatty()
        if now - self._last < (TTY_SECONDS if terminal else LINE_SECONDS):
            return
        self._last = now
        if not terminal:
            print(f'{self._label}: {text}', file=self._stream, flush=True)
            return
        done = {'completed': share or 0.0, 'total': None if share is None else 1.0, 'text': text}
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], **done)
            self._bar.refresh()
            return
        self._bar = Progress(
            TextColumn('[bold]{task.description}'),
            BarColumn(bar_width=16),
            TextColumn('{task.fields[text]}', markup=False, table_column=Column(ratio=1)),
            console=Console(file=self._stream),
            auto_refresh=False,
            transient=True,
            expand=True,
        )
        self._bar.add_task(self._label, **done)
        self._bar.start()
        # However the process ends, the terminal keeps its cursor.
        self._bar.console.show_cursor(True)

    def say(self, text: str) -> None:
        """A line that stays, above what is shown next."""
        self._stop()
        print(f'{self._label}: {text}', file=self._stream, flush=True)

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def table(rows: Sequence[Sequence[str]], right: Sequence[int] = (), heading: bool = True) -> Table:
    """Columns for `show`; those in `right` are aligned right, the first row is the heading."""
    made = Table(box=None, padding=(0, 2, 0, 0), show_header=heading, header_style='bold')
    first, *rest = rows
    for number, name in enumerate(first):
        justify = 'right' if number in right else 'left'
        made.add_column(name if heading else '', justify=justify, overflow='fold')
    for row in rest if heading else rows:
        made.add_row(*row)
    return made


def show(*parts: RenderableType, stream=None) -> None:
    """Prints texts and tables, one below the other."""
    stream = stream or sys.stdout
    if stream.isatty():
        console = Console(file=stream, highlight=False, markup=False)
        for part in parts:
            console.print(part)
        return
    text = io.StringIO()
    console = Console(file=text, width=ANY_WIDTH, color_system=None, highlight=False, markup=False)
    for part in parts:
        console.print(part)
    for line in text.getvalue().splitlines():
        print(line.rstrip(), file=stream)
    stream.flush()
