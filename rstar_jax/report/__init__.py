"""What a run has come to: report/index.html in its workdir, and the tables of the terminal.

    workdir --run.read--> Run --tables--> rows of cells --> terminal, page
                              --plots, learning--> SVG in the page, PNG files beside it
            --trees-----> samples ------> scripts beside the page, for the viewer
                              --page----> index.html: one file, no network, works from a disk

Nothing here loads a model or touches a device, and nothing is locked: a running run can be looked
at from another process.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import shlex
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from rstar_jax.job import atomic
from rstar_jax.settings.errors import UserError

if TYPE_CHECKING:
    from rstar_jax.report.page import Part
    from rstar_jax.report.run import Kind, Run

TREES = 60  # of each search and evaluation, where not asked for more


def write(
    workdir: str | os.PathLike,
    kinds: Sequence[Kind],
    other: str | os.PathLike | None = None,
    *,
    trees: int | None = TREES,
    problems: Collection[int] = (),
) -> pathlib.Path:
    """Writes the page of a run, finished or not; returns its path.

    Args:
      workdir: the run's.
      kinds: the stages that a run may have, in their order: `stages.STAGES`.
      other: a second run's, to be shown beside it: its own page is written too, and one of both in
        the report of the first, which is returned.
      trees: how many of each search's can be opened in the viewer; None, all.
      problems: all trees of these problems as well.

    Raises:
      UserError: a workdir holds no run, or a file of it cannot be read; or they are the same; or a
        problem has no tree.
    """
    # matplotlib takes a second to import: not before there is something to draw.
    from rstar_jax.report import page, plots, run

    runs = [run.read(path, kinds) for path in (workdir, other) if path is not None]
    roots = [one.root.resolve() for one in runs]
    if len(set(roots)) < len(roots):
        raise UserError(str(other), expected='the same run twice', remedy='name another workdir')
    runs = run.told_apart(*runs) if other is not None else runs
    parts = [_part(one, trees, problems) for one in runs]
    found = {entry.index for part in parts for one in part.samples for entry in one.entries}
    if missing := sorted(set(problems) - found):
        raise UserError(
            'problems',
            ','.join(map(str, missing)),
            f'no tree in {" or ".join(str(one.root) for one in runs)} is of these',
            'name indices of problems that have been searched, as trees and data tell them',
        )
    written = []
    for one, part in zip(runs, parts):
        folder = one.root / 'report'
        written.append(folder / 'index.html')
        atomic.write_text(written[-1], page.page([part], plots.accuracy([one], folder)))
    if other is None:
        return written[0]
    folder, name = runs[0].root / 'report', f'against-{runs[1].name.replace("/", "-")}'
    beside = os.path.relpath(roots[1] / 'report', roots[0] / 'report')
    both = [
        dataclasses.replace(parts[0], prefix='a-'),
        dataclasses.replace(parts[1], prefix='b-', beside=f'{beside}/'),
    ]
    path = folder / f'{name}.html'
    atomic.write_text(path, page.page(both, plots.accuracy(runs, folder, f'{name}-')))
    return path


def attempt(
    workdir: str | os.PathLike, kinds: Sequence[Kind], problems: Collection[int] = ()
) -> pathlib.Path | None:
    """`write` for who goes on without a page: what it is made of is on disk. None: it failed."""
    try:
        return write(workdir, kinds, problems=problems)
    except Exception as error:
        print(
            f'report: not written ({type(error).__name__}: {error}); all else is; try '
            f'python -m rstar_jax.report {shlex.quote(str(workdir))}',
            flush=True,
        )
        return None


def _part(run: Run, most: int | None, problems: Collection[int]) -> Part:
    from rstar_jax.report import learning, page, plots, trees

    folder = run.root / 'report'
    samples = trees.write(run, folder / 'trees', most, problems)
    return page.Part(
        run,
        samples,
        plots.cost(run, folder),
        plots.found(run, samples, folder),
        learning.training(run, folder),
        learning.values(samples, folder),
        plots.ablations(run, folder),
    )
