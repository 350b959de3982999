"""What a run ends with: what each stage made, how accurate the rounds are, where all lies."""

import pathlib
from collections.abc import Sequence

from rstar_jax.job import progress
from rstar_jax.report import run, stages, tables
from rstar_jax.report.run import Kind


def show(root: pathlib.Path, kinds: Sequence[Kind], stream=None) -> None:
    """Prints everything that a workdir's stages say of themselves; kinds: as of `run.read`."""
    made = run.read(root, kinds)
    parts = []
    if made.stages or not made.ablations:
        parts += ['', progress.table(stages.table(made), right=(2,))]
    accuracy = tables.accuracy(made.results)
    if accuracy:
        parts += ['', progress.table(accuracy, right=(1, *range(3, len(accuracy[0]))))]
        parts += tables.accuracy_notes(made.results)
    for rows in (tables.strategies(made.results), tables.judges(made.results)):
        if rows:
            parts += ['', progress.table(rows, right=range(3, len(rows[0])))]
    titles = made.ablations['titles'] if made.ablations else {}
    for group, title in titles.items():
        rows = tables.ablations(made.ablations, group)
        if rows:
            parts += ['', title, '', progress.table(rows, right=range(1, len(rows[0])))]
            parts += made.ablations['notes'][group]
    paths = stages.paths(made)
    if paths:
        parts += ['', progress.table(paths, heading=False)]
    progress.show(*parts, stream=stream)
