"""A search tree as HTML that folds and unfolds without a script (<details>)."""

import collections
import html
import os

import numpy as np

from rstar_jax.data.trees import TreeStore
from rstar_jax.search.record import Record, Status

MOST_NODES = 400  # drawn of one tree; a larger one loses its least visited branches
LABELS = {
    Status.CODE_ERRORS: 'code errors',
    Status.TOO_DEEP: 'too many steps',
    Status.UNPARSABLE: 'unparsable',
}


def choose(directory: str | os.PathLike, solved: int = 2, unsolved: int = 2) -> list[Record]:
    """Returns a few stored trees, of different problems: solved ones first, then unsolved.

    Trees with both right and wrong answers come before others: there is something to see in them.
    """
    both: list[Record] = []
    right: list[Record] = []
    wrong: list[Record] = []
    seen = set()
    with TreeStore(directory) as store:
        for record in store:
            if record.key[0] in seen:
                continue
            seen.add(record.key[0])
            answers = [c for c, s in zip(record.correct, record.status) if s == Status.ANSWER]
            kind = both if len(set(answers)) == 2 else right if any(answers) else wrong
            limit = unsolved if kind is wrong else solved
            if len(kind) < limit:
                kind.append(record)
            if len(both) >= solved and len(wrong) >= unsolved:
                break
    return (both + right)[:solved] + wrong[:unsolved]


def render(record: Record) -> str:
    """Returns a <section> with the tree; branches that lead to a right answer are unfolded."""
    children = collections.defaultdict(list)
    kept = _kept(record)
    for node in sorted(kept - {0}):
        children[int(record.parent[node])].append(node)
    leads = set()
    for node in np.nonzero(record.correct)[0]:
        leads |= set(record.trajectory(int(node)))
    problem = record.problem
    answer, _ = record.best_answer()
    left_out = len(record.texts) - len(kept)
    parts = [
        '<section class="tree">',
        f'<p><b>{_text(problem["question"])}</b></p>',
        f'<p class="figures">problem {problem["index"]}, tree {record.tree}: '
        f'{len(record.texts)} nodes, answer of the search {_text(answer or "none")}, '
        f'right answer {_text(str(problem.get("answer", "")))}'
        + (f'; {left_out} little visited nodes are not shown' if left_out else '')
        + '</p>',
        *_nodes(record, children, leads),
        '</section>',
    ]
    return '\n'.join(parts)


def _nodes(record: Record, children: dict[int, list[int]], leads: set[int]) -> list[str]:
    """The nodes below the root, depth first; without recursion, so that depth has no limit."""
    lines = []
    stack: list[int | str] = list(reversed(children[0]))
    while stack:
        node = stack.pop()
        if isinstance(node, str):
            lines.append(node)
            continue
        head = f'{_figures(record, node)}'
        body = f'<pre>{_text(record.texts[node].strip())}</pre>'
        if record.outputs[node] and record.status[node] == Status.CODE_ERRORS:
            body += f'<pre class="wrong">{_text(record.outputs[node][-300:])}</pre>'
        if children[node]:
            lines.append(f'<details{" open" if node in leads else ""}><summary>{head}</summary>')
            lines.append(body)
            stack.append('</details>')
            stack += reversed(children[node])
        else:
            lines.append(f'<div class="leaf">{head}{body}</div>')
    return lines


def _figures(record: Record, node: int) -> str:
    status = Status(int(record.status[node]))
    said = ''
    if status == Status.ANSWER:
        kind = 'right' if record.correct[node] else 'wrong'
        said = f' <b class="{kind}">{_text(record.answers[node])} ({kind})</b>'
    elif status in LABELS:
        said = f' <b class="ended">{LABELS[status]}</b>'
    score = record.score[node]
    scored = '' if np.isnan(score) else f', PPM {score:+.2f}'
    q = record.q_values[node]
    return f'<span class="figures">Q {q:+.2f}, {record.visits[node]} visits{scored}</span>{said}'


def _kept(record: Record) -> set[int]:
    """The nodes that are drawn: with each its ancestors, the most visited ones first."""
    kept = {0}
    ranked = sorted(range(1, len(record.texts)), key=lambda i: (-record.visits[i], i))
    for node in np.nonzero(record.correct)[0].tolist() + ranked:
        path = set(record.trajectory(node)) - kept
        if len(kept) + len(path) <= MOST_NODES:
            kept |= path
    return kept


def _text(text: str) -> str:
    return html.escape(text)
