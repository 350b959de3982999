"""Curation: trees a second from the tree store to training data on disk, and its peak memory.

Random trees of the given size are stored first, outside the measurement: steps of about 130
characters, answers and code errors as frequent as in a search with a small model, two trees a
problem. Then a fresh process runs `data.curate_to` on the store: reading, parsing, curating and
writing are in the time; starting Python is not. `peak_memory_mb` is the whole process at its
highest, about 185 MB of it imports; it must hardly grow with `--trees`.
"""

import dataclasses
import json
import pathlib
import random
import resource
import subprocess
import sys
import tempfile
import time

import numpy as np

from rstar_jax import data, steps
from rstar_jax.data.record import Record, Status

TEXT = 'x total apples = 3 * ( 14 + rate ) / 2 # Step compute the number of left each print'
WORDS = TEXT.split()


@dataclasses.dataclass(frozen=True)
class Settings:
    """nodes: of each tree, at least."""

    trees: int = 1000
    nodes: int = 150
    seed: int = 0


def run(settings: Settings) -> dict[str, float]:
    """Returns `trees_per_second` and `peak_memory_mb` (MiB)."""
    with tempfile.TemporaryDirectory() as directory:
        search = pathlib.Path(directory) / 'search'
        with data.TreeStore(search) as store:
            for number in range(settings.trees):
                rng = random.Random(settings.seed * settings.trees + number)
                store.append(random_tree(rng, number, settings.nodes))
            store.merge()
        code = f'from rstar_jax.bench import curate; curate.measure({str(search)!r})'
        output = subprocess.run(
            [sys.executable, '-c', code], check=True, capture_output=True, text=True
        ).stdout
    return json.loads(output.splitlines()[-1])


def measure(search: str) -> None:
    """Curates the trees in `search` and prints the figures as a line of JSON."""
    start = time.perf_counter()
    counts = data.curate_to(data.TreeStore(search), pathlib.Path(search).with_name('curate'))
    seconds = time.perf_counter() - start
    figures = {'trees_per_second': counts['trees'] / seconds, 'peak_memory_mb': _peak_mb()}
    print(json.dumps(figures))


def _peak_mb() -> float:
    """Most memory that this process has held, MiB."""
    if sys.platform == 'darwin':
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    # Linux counts in ru_maxrss what the parent had when it forked; VmHWM begins with the program.
    status = pathlib.Path('/proc/self/status').read_text(encoding='ascii')
    return int(status.partition('VmHWM:')[2].split()[0]) / 2**10


def random_tree(rng: random.Random, number: int, nodes: int) -> Record:
    """A tree of at least `nodes` nodes with four children a node and backed-up rewards."""
    parent, depth, status = [-1], [0], [int(Status.OPEN)]
    texts, answers, correct, tokens = [''], [''], [False], [[]]
    visits, total = [0], [0.0]
    open_nodes = [0]
    while len(parent) < nodes and open_nodes:
        at = open_nodes.pop(rng.randrange(len(open_nodes)))
        for _ in range(4):
            i = len(parent)
            # A quarter each answers from depth 2 on; one open node always stays.
            chance = rng.random()
            kind = Status.OPEN
            if open_nodes and depth[at] >= 2:
                kind = Status.ANSWER if chance < 0.25 else kind
                kind = Status.CODE_ERRORS if chance > 0.9 else kind
            parent.append(at)
            depth.append(depth[at] + 1)
            status.append(int(kind))
            texts.append(' '.join(rng.choices(WORDS, k=30)) + '\n' + steps.STEP_END)
            tokens.append([rng.randrange(32000) for _ in range(40)])
            correct.append(kind == Status.ANSWER and rng.random() < 0.5)
            answers.append({Status.OPEN: '', Status.ANSWER: '42'}.get(kind, 'Too many errors'))
            visits.append(0)
            total.append(0.0)
            if kind == Status.OPEN:
                open_nodes.append(i)
            elif kind == Status.ANSWER:
                _back_up(parent, visits, total, i, 1.0 if correct[i] else -1.0)
            else:
                visits[i], total[i] = 1, -1.0
    size = len(parent)
    return Record(
        problem=data.Problem(number // 2, TEXT, '42'),
        tree=number % 2,
        prompt=steps.prompt(TEXT),
        texts=texts,
        tokens=tokens,
        parent=np.array(parent, np.int32),
        visits=np.array(visits, np.int32),
        value_sum=np.array(total, np.float32),
        score=np.full(size, np.nan, np.float32),
        depth=np.array(depth, np.int32),
        status=np.array(status, np.uint8),
        errors=np.zeros(size, np.int32),
        answers=answers,
        code=texts,
        outputs=[''] * size,
        correct=correct,
        counters={},
    )


def _back_up(
    parent: list[int], visits: list[int], total: list[float], node: int, reward: float
) -> None:
    while node >= 0:
        visits[node] += 1
        total[node] += reward
        node = parent[node]
