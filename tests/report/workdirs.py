"""Workdirs as runs leave them, without a run: the files that a report reads."""

import json
import pathlib

from rstar_jax.data.trees import TreeStore
from tests.report.grown import grown


def write(path: pathlib.Path, content) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def benchmark(greedy: float, majority: float | None = None, problems: int = 100) -> dict:
    search, modes = None, {'greedy': greedy}
    if majority is not None:
        found = dict.fromkeys(('majority', 'weighted', 'pooled'), majority)
        found |= {'best': majority - 0.05, 'any': 0.9}
        search, modes = {'trajectories': 8, **found}, modes | found
    return {
        'problems': problems,
        'greedy': greedy,
        'answered': 0.96,
        'greedy_solved': list(range(round(greedy * problems))),
        'search': search,
        'interval95': {k: [max(0, x - 0.1), min(1, x + 0.1)] for k, x in modes.items()},
        'tokens_per_problem': 1234.5,
        'seconds_per_problem': 0.256,
    }


def results(number: int | None, **benchmarks: dict) -> dict:
    return {'round': number, 'benchmarks': benchmarks}


def done(folder: pathlib.Path, seconds: float, **figures) -> None:
    write(folder / 'done.json', {'id': folder.name, 'seconds': seconds, 'figures': figures})


def training(folder: pathlib.Path, steps: int, seconds: float, **further) -> None:
    lines = [
        {'step': i + 1, 'loss': 2.0 / (1 + 0.1 * i), 'learning_rate': 1e-4, 'tokens': 900}
        for i in range(steps)
    ]
    for line in lines[steps // 2 - 1 :: steps // 2]:
        line |= {'held_out_loss': line['loss'] + 0.1} | further
    folder.mkdir(parents=True, exist_ok=True)
    (folder / 'metrics.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))
    before = {f'{name}_before': 0.5 for name in further} | {'held_out_loss_before': 2.1}
    after = {f'{name}_after': value for name, value in further.items()}
    done(folder, seconds, loss_first=2.0, loss_last=lines[-1]['loss'], steps=steps,
         tokens=900 * steps, tokens_per_second=431.2, held_out_pairs=8, held_out_problems=8,
         answer_pairs=9, answer_problems=9,
         **before, **after)  # fmt: skip


def trees(folder: pathlib.Path, problems: int, seed: int = 0, nodes: int = 60, **grow) -> None:
    with TreeStore(folder) as store:
        for i in range(problems):
            problem = {'index': i, 'question': f'What is {i} < {i + 1} & more?', 'answer': '1'}
            store.append(grown(problem, nodes=nodes, seed=seed + i, **grow))


def finished(root: pathlib.Path, rounds: int = 2, name: str = 'gsm8k', gain: float = 0.1) -> None:
    """A run of some rounds, all of whose stages are complete."""
    keys = {'policy.path': 'tiny', 'base.path': '', 'data.problems': 'arithmetic'}
    write(root / 'config.json', {f'round{k}': keys for k in range(1, rounds + 1)})
    for k in range(rounds + 1):
        folder = root / f'round{k}'
        row = benchmark(0.4 + gain * k, 0.5 + gain * k if k else None)
        write(folder / 'eval' / 'results.json', results(k, **{name: row}))
        done(folder / 'eval', 37, **{name: row})
        if not k:
            continue
        trees(folder / 'search', 6, seed=100 * k, scored=k > 1)
        done(folder / 'search', 61 * k, trees=6, problems=100, solved=50 + 10 * k, nodes=360,
             tokens=56003, tokens_per_second=95.3,
             so_far={'problems': 100, 'solved': 50 + 10 * k})  # fmt: skip
        counts = {'problems': 100, 'problems_solved': 50 + 10 * k, 'trajectories_correct': 300,
                  'trajectories_wrong': 800, 'sft': 110, 'sft_dropped_error': 3, 'pairs': 240 * k,
                  'pairs_dropped_margin': 31, 'trajectories': 400}  # fmt: skip
        done(folder / 'curate', 2, **counts)
        training(folder / 'policy', 40, 30)
        training(folder / 'ppm', 20, 300, pair_accuracy=0.7, answer_accuracy=0.6)
        done(folder / 'export', 1, policy='policy', ppm='ppm')
