"""Trees for tests: written by hand in a short notation, or grown at random like the search does."""

import random
from typing import Any

import numpy as np

from rstar_jax import steps
from rstar_jax.data.problem import Problem
from rstar_jax.data.record import Record

# (text, q, kind or children); kind: 'right', 'wrong', 'code', 'deep', 'unparsable', 'open'
ANSWERS = {
    'right': '42',
    'wrong': '41',
    'code': steps.CODE_ERRORS_ANSWER,
    'deep': steps.TOO_DEEP_ANSWER,
    'unparsable': steps.UNPARSABLE_ANSWER,
    'open': '',
}


def node(text: str, q: float, answer: str = '', visits: int = 1, value: float = 0.0) -> dict:
    return {
        'text': text,
        'extra_info': '',
        'action': '',
        'action_input': '',
        'observation': '',
        'final_answer': answer,
        'value': value,
        'q_value': q,
        'visit_count': visits,
    }


def tree(children: list, index: int = 0, question: str = 'How many?', **fields: Any) -> dict:
    """An interchange tree out of nested (text, q, kind or children)."""
    nodes = {'0': node('', 0.0, visits=9)}
    nodes['0']['extra_info'] = f'question: {question}'

    def add(tag: str, children: list) -> None:
        for i, (text, q, below) in enumerate(children, 1):
            kind = below if isinstance(below, str) else 'open'
            nodes[f'{tag}.{i}'] = node(text, q, ANSWERS[kind])
            if not isinstance(below, str):
                add(f'{tag}.{i}', below)

    add('0', children)
    return {'index': index, 'question': question, 'answer': '42', **fields, 'rstar': nodes}


def grown(seed: int, index: int = 0, number: int = 0, ppm: bool = False, size: int = 40) -> Record:
    """A random tree with backed-up rewards, as the search leaves it; texts of varied likeness."""
    rng = random.Random(seed)
    words = ['add the apples', 'x = 3 * 14', 'count', 'subtract both sides', 'error', 'y = 2']
    parent, depth, status, answers = [-1], [0], [0], ['']
    texts, correct = [''], [False]
    visits, total = [0], [0.0]
    score = [np.nan]

    def backup(i: int, reward: float) -> None:
        while i >= 0:
            visits[i] += 1
            total[i] += reward
            i = parent[i]

    while len(parent) < size:
        at = rng.choice([i for i in range(len(parent)) if status[i] == 0])
        for _ in range(rng.randint(1, 4)):
            i = len(parent)
            parent.append(at)
            depth.append(depth[at] + 1)
            texts.append(f'# {i}: {" ".join(rng.choices(words, k=rng.randint(1, 5)))}\n')
            visits.append(0)
            total.append(0.0)
            score.append(np.nan)
            kind = rng.choices([0, 1, 2, 3, 4], [10, 5, 1, 1, 1])[0]
            status.append(kind)
            right = kind == 1 and rng.random() < 0.5
            correct.append(right)
            code, deep = steps.CODE_ERRORS_ANSWER, steps.TOO_DEEP_ANSWER
            answers.append(['', '42' if right else '41', code, deep, steps.UNPARSABLE_ANSWER][kind])
            if kind == 1:
                backup(i, 1.0 if right else -1.0)
            elif kind:
                visits[i], total[i] = 1, -1.0
            elif ppm:
                score[i] = np.float32(np.tanh(rng.gauss(0, 1)))
                visits[i], total[i] = 1, float(score[i])
        if not any(s == 0 for s in status):
            break
    n = len(parent)
    return Record(
        problem=Problem(index, f'Question {index}?', '42'),
        tree=number,
        prompt='',
        texts=texts,
        tokens=[[i] * (i % 5) for i in range(n)],
        parent=np.array(parent, np.int32),
        visits=np.array(visits, np.int32),
        value_sum=np.array(total, np.float32),
        score=np.array(score, np.float32),
        depth=np.array(depth, np.int32),
        status=np.array(status, np.uint8),
        errors=np.zeros(n, np.int32),
        answers=answers,
        code=['x = 1' if i else '' for i in range(n)],
        outputs=[''] * n,
        correct=correct,
        counters={'tokens': float(n)},
    )


def same(one: Record, other: Record) -> bool:
    """Whether two records hold the same."""
    return (
        one.key == other.key
        and one.texts == other.texts
        and one.tokens == other.tokens
        and one.answers == other.answers
        and one.correct == other.correct
        and all(
            np.array_equal(getattr(one, f), getattr(other, f))
            for f in ('parent', 'visits', 'value_sum', 'status')
        )
    )
