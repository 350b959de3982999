"""Trees of any size, as a search grows them: expansion after expansion, rollout after rollout."""

import numpy as np

from rstar_jax.data.problem import Problem
from rstar_jax.data.record import Record, Status

ENDS = (Status.ANSWER, Status.ANSWER, Status.CODE_ERRORS, Status.TOO_DEEP, Status.OPEN)


def grown(problem, number=0, nodes=60, candidates=8, depth=8, seed=0, scored=True) -> Record:
    """A tree of exactly `nodes` nodes. Its texts name their node: 'value_12 = 12 * 3'."""
    random = np.random.default_rng(seed)
    parent, level, status, visits, total, correct = [-1], [0], [Status.OPEN], [0], [0.0], [False]
    cursor = 0
    while len(parent) < nodes:
        new = range(len(parent), min(nodes, len(parent) + candidates))
        for _ in new:
            deep = level[cursor] + 1
            kind = ENDS[random.integers(4)] if deep >= depth else Status.OPEN
            if deep > 2 and random.random() < 0.15:
                kind = ENDS[random.integers(len(ENDS))]
            right = bool(kind == Status.ANSWER and random.random() < 0.4)
            value = (1.0 if right else -1.0) if kind != Status.OPEN else 0.0
            parent.append(cursor)
            level.append(deep)
            status.append(kind)
            correct.append(right)
            visits.append(int(kind != Status.OPEN))
            total.append(value)
            above = cursor if kind == Status.ANSWER else -1
            while above >= 0:
                visits[above] += 1
                total[above] += value
                above = parent[above]
        open_ = [i for i in new if status[i] == Status.OPEN]
        if open_ and level[cursor] + 1 < depth:
            cursor = open_[0]
        else:  # the next rollout: somewhere that has no children yet
            childless = set(range(len(parent))) - set(parent)
            cursor = next(i for i in sorted(childless) if status[i] == Status.OPEN)
    n = len(parent)
    score = (
        random.uniform(-1, 1, n).astype(np.float32) if scored else np.full(n, np.nan, np.float32)
    )
    score[0] = np.nan
    return Record(
        problem=Problem.of(problem),
        tree=number,
        prompt='',
        texts=['', *(_text(i, status[i]) for i in range(1, n))],
        tokens=[[] for _ in range(n)],
        parent=np.array(parent, np.int32),
        visits=np.array(visits, np.int32),
        value_sum=np.array(total, np.float32),
        score=score,
        depth=np.array(level, np.int32),
        status=np.array(status, np.uint8),
        errors=np.array([kind == Status.CODE_ERRORS for kind in status], np.int32),
        answers=[
            ('1' if right else str(i)) if kind == Status.ANSWER else ''
            for i, (kind, right) in enumerate(zip(status, correct))
        ],
        code=[''] * n,
        outputs=['NameError: x' if kind == Status.CODE_ERRORS else '' for kind in status],
        correct=correct,
        counters={'sampled_tokens': 10.0},
    )


def _text(i: int, kind: Status) -> str:
    if kind == Status.ANSWER:
        return f'<answer>So it is \\boxed{{{i}}}.<end_of_answer>'
    return (
        f"# Step {i}: take <{i}> & go on\nvalue_{i} = round({i} * 3, 2)  # 'note'\n<end_of_step>\n"
    )
