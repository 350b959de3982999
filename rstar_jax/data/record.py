"""A finished tree, as it is stored, exported and trained on."""

import dataclasses
import enum
from typing import Any

import numpy as np
from flax import serialization

from rstar_jax import steps
from rstar_jax.data.problem import Problem


class Status(enum.IntEnum):
    """What a node is. All but OPEN are terminal: the walk never enters them."""

    OPEN = 0
    ANSWER = 1
    CODE_ERRORS = 2
    TOO_DEEP = 3
    UNPARSABLE = 4
    EXHAUSTED = 5


TERMINAL_ANSWERS = {
    Status.CODE_ERRORS: steps.CODE_ERRORS_ANSWER,
    Status.TOO_DEEP: steps.TOO_DEEP_ANSWER,
    Status.UNPARSABLE: steps.UNPARSABLE_ANSWER,
}


@dataclasses.dataclass(frozen=True, eq=False)
class Record:
    """One search tree over one problem. Node 0 is the root; a parent comes before its children.

    Attributes:
      problem: that it is of.
      tree: which of the problem's trees this is, from 0.
      prompt: the text in front of the first step.
      texts: N texts, one a node, executor outputs included; '' for the root.
      tokens: N lists of token ids, the same content as policy tokens; empty without a policy.
      parent: i32[N], -1 for the root.
      visits: i32[N], visit counts.
      value_sum: f32[N], sums of what was backed up; Q = value_sum / visits.
      score: f32[N], PPM scores, nan where there is none.
      depth: i32[N], 0 for the root.
      status: u8[N], Status codes.
      errors: i32[N], consecutive steps with code errors that end in the node.
      answers: N final answers; '' for nodes that are not terminal.
      code: N programs, the node's own step only.
      outputs: N executor outputs or errors.
      correct: N flags, equivalence of an ANSWER node's answer to the ground truth.
      counters: of this tree: sampled_tokens; policy_computed and ppm_computed, positions that the
        models were run on (what all prompts share left out); seconds.
      likelihood: f32[N], the log-probability of the tokens that were sampled for the node, summed,
        under the temperature of the sampling; None where it is not known.
      cut: bool[N], whether a step was stopped: at its longest, or as it repeated itself; None where
        it is not known.
      seed: of the search, from which every sample's key is made; None where it is not known.
    """

    problem: Problem
    tree: int
    prompt: str
    texts: list[str]
    tokens: list[list[int]]
    parent: np.ndarray
    visits: np.ndarray
    value_sum: np.ndarray
    score: np.ndarray
    depth: np.ndarray
    status: np.ndarray
    errors: np.ndarray
    answers: list[str]
    code: list[str]
    outputs: list[str]
    correct: list[bool]
    counters: dict[str, float]
    likelihood: np.ndarray | None = None
    cut: np.ndarray | None = None
    seed: int | None = None

    def __repr__(self) -> str:
        index, tree = self.problem.index, self.tree
        return f'Record({index=}, {tree=}, nodes={len(self.texts)}, solved={self.solved})'

    @property
    def key(self) -> tuple[int, int]:
        """(problem index, tree number): which tree of a run this is."""
        return self.problem.index, self.tree

    @property
    def solved(self) -> bool:
        """Whether some trajectory ends in a correct answer."""
        return any(self.correct)

    @property
    def q_values(self) -> np.ndarray:
        """f32[N], mean backed-up value, 0 where a node was never visited."""
        return self.value_sum / np.maximum(self.visits, 1).astype(np.float32)

    @property
    def answer_nodes(self) -> list[int]:
        """The nodes that end in an answer."""
        return (self.status == Status.ANSWER).nonzero()[0].tolist()

    def best_node(self) -> int | None:
        """Returns the ANSWER node with the highest score, the first of equals; None without any.

        The score is the PPM's, or the mean backed-up value where no PPM was used.
        """
        found = self.answer_nodes
        return found[np.argmax(self._judged[found])] if found else None

    def best_answer(self) -> tuple[str, float]:
        """Returns the answer of `best_node` and its score; ('', -inf) without any."""
        node = self.best_node()
        return ('', -np.inf) if node is None else (self.answers[node], float(self._judged[node]))

    @property
    def _judged(self) -> np.ndarray:
        """f32[N], PPM scores, mean backed-up values where there is none."""
        return np.where(np.isnan(self.score), self.q_values, self.score)

    def trajectory(self, node: int) -> list[int]:
        """Returns the nodes from the root's child down to `node`."""
        path = []
        while node > 0:
            path.append(int(node))
            node = self.parent[node]
        return path[::-1]

    def tags(self) -> list[str]:
        """Returns each node's tag in the interchange form: '0', '0.1', '0.1.2', ..."""
        tags, born = [], [0] * len(self.texts)
        for parent in self.parent:
            if parent < 0:
                tags.append('0')
                continue
            born[parent] += 1
            tags.append(f'{tags[parent]}.{born[parent]}')
        return tags

    def to_interchange(self) -> dict[str, Any]:
        """Returns the problem's fields and `rstar`: {tag: node}, the released code's tree form."""
        nodes, q_values = {}, self.q_values
        for i, tag in enumerate(self.tags()):
            ran = bool(self.code[i])
            nodes[tag] = {
                'text': self.texts[i],
                'extra_info': f'question: {self.problem.question}' if i == 0 else '',
                'action': 'python_interpreter' if ran else '',
                'action_input': self.code[i],
                'observation': self.outputs[i],
                'final_answer': self.answers[i],
                'value': 0.0 if np.isnan(self.score[i]) else float(self.score[i]),
                'q_value': float(q_values[i]),
                'visit_count': int(self.visits[i]),
            }
        return {**self.problem.row, 'rstar': nodes}

    @classmethod
    def from_interchange(cls, tree: dict[str, Any], number: int = 0) -> 'Record':
        """Reads the released code's tree form; what it does not hold is derived or left empty.

        An ANSWER node is read as correct when its Q value is above 0, as in training trees.
        """
        nodes = tree['rstar']
        tags = sorted(nodes, key=lambda t: [int(x) for x in t.split('.')])
        tags.sort(key=lambda t: t.count('.'))
        index = {tag: i for i, tag in enumerate(tags)}
        kinds = {answer: status for status, answer in TERMINAL_ANSWERS.items()}
        parent = [index[t.rpartition('.')[0]] if '.' in t else -1 for t in tags]
        answers = [nodes[t].get('final_answer') or '' for t in tags]
        status = [kinds.get(a, Status.ANSWER if a else Status.OPEN) for a in answers]
        visits = np.array([nodes[t]['visit_count'] or 0 for t in tags], np.int32)
        q_values = np.array([nodes[t].get('q_value') or 0.0 for t in tags], np.float32)
        score = np.array([nodes[t].get('value') or np.nan for t in tags], np.float32)
        answer_nodes = [s == Status.ANSWER for s in status]
        return cls(
            problem=Problem.of({k: v for k, v in tree.items() if k != 'rstar'}),
            tree=number,
            prompt='',
            texts=[nodes[t]['text'] or '' for t in tags],
            tokens=[[] for _ in tags],
            parent=np.array(parent, np.int32),
            visits=visits,
            value_sum=(q_values * visits).astype(np.float32),
            score=score,
            depth=np.array([t.count('.') for t in tags], np.int32),
            status=np.array(status, np.uint8),
            errors=np.zeros(len(tags), np.int32),
            answers=answers,
            code=[nodes[t].get('action_input') or '' for t in tags],
            outputs=[nodes[t].get('observation') or '' for t in tags],
            correct=[a and q > 0 for a, q in zip(answer_nodes, q_values.tolist(), strict=True)],
            counters={},
        )

    def to_bytes(self) -> bytes:
        """Serialises to msgpack; `from_bytes` gives back an equal record."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        fields['problem'] = self.problem.to_dict()
        fields['tokens'] = np.concatenate([np.asarray(t, np.int32) for t in self.tokens])
        fields['token_counts'] = np.array([len(t) for t in self.tokens], np.int32)
        fields['correct'] = np.array(self.correct, bool)
        return serialization.msgpack_serialize(fields)

    @classmethod
    def from_bytes(cls, data: bytes) -> 'Record':
        """Inverse of `to_bytes`."""
        fields = serialization.msgpack_restore(data)
        cuts = np.cumsum(fields.pop('token_counts'))[:-1]
        fields['tokens'] = [t.tolist() for t in np.split(fields['tokens'], cuts)]
        fields['problem'] = Problem.of(fields['problem'])
        fields['correct'] = fields['correct'].tolist()
        return cls(**fields)
