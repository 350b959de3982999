"""From texts to packing.Examples: what is tokenized how, and what is learnt at which token.

The prompt is encoded by itself, as the search does before it samples, and the rest by itself: what
a policy spelt in another way than its tokenizer would (`tot` + `al`) is learnt in the tokenizer's,
for examples are texts, as those of other makers are.
Sequences longer than `length` are dropped and counted, never cut: a cut solution has no answer, a
cut step no end.
"""

import collections
import functools
import hashlib
import itertools
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from rstar_jax import steps
from rstar_jax.models.tokenizer import continuing
from rstar_jax.settings.errors import UserError
from rstar_jax.training import packing
from rstar_jax.training.corpus import Encoded, Source, Tell, size_of
from rstar_jax.training.packing import Example

# Per-token fields of a batch.
# mark: 1 + the place in MARKS of the mark that the target belongs to, 0 where it is none.
SFT_FIELDS = {'targets': np.int32, 'weights': np.float32, 'mark': np.int32}
VALUE_FIELDS = {'targets': np.float32, 'weights': np.float32}
PAIR_FIELDS: dict[str, Any] = {}

END_OF_TEXT = 'end of text'
MARKS = (*steps.TEMPLATE_MARKS, END_OF_TEXT)

CORES = 'TOKENIZERS_PARALLELISM'  # a variable that tokenizers reads at each call
GROUP = 8  # pairs of one prefix, or trajectories of one question, kept together in a batch


def sft(
    examples: Iterable[dict[str, Any]], tokenizer, length: int, tell: Tell | None = None
) -> Encoded:
    """{query, response} -> SFT prompt + response + end of text, learnt from the response on.

    tell: called during the first pass over all: (examples looked at, their number). The same of
      the functions below.
    """
    end = tokenizer.eos_token_id
    if end is None:
        expected = 'has no eos_token: SFT cannot teach where a text ends'
        raise UserError('tokenizer', expected=expected, remedy='set it')

    source, going_on = Source(examples, tell), continuing(tokenizer)

    def answered(texts: Sequence[dict]) -> list[Example]:
        prompts = _encode(tokenizer, [steps.prompt(_text(e, 'query')) for e in texts], first=True)
        responses = [_text(e, 'response') for e in texts]
        options = {'add_special_tokens': False, 'return_offsets_mapping': True}
        coded = _tokenized(going_on, responses, **options)
        parts = zip(prompts, responses, coded['input_ids'], coded['offset_mapping'])
        return [_answered(*part, end) for part in parts]

    encoded = Encoded(SFT_FIELDS, length, encode=lambda places: answered(source.read(places)))
    for part in source.parts():
        texts = source.read(part)
        for place, text, example in zip(part, texts, answered(texts)):
            size = len(example.sequences[0])
            if size > length:
                encoded.dropped += 1
            else:
                encoded.add(text['query'], example, place, size)
    return encoded


def _answered(prompt: list[int], response: str, ids: list[int], spans: list, end: int) -> Example:
    """ids, spans: the response's tokens, and where each begins and ends in it."""
    tokens = np.array([*prompt, *ids, end], np.int32)
    learn = slice(len(prompt) - 1, len(tokens) - 1)
    field = {name: np.zeros(len(tokens), dtype) for name, dtype in SFT_FIELDS.items()}
    field['targets'][learn] = tokens[len(prompt) :]
    field['weights'][learn] = 1
    field['mark'][learn] = [*_marks(response, spans), 1 + MARKS.index(END_OF_TEXT)]
    return Example((tokens,), (len(prompt) - 1,), (field,))


def _marks(text: str, spans: list[tuple[int, int]]) -> np.ndarray:
    """i32[S]: 1 + the place in MARKS of the mark in which a token begins; 0 where in none.

    spans: where each token begins and ends in `text`.
    """
    at = np.zeros(len(text) + 1, np.int32)
    for number, mark in enumerate(steps.TEMPLATE_MARKS, 1):
        for found in re.finditer(re.escape(mark), text):
            at[found.start() : found.end()] = number
    return at[[start for start, _ in spans]]


def pairs(
    examples: Iterable[dict[str, Any]], tokenizer, length: int, tell: Tell | None = None
) -> Encoded:
    """{prompt, pos, neg, pos_count, neg_count} -> pairs of one prefix together, in the same row.

    `prompt` is the SFT prompt of the question and the prefix; a bare question is put into the SFT
    prompt. A single pair may fill up to twice `length` where its two texts share little.
    """
    source, going_on = Source(examples, tell), continuing(tokenizer)

    def read(groups: Sequence[Sequence[int]]) -> list[tuple[str, list[tuple]]]:
        """Of each group the question, and its pairs as of `_sides`."""
        texts = source.read(list(itertools.chain.from_iterable(groups)))
        ready = iter(zip(texts, _sides(texts, tokenizer, going_on)))
        made = [[next(ready) for _ in group] for group in groups]
        return [(_parts(group[0][0]['prompt'])[0], [pair for _, pair in group]) for group in made]

    encoded = Encoded(
        PAIR_FIELDS, length, 2 * length, lambda groups: [_pair_group(x) for _, x in read(groups)]
    )
    prefixes: dict[bytes, list[int]] = collections.defaultdict(list)
    for part in source.parts():
        for place, example in zip(part, source.read(part)):
            prompt = _text(example, 'prompt').encode()
            prefixes[hashlib.blake2b(prompt, digest_size=16).digest()].append(place)
    groups = list(prefixes.values())
    for part in source.parts(len(groups)):
        chosen = groups[part.start : part.stop]
        for places, (question, group) in zip(chosen, read(chosen)):
            fits = [i for i, (*sides, _) in enumerate(group) if max(map(len, sides)) <= length]
            encoded.dropped += len(group) - len(fits)
            places, group = ([x[i] for i in fits] for x in (places, group))
            for made, cut, size in _cut(group, GROUP, length, _pair_group):
                encoded.add(question, made, tuple(places[cut]), size)
    return encoded


def _sides(examples: Sequence[dict[str, Any]], tokenizer, going_on) -> list[tuple]:
    """(preferred sequence, rejected sequence, weight) of each pair; going_on: see `continuing`."""
    texts = [text for e in examples for text in (_text(e, 'pos'), _text(e, 'neg'))]
    prompts = [_parts(_text(e, 'prompt')) for e in examples]
    rest = [prefix for _, prefix in prompts for _ in range(2)]
    heads = _encode(tokenizer, [head for head, _ in prompts], first=True)
    ended = _ended(going_on)
    whole = [ended([prefix + text])[0] for prefix, text in zip(rest, texts)]
    tails = _encode(going_on, whole)
    made = []
    for i, example in enumerate(examples):
        sides = [np.array([*heads[i], *tails[2 * i + side]], np.int32) for side in (0, 1)]
        weight = 1 / max(1, example.get('pos_count', 1) * example.get('neg_count', 1))
        made.append((*sides, weight))
    return made


def _cut(
    group: Sequence, most: int, longest: int, make: Callable[[Sequence], Example]
) -> Iterator[tuple[Example, slice, int]]:
    """A group as few examples, each of at most `most` members and, but for a single one, `longest`
    tokens; with each which members they are, and its tokens.

    make: an example of some members.
    """
    start = 0
    while start < len(group):
        count = most
        made = make(group[start : start + count])
        while (size := size_of(made)) > longest and count > 1:
            count //= 2
            made = make(group[start : start + count])
        yield made, slice(start, start + count), size
        start += count


def _pair_group(group: Sequence[tuple]) -> Example:
    """group: as of `_sides`."""
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


def _valued(
    targets: Callable[[dict], list],
    examples: Iterable[dict[str, Any]],
    tokenizer,
    length: int,
    tell: Tell | None = None,
) -> Encoded:
    """Trajectories that follow each other on one question are kept together, in the same row.

    targets: of {query, steps} what each step's last token is to learn, None: nothing.
    """

    source, going_on = Source(examples, tell), continuing(tokenizer)
    ended = _ended(going_on)

    def judged(texts: Sequence[dict]) -> list[Example | None]:
        prompts = _encode(tokenizer, [steps.prompt(_text(e, 'query')) for e in texts], first=True)
        split = [ended(_field(e, 'steps', list)) for e in texts]
        parts = iter(_encode(going_on, list(itertools.chain.from_iterable(split))))
        return [
            _judged(text, prompt, [next(parts) for _ in text['steps']], targets(text))
            for text, prompt in zip(texts, prompts)
        ]

    def read(groups: Sequence[Sequence[int]]) -> list[Example]:
        made = iter(judged(source.read(list(itertools.chain.from_iterable(groups)))))
        return [_together([next(made) for _ in group]) for group in groups]

    encoded = Encoded(VALUE_FIELDS, length, encode=read)
    for part in source.parts():
        texts = source.read(part)
        found = [
            (text['query'], place, example)
            for place, text, example in zip(part, texts, judged(texts))
            if example is not None and len(example.sequences[0]) <= length
        ]
        encoded.dropped += len(texts) - len(found)
        for query, alike in itertools.groupby(found, lambda one: one[0]):
            _, places, made = zip(*alike)
            for example, cut, size in _cut(made, GROUP, length, _together):
                encoded.add(steps.prompt(query), example, places[cut], size)
    return encoded


def _outcome(example: dict) -> list:
    before = len(_field(example, 'steps', list)) - 1
    return [*[None] * before, _field(example, 'correct', int)]


# (examples, tokenizer, length, tell) -> Encoded of {query, steps} and what last tokens learn.
# ORM, `correct`: whether the answer is right, at the end; PQM, `values`: the Q value of each step;
# PRM, `labels`: whether a right answer was reached through it.
outcomes = functools.partial(_valued, _outcome)
q_values = functools.partial(_valued, lambda example: _field(example, 'values', list))
step_labels = functools.partial(_valued, lambda example: _field(example, 'labels', list))


def _together(examples: Sequence[Example]) -> Example:
    return functools.reduce(packing.joined, examples)


def _judged(text: dict, prompt: list[int], split: list[list[int]], values: list) -> Example | None:
    """split: the tokens of each step; values: what its last is to learn."""
    if len(split) != len(values):
        expected = f'has {len(split)} steps but {len(values)} values'
        raise UserError('examples', text['query'][:60], expected, 'give each step its own')
    if not split:
        return None
    tokens = np.array([*prompt, *(token for part in split for token in part)], np.int32)
    ends = len(prompt) - 1 + np.cumsum([len(part) for part in split])
    learnt = [(end, value) for end, value in zip(ends, values) if value is not None]
    targets, weights = np.zeros((2, len(tokens)), np.float32)
    for end, value in learnt:
        targets[end], weights[end] = value, 1
    return Example((tokens,), (int(learnt[0][0]),), ({'targets': targets, 'weights': weights},))


def answer_pairs(
    trajectories: Iterable[dict[str, Any]], questions: Collection[str], tokenizer, length: int
) -> Encoded:
    """Each right trajectory {query, steps, correct} with each wrong one of the same question.

    questions: those to take, as in Encoded.questions.
    """
    asked = [t for t in trajectories if steps.prompt(_text(t, 'query')) in questions]
    encoded = outcomes(asked, tokenizer, length)
    sides: dict[str, tuple[list, list]] = collections.defaultdict(lambda: ([], []))
    for question, example in zip(encoded.questions, encoded.take()):
        for sequence, field in zip(example.sequences, example.fields):
            sides[question][bool(field['targets'][-1])].append(sequence)
    pairs = Encoded(PAIR_FIELDS, length, 2 * length)
    for question, (wrong, right) in sides.items():
        group = [(good, bad, 1.0) for good in right for bad in wrong]
        for made, _, size in _cut(group, packing.MERGED_PAIRS, pairs.row, _pair_group):
            pairs.add(question, made, size=size)
    return pairs


def _parts(prompt: str) -> tuple[str, str]:
    """Splits a pair's prompt into the SFT prompt of its question and the prefix of steps."""
    question, prefix = steps.split_prompt(prompt)
    return steps.prompt(question), prefix


def _ended(tokenizer) -> Callable[[list[str]], list[str]]:
    """What steps are read as, so that each is judged at the token that the search reads it at.

    Where marks are tokens a step ends at one; else in whatever token its policy sampled.
    """
    return steps.ended_at_marks if steps.marks_are_tokens(tokenizer) else list


def _encode(tokenizer, texts: list[str], first: bool = False) -> list[list[int]]:
    """first: the texts begin a sequence, so a tokenizer that writes a BOS token does."""
    if not texts:
        return []
    once = list(dict.fromkeys(texts))  # questions, and the steps of pairs, come several times
    made = dict(zip(once, _tokenized(tokenizer, once, add_special_tokens=first)['input_ids']))
    return [made[text] for text in texts]


def _tokenized(tokenizer, texts: list[str], **options: bool) -> Mapping[str, list]:
    """What the tokenizer gives for texts, which it takes on all cores.

    Elsewhere it takes one core (main.py): a search has texts one by one, for which threads cost
    more than they give, and a process that is forked later could wait for them for ever.
    """
    before = os.environ.get(CORES)
    os.environ[CORES] = 'true'
    try:
        return tokenizer(texts, **options)
    finally:
        if before is None:
            del os.environ[CORES]
        else:
            os.environ[CORES] = before


def _text(example: dict[str, Any], key: str) -> str:
    return _field(example, key, str)


def _field(example: dict[str, Any], key: str, kind: type) -> Any:
    value = example.get(key)
    if not isinstance(value, kind):
        name = {str: 'text', list: 'list', int: 'flag'}[kind]
        raise UserError('examples', str(example)[:60], f'needs the {name} {key!r}')
    return value
