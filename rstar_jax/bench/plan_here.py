"""The plan of a whole job against what happens: search, SFT and PPM on this machine.

A small run of `small` problems, the machine's limits, and out of both the plan of a round of
`count` other problems; then that round. Both rounds are those of `rstar_jax.main`, and the plan is
`--plan=here`'s, without what a stage needs before its first step: what had to be compiled is left
out of what was measured.

    STAGE_planned, STAGE_seconds    of search, sft, ppm
    STAGE_ratio                     planned / measured
    STAGE_knowing                   the same with the statistics of the round itself: how far it is
                                    off is the planner's error, not the small run's
    gflops, gb_per_second           limits: means of measurements before and after each stage, for
                                    other work on the machine changes them; spread of the FLOP/s
    step_ms                         of decoding all slots, measured at the end
    compile_seconds                 in the measured round
    load                            processes that wanted to run, on average (1 minute)

A model that solves nothing has nothing to be trained on: with --trees, an interchange file, its
first `small` + `count` trees are curated in place of the search's. What the small run is given is
drawn from all by `seed`: a plan is as good as the small run is like the whole job.
"""

import dataclasses
import itertools
import json
import os
import pathlib
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from rstar_jax import data, parallel, rounds
from rstar_jax.job import ledger
from rstar_jax.models.checkpoint import default_dtype
from rstar_jax.parallel import chips
from rstar_jax.plan import topology, whole_job
from rstar_jax.settings import configs
from rstar_jax.settings.errors import UserError
from rstar_jax.settings.kinds import KINDS

STAGES = ('search', 'curate', 'sft', 'ppm')
_SEARCH = {
    'prompt': 'few_shot',
    'error_threshold': 2,
    'temperature': 0.7,
    'answers_kept': 'all',
}
_PAIRS = {'final_step_pairs': 'trajectories', 'trajectory_side': 4}  # of steps alone: a handful
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
    step_tokens: int = 256,
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
    chosen = configs.stages_of(stages)
    found = data.load_problems(problems, small + count)
    given = list(itertools.islice(data.import_trees(trees), small + count)) if trees else []
    if len(found) < small + count or (trees and len(given) < small + count):
        raise UserError(f'--small={small} --count={count}: the files hold fewer')
    draw = np.random.default_rng(seed).permutation(small + count)
    found, given = ([rows[i] for i in draw] if rows else [] for rows in (found, given))
    config = configs.default()
    config.seed, config.policy.path = seed, model
    searched = {'rollouts': rollouts, 'candidates': candidates, 'step_tokens': step_tokens}
    config.search.update(_SEARCH | searched)
    config.curate.update(_PAIRS)
    for section in ('sft', 'ppm'):
        settings = {'batch_size': batch_size, 'length': length, 'lora': lora}
        config.training[section].update(_TRAINING | settings)
    config.training.sft.form = 0.0  # what is learnt in so few steps is no matter
    limits: list[chips.Chip] = []

    def look() -> None:
        limits.append(chips.here(default_dtype()))

    with tempfile.TemporaryDirectory() as folder:
        parts = {'small': slice(0, small), 'large': slice(small, small + count)}
        seconds, statistics = {}, {}
        for name, part in parts.items():
            root = pathlib.Path(folder) / name
            limits.clear()
            _give(config, root, found[part], given[part])
            seconds[name] = _run(config, root / 'run', chosen, look)
            _, statistics[name] = whole_job.statistics(root / 'run')
    (shape,) = topology.models_of(model).values()
    devices, memory = jax.devices(), limits[0].memory
    chip = dataclasses.replace(limits[0], **_means(limits))
    assumed = dataclasses.replace(whole_job.PROCESSOR, start=0.0)
    hours = {}
    for name, known in statistics.items():
        plans = whole_job.compiled(config, count, known, devices, memory, shape, chosen)
        speed = whole_job.limits(plans, devices, chip)
        hours[name] = whole_job.hours(config, count, known, speed, assumed, chosen)
    figures: dict[str, float] = {}
    for name in sorted(hours['small'].keys() & {'search', 'sft', 'ppm'}, key=STAGES.index):
        planned, measured = hours['small'][name] * 3600, seconds['large'][name]
        figures[f'{name}_planned'] = planned
        figures[f'{name}_seconds'] = measured
        figures[f'{name}_ratio'] = planned / measured
        if name in hours['large']:
            figures[f'{name}_knowing'] = hours['large'][name] * 3600 / measured
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
    root.mkdir()
    given = {'problems': problems}
    if trees:
        given |= zip(('sft', 'pairs'), data.curate(trees, **_PAIRS))
    for name, rows in given.items():
        path = root / f'{name}.json'
        path.write_text(json.dumps(rows), encoding='utf-8')
        config['data' if name == 'problems' else 'curate'][name] = str(path)


def _run(
    config: Any, workdir: pathlib.Path, stages: Sequence[str], look: Callable[[], None]
) -> dict[str, float]:
    """Runs a round's stages -> seconds of each, and of compiling."""
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
