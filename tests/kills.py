"""Kills a run at random moments and starts it again: `python tests/kills.py DIRECTORY KILLS`.

Runs the quickstart, its trainings saved every three seconds, in DIRECTORY/whole (further arguments
go to it: --config.data.limit=20), then again in DIRECTORY/parts, where SIGKILL ends it KILLS times.
Prints as JSON what it did when it was killed, and in what the two differ. Not a test by itself:
test_rounds.py does the same in small.
"""

import dataclasses
import json
import math
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import jax
import numpy as np

from rstar_jax import data, models
from rstar_jax.data import examples
from rstar_jax.job import ledger
from rstar_jax.models import trained
from rstar_jax.search import Record

REPOSITORY = pathlib.Path(__file__).parents[1]
BEGUN = 'round '  # how the first line that tells of a stage begins
COSTS = ('seconds', 'seconds_per_problem')
# Else trainings of a minute would begin again after each kill, and no later stage see one.
SAVED = [f'--config.training.{x}.checkpoint_minutes=0.05' for x in ('bootstrap', 'sft', 'ppm')]


def killed(
    command: Sequence[str],
    kills: int,
    seconds: float,
    rng: random.Random,
    environment: Mapping[str, str] | None = None,
) -> list[str]:
    """Runs the command to its end, which SIGKILL comes before `kills` times.

    seconds: that the whole takes undisturbed; so much is gone, on average, when all kills are.

    Returns the last line that each killed process printed: fewer where the run ended before.
    """
    lines = []
    for number in range(kills + 1):
        with tempfile.TemporaryFile('w+') as output:
            process = subprocess.Popen(
                command, cwd=REPOSITORY, env=environment, stdout=output, stderr=subprocess.STDOUT
            )
            try:
                while number < kills and process.poll() is None:
                    if any(line.startswith(BEGUN) for line in _told(output)):
                        break
                    time.sleep(0.05)
                try:
                    process.wait(rng.uniform(0, 2 * seconds / kills) if number < kills else None)
                except subprocess.TimeoutExpired:
                    process.send_signal(signal.SIGKILL)
                    process.wait()
                    lines.append((_told(output) or [''])[-1])
                    continue
            finally:
                process.kill()
            assert process.returncode == 0, '\n'.join(_told(output))
            return lines
    raise AssertionError('the last start is not killed')


def _told(output) -> list[str]:
    output.seek(0)
    return output.read().splitlines()


def differences(one: pathlib.Path, other: pathlib.Path) -> Iterator[str]:
    """What two workdirs do not have alike, but for seconds and rounding of float32 figures."""
    stages = [{path.parent.relative_to(root) for path in _done(root)} for root in (one, other)]
    if stages[0] != stages[1]:
        yield f'stages: {sorted(map(str, stages[0] ^ stages[1]))}'
    for stage in sorted(stages[0] & stages[1]):
        a, b = one / stage, other / stage
        if trained.holds(a):
            load = models.load_ppm if stage.name == 'ppm' else models.load
            if not jax.tree.all(
                jax.tree.map(np.array_equal, load(a, 'float32').params, load(b, 'float32').params)
            ):
                yield f'{stage}: parameters'
        for kind in examples.KINDS if stage.name == 'curate' else ():
            if list(data.load_examples(a, kind)) != list(data.load_examples(b, kind)):
                yield f'{stage}: {kind}'
        if stage.name == 'eval':
            results = [_plain(ledger.read_json(folder / 'results.json')) for folder in (a, b)]
            if results[0] != results[1]:
                yield f'{stage}: results'
        for folder in sorted({path.parent for path in a.rglob('*.array_record')}):
            if stage.name in ('search', 'eval'):
                yield from _other_trees(folder, other / folder.relative_to(one), stage)


def _done(root: pathlib.Path) -> list[pathlib.Path]:
    return [*root.glob('round*/*/done.json'), *root.glob('base/*/done.json')]


def _other_trees(one: pathlib.Path, other: pathlib.Path, stage: pathlib.Path) -> Iterator[str]:
    with data.TreeStore(one, writer=None) as a, data.TreeStore(other, writer=None) as b:
        if a.keys() != b.keys():
            yield f'{stage}: trees {sorted(a.keys() ^ b.keys())}'
        for key in sorted(a.keys() & b.keys()):
            if not _alike(a[key], b[key]):
                yield f'{stage}: tree {key}'


def _alike(one: Record, other: Record) -> bool:
    for field in dataclasses.fields(Record):
        a, b = getattr(one, field.name), getattr(other, field.name)
        if field.name in ('value_sum', 'score', 'likelihood'):
            same = np.allclose(a, b, atol=1e-4, equal_nan=True)
        else:
            same = np.array_equal(a, b) if isinstance(a, np.ndarray) else a == b
        if not same and field.name != 'counters':
            return False
    return True


def _plain(value):
    """Results without what was spent, figures rounded."""
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items() if key not in COSTS}
    if isinstance(value, list):
        return [_plain(part) for part in value]
    return round(value, 5) if isinstance(value, float) and math.isfinite(value) else value


def main(directory: str, kills: str, *flags: str) -> None:
    root = pathlib.Path(directory)
    command = [sys.executable, '-m', 'rstar_jax.main', '--config=experiments/quickstart.py']
    command += [*SAVED, *flags]
    begin = time.monotonic()
    subprocess.run([*command, f'--workdir={root / "whole"}'], cwd=REPOSITORY, check=True)
    seconds = time.monotonic() - begin
    rng = random.Random(0)
    lines = killed([*command, f'--workdir={root / "parts"}'], int(kills), seconds, rng)
    found = list(differences(root / 'whole', root / 'parts'))
    print(json.dumps({'killed': len(lines), 'at': lines, 'different': found}, indent=1))
    sys.exit(bool(found))


if __name__ == '__main__':
    main(*sys.argv[1:])
