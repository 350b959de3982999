"""The plan of a whole job against what happens: search, SFT and PPM on this machine.

A small run of `small` problems, the machine's limits, and out of both the plan of a round of
`count` other problems; then that round. Both rounds are those of `rstar_jax.main`, and the plan is
`--plan=here`'s, without what a stage needs before its first step: what had to be compiled is left
out of what was measured.

    STAGE_planned, STAGE_seconds    of search, sft, ppm
    STAGE_ratio                     planned / measured
    gflops, gb_per_second           limits: means of measurements before and after each stage, for
                                    other work on the machine changes them; spread of the FLOP/s
    step_ms                         of decoding all slots, measured at the end
    compile_seconds                 in the measured round
    load                            processes that wanted to run, on average (1 minute)

A model that solves nothing has nothing to be trained on: with --trees, an interchange file, its
first `small` trees and the next `count` are curated in place of the search's.
"""

import dataclasses
import itertools
import json
import os
import pathlib
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rstar_jax.errors import UserError

STAGES = ('search', 'curate', 'sft', 'ppm')
_SEARCH = {
    'prompt': 'few_shot',
    'error_threshold': 2,
    'temperature': 0.7,
    'step_tokens': 256,
    'answers_kept': 'all',
}
_TRAINING = {'epochs': 1, 'held_out': 0.05, 'measure_every': 0}


def run(
    *,
    model: str = '',
    problems: str = '',
    trees: str = '',
    small: int = 16,
    count: int = 16,
    rollouts: int = 4,
    candidates: int = 8,
    batch_size: int = 4,
    length: int = 1024,
    lora: int = 0,
    stages: str = ','.join(STAGES),
    seed: int = 0,
) -> dict[str, float]:
    """Settings: model, problems, files; small, count, how many; batch_size, length, lora, of both
    trainings, of one epoch; stages, which are run.
    """
    if not model or not problems:
        raise UserError('bench plan_here: needs --model=FILE and --problems=FILE')
    import jax

    from rstar_jax import configs, data, planning, whole_job
    from rstar_jax.models.checkpoint import default_dtype
    from rstar_jax.parallel import chips

    chosen = configs.stages_of(stages)
    found = data.load_problems(problems, small + count)
    given = list(itertools.islice(data.import_trees(trees), small + count)) if trees else []
    if len(found) < small + count or (trees and len(given) < small + count):
        raise UserError(f'--small={small} --count={count}: the files hold fewer')
    config = configs.default()
    config.seed, config.policy.path = seed, model
    config.search.update(_SEARCH | {'rollouts': rollouts, 'candidates': candidates})
    for section in ('sft', 'ppm'):
        settings = {'batch_size': batch_size, 'length': length, 'lora': lora}
        config.training[section].update(_TRAINING | settings)
    config.training.sft.form = 0.0  # what is learnt in so few steps is no matter
    limits: list[chips.Chip] = []

    def look() -> None:
        limits.append(chips.here(default_dtype()))

    with tempfile.TemporaryDirectory() as folder:
        parts = {'small': slice(0, small), 'large': slice(small, small + count)}
        seconds = {}
        for name, part in parts.items():
            root = pathlib.Path(folder) / name
            limits.clear()
            _give(config, root, found[part], given[part])
            seconds[name] = _run(config, root / 'run', chosen, look)
        _, statistics = whole_job.statistics(pathlib.Path(folder) / 'small' / 'run')
    (shape,) = planning.models_of(model).values()
    figures: dict[str, float] = {}
    devices, memory = jax.devices(), limits[0].memory
    plans = whole_job.compiled(config, count, statistics, devices, memory, shape, chosen)
    chip = dataclasses.replace(limits[0], **_means(limits))
    speed = whole_job.limits(plans, devices, chip)
    assumed = dataclasses.replace(whole_job.PROCESSOR, start=0.0)
    hours = whole_job.hours(config, count, statistics, speed, assumed, chosen)
    for name in sorted(hours.keys() & {'search', 'sft', 'ppm'}, key=STAGES.index):
        planned, measured = hours[name] * 3600, seconds['large'][name]
        figures[f'{name}_planned'] = planned
        figures[f'{name}_seconds'] = measured
        figures[f'{name}_ratio'] = planned / measured
    figures['gflops'] = chip.flops / 1e9
    figures['gb_per_second'] = chip.bandwidth / 1e9
    figures['gflops_spread'] = float(np.std([one.flops for one in limits]) / chip.flops)
    if plans.search is not None:
        figures['step_ms'] = plans.search.step * 1e3
    figures['compile_seconds'] = seconds['large']['compile']
    return figures | {'load': os.getloadavg()[0]}


def _means(limits: list[Any]) -> dict[str, float]:
    return {
        name: float(np.mean([getattr(chip, name) for chip in limits]))
        for name in ('flops', 'bandwidth')
    }


def _give(config: Any, root: pathlib.Path, problems: list[dict], trees: list[dict]) -> None:
    """Writes what a round reads into `root`, and its names into the config."""
    from rstar_jax import data

    root.mkdir()
    given = {'problems': problems}
    if trees:
        given |= zip(('sft', 'pairs'), data.curate(trees))
    for name, rows in given.items():
        path = root / f'{name}.json'
        path.write_text(json.dumps(rows), encoding='utf-8')
        config['data' if name == 'problems' else 'curate'][name] = str(path)


def _run(
    config: Any, workdir: pathlib.Path, stages: Sequence[str], look: Callable[[], None]
) -> dict[str, float]:
    """Runs a round's stages -> seconds of each, and of compiling."""
    from rstar_jax import ledger, parallel, rounds, whole_job
    from rstar_jax.stages import KINDS

    seconds = {'compile': 0.0}
    for name in stages:
        look()
        compiling = parallel.compile_seconds()
        rounds.run(config, str(workdir), (name,))
        compiling = parallel.compile_seconds() - compiling
        seconds['compile'] += compiling
        folder = workdir / 'round1' / KINDS[name].folder
        done = ledger.read_json(folder / 'done.json')
        seconds[name] = done['seconds'] - compiling
        if name in whole_job.SECTIONS:  # several programs are compiled side by side
            seconds[name] = done['figures']['tokens'] / done['figures']['tokens_per_second']
    look()
    return seconds
