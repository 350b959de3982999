"""The search in plain Python, one tree at a time: what the arrays on the device must agree with."""

import dataclasses
import math

import numpy as np

from rstar_jax import steps
from rstar_jax.search import Status

ZERO = np.float32(0)


@dataclasses.dataclass(eq=False)
class Node:
    text: str
    parent: 'Node | None' = None
    depth: int = 0
    children: list['Node'] = dataclasses.field(default_factory=list)
    status: int = Status.OPEN
    visits: int = 0
    value_sum: np.float32 = ZERO
    errors: int = 0
    answer: str = ''
    score: float = 0.0
    reward: float = -1.0

    def path(self):
        return [*(self.parent.path() if self.parent else []), self]

    def partial(self):
        return ''.join(node.text for node in self.path())


def uct(node, config):
    if config.strategy == 'puct':
        mean = node.value_sum / np.float32(max(node.visits, 1))
        # Scripted steps are all as likely as each other.
        prior = np.float32(1 / len(node.parent.children))
        share = np.sqrt(np.float32(node.parent.visits)) / np.float32(1 + node.visits)
        return mean + np.float32(config.exploration) * prior * share
    if node.visits == 0:
        return np.float32(config.unvisited_value)
    count = np.float32(node.visits)
    log_parent = np.float32(math.log(max(node.parent.visits, 1)))
    bonus = np.float32(config.exploration) * np.sqrt(log_parent / count)
    return node.value_sum / count + bonus


def best_child(node, config):
    best = None
    for child in node.children:
        if child.status != Status.OPEN:
            continue
        if best is None or uct(child, config) > uct(best, config):
            best = child
    return best


def search(question, truth, texts, score, execute, config):
    """Grows a tree and returns its nodes in the order of their making.

    execute(cells) -> (ok, output); answers are compared as strings.
    """
    root = Node('')
    nodes = [root]
    if config.strategy in ('beam', 'dvts'):
        beams = [root]
        while beams:
            for beam in beams:
                expand(beam, question, truth, texts, score, execute, config)
                nodes += beam.children
                if enough(beam, config):
                    return nodes
            beams = next_beams(beams, nodes, config)
        return nodes
    for _ in range(config.rollouts):
        if root.status != Status.OPEN:
            break
        node = root
        if root.children:
            node = best_child(root, config)
            if node is None:
                root.status = Status.EXHAUSTED
                break
        for _ in range(config.max_depth):
            if not node.children:
                expand(node, question, truth, texts, score, execute, config)
                nodes += node.children
                if enough(node, config):
                    return nodes
            child = best_child(node, config)
            if child is None:
                node.status = Status.EXHAUSTED
                break
            node = child
    return nodes


def enough(node, config):
    return any(c.status == Status.ANSWER and c.reward >= config.stop_reward for c in node.children)


def next_beams(beams, nodes, config):
    """One beam fewer for each that has found an answer; in DVTS its subtree ends."""
    answers = [node for node in nodes if node.status == Status.ANSWER]
    ended = {id(node.parent) for node in answers}
    below = [c for beam in beams for c in beam.children if c.status == Status.OPEN]
    width = config.width - len(ended)
    if config.strategy == 'dvts':
        width = config.width - sum(node.depth == 1 for node in answers)
        if beams[0].parent:
            groups = [[c for c in b.children if c in below] for b in beams if id(b) not in ended]
            return [max(group, key=lambda c: c.score) for group in groups if group]
    best = sorted(below, key=lambda c: -c.score)[: max(width, 0)]
    return [c for c in below if c in best]


def expand(node, question, truth, texts, score, execute, config):
    prefix = node.partial()
    candidates = texts(question, prefix, config.candidates)
    answers = [t for t in candidates if t.rstrip().endswith(steps.ANSWER_END)]
    if answers and config.answers_kept == 'first':
        candidates = answers[:1]
    for text in dict.fromkeys(candidates):
        child = Node(text, node, node.depth + 1)
        judge(child, truth, execute, config)
        if child.status == Status.OPEN and child.depth > config.max_depth:
            child.status = Status.TOO_DEEP
        node.children.append(child)
        if child.status == Status.ANSWER:
            if config.use_ground_truth:
                reward = np.float32(1 if child.answer == truth else -1)
            else:
                reward = np.float32(score(question, child.partial()) if score else 0)
            child.reward = reward
            for above in child.path():
                above.visits += 1
                above.value_sum = np.float32(above.value_sum + reward)
        elif child.status != Status.OPEN:
            child.visits, child.value_sum = 1, np.float32(-1)
        elif score:
            child.score = np.float32(score(question, child.partial()))
            child.visits, child.value_sum = 1, child.score


def judge(child, truth, execute, config):
    ends = child.text.rstrip().endswith(steps.ANSWER_END)
    box = steps.boxed(child.text, bare=ends)
    if not child.text.strip():
        child.status = Status.UNPARSABLE
    elif box:
        child.status, child.answer = Status.ANSWER, box
    elif ends:
        child.status = Status.UNPARSABLE
    else:
        cells = []
        for above in reversed(child.parent.path()[1:]):
            if steps.CODE_END in above.text:
                break
            cells.insert(0, steps.code_of(above.text))
        cells.append(steps.code_of(child.text))
        ok, output = execute(cells)
        if config.failed_steps == 'again':
            # The program is run from its first step on, and stops where it fails.
            for count in range(1, len(cells)):
                ran, said = execute(cells[:count])
                if not ran:
                    ok, output = ran, said
                    break
        child.errors = 0 if ok else child.parent.errors + 1
        if child.errors >= config.error_threshold:
            child.status = Status.CODE_ERRORS
        if child.status == Status.CODE_ERRORS or steps.CODE_END in child.text:
            child.text = steps.with_output(child.text, output)
