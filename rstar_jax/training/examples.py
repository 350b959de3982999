"""From texts to packing.Examples: what is tokenized how, and what is learnt at which token.

The prompt is encoded by itself, as the search does before it samples, and the rest by itself.
Sequences longer than `length` are dropped and counted, never cut: a cut solution has no answer, a
cut step no end.
"""

import collections
import re
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import numpy as np

from rstar_jax import steps
from rstar_jax.errors import UserError
from rstar_jax.training import packing
from rstar_jax.training.packing import Example

# Per-token fields of a batch.
# mark: 1 + the place in MARKS of the mark that the target belongs to, 0 where it is none.
SFT_FIELDS = {'targets': np.int32, 'weights': np.float32, 'mark': np.int32}
VALUE_FIELDS = {'targets': np.float32, 'weights': np.float32}
PAIR_FIELDS: dict[str, Any] = {}

END_OF_TEXT = 'end of text'
MARKS = (*steps.TEMPLATE_MARKS, END_OF_TEXT)

GROUP_PAIRS = 8  # pairs of one prefix that are kept together in a batch


class Encoded:
    """Encoded examples and what became of the texts.

    Attributes:
      examples: list[Example].
      questions: the question of each example (a reward model's: in the SFT prompt), to hold out
        whole problems.
      dropped: number of examples (pairs) with a sequence of more than `length` tokens.
      fields: the per-token fields that packing.fill shall write.
      row: the longest row that is needed, tokens.
    """

    def __init__(self, fields: dict[str, Any], length: int, row: int | None = None):
        self.examples: list[Example] = []
        self.questions: list[str] = []
        self.dropped = 0
        self.fields = fields
        self.length = length
        self.row = row or length

    def add(self, question: str, example: Example) -> None:
        self.examples.append(example)
        self.questions.append(question)


def sft(examples: Iterable[dict[str, Any]], tokenizer, length: int) -> Encoded:
    """{query, response} -> SFT prompt + response + end of text, learnt from the response on."""
    examples = list(examples)
    if not examples:
        return Encoded(SFT_FIELDS, length)
    end = tokenizer.eos_token_id
    if end is None:
        raise UserError(
            'the tokenizer has no eos_token: SFT cannot teach where a text ends; set it'
        )
    prompts = _encode(tokenizer, [steps.prompt(_text(e, 'query')) for e in examples], first=True)
    responses = [_text(e, 'response') for e in examples]
    coded = tokenizer(responses, add_special_tokens=False, return_offsets_mapping=True)
    encoded = Encoded(SFT_FIELDS, length)
    for i, (example, prompt) in enumerate(zip(examples, prompts)):
        tokens = np.array([*prompt, *coded['input_ids'][i], end], np.int32)
        if len(tokens) > length:
            encoded.dropped += 1
            continue
        learn = slice(len(prompt) - 1, len(tokens) - 1)
        field = {name: np.zeros(len(tokens), dtype) for name, dtype in SFT_FIELDS.items()}
        field['targets'][learn] = tokens[len(prompt) :]
        field['weights'][learn] = 1
        field['mark'][learn] = [
            *_marks(responses[i], coded['offset_mapping'][i]),
            1 + MARKS.index(END_OF_TEXT),
        ]
        encoded.add(example['query'], Example((tokens,), (len(prompt) - 1,), (field,)))
    return encoded


def _marks(text: str, spans: list[tuple[int, int]]) -> np.ndarray:
    """i32[S]: 1 + the place in MARKS of the mark in which a token begins; 0 where in none.

    spans: where each token begins and ends in `text`.
    """
    at = np.zeros(len(text) + 1, np.int32)
    for number, mark in enumerate(steps.TEMPLATE_MARKS, 1):
        for found in re.finditer(re.escape(mark), text):
            at[found.start() : found.end()] = number
    return at[[start for start, _ in spans]]


def pairs(examples: Iterable[dict[str, Any]], tokenizer, length: int) -> Encoded:
    """{prompt, pos, neg, pos_count, neg_count} -> pairs of one prefix together, in the same row.

    `prompt` is the SFT prompt of the question and the prefix; a bare question is put into the SFT
    prompt. A single pair may fill up to twice `length` where its two texts share little.
    """
    examples = list(examples)
    texts = [text for e in examples for text in (_text(e, 'pos'), _text(e, 'neg'))]
    prompts = [_parts(_text(e, 'prompt')) for e in examples]
    rest = [prefix for _, prefix in prompts for _ in range(2)]
    heads = _encode(tokenizer, [head for head, _ in prompts], first=True)
    tails = _encode(tokenizer, [prefix + text for prefix, text in zip(rest, texts)])
    encoded = Encoded(PAIR_FIELDS, length, 2 * length)
    groups: dict[str, list[tuple]] = collections.defaultdict(list)
    for i, example in enumerate(examples):
        sides = [np.array([*heads[i], *tails[2 * i + side]], np.int32) for side in (0, 1)]
        if max(map(len, sides)) > length:
            encoded.dropped += 1
            continue
        weight = 1 / max(1, example.get('pos_count', 1) * example.get('neg_count', 1))
        groups[example['prompt']].append((*sides, weight))
    for prompt, group in groups.items():
        _add_pairs(encoded, _parts(prompt)[0], group, GROUP_PAIRS, length)
    return encoded


def _add_pairs(
    encoded: Encoded, question: str, group: list[tuple], most: int, longest: int
) -> None:
    """Adds pairs as few examples, each of at most `most` pairs and `longest` tokens.

    group: (preferred sequence, rejected sequence, weight) of each pair.
    """
    while group:
        size = most
        made = _pair_group(group[:size])
        while size > 1 and _size(made) > longest:
            size //= 2
            made = _pair_group(group[:size])
        encoded.add(question, made)
        group = group[size:]


def _pair_group(group: Sequence[tuple]) -> Example:
    index: dict[bytes, int] = {}
    sequences, places = [], []
    for chosen, rejected, _ in group:
        for side in (chosen, rejected):
            if side.tobytes() not in index:
                index[side.tobytes()] = len(sequences)
                sequences.append(side)
        places.append((index[chosen.tobytes()], index[rejected.tobytes()]))
    weights = np.array([weight for *_, weight in group], np.float32)
    return Example(
        tuple(sequences),
        tuple(map(len, sequences)),
        pairs=np.array(places, np.int32),
        pair_weights=weights,
        count=len(group),
    )


def _size(example: Example) -> int:
    return len(packing.layout(example.sequences, example.shareable).tokens)


def outcomes(examples: Iterable[dict[str, Any]], tokenizer, length: int) -> Encoded:
    """{query, steps, correct} -> whether the answer is right, at the last token (ORM)."""

    def targets(example):
        before = len(_field(example, 'steps', list)) - 1
        return [*[None] * before, _field(example, 'correct', int)]

    return _valued([(e, targets(e)) for e in examples], tokenizer, length)


def q_values(examples: Iterable[dict[str, Any]], tokenizer, length: int) -> Encoded:
    """{query, steps, values} -> the Q value of each step, at its last token (PQM)."""
    return _valued([(e, _field(e, 'values', list)) for e in examples], tokenizer, length)


def step_labels(examples: Iterable[dict[str, Any]], tokenizer, length: int) -> Encoded:
    """{query, steps, labels} -> whether a step led to a right answer, at its last token (PRM)."""
    return _valued([(e, _field(e, 'labels', list)) for e in examples], tokenizer, length)


def _valued(examples: list[tuple], tokenizer, length: int) -> Encoded:
    """examples: ({query, steps}, for each step what its last token is to learn, None: nothing)."""
    encoded = Encoded(VALUE_FIELDS, length)
    questions = [steps.prompt(_text(e, 'query')) for e, _ in examples]
    prompts = _encode(tokenizer, questions, first=True)
    parts = iter(_encode(tokenizer, [t for e, _ in examples for t in _field(e, 'steps', list)]))
    for (example, values), question, prompt in zip(examples, questions, prompts):
        texts = example['steps']
        if len(texts) != len(values):
            raise UserError(
                f'{example["query"][:60]!r}: {len(texts)} steps but {len(values)} values; give each'
                ' step its own'
            )
        split = [next(parts) for _ in texts]
        tokens = np.array([*prompt, *(token for part in split for token in part)], np.int32)
        if len(tokens) > length or not split:
            encoded.dropped += 1
            continue
        ends = len(prompt) - 1 + np.cumsum([len(part) for part in split])
        learnt = [(end, value) for end, value in zip(ends, values) if value is not None]
        targets, weights = np.zeros((2, len(tokens)), np.float32)
        for end, value in learnt:
            targets[end], weights[end] = value, 1
        field = {'targets': targets, 'weights': weights}
        encoded.add(question, Example((tokens,), (int(learnt[0][0]),), (field,)))
    return encoded


def answer_pairs(
    trajectories: Iterable[dict[str, Any]], questions: Collection[str], tokenizer, length: int
) -> Encoded:
    """Each right trajectory {query, steps, correct} with each wrong one of the same question.

    questions: those to take, as in Encoded.questions.
    """
    asked = [t for t in trajectories if steps.prompt(_text(t, 'query')) in questions]
    encoded = outcomes(asked, tokenizer, length)
    sides: dict[str, tuple[list, list]] = collections.defaultdict(lambda: ([], []))
    for question, example in zip(encoded.questions, encoded.examples):
        right = bool(example.fields[0]['targets'][-1])
        sides[question][right].append(example.sequences[0])
    pairs = Encoded(PAIR_FIELDS, length, 2 * length)
    for question, (wrong, right) in sides.items():
        group = [(good, bad, 1.0) for good in right for bad in wrong]
        _add_pairs(pairs, question, group, packing.MERGED_PAIRS, pairs.row)
    return pairs


def hold_out(
    encoded: Encoded, share: float, seed: int, most: int | None = None
) -> tuple[list[int], list[int]]:
    """Splits by question; returns the indices (for training, held out).

    At least one question is held out where `share` > 0 and there are two of them; at most `most`.
    """
    questions = sorted(set(encoded.questions))
    count = min(len(questions) - 1, max(1, round(share * len(questions)))) if share else 0
    count = count if most is None else min(count, most)
    order = np.random.default_rng([seed, len(questions)]).permutation(len(questions))
    held = {questions[i] for i in order[: max(0, count)]}
    both: tuple[list[int], list[int]] = ([], [])
    for i, question in enumerate(encoded.questions):
        both[question in held].append(i)
    return both


def _parts(prompt: str) -> tuple[str, str]:
    """Splits a pair's prompt into the SFT prompt of its question and the prefix of steps."""
    head, tail = steps.prompt('\0').split('\0')
    question, mark, prefix = prompt.partition(tail)
    if mark and question.startswith(head):
        return question + mark, prefix
    return steps.prompt(prompt), ''


def _encode(tokenizer, texts: list[str], first: bool = False) -> list[list[int]]:
    """first: the texts begin a sequence, so a tokenizer that writes a BOS token does."""
    if not texts:
        return []
    return tokenizer(texts, add_special_tokens=first)['input_ids']


def _text(example: dict[str, Any], key: str) -> str:
    return _field(example, key, str)


def _field(example: dict[str, Any], key: str, kind: type) -> Any:
    value = example.get(key)
    if not isinstance(value, kind):
        name = {str: 'text', list: 'list', int: 'flag'}[kind]
        raise UserError(f'training example {str(example)[:60]}: needs the {name} {key!r}')
    return value
