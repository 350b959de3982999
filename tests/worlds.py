"""A world small enough to be learnt by heart, for whole rounds by the real command.

A tiny policy learns four questions, each with a right and a wrong solution. So the search finds
both, curation finds pairs, and every stage has real work to do.
"""

import dataclasses
import json
import pathlib
import shutil
import subprocess
import sys

from rstar_jax import data, steps, training
from rstar_jax.data import arithmetic
from rstar_jax.models import tiny
from tests.parallel import processes

REPOSITORY = pathlib.Path(__file__).parents[1]

CONFIG = """
from rstar_jax import settings

def get_config():
    config = settings.default()
    config.policy.dtype = 'float32'
    config.search.rollouts = 5
    config.search.temperature = 0.8
    config.search.candidates = 4
    config.search.max_depth = 4
    config.search.step_tokens = 40
    config.search.path_tokens = 256
    config.execution.workers = 1
    config.curate.edit_distance = 1
    config.training.dtype = 'float32'
    for part in (config.training.sft, config.training.ppm):
        part.length = 160
        part.batch_size = 8
        part.micro_batch = 4
        part.learning_rate = 1e-3
    config.training.sft.epochs = 3
    config.training.sft.learning_rate = 1e-4  # so that the policy goes on to err
    config.training.ppm.learning_rate = 1e-4
    config.training.ppm.dropout = 0.0  # its masks depend on the number of devices
    config.training.ppm.held_out = 0.25
    config.data.overlap = 0  # the problems are those of the benchmark
    config.eval.strategies = 'greedy,sampled,unguided,mcts'
    config.eval.prompt = 'sft'
    config.eval.samples = 6
    config.eval.trajectories = 2
    config.eval.rollouts = 1
    config.eval.candidates = 2
    return config
"""


def make(folder: pathlib.Path) -> None:
    """Puts config.py, problems.json and a policy that knows these by heart into a folder."""
    folder.mkdir()
    (folder / 'config.py').write_text(CONFIG)
    # So different that a tiny model tells them apart.
    told = (
        ('How many apples has Ann?', '12'),
        ('Ben counts his books. How many are there?', '7'),
        ('Cleo sells cards, and then some more of them; how many does she sell?', '35'),
        ('What number of eggs is in the nest that Dan finds?', '4'),
    )
    problems = [{'index': i, 'question': q, 'answer': a} for i, (q, a) in enumerate(told)]
    (folder / 'problems.json').write_text(json.dumps(problems))
    examples = []
    for problem in problems:
        for comment, value in (('add it up', problem['answer']), ('wild guess here', '0')):
            examples.append({'query': problem['question'], 'response': solution(comment, value)})
    changes = {'epochs': 150, 'batch_size': 8, 'length': 128, 'micro_batch': 8}
    changes |= {'learning_rate': 3e-3, 'dtype': 'float32'}
    settings = training.settings('sft', changes)
    texts = [text for e in examples for text in e.values()]
    policy = tiny.policy(arithmetic.vocabulary() + texts, num_layers=2)
    training.sft(policy, examples, settings, folder / 'policy')
    shutil.copytree(folder / 'policy', folder / 'base')


def solution(comment: str, value: str) -> str:
    return (
        f'{steps.CODE}\n# Step 1: {comment}\nx = {value}\n{steps.STEP_END}\n'
        f'# Print the answer\nprint(x)\n{steps.CODE_END}\n'
        f'{steps.OUTPUT}{value}{steps.OUTPUT_END}\n'
        f'{steps.ANSWER}There are \\boxed{{{value}}}.{steps.ANSWER_END}'
    )


def command(world: pathlib.Path, workdir: pathlib.Path | str, *more: str) -> list[str]:
    return [
        sys.executable,
        '-m',
        'rstar_jax.main',
        f'--config={world / "config.py"}',
        f'--workdir={workdir}',
        f'--config.policy.path={world / "policy"}',
        f'--config.base.path={world / "base"}',
        f'--config.data.problems={world / "problems.json"}',
        f'--config.eval.benchmarks={world / "problems.json"}',
        *more,
    ]


def run(world: pathlib.Path, workdir: pathlib.Path, *more: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        command(world, workdir, *more),
        cwd=REPOSITORY,
        env=processes.environment_of(1),
        capture_output=True,
        text=True,
        timeout=900,
    )


def trees(folder: pathlib.Path) -> dict[tuple[int, int], bytes]:
    """The stored trees without their counters, which hold seconds."""
    with data.TreeStore(folder) as store:
        return {r.key: dataclasses.replace(r, counters={}).to_bytes() for r in store}
